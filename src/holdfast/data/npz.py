"""Data sets in NumPy archives, read without ever unpickling and without trusting what they declare."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy

from holdfast.core.errors import DataError, did_you_mean
from holdfast.data.archive import human, open_zip
from holdfast.data.dataset import Dataset

__all__ = ["MAX_BYTES", "load_npz", "refuse_channels_last"]

MAX_BYTES = 4 << 30
"""Most that a data set may take, unpacked and as float32."""

_HEADER = 10_000


def load_npz(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Dataset:
    """Read ``x`` and ``y`` from an archive that ``numpy.savez`` wrote.

    Args:
        path: the file. ``x`` is float32 in [0, 1], or uint8, which is divided by 255 with a note; images NCHW.
            ``y`` is integer. An array ``classes`` of strings, if there, names the labels.
        max_bytes: most that the arrays may declare, and that x may take as float32.

    Raises:
        DataError: damaged, too large, object arrays, members that are no arrays, missing keys, channels last.
    """
    path = Path(path)
    with open_zip(path, max_bytes, DataError) as archive:
        shapes = {name.removesuffix(".npy"): _declared(archive, name, path) for name in archive.namelist()}
        for key in ("x", "y"):
            if key not in shapes:
                raise DataError(f"{path} has no array '{key}'. {_advice(key, list(shapes))}")
        if prod(shapes["x"]) * 4 > max_bytes:
            raise DataError(
                f"{path}: x takes {human(prod(shapes['x']) * 4)} as float32; at most {human(max_bytes)} are read"
            )
        refuse_channels_last(shapes["x"], str(path))
        x, y = _array(archive, "x", path), _array(archive, "y", path)
        classes = [str(c) for c in _array(archive, "classes", path)] if "classes" in shapes else None
    try:
        return Dataset.of(_native(x), _native(y), name=path.name, classes=classes)
    except (TypeError, DataError) as fault:
        raise DataError(f"{path}: {fault}") from None


def refuse_channels_last(shape: Sequence[int], source: str) -> None:
    """Refuse images whose channels come last.

    Raises:
        DataError: the shape can only be (n, height, width, channels).

    Example:
        >>> refuse_channels_last((100, 3, 32, 32), "cats.npz")
    """
    if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        raise DataError(
            f"{source}: x has the shape {tuple(shape)}, channels last (NHWC); models here take NCHW: "
            "save x.transpose(0, 3, 1, 2)"
        )


def _declared(archive: ZipFile, name: str, path: Path) -> tuple[int, ...]:
    """The shape in a member's header, once the member is known to be a plain array of just that size."""
    if not name.endswith(".npy") or "/" in name or "\\" in name:
        raise DataError(f"{path} holds {name!r}, which is no array; an npz holds .npy members only")
    try:
        with archive.open(name) as member:
            shape, dtype = _header(member)
            start = member.tell()
    except (ValueError, EOFError, OSError, BadZipFile) as fault:
        raise DataError(f"{path}: {name} is no readable array ({fault}): damaged or truncated") from None
    if dtype.hasobject:
        raise DataError(
            f"{path}: {name} is an object array, which only pickle can read and which could run code; "
            "save plain numbers: np.savez(..., x=np.stack(images))"
        )
    size = prod(shape) * dtype.itemsize
    held = archive.getinfo(name).file_size - start
    if size != held:
        raise DataError(f"{path}: {name} declares {human(size)} and holds {human(held)}: damaged, truncated or a bomb")
    return shape


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member, max_header_size=_HEADER)
    return shape, dtype


def _array(archive: ZipFile, key: str, path: Path) -> np.ndarray:
    try:
        with archive.open(f"{key}.npy") as member:
            return npy.read_array(member, allow_pickle=False, max_header_size=_HEADER)
    except (ValueError, EOFError, OSError, BadZipFile) as fault:
        raise DataError(f"{path}: {key} cannot be read ({fault}): damaged or truncated; fetch it again") from None


def _native(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise DataError(f"an array of type {array.dtype} where numbers were expected")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _advice(key: str, keys: Sequence[str]) -> str:
    usual = {"x": ("images", "data", "inputs", "X", "x_test"), "y": ("labels", "targets", "Y", "y_test")}[key]
    found = [k for k in keys if k in usual]
    if found:
        return f"Is it {' or '.join(found)}? Save it as {key}: np.savez(file, x=..., y=...)"
    return did_you_mean(key, keys) if keys else "It is empty."
