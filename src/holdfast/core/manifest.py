"""What was changed in a training set, exactly: so that it can be counted, undone and done again.

Who poisons data, and who cleans them, changes samples. A manifest keeps each change with what stood there before, and the
hashes of both data sets, so that nobody has to be believed: it is replayed on the one and undone on the other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as as_bytes
from torch import Tensor

from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.errors import DataError, UsageError
from holdfast.core.files import read_json, write_whole

__all__ = ["Change", "ChangeKind", "Manifest", "Samples"]

SCHEMA_VERSION = 1


class ChangeKind(StrEnum):
    """How one sample was changed."""

    ADDED = "added"
    REMOVED = "removed"
    REPLACED = "replaced"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change, for people; the features stand in the manifest.

    Attributes:
        kind: what was done.
        row: of the sample in the original data set; of an added one in the changed data set.
        before: its label in the original, None if it was added.
        after: its label in the changed data set, None if it was removed.
    """

    kind: ChangeKind
    row: int
    before: int | None
    after: int | None


@dataclass(frozen=True, eq=False)
class Samples:
    """Features (k, \\*features) and labels (k,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def keys(self) -> Iterator[bytes]:
        """Each sample's bytes: equal samples have equal keys."""
        for x, y in zip(self.x, self.y, strict=True):
            yield x.contiguous().numpy().tobytes() + int(y).to_bytes(8, "little", signed=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Manifest:
    """Every change from one data set to another.

    The changed data set is the original with some rows replaced in place, then some rows left out, then some appended.

    Attributes:
        method: name of the method that made the changes.
        seed: that keyed its draws; None if it drew nothing.
        count: samples of the original data set.
        before: its hash.
        after: hash of the changed one.
        replaced: (k,) int64 rows of the original, ascending.
        old: what stood there.
        new: what stands there now.
        removed: (m,) int64 rows of the original, ascending.
        lost: what stood there.
        added: samples at the end of the changed data set.
    """

    method: str
    seed: int | None
    count: int
    before: str
    after: str
    replaced: Tensor
    old: Samples
    new: Samples
    removed: Tensor
    lost: Samples
    added: Samples

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        method: str,
        seed: int | None,
        replace: tuple[Tensor, Samples] | None = None,
        remove: Tensor | None = None,
        add: Samples | None = None,
    ) -> Manifest:
        """The manifest of changes to a data set; a replacement by the same sample is no change and is left out.

        Args:
            x: (n, \\*features) float32 on the host.
            y: (n,) int64.
            method: name of the method.
            seed: of its draws.
            replace: (k,) int64 rows, and what shall stand there.
            remove: (m,) int64 rows.
            add: samples to append.

        Raises:
            UsageError: rows that are not there, given twice, or replaced and removed; or samples of another shape or type.
        """
        none = Samples(x[:0], y[:0])
        rows, new = (torch.zeros(0, dtype=torch.int64), none) if replace is None else replace
        gone = torch.zeros(0, dtype=torch.int64) if remove is None else remove.sort().values
        extra = none if add is None else add
        _check_rows(len(x), rows, gone)
        _check_samples(none, [(new, len(rows)), (extra, len(extra))])
        differs = (new.x != x[rows]).flatten(1).any(1) | (new.y != y[rows])
        kept = differs.nonzero().squeeze(1)[rows[differs].argsort()]
        rows, new = rows[kept], Samples(new.x[kept], new.y[kept])
        made = cls(
            method=method,
            seed=seed,
            count=len(x),
            before=fingerprint_arrays(x, y),
            after="",
            replaced=rows,
            old=Samples(x[rows], y[rows]),
            new=new,
            removed=gone,
            lost=Samples(x[gone], y[gone]),
            added=extra,
        )
        return replace_fields(made, after=fingerprint_arrays(*made._changed(x, y)))

    def __len__(self) -> int:
        return len(self.replaced) + len(self.removed) + len(self.added)

    @property
    def edits(self) -> int:
        """The size of the symmetric difference of the two data sets: samples that stand in one of them only.

        A replaced sample counts twice, for one goes and one comes; one that is removed and added again not at all.
        """
        went = Counter([*self.old.keys(), *self.lost.keys()])
        came = Counter([*self.new.keys(), *self.added.keys()])
        return (went - came).total() + (came - went).total()

    @property
    def changes(self) -> tuple[Change, ...]:
        """Each change by itself."""
        start = self.count - len(self.removed)
        old, new, lost, added = (_ints(s.y) for s in (self.old, self.new, self.lost, self.added))
        removed, replaced = ChangeKind.REMOVED, ChangeKind.REPLACED
        return (
            *(
                Change(kind=replaced, row=r, before=a, after=b)
                for r, a, b in zip(_ints(self.replaced), old, new, strict=True)
            ),
            *(
                Change(kind=removed, row=r, before=a, after=None)
                for r, a in zip(_ints(self.removed), lost, strict=True)
            ),
            *(Change(kind=ChangeKind.ADDED, row=start + k, before=None, after=b) for k, b in enumerate(added)),
        )

    def replay(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The changed data set, made again from the original.

        Raises:
            DataError: these are not the original data, or the changes do not give what the manifest says.
        """
        self._expect(self.before, x, y, "the original data", self.count)
        changed = self._changed(x, y)
        self._expect(self.after, *changed, "what the changes give")
        return changed

    def undo(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The original data set, made again from the changed one.

        Raises:
            DataError: these are not the changed data, or undoing the changes does not give the original.
        """
        self._expect(self.after, x, y, "the changed data", self.count - len(self.removed) + len(self.added))
        kept = self._kept(self.count)

        def restored(changed: Tensor, old: Tensor, lost: Tensor) -> Tensor:
            whole = changed.new_empty((self.count, *changed.shape[1:]))
            whole[kept], whole[self.removed] = changed[: len(kept)], lost
            whole[self.replaced] = old
            return whole

        original = restored(x, self.old.x, self.lost.x), restored(y, self.old.y, self.lost.y)
        self._expect(self.before, *original, "what undoing the changes gives")
        return original

    def _changed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._kept(len(x))

        def changed(original: Tensor, new: Tensor, added: Tensor) -> Tensor:
            whole = original.clone()
            whole[self.replaced] = new
            return torch.cat([whole[kept], added])

        return changed(x, self.new.x, self.added.x), changed(y, self.new.y, self.added.y)

    def _kept(self, n: int) -> Tensor:
        stays = torch.ones(n, dtype=torch.bool)
        stays[self.removed] = False
        return stays.nonzero().squeeze(1)

    def _expect(self, sha256: str, x: Tensor, y: Tensor, what: str, count: int | None = None) -> None:
        actual = fingerprint_arrays(x, y)
        if actual != sha256:
            raise DataError(
                f"the manifest of {self.method} does not fit: {what} should have the hash {sha256[:12]}..., and has "
                f"{actual[:12]}...; take the data that it was made for"
            )
        if count not in (None, len(x)):
            raise DataError(f"the manifest of {self.method} is false: it tells {count} samples of {what}, of {len(x)}")

    def save(self, path: Path | str) -> None:
        """Writes the changes as JSON, and the samples beside it as safetensors, by hash.

        Args:
            path: of the JSON file, ``NAME.json``; the samples go to ``NAME.safetensors``.

        Raises:
            UsageError: the two would be one file.
        """
        path = Path(path)
        beside = path.with_suffix(".safetensors")
        if beside == path:
            raise UsageError(f"{path} is where the samples go; name the manifest {path.with_suffix('.json').name}")
        tensors = as_bytes({k: v.contiguous() for k, v in self._tensors().items()})
        about = {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "seed": self.seed,
            "count": self.count,
            "before": self.before,
            "after": self.after,
            "edits": self.edits,
            "features": {"file": beside.name, "sha256": _sha256(tensors)},
            "changes": [[str(c.kind), c.row, c.before, c.after] for c in self.changes],
        }
        write_whole(beside, tensors)
        write_whole(path, json.dumps(about, indent=1))

    @classmethod
    def load(cls, path: Path | str) -> Manifest:
        """Reads a manifest and holds its parts against each other.

        Raises:
            DataError: no manifest, one of another schema version, or one whose parts do not agree.
        """
        path = Path(path)
        try:
            about: Any = read_json(path.read_bytes())
            version = about["schema_version"]
            if version != SCHEMA_VERSION:
                raise DataError(f"{path} is a manifest of schema version {version}, and this reads {SCHEMA_VERSION}")
            content = path.with_name(Path(about["features"]["file"]).name).read_bytes()
            if _sha256(content) != about["features"]["sha256"]:
                raise DataError(f"the samples beside {path} are not those that it was written with")
            t = read_tensors(content)
            made = cls(
                method=about["method"],
                seed=about["seed"],
                count=about["count"],
                before=about["before"],
                after=about["after"],
                replaced=t["replaced"],
                removed=t["removed"],
                **{part: Samples(t[f"{part}.x"], t[f"{part}.y"]) for part in ("old", "new", "lost", "added")},
            )
            made._check()
            listed = [[str(c.kind), c.row, c.before, c.after] for c in made.changes]
            agrees = listed == about["changes"] and made.edits == about["edits"]
        except (OSError, KeyError, TypeError, ValueError, SafetensorError, UsageError) as fault:
            if isinstance(fault, DataError):
                raise
            raise DataError(f"{path} is no manifest: {fault}") from None
        if not agrees:
            raise DataError(f"{path} lists other changes than those of the samples beside it")
        return made

    def _check(self) -> None:
        """Refuses rows and samples that no changes of one data set could be."""
        _check_rows(self.count, self.replaced, self.removed)
        counts = len(self.replaced), len(self.replaced), len(self.removed), len(self.added)
        _check_samples(self.old, list(zip((self.old, self.new, self.lost, self.added), counts, strict=True)))

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"old": self.old, "new": self.new, "lost": self.lost, "added": self.added}
        return {
            "replaced": self.replaced,
            "removed": self.removed,
            **{f"{name}.x": part.x for name, part in parts.items()},
            **{f"{name}.y": part.y for name, part in parts.items()},
        }


