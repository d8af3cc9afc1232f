"""The face of every result: one screen in print, a table in a notebook, plain values for other tools."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import override

from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from holdfast.core.cost import Cost

__all__ = ["Block", "Result", "Rows", "Saved", "figure"]


@dataclass(frozen=True)
class Rows:
    """Columns with heads.

    Attributes:
        heads: of the columns.
        rows: one cell a column.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def text(self) -> str:
        """Columns set apart by spaces; the first to the left, the others to the right."""
        cells = [[str(cell) for cell in row] for row in (self.heads, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ).rstrip()

    def html(self) -> str:
        """As a table; every cell is escaped."""
        heads = "".join(f"<th>{escape(head)}</th>" for head in self.heads)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(str(c))}</td>' for c in row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


Block: TypeAlias = str | Rows
"""A line of a result, or a table in it."""


def figure(name: str, value: object) -> str:
    """A figure with its name, in columns.

    Example:
        >>> figure("queries", 12)
        'queries            12'
    """
    return f"{name:<18} {value}"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What was written.

    Attributes:
        files: of the result.
        pictures: how many pictures beside it.
        anew: an earlier result in the folder was taken out.
    """

    files: tuple[Path, ...]
    pictures: int = 0
    anew: bool = False


class Result(ABC):
    """What a verb answers with.

    Attributes:
        notes: what was noticed on the way, which a reader of the figures must know.
    """

    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """What was asked of the model."""

    @abstractmethod
    def blocks(self) -> list[Block]:
        """What a reader sees: lines and tables, no more than a screen."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""

    @abstractmethod
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """One row a sample, by column."""

    def save(self, path: str | Path) -> Saved:
        """Writes what `to_dict` gives, as JSON."""
        from holdfast.core.files import write_whole

        write_whole(Path(path), json.dumps(self.to_dict(), indent=1))
        return Saved(files=(Path(path),))

    def to_pandas(self) -> Any:
        """One row a sample, as a data frame.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise UsageError("pandas is not installed: pip install pandas, or take .columns() or .to_dict()") from None
        return pandas.DataFrame(dict(self.columns()))

    def _shown(self) -> list[Block]:
        """The blocks, and what was noticed; the command line says the latter apart."""
        return [*self.blocks(), *self.notes]

    @override
    def __str__(self) -> str:
        return "\n".join(block if isinstance(block, str) else block.text() for block in self._shown())

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {str(self).partition(chr(10))[0]}>"

    def _repr_html_(self) -> str:
        return "".join(f"<pre>{escape(b)}</pre>" if isinstance(b, str) else b.html() for b in self._shown())
