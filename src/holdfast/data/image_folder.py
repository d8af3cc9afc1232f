"""Pictures in one folder for each class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from holdfast.core.errors import DataError
from holdfast.data.archive import human
from holdfast.data.dataset import Dataset, class_order
from holdfast.data.npz import MAX_BYTES

__all__ = ["load_image_folder"]

_READERS = (
    "PNG",
    "JPEG",
    "BMP",
    "WEBP",
    "PPM",
)  # the plain ones; Pillow's others run far more code on a stranger's bytes
_CHANNELS = {"L": 1, "RGB": 3}


def load_image_folder(path: str | Path, *, classes: Sequence[str] | None = None, max_bytes: int = MAX_BYTES) -> Dataset:
    """Read ``FOLDER/CLASS/picture.png``: labels are the class folders, pictures in sorted order within them.

    Folders are numbered in the order of ``classes``, else in that of the alphabet, with a note of it.

    All pictures must have one size: resizing is part of the model's preprocessing and nothing here guesses it.
    Black-and-white, palette and alpha pictures become L or RGB, with a note.

    Args:
        path: the folder.
        classes: names of the classes in the model's order.
        max_bytes: most that all pixels may take as float32.

    Raises:
        DataError: no class folders or pictures, an unreadable picture, mixed sizes, too much data.
    """
    root = Path(path)
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise DataError(f"{root} has no class folders; wanted {root}/CLASS/picture.png")
    order, notes = class_order(found, classes, str(root))
    files = [
        (p, label)
        for label, name in enumerate(order)
        if name in found
        for p in sorted((root / name).iterdir())
        if _is_picture(p)
    ]
    if not files:
        raise DataError(f"{root} has class folders without pictures in them")
    size, modes = _survey([p for p, _ in files], max_bytes)
    mode = "L" if modes <= {"L", "1"} else "RGB"
    x = np.empty((len(files), _CHANNELS[mode], size[1], size[0]), np.uint8)
    for row, (file, _) in enumerate(files):
        with _opened(file) as picture:
            try:
                pixels = np.asarray(picture.convert(mode), np.uint8)
            except (OSError, SyntaxError, ValueError) as fault:  # what Pillow's decoders raise
                raise DataError(f"{file} is damaged or truncated ({fault})") from None
        x[row] = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    converted = sorted(modes - {mode})
    notes += [f"pictures of mode {', '.join(converted)} were converted to {mode}"] if converted else []
    return Dataset.of(x, np.array([label for _, label in files]), name=root.name, notes=notes, classes=order)


def _is_picture(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name not in ("Thumbs.db", "desktop.ini")


def _survey(files: list[Path], max_bytes: int) -> tuple[tuple[int, int], set[str]]:
    """The one (width, height) of all files and the modes among them, from the headers alone."""
    size, modes = (0, 0), set[str]()
    for file in files:
        with _opened(file) as picture:
            if picture.mode not in ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise DataError(f"{file} has pixels of mode {picture.mode}; save it with 8 bits a channel")
            if size not in ((0, 0), picture.size):
                raise DataError(
                    f"pictures differ in size: {files[0]} is {size[0]}x{size[1]}, "
                    f"{file} is {picture.size[0]}x{picture.size[1]}; resize them as the model's preprocessing does"
                )
            size = picture.size
            modes.add(picture.mode)
            need = 4 * size[0] * size[1] * len(files) * (1 if modes <= {"L", "1"} else 3)
            if need > max_bytes:
                raise DataError(
                    f"the pictures would take {human(need)} as float32; at most {human(max_bytes)} are read"
                )
    return size, modes


def _opened(file: Path) -> Image.Image:
    """The picture, decoded no further than its header; a size beyond Pillow's limit is an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=_READERS)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombWarning, Image.DecompressionBombError) as fault:
        raise DataError(f"{file} is no readable {', '.join(_READERS)} picture ({fault})") from None
