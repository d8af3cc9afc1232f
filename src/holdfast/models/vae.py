"""A small class-conditional variational autoencoder, and its decoder as a transform: the learned manifold of a class."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.draws import seeded
from holdfast.transforms.transform import Axis, Transform

__all__ = ["Decoded", "Vae", "seeded_vae"]


class Vae(nn.Module):
    """Images in [0, 1] of a class <-> codes that are nearly standard normal (Kingma & Welling 2014; Sohn et al. 2015).

    Example:
        >>> vae = Vae((1, 8, 8), latent=4, classes=10)
        >>> code = vae.encode(torch.zeros(2, 1, 8, 8), vae.one_hot(torch.tensor([0, 1])))[0]
        >>> vae.decode(code, vae.one_hot(torch.tensor([0, 1]))).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, shape: tuple[int, ...], latent: int, classes: int, hidden: int = 256) -> None:
        """Args:
        shape: of one image.
        latent: numbers in a code.
        classes: K.
        hidden: width of the two hidden layers of encoder and decoder.
        """
        super().__init__()
        self.shape, self.latent, self.classes = tuple(shape), latent, classes
        features = prod(shape)
        self.encoder = nn.Sequential(
            nn.Linear(features + classes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent + classes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, features),
        )

    def one_hot(self, y: Tensor) -> Tensor:
        """(n, K) labels as decoder and encoder read them, in the dtype of the weights."""
        return F.one_hot(y, self.classes).to(next(self.parameters()))

    def encode(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """(n, \\*shape) and (n, K) -> mean and log-variance of the code, (n, latent) each."""
        mean, log_variance = self.encoder(torch.cat([x.flatten(1), label], 1)).chunk(2, dim=1)
        return mean, log_variance

    def logits(self, code: Tensor, label: Tensor) -> Tensor:
        """(n, features) what a sigmoid turns into pixels."""
        return self.decoder(torch.cat([code, label], 1))

    def decode(self, code: Tensor, label: Tensor) -> Tensor:
        """(n, latent) and (n, K) -> (n, \\*shape) images in [0, 1]."""
        return self.logits(code, label).sigmoid().view(-1, *self.shape)

    def loss(self, x: Tensor, y: Tensor, noise: Tensor, beta: float = 1.0) -> Tensor:
        """The negative evidence bound, mean over the batch: binary cross-entropy of the pixels plus beta times the divergence
        of the code from the standard normal; noise is (n, latent), standard normal.
        """
        label = self.one_hot(y)
        mean, log_variance = self.encode(x, label)
        logits = self.logits(mean + (log_variance / 2).exp() * noise, label)
        pixels = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none").sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (pixels + beta * divergence).mean()


def seeded_vae(shape: tuple[int, ...], latent: int, classes: int, seed: int) -> Vae:
    """An untrained autoencoder; the global generator stays as it is."""
    with seeded(seed, gpus=()):
        return Vae(shape, latent, classes)


class Decoded(Transform):
    """``decoder(clip(code + reach * theta), y)``: origins are (n, latent + K), a code and its label, one-hot."""

    def __init__(self, vae: Vae, reach: float, bound: float) -> None:
        """Args:
        vae: the trained autoencoder.
        reach: how far theta = 1 moves a number of the code.
        bound: codes stay in [-bound, bound], where the decoder has been trained.
        """
        super().__init__()
        self.vae, self.bound = vae, bound
        self.axes = tuple(Axis(name=f"latent_{k}", unit="deviations", extent=reach) for k in range(vae.latent))
        self.reach = reach

    @override
    def forward(self, origin: Tensor, theta: Tensor) -> Tensor:
        code, label = origin[:, : self.vae.latent], origin[:, self.vae.latent :]
        return self.vae.decode((code + self.reach * theta).clamp(-self.bound, self.bound), label)