def _check_rows(n: int, replaced: Tensor, removed: Tensor) -> None:
    if any(rows.dtype != torch.int64 or rows.ndim != 1 for rows in (replaced, removed)):
        raise UsageError("rows to change are given as vectors of int64")
    named = torch.cat([replaced, removed])
    if len(named) and not (int(named.min()) >= 0 and int(named.max()) < n):
        raise UsageError(f"rows to change must lie in 0..{n - 1}, got {int(named.min())} to {int(named.max())}")
    if len(set(_ints(named))) != len(named):
        raise UsageError("a row is changed twice; replace it or remove it, once")


def _check_samples(like: Samples, given: Sequence[tuple[Samples, int]]) -> None:
    """Each must be so many samples of the same shape and types as others."""
    for samples, count in given:
        if len(samples) != count:
            raise UsageError(f"{count} rows are changed, with {len(samples)} samples; give one for each")
        shape, fits = tuple(samples.x.shape[1:]), tuple(like.x.shape[1:])
        if shape != fits:
            raise UsageError(f"samples of shape {shape} do not fit a data set of {fits}")
        if samples.y.shape != (count,):
            raise UsageError(
                f"labels of shape {tuple(samples.y.shape)} for {count} samples; give one for each, as a vector"
            )
        if (samples.x.dtype, samples.y.dtype) != (like.x.dtype, like.y.dtype):
            raise UsageError(
                f"features of {samples.x.dtype} with labels of {samples.y.dtype} do not fit a data set of {like.x.dtype} "
                f"and {like.y.dtype}; convert them"
            )


def _ints(values: Tensor) -> list[int]:
    return [int(v) for v in values.numpy()]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
