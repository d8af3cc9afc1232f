"""``holdfast attack`` with semantic attacks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from holdfast.models.load import load_model

ARCH = "holdfast.models.zoo:digits_mlp"


def test_attack_saves_images_and_parameters(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("attack", "rotation_translation", *on, "--samples", 20, "--set", "angles=7", "--set", "shifts=3",
                    "--out", tmp_path, "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    told, saved = json.loads(said.out), np.load(tmp_path / "adversarial.npz")
    model = load_model(on[1], arch=ARCH).module
    answer = model(torch.from_numpy(saved["x_adv"])).argmax(1).numpy()
    assert ((answer != saved["y"]) == saved["found"]).all()
    assert told["broken"] > 5
    assert np.abs(saved["natural_rotation"]).max() <= 30
    assert np.allclose(saved["natural_rotation"], 30 * saved["theta"][:, 0])
    assert told["axes"]["rotation"]["unit"] == "degrees"
    assert sum(s["broken"] for s in told["axes"]["rotation"]["slices"]) == told["broken"]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == min(12, told["broken"])


def test_attack_tells_a_table_and_refuses_what_it_cannot(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("attack", "brightness_contrast", *on, "--samples", 10, "--out", tmp_path)
    assert said.code == 0, said.err
    assert "contrast (factor)" in said.out
    said = holdfast("attack", "hue_saturation", *on, "--samples", 10, "--out", tmp_path)
    assert said.code == 2
    assert "3 channels" in said.err
    said = holdfast("attack", "brightness_contrast", *on, "--eps", "0.1", "--out", tmp_path)
    assert said.code == 2
    assert "has ranges" in said.err


def test_attack_learns_from_other_samples_than_it_attacks(holdfast, on, tmp_path: Path) -> None:
    less = ["--set", "epochs=2", "--set", "steps=4", "--set", "restarts=1"]
    said = holdfast("attack", "on_manifold", *on, *less, "--samples", 20, "--out", tmp_path / "m", "--format", "json")
    assert said.code == 0, said.err
    assert "learned from the first 10 samples" in said.err
    told = json.loads(said.out)
    assert told["samples"] == 10
    assert 0 < told["facts"]["reconstruction_rmse"] < 1
    assert np.load(tmp_path / "m" / "adversarial.npz")["theta"].shape == (10, 10)
    said = holdfast("attack", "unrestricted", *on, *less, "--samples", 10, "--train-data", "digits:train",
                    "--set", "judge_epochs=1", "--out", tmp_path / "u", "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["samples"] == 10
    assert len(list((tmp_path / "u").glob("pictures/*_class*.png"))) == told["broken"]


def test_study_manifold_writes_table_and_page(holdfast, tmp_path: Path) -> None:
    said = holdfast("study", "manifold", "--data", "digits:test", "--train-data", "digits:train", "--samples", 20,
                    "--sizes", "20,60", "--epochs", 2, "--set", "epochs=2", "--set", "steps=3", "--set", "restarts=1",
                    "--out", tmp_path)  # fmt: skip
    assert said.code == 0, said.err
    assert "60 samples" in said.out
    assert "rank correlation" in said.out
    assert len(json.loads((tmp_path / "manifold.json").read_text())["rows"]) == 2
    assert "<svg" in (tmp_path / "manifold.html").read_text()
    said = holdfast("study", "manifold", "--data", "digits:test", "--out", tmp_path)
    assert said.code == 2
    assert "--train-data" in said.err
