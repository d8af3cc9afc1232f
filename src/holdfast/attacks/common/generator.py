"""Learned manifolds: training a decoder on data, and the code of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.core.errors import UsageError
from holdfast.data.dataset import Dataset
from holdfast.models.vae import Vae, seeded_vae
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

__all__ = ["codes_of", "learned_vae", "off_manifold"]

_BATCH = 64
_RATE = 5e-3


def learned_vae(
    data: Dataset,
    *,
    latent: int,
    classes: int,
    epochs: int,
    beta: float = 0.5,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Vae:
    """A class-conditional autoencoder of images in [0, 1], in evaluation mode.

    Raises:
        UsageError: no images, or values outside [0, 1].

    Example:
        >>> from holdfast.data import load_data
        >>> learned_vae(load_data("digits:train").head(64), latent=4, classes=10, epochs=1).latent
        4
    """
    if not len(data) or data.x.ndim != 4 or float(data.x.min()) < 0 or float(data.x.max()) > 1:
        raise UsageError("a decoder is learned from images (n, C, H, W) in [0, 1]")
    vae = seeded_vae(tuple(data.x.shape[1:]), latent, classes, seed)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return vae.loss(batch.x, batch.y, batch.draws.normal("latent", (latent,)).to(batch.x), beta)

    with torch.enable_grad():
        fit(
            vae,
            data,
            loss,
            settings=TrainingSettings(epochs=epochs, batch=_BATCH, rate=_RATE, validation=0.0, seed=seed),
            device=device,
        )
    return vae.requires_grad_(False)


def codes_of(vae: Vae, x: Tensor, y: Tensor, *, steps: int, bound: float, rate: float = 0.05) -> Tensor:
    """(n, latent) codes whose pictures are near x: the encoder's, improved by Adam on the squared error.

    Adam works number by number and the error is a sum, so that a code does not depend on who shares the batch.
    """
    label = vae.one_hot(y)
    with torch.no_grad():
        code = vae.encode(x, label)[0].clamp(-bound, bound)
    first, second = torch.zeros_like(code), torch.zeros_like(code)
    best, least = code, torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
    for k in range(1, steps + 2):
        with torch.enable_grad():
            at = code.detach().requires_grad_()
            error = (vae.decode(at, label) - x).square().flatten(1).sum(1)
            (grad,) = torch.autograd.grad(error.sum(), at)
        better = error.detach() < least
        best = torch.where(better.unsqueeze(1), code, best)
        least = torch.where(better, error.detach(), least)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
        move = (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
        code = (code - rate * move).clamp(-bound, bound)
    return best


def off_manifold(vae: Vae, x: Tensor, y: Tensor, *, steps: int = 50, bound: float = 3.0) -> Tensor:
    """(n,) root mean squared distance of images from the nearest picture of their class that was found."""
    code = codes_of(vae, x, y, steps=steps, bound=bound)
    with torch.no_grad():
        return (vae.decode(code, vae.one_hot(y)) - x).square().flatten(1).mean(1).sqrt()
