"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.audit.plan import Plan

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_plan_is_read() -> None:
    assert Plan.read(EXAMPLES / "plan.yaml").eps_grid == ("2/255", "4/255")


@pytest.mark.slow
def test_a_prediction_api_is_attacked_and_the_books_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "prediction_api.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:3]] == ["Square", "HopSkipJump", "Substitute"]


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
