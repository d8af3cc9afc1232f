"""The files of a report, written anew and compared with those that a run folder has."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from holdfast.audits.context import Context
from holdfast.audits.document import Document
from holdfast.audits.export import ARRAYS, ROWS, TABLE, BrokenInputs, rows, table
from holdfast.core.errors import HoldfastError
from holdfast.core.version import __version__
from holdfast.report.audits import junit, page, sarif
from holdfast.report.audits.shown import broken_rows, pictured, pictures

__all__ = ["compared"]

_PAGES = ("report.html", "report.sarif", "junit.xml")
_PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


def compared(context: Context, document: Document) -> tuple[list[str], list[str]]:
    """What is wrong with the files beside ``report.json``, and which of them could not be compared.

    Args:
        context: the run's.
        document: as it was derived, not as the folder tells it.
    """
    run = context.folder.path
    files = [name for name in (*_PAGES, TABLE, ROWS, ARRAYS) if (run / name).exists()]
    if document.environment.holdfast != __version__:
        told = f"{', '.join(files)}: written by Holdfast {document.environment.holdfast}, and this is {__version__}"
        return [], [told] if files else []
    looks: dict[str, Callable[[Path], bool]] = {
        "report.html": lambda file: _plain(file.read_text(encoding="utf-8")) in _pages(context, document),
        "report.sarif": lambda file: file.read_bytes() == sarif.render(document).encode(),
        "junit.xml": lambda file: file.read_bytes() == junit.render(document).encode(),
        TABLE: lambda file: file.read_bytes() == table(document).encode(),
        ROWS: lambda file: (
            file.read_bytes() == rows(context.data, BrokenInputs.of(context.run_inputs, document)).encode()
        ),
        ARRAYS: lambda file: _same_arrays(file, context, document),
    }
    problems, unread = _missing(context, files)
    for name in files:
        try:
            right = looks[name](run / name)
        except (OSError, ValueError, BadZipFile, HoldfastError):
            right = False
        if not right:
            problems.append(f"{name} says something else than the journal")
    return problems, unread


def _missing(context: Context, files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files that a run writes and that are not there. A run from Python that nobody rendered has no pages."""
    due = [TABLE, ARRAYS, *([ROWS] if context.data.features is not None else [])]
    unread = list[str]()
    if context.folder.about().get("command") or set(_PAGES) & set(files):
        due += _PAGES
    else:
        unread = [f"{', '.join(_PAGES)}: they are missing; holdfast report {context.folder.path} writes them"]
    gone = [name for name in due if name not in files]
    return [f"{name} is missing: a run writes it, and holdfast resume writes it anew" for name in gone], unread


def _pages(context: Context, document: Document) -> list[str]:
    """The page with its broken samples, and as it is where the data could not be opened when it was written."""
    pages = [page.render(document)]
    if pictured(document):
        run = context.run_inputs
        pages.append(page.render(document, pictures(run, document), broken_rows(run, document)))
    return [_plain(each) for each in pages]


def _plain(text: str) -> str:
    """A page with its pictures as hashes of their pixels, since PNG encoders differ."""

    def pixels(found: re.Match[str]) -> str:
        image = Image.open(BytesIO(b64decode(found[1])))
        return f"picture {image.size} {image.mode} {sha256(image.tobytes()).hexdigest()}"

    return _PICTURE.sub(pixels, text)


def _same_arrays(file: Path, context: Context, document: Document) -> bool:
    due = BrokenInputs.of(context.run_inputs, document).arrays()
    with np.load(file, allow_pickle=False) as told:
        return set(told.files) == due.keys() and all(np.array_equal(told[name], value) for name, value in due.items())
