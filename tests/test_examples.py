"""The examples run as they stand."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from holdfast.audits.plan import Plan
from holdfast.models import serve

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_plan_is_read() -> None:
    assert Plan.read(EXAMPLES / "plan.yaml").eps_grid == (Fraction(2, 255), Fraction(4, 255))


@pytest.mark.slow
def test_a_prediction_api_is_attacked_and_the_books_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "prediction_api.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:3]] == ["Square", "HopSkipJump", "Substitute"]


@pytest.mark.slow
def test_the_commands_of_its_docstring_run_as_they_are_written(tmp_path: Path) -> None:
    text = ast.get_docstring(ast.parse((EXAMPLES / "prediction_api.py").read_text())) or ""
    commands = [" ".join(c.split()) for c in re.findall(r"^    (holdfast (?:.*\\\n)*.*)", text, re.M)]
    commands = [c.replace("\\ ", "") for c in commands]
    assert [c.split()[1] for c in commands] == ["attack", "attack", "audit"]
    top, labels, scores = {"top_k": 3}, {"mode": "labels"}, {}
    model = runpy.run_path(str(EXAMPLES / "prediction_api.py"))["deployed"]()
    for command, served in zip(commands, (top, labels, scores), strict=True):
        with serve(model.eval(), **served) as api:
            words = shlex.split(command.replace("http://127.0.0.1:8000/", api.url))
            done = subprocess.run(
                [Path(sys.executable).with_name("holdfast"), *words[1:]], cwd=tmp_path, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert api.rows > 0


@pytest.mark.slow
def test_own_model_is_audited_and_rechecked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "own_model.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("certified ")
    assert done.stdout.endswith("recheck: True\n")


@pytest.mark.slow
def test_obfuscated_gradients_are_broken(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "break_obfuscation.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["quantisation", "resizing", "thermometer"]
    for _, clean, plain, adaptive in rows:
        assert float(clean[:-1]) > 90
        assert float(plain[:-1]) > 70, "the plain attack is blind"
        assert float(adaptive[:-1]) < 50
