"""What an image processor does before a model, measured from the processor itself and repeated as a differentiable step.

In real numbers a processor is affine: it resizes and crops (a matrix along the height, one along the width), puts the
channels in another order, and rescales and normalises each (a factor and a shift, however often it does so). All of it
is read off from what the processor makes of a few pictures, not from its options, so an option that is unknown here is
either served all the same or noticed, since the step is compared with the processor on random pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.arrays import listed
from holdfast.core.errors import ModelError

__all__ = ["AffineStep", "Processed", "Processor", "measured"]

Processor = Callable[[Tensor], Tensor]
"""(n, C, H, W) float64 pictures in [0, 1] -> (n, C', H', W') pixel values."""

_EXACT = 2e-5  # relative: processors compute in float32, some of them through several steps
_CHUNK = 1 << 24  # numbers in the pictures of one call


@dataclass(frozen=True, kw_only=True)
class AffineStep:
    """``x -> (rows @ x @ columns.T)[order] * scale + shift`` for pictures of one size.

    Attributes:
        rows: (H', H) float32, or None where the height stays.
        columns: (W', W) float32, or None where the width stays.
        order: channel of the input for each channel of the output.
        scale: (C',) float32.
        shift: (C',) float32.
    """

    rows: Tensor | None
    columns: Tensor | None
    order: tuple[int, ...]
    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C', H', W')."""
        if self.rows is not None:
            x = (x.transpose(2, 3) @ self.rows.to(x).mT).transpose(2, 3)
        if self.columns is not None:
            x = x @ self.columns.to(x).mT
        if self.order != tuple(range(x.shape[1])):
            x = x[:, torch.tensor(self.order, device=x.device)]
        return x * self.scale.to(x).view(1, -1, 1, 1) + self.shift.to(x).view(1, -1, 1, 1)

    def describe(self, height: int, width: int) -> str:
        """What it does, for people."""
        parts: list[str] = []
        if self.rows is not None or self.columns is not None:
            size = [len(m) if m is not None else s for m, s in ((self.rows, height), (self.columns, width))]
            parts.append(f"resizes and crops {height}x{width} to {size[0]}x{size[1]}")
        if self.order != tuple(range(len(self.order))):
            parts.append(f"puts the channels in the order {','.join(map(str, self.order))}")
        if bool((self.scale != 1).any()) or bool((self.shift != 0).any()):
            mean, std = -self.shift / self.scale, 1 / self.scale
            numbers = (",".join(f"{float(v):.6g}" for v in values) for values in (mean, std))
            parts.append(f"normalises by {'/'.join(numbers)}")
        return ", ".join(parts) or "changes nothing"


class Processed(nn.Module):
    """``module(processor(x))`` for a picture of any size; the step for a size is measured when it is first met.

    Args:
        processor: the deployment's own.
        module: takes what the processor gives.
        says: the processor's options, for the fingerprint.
    """

    def __init__(self, processor: Processor, module: nn.Module, says: str = "") -> None:
        super().__init__()
        self.processor = processor
        self.module = module
        self.says = says
        self._steps: dict[tuple[int, ...], AffineStep] = {}

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        return self.says

    def step(self, shape: tuple[int, ...]) -> AffineStep:
        """The step for pictures of a shape (C, H, W).

        Raises:
            ModelError: pictures are not what it takes, or the processor is no such step.
        """
        if shape not in self._steps:
            # in a thread of its own: while PyTorch traces the model, tensors made in this one would hold no numbers
            with ThreadPoolExecutor(1) as pool:
                self._steps[shape] = pool.submit(measured, self.processor, shape).result()
        return self._steps[shape]

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) pictures in [0, 1] -> what the module gives."""
        return self.module(self.step(tuple(x.shape[1:]))(x))


def measured(processor: Processor, shape: tuple[int, ...]) -> AffineStep:
    """The step that a processor takes on pictures of one shape, compared with the processor itself.

    Args:
        processor: what is measured.
        shape: (C, H, W).

    Raises:
        ModelError: it cannot take such pictures, or it is not affine, the same for all places and channel by channel.

    Example:
        >>> step = measured(lambda x: x.flip(1) * 2 - 1, (3, 4, 4))
        >>> step.order, step.scale.tolist(), step.shift.tolist(), step.rows
        ((2, 1, 0), [2.0, 2.0, 2.0], [-1.0, -1.0, -1.0], None)
    """
    if len(shape) != 3:
        raise ModelError(f"the image processor takes pictures of shape (C, H, W), and the inputs have {shape}")
    channels, height, width = shape
    try:
        plain = torch.cat([torch.zeros(1, *shape), torch.ones(1, *shape), _lit(torch.eye(channels), shape)]).double()
        black, white, *each = processor(plain).double()
        across = _answers(processor, torch.eye(height, dtype=torch.float64)[:, None, :, None], shape)
        along = _answers(processor, torch.eye(width, dtype=torch.float64)[:, None, None, :], shape)
        given = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        wanted = processor(given).double()
    except Exception as fault:  # a processor raises what its own layers raise
        raise ModelError(
            f"the image processor cannot take inputs of shape {shape} ({type(fault).__name__}: {str(fault)[:200]}); "
            "give pictures as the model was trained on"
        ) from None
    gain = torch.stack([(picture - black).mean((1, 2)) for picture in each], 1)  # (C', C)
    order = tuple(listed(gain.abs().argmax(1)))
    scale, shift = (white - black).mean((1, 2)), black.mean((1, 2))
    # white is 1 everywhere after any resizing, so what one row does there is what the matrix has for it
    rows, columns = ((lit - black)[:, 0].div(scale[0]) for lit in (across, along))
    step = AffineStep(
        rows=_unless_same(rows.mean(2).mT),
        columns=_unless_same(columns.mean(1).mT),
        order=order,
        scale=scale.float(),
        shift=shift.float(),
    )
    found = step(given)
    if found.shape != wanted.shape or not torch.allclose(
        found, wanted, rtol=_EXACT, atol=_EXACT * float(wanted.abs().max())
    ):
        raise ModelError(
            "the image processor does something else than resizing, cropping, reordering, rescaling and normalising, "
            "which cannot be repeated here; put it into the model, or give inputs that are processed already"
        )
    return step


def _lit(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(k, C) channel values -> k pictures of one colour."""
    return rows[:, :, None, None].expand(-1, *shape)


def _answers(processor: Processor, pictures: Tensor, shape: tuple[int, ...]) -> Tensor:
    size = max(1, _CHUNK // torch.Size(shape).numel())
    return torch.cat([processor(part.expand(-1, *shape)).double() for part in torch.split(pictures, size)])


def _unless_same(matrix: Tensor) -> Tensor | None:
    """The matrix without the noise of measuring, or None where it changes nothing."""
    matrix = torch.where(matrix.abs() < 1e-6, 0.0, matrix)
    same = matrix.shape[0] == matrix.shape[1] and torch.allclose(
        matrix, torch.eye(len(matrix), dtype=matrix.dtype), atol=1e-5
    )
    return None if same else matrix.float()
