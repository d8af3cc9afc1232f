"""A table of columns with ranges of their own, from Python: from its file, and from arrays."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast as hf

COLUMNS = {
    "columns": {"age": {"low": 18, "high": 98, "type": "integer"}, "pay": {"high": 1e5}, "sex": {"immutable": True}}
}
THREAT = hf.ThreatModel.of("linf", "0.2")
NAMES = ["yes", "no"]


class Given(NamedTuple):
    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """A linear model on columns in their own units, ``columns.yaml`` and ``rows.csv``."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x = torch.rand(8, 3) * torch.tensor([80.0, 1e5, 1.0]) + torch.tensor([18.0, 0.0, 0.0])
    x[:, 0].round_()
    with torch.no_grad():
        model.weight /= torch.tensor([80.0, 1e5, 1.0])
        model.bias -= model(x).mean(0)
    y = model(x).argmax(1)
    Path("columns.yaml").write_text(
        "columns:\n  age: {low: 18, high: 98, type: integer}\n  pay: {high: 100000}\n  sex: {immutable: true}\n"
    )
    rows = [",".join([*map(repr, row), NAMES[k]]) for row, k in zip(x.tolist(), y.tolist(), strict=True)]
    Path("rows.csv").write_text("age,pay,sex,label\n" + "\n".join(rows) + "\n")
    return Given(model, x, y)


def test_a_table_is_audited_from_arrays_and_stands_a_recheck(given: Given) -> None:
    run = hf.audit(
        given.model,
        (given.x, given.y),
        THREAT,
        table="columns.yaml",
        suite="fast",
        certify="ibp",
        out="run",
        progress=False,
    )
    broken = [s.id for s in run.samples if s.status is hf.Status.BROKEN]
    assert broken
    with np.load("run/adversarial.npz") as arrays:
        moved = torch.from_numpy(arrays["adversarial"])
    assert torch.equal(moved[:, 2], given.x[broken, 2]), "immutable"
    grid = run.document.grid
    assert grid is not None, "the witnesses are asked again with whole years"
    assert grid.empirical_robust_accuracy >= run.headline.empirical_robust_accuracy
    assert float((moved - given.x[broken]).abs()[:, 1].max()) <= 0.2 * 1e5 * (1 + 1e-6), "in its own unit"
    assert bool((given.model(moved.float()).argmax(1) != given.y[broken]).all())
    assert hf.recheck("run", model=given.model).ok


def test_a_plan_names_the_table_as_a_verb_does(given: Given) -> None:
    plan = hf.Plan.of(data="rows.csv", table="columns.yaml", class_names=NAMES, eps="0.2", suite="fast", certify="none")
    assert plan.sha256 == hf.Plan.of(**{**plan.model_dump(exclude_unset=True), "table": COLUMNS}).sha256
    with pytest.raises(hf.HoldfastError, match="audited from its file"):
        hf.audit(given.model, hf.load_data("rows.csv", classes=NAMES), THREAT, table="columns.yaml", out="run")


def test_every_verb_takes_a_table(given: Given) -> None:
    for table in ("columns.yaml", COLUMNS):
        result = hf.attack(given.model, "rows.csv", "pgd", THREAT, table=table, class_names=NAMES, steps=5)
        assert result.broken.any()
        assert float(result.x.max()) <= 1, "in units of the ranges, and saved in the table's own"
    result.save("attack")
    with np.load("attack/adversarial.npz") as arrays:
        assert arrays["x_adv"][:, 1].max() > 1
    radii = hf.certify(given.model, (given.x, given.y), "ibp", THREAT, table="columns.yaml")
    assert np.nanmax(radii.radius) > 0
    done = hf.harden(given.model, (given.x, given.y), "pgd_training", THREAT, table=COLUMNS, epochs=1, steps=1)
    assert done.history
