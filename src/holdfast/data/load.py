"""A data set from what a person typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from holdfast.core.errors import DataError, UsageError
from holdfast.data.csv import load_csv
from holdfast.data.dataset import Dataset
from holdfast.data.digits import load_digits
from holdfast.data.image_folder import load_image_folder
from holdfast.data.npz import load_npz

__all__ = ["load_data"]


def load_data(spec: str | Path, *, classes: Sequence[str] | None = None) -> Dataset:
    """Read ``digits``, ``digits:train``, ``digits:test``, an npz or csv file, or a folder of class folders.

    A file's kind is told by its content, not by its name.

    Args:
        spec: which.
        classes: names of the classes in the model's order; they number the labels that are names.

    Raises:
        DataError: nothing there, or nothing that can be read.
        UsageError: an unknown split of the digits, or what is no name of anything.

    Example:
        >>> len(load_data("digits:train"))
        1297
    """
    if not isinstance(spec, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]  # people give anything
        raise UsageError(
            f"a file is read, or a folder, or digits:test, got a {type(spec).__name__}; arrays are Dataset.of(x, y)"
        )
    text = str(spec)
    if text == "digits" or text.startswith("digits:"):
        return _named(load_digits(text.partition(":")[2] or "all"), classes)
    path = Path(spec)
    if path.is_dir():
        return load_image_folder(path, classes=classes)
    if not path.is_file():
        raise DataError(
            f"there is no data at {path}; wanted an .npz or .csv file, a folder of class folders, or 'digits'"
        )
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"PK"):
        return _named(load_npz(path), classes)
    if not start:
        raise DataError(f"{path} is empty")
    if start.startswith(b"\x93NUMPY"):
        raise DataError(
            f"{path} is a single NumPy array; save samples and labels together: np.savez(file, x=..., y=...)"
        )
    if b"\x00" in start or start.startswith(b"\x80"):
        raise DataError(
            f"{path} is neither an npz archive nor a csv table; save the data with np.savez(file, x=..., y=...)"
        )
    return load_csv(path, classes=classes)


def _named(data: Dataset, classes: Sequence[str] | None) -> Dataset:
    """Data whose labels are numbers, with the names that were given for them."""
    return data if classes is None else replace(data, classes=tuple(classes))
