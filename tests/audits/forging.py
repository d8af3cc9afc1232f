"""What one who knows how a run is made can do to it, and verdicts and certifiers that are made up."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.core.sets import LpBall
from holdfast.core.verdict import Status, Verdict
from holdfast.graph.model import Graph


def made_up(**given: Any) -> Verdict:
    """A verdict about a sample that the model gets right, with neither witness nor certificate but those given."""
    plain: dict[str, Any] = {
        "id": 0, "label": 0, "prediction": 0, "status": Status.BROKEN, "witness": None, "certificate": None,
        "forwards": 1, "backwards": 1, "queries": 1,
    }  # fmt: skip
    return Verdict(**plain | given)


def proves_everything(self: object, graph: Graph, x: Tensor, y: Tensor, ball: LpBall) -> Tensor:
    """A ``GraphCertifier.certify`` that says yes to every sample, at any radius."""
    return torch.ones(len(x), dtype=torch.bool)


def sha_of_unit(stage: str, chunk: int, payload: str) -> str:
    """The hash that a journal keeps beside a unit."""
    return hashlib.sha256(f"{stage}\x1f{chunk}\x1f{payload}".encode()).hexdigest()


def units_in(run: Path) -> dict[tuple[str, int], Any]:
    """The units of a run's journal as they stand there, unchecked, in the order in which they were entered."""
    with sqlite3.connect(run / "journal.sqlite") as db:
        rows = db.execute("SELECT stage, chunk, payload FROM units ORDER BY rowid").fetchall()
    db.close()
    return {(stage, chunk): json.loads(payload) for stage, chunk, payload in rows}


def seconds_in(run: Path) -> dict[tuple[str, int], float]:
    """How long each unit of a run's journal is said to have taken."""
    with sqlite3.connect(run / "journal.sqlite") as db:
        rows = db.execute("SELECT stage, chunk, seconds FROM units").fetchall()
    db.close()
    return {(stage, chunk): took for stage, chunk, took in rows}


def put_units(run: Path, units: dict[tuple[str, int], Any], seconds: dict[tuple[str, int], float]) -> None:
    """Has a run's journal hold these units and no others, each with its hash and its seconds, 0 where none are given."""
    with sqlite3.connect(run / "journal.sqlite") as db:
        db.execute("DELETE FROM units")
        for (stage, chunk), unit in units.items():
            text = json.dumps(unit, sort_keys=True)
            row = (stage, chunk, text, sha_of_unit(stage, chunk, text), seconds.get((stage, chunk), 0.0))
            db.execute("INSERT INTO units VALUES (?, ?, ?, ?, ?)", row)
    db.close()
