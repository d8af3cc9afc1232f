"""The command line and the library are one: the same figures from both doors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import holdfast as hf
from holdfast.api.results import Rows
from holdfast.cli.main import main

ARCH = "holdfast.models.zoo:digits_mlp"
LINF = hf.ThreatModel.of("linf", "0.1")
TIMES = {"seconds", "command"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: Path):
    """Runs ``holdfast ARGUMENTS`` on the model and the digits and returns its answer in JSON."""

    def run(*arguments: object) -> Any:
        given = ["--model", weights, "--arch", ARCH, "--data", "digits:test", "--samples", 6, "--format", "json", "-q"]
        monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, (*arguments, *given))])
        capsys.readouterr()
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        return json.loads(capsys.readouterr().out)

    return run


def _figures(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in TIMES}


def test_an_attack(command, model, tmp_path: Path) -> None:
    said = command("attack", "apgd_ce", "--eps", "0.1", "--set", "steps=9", "--seed", 2, "--out", tmp_path / "a")
    result = hf.attack(model, "digits:test", "apgd_ce", LINF, steps=9, seed=2, samples=6)
    assert _figures(said) == _figures(result.to_dict())
    result.save(tmp_path / "b")
    with np.load(tmp_path / "a" / "adversarial.npz") as one, np.load(tmp_path / "b" / "adversarial.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_an_attack_with_one_artefact(command, model, tmp_path: Path) -> None:
    said = command("attack", "uap", "--eps", "0.1", "--set", "passes=1", "--out", tmp_path / "a")
    mine = hf.attack(model, "digits:test", "uap", LINF, passes=1, samples=6).to_dict()
    (theirs,), (ours,) = said.pop("models").values(), mine.pop("models").values()
    assert (_figures(said), theirs) == (_figures(mine), ours)


def test_radii(command, model, tmp_path: Path) -> None:
    (said,) = command("certify", "ibp", "--eps", "0.1", "--out", tmp_path / "a")
    assert _figures(said) == _figures(hf.certify(model, "digits:test", "ibp", LINF, samples=6).to_dict())


def test_an_audit(command, model, tmp_path: Path) -> None:
    said = command("audit", "--eps", "0.1", "--queries", 200, "--certify", "ibp", "--out", tmp_path / "a")
    report = hf.audit(model, "digits:test", LINF, queries=200, certify="ibp", samples=6, out=tmp_path / "b").to_dict()
    for part in ("headline", "samples", "threat", "subject", "curves", "complete"):
        assert said[part] == report[part], part
    assert (tmp_path / "b" / "report.html").is_file()


def test_what_is_printed_is_what_a_result_prints(monkeypatch, capsys, weights: Path, model, tmp_path: Path) -> None:
    words = [
        "attack",
        "fgsm",
        "--model",
        weights,
        "--arch",
        ARCH,
        "--data",
        "digits:test",
        "--samples",
        6,
        "--eps",
        "0.1",
    ]
    monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, words), "--out", str(tmp_path / "a")])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    shown = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("seconds")]
    blocks = hf.attack(model, "digits:test", "fgsm", LINF, samples=6).blocks()
    assert not any(isinstance(block, Rows) for block in blocks)
    assert shown == [line for line in map(str, blocks) if not line.startswith("seconds")]
