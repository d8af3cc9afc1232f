"""A data set that somebody changed, with the manifest of every change."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.manifest import Manifest, Samples
from holdfast.data.dataset import Dataset

__all__ = ["PoisonedDataset"]


@dataclass(frozen=True)
class PoisonedDataset:
    """What a poisoner gives: the manifest stands beside the data, never in them, so that a defence cannot see it.

    Attributes:
        data: the changed data set.
        manifest: every change; replayed on the original it gives ``data``.
    """

    data: Dataset
    manifest: Manifest

    @classmethod
    def of(
        cls,
        data: Dataset,
        *,
        method: str,
        seed: int | None,
        replacing: tuple[Tensor, Samples] | None = None,
        remove: Tensor | None = None,
        add: Samples | None = None,
    ) -> PoisonedDataset:
        """The data set with changes; see `Manifest.of`.

        Example:
            >>> import torch
            >>> clean = Dataset.of(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
            >>> flipped = Samples(clean.x[:1], torch.tensor([1]))
            >>> made = PoisonedDataset.of(clean, method="doc", seed=None, replacing=(torch.tensor([0]), flipped))
            >>> made.data.y.tolist(), made.manifest.edits
            ([1, 1, 1], 2)
        """
        manifest = Manifest.of(data.x, data.y, method=method, seed=seed, replace=replacing, remove=remove, add=add)
        return cls(_with(data, *manifest.replay(data.x, data.y), f"changed by {method}"), manifest)

    def original(self) -> Dataset:
        """The data set before the changes.

        Raises:
            DataError: the manifest does not fit the data.
        """
        return _with(
            self.data, *self.manifest.undo(self.data.x, self.data.y), f"changes by {self.manifest.method} undone"
        )


def _with(data: Dataset, x: Tensor, y: Tensor, note: str) -> Dataset:
    return replace(data, x=x, y=y, sha256=fingerprint_arrays(x, y), notes=(*data.notes, note))
