"""Transfer matrices as heat maps: rows are the models that were searched, columns the models that were judged."""

from __future__ import annotations

from markupsafe import Markup

from holdfast.report.draw import svg
from holdfast.report.markup import interval, percent, tag
from holdfast.report.template import fill
from holdfast.studies.transfer import TransferMatrix, TransferResult

__all__ = ["heat_map", "render"]

_CELL, _ROW, _GAP, _HEAD = 116.0, 46.0, 3.0, 34.0
_LETTER = 7.4  # pixels of a letter of the labels, nearly
_LONGEST = 34


def heat_map(matrix: TransferMatrix) -> Markup:
    """One cell for each source and target: the darker, the more examples hold; a frame where the target was searched."""
    left = _LETTER * min(_LONGEST, max(len(s) for s in matrix.sources)) + 16
    parts: list[Markup] = []
    for j, target in enumerate(matrix.targets):
        x = left + j * _CELL
        name = tag("text", tag("title", target), _short(target, 15), x=x + _CELL / 2, y=_HEAD - 12, class_="tick mid")
        parts.append(name)
    for i, source in enumerate(matrix.sources):
        y = _HEAD + i * _ROW
        words = (tag("title", source), _short(source, _LONGEST))
        parts.append(tag("text", *words, x=left - 10, y=y + _ROW / 2 + 4, class_="tick end"))
        for j, target in enumerate(matrix.targets):
            parts.append(_cell(matrix, source, target, left + j * _CELL, y))
    width, height = left + len(matrix.targets) * _CELL, _HEAD + len(matrix.sources) * _ROW
    return svg(width, height, *parts, title=f"{matrix.title}: share of examples that hold, by source and target")


def _cell(matrix: TransferMatrix, source: str, target: str, x: float, y: float) -> Markup:
    cell = matrix.cell(source, target)
    kind = "white-box" if cell.white_box else "transfer"
    told = f"{source} to {target}, {kind}: {cell.broken} of {cell.attacked}, 95 % interval {interval(cell.interval)}"
    box = {"x": x, "y": y, "width": _CELL - _GAP, "height": _ROW - _GAP, "rx": 3}
    share = cell.share or 0.0
    heat = tag("rect", **box, fill_opacity=share, class_="heat own" if cell.white_box else "heat")
    ink = "heat-name mid strong" if share > 0.55 else "heat-name mid"
    figure = tag("text", percent(cell.share), x=x + (_CELL - _GAP) / 2, y=y + _ROW / 2 + 3, class_=ink)
    return tag("g", tag("title", told), tag("rect", **box, class_="heat-ground"), heat, figure)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def render(result: TransferResult, about: str, command: str = "") -> str:
    """The page of one or more matrices of the same models; ``about`` says on what data."""
    matrices = result.matrices
    return fill(
        "studies/transfer.html", matrices=matrices, maps=list(map(heat_map, matrices)), data=about, command=command
    )
