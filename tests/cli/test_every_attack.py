"""Every registered attack through ``holdfast attack``, as its row of docs/coverage.md shows it."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from holdfast.cli.docs import shown
from holdfast.core.registry import card, kind, method, names

SHORT = {"steps": 8, "queries": 150, "searches": 2, "targets": 2, "rounds": 1, "trials": 20, "passes": 1, "epochs": 2}
ATTACKS = [name for name in names() if kind(name).endswith("attack")]


def short(name: str) -> list[str]:
    """``--set`` flags that make a method quick."""
    tool = method(name)()
    mine = [f.name for f in fields(tool) if f.name in SHORT and isinstance(getattr(tool, f.name), int)]
    return [word for key in mine for word in ("--set", f"{key}={min(SHORT[key], getattr(tool, key))}")]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_runs_from_the_command_line(name: str, holdfast, place: Path, tmp_path: Path) -> None:
    c, weights = card(name), str(place / "model.safetensors")
    command = shown(name, kind(name), [str(n) for n in c.norms], None if c.access is None else c.access.label)
    words = [
        {"runs/demo/before.safetensors": weights, "runs/demo/after.safetensors": weights,
         "holdfast.models.zoo:digits_cnn": "holdfast.models.zoo:digits_mlp", "digits:train": str(place / "train.npz"),
         f"/tmp/{name}": str(tmp_path)}.get(word, word)
        for word in shlex.split(command)
    ]  # fmt: skip
    said = holdfast(*words[1:], "--samples", 6, *short(name), "--format", "json")
    if "need colour" in said.err:  # hue of a grey image
        assert said.code == 2
        return
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["attack"] == name
    if kind(name) == "attack":
        saved = np.load(tmp_path / "adversarial.npz")
        assert saved["x_adv"].shape == saved["x"].shape
        assert told["broken"] == int((np.isfinite(saved["distance"]) & (saved["distance"] > 0)).sum())
        assert told["forwards"] > 0
