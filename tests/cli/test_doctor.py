"""``holdfast doctor`` as the front door: accuracy, how classes are numbered, what mends it, the command to paste."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np

ON = ("--model", "net.safetensors", "--arch", "net.py:net", "--data", "t.csv", "--table", "t.yaml")


def test_the_command_that_doctor_prints_mends_the_order_of_the_classes(holdfast, table: Path) -> None:
    said = holdfast("doctor", *ON)
    assert said.code == 2
    assert "classes: 0 no, 1 yes" in said.out
    assert "clean accuracy: 0.0%" in said.out
    assert "another order" in said.out
    assert "inverted" not in said.out
    command = said.out.splitlines()[-1].strip()
    assert command.endswith("--class-names yes,no")
    said = holdfast(*shlex.split(command)[1:], "--certify", "none", "--samples", "10")
    assert said.code == 0, said.err
    report = json.loads((table / "runs/first/report.json").read_text())
    assert report["data"]["class_names"] == ["yes", "no"]
    assert report["grid"]["grid"] == "of 1 integer columns"


def test_doctor_says_how_well_the_model_does_and_how_long_an_audit_takes(holdfast, table: Path) -> None:
    said = holdfast("doctor", *ON, "--class-names", "yes,no", "--format", "json")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert answer["clean_accuracy"] == 1.0
    assert answer["classes"] == {"0": "yes", "1": "no"}
    assert "if none does" in answer["time"]
    assert answer["command"].startswith("holdfast audit --model net.safetensors")
    assert "--format" not in answer["command"]


def test_the_attack_of_a_table_leaves_its_immutable_column_alone(holdfast, table: Path) -> None:
    said = holdfast("attack", "pgd", *ON, "--class-names", "yes,no", "--eps", "0.3", "--out", "a")
    assert said.code == 0, said.err
    with np.load("a/adversarial.npz") as found:
        moved = found["x_adv"] != found["x"]
        assert found["found"].sum() > 5
        assert moved[found["found"]].any(0).tolist() == [True, True, False]


def test_raw_columns_are_described_by_the_commands_that_doctor_prints(holdfast, table: Path) -> None:
    said = holdfast("doctor", *ON[:6], "--class-names", "yes,no")
    assert said.code == 2
    assert "image" not in said.out
    first, second = (shlex.split(line) for line in said.out.splitlines()[-2:])
    written = holdfast(*first[1:])
    assert written.code == 0, written.err
    assert "immutable" in written.err
    assert holdfast(*first[1:]).code == 2, "an edited description is not written over"
    audited = holdfast(*second[1:], "--certify", "none", "--samples", "3", "--queries", "100")
    assert audited.code == 0, audited.err


def test_classes_that_are_their_own_numbers_are_said_once(holdfast, place: Path, on: list[object]) -> None:
    said = holdfast("doctor", *on[:4], "--data", "digits:test", "--samples", "1")
    assert "classes: 0 to 9" in said.out
    assert "1 sample of 1x8x8" in said.out
    assert "1 samples" not in said.out


def test_the_scope_has_eps_as_it_was_typed(holdfast, on: list[object], tmp_path: Path) -> None:
    said = holdfast(
        "audit", *on, "--samples", 1, "--eps", "0.1", "--eps-grid", "0.05", "--certify", "none", "--out", tmp_path
    )
    assert said.code == 0, said.err
    page = (tmp_path / "report.html").read_text()
    assert "linf <= 0.1 in [0, 1]" in said.out
    assert "attack at eps 0.05" in said.err
    for text in (said.out, said.err, page):
        assert "1/10" not in text
        assert "1 samples" not in text
