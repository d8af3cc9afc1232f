"""``holdfast attack min_max --also``: one input against several models."""

import json
from pathlib import Path

import numpy as np
import torch

from holdfast.models.load import load_model
from holdfast.models.zoo import digits_mlp
from holdfast.training.checkpoint import save_weights

ARCH = "holdfast.models.zoo:digits_mlp"


def test_an_input_that_is_broken_breaks_every_model(holdfast, on, tmp_path: Path) -> None:
    other = load_model(on[1], arch=ARCH).module
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    save_weights(other, tmp_path / "other.safetensors")
    said = holdfast("attack", "min_max", *on, "--also", tmp_path / "other.safetensors", "--also-arch", ARCH,
                    "--samples", 20, "--norm", "linf", "--eps", "1/4", "--set", "steps=10", "--out", tmp_path / "a",
                    "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    told, found = json.loads(said.out), np.load(tmp_path / "a" / "adversarial.npz")
    assert told["broken"] > 5
    assert told["not_upheld"] == 0
    x, y = torch.from_numpy(found["x_adv"]), found["y"]
    wrong = [(model(x).argmax(1).numpy() != y) for model in (load_model(on[1], arch=ARCH).module.eval(), other.eval())]
    assert ((wrong[0] & wrong[1]) == found["found"]).all()


def test_who_attacks_one_model_refuses_several(holdfast, on, tmp_path: Path) -> None:
    save_weights(digits_mlp(), tmp_path / "other.safetensors")
    said = holdfast("attack", "pgd", *on, "--also", tmp_path / "other.safetensors", "--also-arch", ARCH,
                    "--samples", 5, "--norm", "linf", "--eps", "1/4", "--out", tmp_path / "a")  # fmt: skip
    assert said.code != 0
    assert "min_max" in said.err
