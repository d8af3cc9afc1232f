"""Broken rows of a table: what was changed in which column, in the columns' own units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.audits.document import Document
from holdfast.report.audits.tables import class_name
from holdfast.report.audits.words import finder
from holdfast.report.markup import measure, percent

__all__ = ["BrokenRows", "TableRow", "columns", "row_cards"]

_MOST, _COLUMNS, _LISTED = 12, 8, 40
_STILL = 1e-6  # of a column's range: less is the rounding of units


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A broken row as the page shows it.

    Attributes:
        id: id of the sample.
        label: its class.
        prediction: what the model says of it.
        adversarial_prediction: what it says of the adversarial row; None where it was not asked.
        distance: between the two, in the threat model's norm, in shares of the columns' ranges.
        attack: name of the method that found it.
        clean: (columns,) in own units.
        adversarial: likewise.
    """

    id: int
    label: int
    prediction: int
    adversarial_prediction: int | None
    distance: float
    attack: str
    clean: np.ndarray
    adversarial: np.ndarray


@dataclass(frozen=True)
class BrokenRows:
    """All broken rows of a run.

    Attributes:
        rows: one for each broken sample.
        names: of the columns.
        width: (columns,) of their ranges, in own units.
    """

    rows: tuple[TableRow, ...]
    names: tuple[str, ...]
    width: np.ndarray


def row_cards(document: Document, broken: BrokenRows) -> list[dict[str, object]]:
    """What the template shows of a dozen rows, spread evenly over the run."""
    return [_card(document, row, broken) for row in broken.rows[:: max(1, -(-len(broken.rows) // _MOST))]]


def _card(document: Document, row: TableRow, broken: BrokenRows) -> dict[str, object]:
    """The columns that changed most, in shares of their ranges, first."""
    change = row.adversarial - row.clean
    fraction = np.abs(change) / broken.width
    order = [int(k) for k in np.argsort(-fraction, kind="stable") if fraction[k] > _STILL]
    after = row.adversarial_prediction
    return {
        "id": row.id,
        "label": class_name(document, row.label),
        "before": class_name(document, row.prediction),
        "after": "another class" if after is None else class_name(document, after),
        "distance": measure(row.distance),
        "attack": finder(row.attack),
        "more": max(0, len(order) - _COLUMNS),
        "cells": [
            (
                broken.names[k],
                measure(float(row.clean[k]), 6),
                measure(float(row.adversarial[k]), 6),
                f"{'+' if change[k] > 0 else ''}{measure(float(change[k]), 3)}",
            )
            for k in order[:_COLUMNS]
        ],
    }


def columns(broken: BrokenRows) -> list[tuple[str, int, str, str]]:
    """For the columns that changed most (name, rows in which it was changed, median change in own units, as a share of its
    range)."""
    change = np.abs(np.stack([r.adversarial - r.clean for r in broken.rows]))
    summary: list[tuple[str, int, str, str]] = []
    order: list[int] = np.argsort(-np.median(change / broken.width, axis=0), kind="stable").tolist()
    for k in order[:_LISTED]:
        width, middle = float(broken.width[k]), float(np.median(change[:, k]))
        summary.append(
            (broken.names[k], int((change[:, k] > _STILL * width).sum()), measure(middle, 3), percent(middle / width))
        )
    return summary
