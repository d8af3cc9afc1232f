"""Tables on the command line: what breaks them is said by column, in the columns' own units."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from holdfast.audits.plan import Plan
from holdfast.core.errors import UsageError
from holdfast.data.table import Table

ON = (
    "--model", "net.safetensors", "--arch", "net.py:net", "--data", "t.csv", "--table", "t.yaml",
    "--class-names", "yes,no", "--eps", "0.2",
)  # fmt: skip
NAMES = ["age", "pay", "sex"]


def read(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def model() -> nn.Module:
    net = nn.Linear(3, 2)
    net.load_state_dict(load_file("net.safetensors"))
    return net


@pytest.mark.parametrize("command", ["audit", "attack"])
def test_broken_rows_are_written_by_column_in_own_units_and_break_the_model(
    holdfast, table: Path, command: str
) -> None:
    more = ("--certify", "none", "--queries", 100, "--out", "r") if command == "audit" else ("--out", "r")
    said = holdfast(*(("audit",) if command == "audit" else ("attack", "pgd")), *ON, *more)
    assert said.code == 0, said.err
    rows, clean = read("r/adversarial.csv"), read("t.csv")
    assert len(rows) > 5
    x = torch.tensor([[float(row[name]) for name in NAMES] for row in rows])
    labels = [{"yes": 0, "no": 1}[row["label"]] for row in rows]
    answers = [{"yes": 0, "no": 1}[row["prediction"]] for row in rows]
    said_now = model()(x).argmax(1).tolist()
    assert sum(a != b for a, b in zip(said_now, labels, strict=True)) >= len(rows) - 1, "but for rounding of a cell"
    assert all(a != b for a, b in zip(answers, labels, strict=True))
    for row in rows:
        was = clean[int(row["id"])]
        assert float(row["sex"]) == pytest.approx(float(was["sex"])), "immutable"
        assert abs(float(row["pay"]) - float(was["pay"])) <= 0.2 * 1e5 * (1 + 1e-6)
        assert abs(float(row["age"]) - float(was["age"])) <= 0.2 * 80 * (1 + 1e-6)
    with np.load("r/adversarial.npz") as arrays:
        name = "adversarial" if command == "audit" else "x_adv"
        assert arrays[name][:, 1].max() > 1, "own units"


def test_the_page_shows_rows_by_column_and_recheck_finds_a_forged_one(holdfast, table: Path) -> None:
    assert holdfast("audit", *ON, "--certify", "none", "--samples", 20, "--queries", 100, "--out", "r").code == 0
    page = Path("r/report.html").read_text()
    section = page[page.index('id="rows"') :]
    assert "Rows that break it" in section
    for name in NAMES:
        assert f'<th scope="row">{name}</th>' in section
    moved = section[section.index('<th scope="row">sex</th>') :].split("</td>")[0]
    assert ">0 of " in moved
    again = holdfast("recheck", "r", "--trust")
    assert again.code == 0, again.out
    file = Path("r/adversarial.csv")
    text = file.read_text()
    file.write_text(text.replace(text.splitlines()[1].split(",")[5], "12345", 1))
    forged = holdfast("recheck", "r", "--trust")
    assert forged.code == 3
    assert "adversarial.csv says something else" in forged.out


def test_a_certificate_is_said_in_own_units(holdfast, table: Path) -> None:
    said = holdfast("certify", "ibp", *ON, "--samples", 10, "--out", "c")
    assert said.code == 0, said.err
    told = {line.split("\t")[0]: line.split("\t")[1:] for line in said.out.splitlines()}
    assert told["sex"] == ["0"]
    assert "all columns at once" in said.out
    for row in read("c/radii.csv"):
        radius = float(row["ibp"])
        assert float(row["ibp: age"]) == np.floor(80 * radius), "whole years"
        assert float(row["ibp: pay"]) == pytest.approx(1e5 * radius)
        assert float(row["ibp: sex"]) == 0
    assert "own units" in Path("c/radii.html").read_text()


def test_a_plan_in_python_takes_the_file_of_a_table(table: Path) -> None:
    plan = Plan.of(table="t.yaml")
    assert plan.table == Table.read(Path("t.yaml"))
    assert plan.sha256 == Plan.of(table=Table.read(Path("t.yaml"))).sha256
    with pytest.raises(UsageError, match="there is no table"):
        Plan.of(table="nowhere.yaml")


def test_pictures_and_rows_without_names_have_no_csv(holdfast, on: list[object], tmp_path: Path) -> None:
    said = holdfast("attack", "pgd", *on, "--eps", "0.2", "--samples", 5, "--out", tmp_path / "a", "--format", "json")
    assert said.code == 0
    assert json.loads(said.out)["samples"] == 5
    assert not (tmp_path / "a" / "adversarial.csv").exists()
