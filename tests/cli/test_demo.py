"""The demo closes the circle: audit, harden, audit, compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_gains_twenty_points_and_its_runs_recheck(holdfast, tmp_path: Path) -> None:
    said = holdfast("demo", "--out", tmp_path / "demo", "--samples", 60)
    assert said.code == 0, said.err
    before, after = (
        json.loads((tmp_path / "demo" / n / "report.json").read_text())["headline"] for n in ("before", "after")
    )
    assert after["empirical_robust_accuracy"] >= before["empirical_robust_accuracy"] + 0.2
    assert after["clean_accuracy"] >= 0.9
    assert (tmp_path / "demo" / "compare.html").exists()
    for name in ("before", "after"):
        assert holdfast("recheck", tmp_path / "demo" / name).code == 0
    again = holdfast("demo", "--out", tmp_path / "demo", "--samples", 60)
    assert (again.code, again.out) == (0, said.out), "a second demo replaces the first and says the same"
