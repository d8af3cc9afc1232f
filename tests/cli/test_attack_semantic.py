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
