"""A model behind transforms drawn at random, and several models or views of one input as one subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.errors import ModelError, UsageError
from holdfast.transforms.semantic import Axis, ImageTransform, Transform

__all__ = ["Domains", "RandomTransform", "Zoom"]


class Zoom(ImageTransform):
    """Images about their middle, larger or smaller; bilinear, black beyond the edges.

    Example:
        >>> Zoom(0.5)(torch.ones(1, 1, 2, 2), torch.tensor([[-1.0]])).flatten().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    def __init__(self, scale: float = 0.1) -> None:
        """Args:
        scale: largest change of the factor to either side of 1, below 1.
        """
        if not 0 < scale < 1:
            raise UsageError(f"the range of a zoom must lie between 0 and 1, got {scale}")
        super().__init__(Axis("scale", "factor", scale, neutral=1.0))

    @override
    def change(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        factor = values["scale"].to(x.dtype)
        none = torch.zeros_like(factor)
        rows = torch.cat([1 / factor, none, none], 2), torch.cat([none, 1 / factor, none], 2)
        grid = F.affine_grid(torch.cat(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class RandomTransform(nn.Module):
    """``f(T(x))`` with T drawn from a family: its parameters uniform in their ranges, and Gaussian pixel noise.

    Without a seed each row of each call has a T of its own, from PyTorch's global generator: a randomised model, to be
    attacked through EOT and judged by the referee's vote over fresh draws. With a seed one T serves every row of every
    call: a deterministic model, one domain of `Domains`.

    Example:
        >>> from holdfast.transforms.semantic import BrightnessContrast
        >>> view = RandomTransform(nn.Flatten(), BrightnessContrast(0.2, 0.3), seed=1)
        >>> x = torch.full((2, 1, 2, 2), 0.5)
        >>> bool((view(x)[0] == view(x)[1]).all())
        True
    """

    def __init__(
        self, model: nn.Module, transform: Transform | None = None, *, noise: float = 0.0, seed: int | None = None
    ) -> None:
        """Wraps a model.

        Args:
            model: x (n, \\*features) -> scores (n, K).
            transform: of inputs of that shape; None for noise alone.
            noise: standard deviation of what is added to each feature after the transform.
            seed: fixes T.
        """
        super().__init__()
        if noise < 0 or (transform is None and noise == 0):
            raise UsageError("a random transform needs a transform, or noise above 0")
        self.model, self.transform, self.noise, self.seed = model, transform, noise, seed

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        axes = () if self.transform is None else self.transform.axes
        return f"axes={[(a.name, a.reach) for a in axes]}, noise={self.noise}, seed={self.seed}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*features) -> (n, K)."""
        generator, n = None, len(x)
        if self.seed is not None:  # drawn on the host: the same T on every device
            generator, n = torch.Generator().manual_seed(self.seed), 1
        device = x.device if generator is None else "cpu"

        def rows(draw: Callable[..., Tensor], *shape: int) -> Tensor:
            drawn = draw(n, *shape, generator=generator, device=device, dtype=torch.float32)
            return drawn.to(x).expand(len(x), *shape)

        if self.transform is not None:
            x = self.transform(x, 2 * rows(torch.rand, len(self.transform.axes)) - 1)
        if self.noise:
            x = x + self.noise * rows(torch.randn, *x.shape[1:])
        return self.model(x)


class Domains(nn.Module):
    """Several models of the same classes asked about the same input; judged by `AllOf` or `AnyOf`.

    Example:
        >>> Domains([nn.Identity(), nn.Softmax(1)])(torch.zeros(1, 2)).tolist()
        [[[0.0, 0.0], [0.5, 0.5]]]
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        """Args:
        members: x (n, \\*features) -> scores (n, K), at least one.
        """
        super().__init__()
        if not members:
            raise UsageError("domains need at least one model")
        self.members = nn.ModuleList(members)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*features) -> (n, domains, K).

        Raises:
            ModelError: the members answer different numbers of classes.
        """
        scores = [member(x) for member in self.members]
        if len({s.shape for s in scores}) > 1:
            raise ModelError(f"the domains answer {[tuple(s.shape) for s in scores]}; they must agree")
        return torch.stack(scores, 1)
