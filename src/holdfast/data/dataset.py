"""Samples with their labels, checked once and carried everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.errors import DataError, UsageError, did_you_mean
from holdfast.core.words import counted, numbered

__all__ = ["Dataset", "class_order"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Dataset:
    """Samples and labels; a sample's id is its row.

    Attributes:
        x: (n, \\*features) float32 on the host; images are NCHW. Values may still lie outside the threat model's range
            or be NaN: that is for the pre-flight to say.
        y: (n,) int64 labels.
        name: where it came from, for people.
        sha256: hash of x and y.
        notes: every conversion that was made on the way in.
        classes: names of the labels 0, 1, ..., if known.
        features: names of the columns of a table, if known.
    """

    x: Tensor
    y: Tensor
    name: str
    sha256: str
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        x: np.ndarray | Tensor,
        y: np.ndarray | Tensor,
        *,
        name: str = "arrays",
        notes: Sequence[str] = (),
        classes: Sequence[str] | None = None,
        features: Sequence[str] | None = None,
    ) -> Dataset:
        """Check arrays and make a data set of them, noting each conversion: uint8 / 255, other floats to float32.

        Args:
            x: (n, \\*features) uint8 or floating point.
            y: (n,) integers.
            name: where they came from.
            notes: what was already done to them.
            classes: names of the labels.
            features: names of the columns of a table.

        Raises:
            DataError: no samples, unusable types, or labels that are not n integers; the message names the fix.

        Example:
            >>> data = Dataset.of(np.full((2, 1, 2, 2), 255, np.uint8), np.array([0, 1]))
            >>> float(data.x.max()), data.notes
            (1.0, ('x was uint8: divided by 255',))
        """
        samples, more = _features(_tensor(x, "x", "save it as one array of numbers, each sample of the same shape"))
        number = "number them: np.unique(y, return_inverse=True)[1]"
        labels = _labels(_tensor(y, "y", f"class labels are integers from 0; {number}"), len(samples))
        return cls(
            x=samples,
            y=labels,
            name=name,
            sha256=fingerprint_arrays(samples, labels),
            notes=(*notes, *more),
            classes=None if classes is None else tuple(classes),
            features=None if features is None else tuple(features),
        )

    def __len__(self) -> int:
        return len(self.x)

    @override
    def __repr__(self) -> str:  # one line: the samples themselves would fill a screen
        shape = "x".join(map(str, self.x.shape[1:]))
        return f"<Dataset {self.name}: {counted(len(self), 'sample')} of {shape}, {counted(self.class_count, 'class')}>"

    @property
    def class_count(self) -> int:
        """How many classes there are: as many as are named, or as the labels count."""
        return len(self.classes) if self.classes is not None else int(self.y.max()) + 1

    def head(self, n: int) -> Dataset:
        """The first ``n`` samples, or all if there are fewer.

        Raises:
            UsageError: ``n`` is not at least 1.
        """
        if n < 1:
            raise UsageError(f"cannot take {n} samples; ask for 1 or more")
        if n >= len(self):
            return self
        x, y = self.x[:n], self.y[:n]
        return replace(self, x=x, y=y, sha256=fingerprint_arrays(x, y))


def class_order(names: Iterable[str], classes: Sequence[str] | None, source: str) -> tuple[list[str], list[str]]:
    """The order in which named classes are numbered, and a note of it where nobody chose it.

    Args:
        names: those that occur.
        classes: the order that was given: the model's.
        source: for errors.

    Raises:
        DataError: a name that the given order lacks, or one given twice.

    Example:
        >>> class_order(["no", "yes", "no"], ["yes", "no"], "survey.csv")
        (['yes', 'no'], [])
    """
    found = sorted(set(names))
    if classes is None:
        return found, [
            f"the classes are numbered alphabetically ({numbered(found)}); if the model numbers them otherwise, give its order: "
            "--class-names NAME,NAME,..."
        ]
    if len(set(classes)) != len(classes):
        raise DataError(f"--class-names gives a name twice: {', '.join(classes)[:200]}")
    strange = [name for name in found if name not in classes]
    if strange:
        raise DataError(
            f"{source} has a class '{strange[0]}' that --class-names lacks. {did_you_mean(strange[0], classes)}"
        )
    return list(classes), []


def _tensor(values: Any, name: str, remedy: str) -> Tensor:
    """Values as a tensor.

    Raises:
        DataError: they are no numbers, or not as many in each row.
    """
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as fault:  # texts and ragged lists; PyTorch raises each of the three
        kind = getattr(getattr(values, "dtype", None), "name", type(values).__name__)
        raise DataError(f"{name} ({kind}) is no array of numbers ({str(fault)[:100]}); {remedy}") from None


def _features(x: Tensor) -> tuple[Tensor, list[str]]:
    if x.ndim < 2 or x.numel() == 0:
        raise DataError(f"x holds no samples with features: its shape is {tuple(x.shape)}, wanted (n, features...)")
    if x.dtype == torch.uint8:
        return x.contiguous().to(torch.float32).div_(255), ["x was uint8: divided by 255"]
    if not x.is_floating_point():
        raise DataError(
            f"x is {_plain(x)}; save it as float32 in [0, 1], or as uint8 in 0..255, which is divided by 255"
        )
    if x.dtype != torch.float32:
        return x.to(torch.float32), [f"x was {_plain(x)}: rounded to float32"]
    return x.contiguous(), []


def _labels(y: Tensor, n: int) -> Tensor:
    if y.ndim == 2 and y.shape[1] == 1:
        raise DataError(f"labels have the shape {tuple(y.shape)}; save y[:, 0]")
    if y.ndim == 2:
        looks = (
            "one-hot"
            if bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())
            else "one score for each class"
        )
        raise DataError(f"labels of shape {tuple(y.shape)} look {looks}; save y.argmax(1)")
    if y.ndim != 1:
        alone = "; one sample is a batch of one: x[None], [y]" if y.ndim == 0 else ""
        raise DataError(f"labels must be one integer for each sample, got the shape {tuple(y.shape)}{alone}")
    if len(y) != n:
        raise DataError(f"{n} samples but {len(y)} labels")
    if y.is_floating_point() or y.dtype == torch.bool or y.is_complex():
        raise DataError(f"labels are {_plain(y)}; class labels are integers from 0: save y.astype('int64')")
    return y.to(torch.int64)


def _plain(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
