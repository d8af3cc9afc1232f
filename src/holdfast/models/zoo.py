"""Small networks for the demo, the tests and authors of methods; usable as ``--arch holdfast.models.zoo:digits_cnn``.

None has batch norm or dropout, so that bounds through them are quick and the two modes agree.
"""

from __future__ import annotations

from math import prod

from torch import nn

from holdfast.core.draws import seeded

__all__ = ["digits_cnn", "digits_mlp", "mnist_cnn", "substitute"]


def digits_cnn() -> nn.Sequential:
    """Two convolutions and two linear layers for the 8x8 digits, 38,282 parameters: (n, 1, 8, 8) -> (n, 10) logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def digits_mlp() -> nn.Sequential:
    """Two hidden layers of 64 for the 8x8 digits, 8,970 parameters: (n, 1, 8, 8) -> (n, 10) logits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def mnist_cnn() -> nn.Sequential:
    """The network of Wong & Kolter (2018) for MNIST, 166,406 parameters: (n, 1, 28, 28) -> (n, 10) logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def substitute(shape: tuple[int, ...], classes: int, seed: int | None = None) -> nn.Sequential:
    """A plain network for inputs of any shape: what an attacker who knows the data but not the architecture might train.

    Args:
        shape: of one input; (C, H, W) with H and W of at least 4 gives a convolutional network, others an MLP.
        classes: K.
        seed: of the weights, the global generator then stays as it is; None draws from that.

    Example:
        >>> import torch
        >>> substitute((3, 16, 16), 5)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 5])
    """
    if seed is not None:
        with seeded(seed, gpus=()):
            return substitute(shape, classes)
    if len(shape) != 3 or min(shape[1:]) < 4:
        features = prod(shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, classes))
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
