"""The model behind random changes of the input, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from holdfast.api.views import ranges
from holdfast.core.errors import UsageError
from holdfast.session.look import answers_vary
from holdfast.transforms.random_transform import random_view


def test_a_group_of_views_is_harder_than_the_model_alone(holdfast, on, tmp_path: Path) -> None:
    told = []
    for k, more in enumerate([[], ["--views", "rotation=30,translation=0.15", "--draws", "6"]]):
        said = holdfast("attack", "min_max", *on, "--samples", 20, "--eps", "0.12", "--set", "steps=10", *more,
                        "--out", tmp_path / str(k), "--format", "json")  # fmt: skip
        assert said.code == 0, said.err
        told.append(json.loads(said.out))
    wrong = [t["broken"] + t["adversarial_as_they_are"] for t in told]
    assert wrong[1] < wrong[0], "every view must be fooled together"
    assert told[1]["views"] == "rotation=30,translation=0.15"


def test_a_randomised_view_is_attacked_in_expectation_and_judged_by_vote(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("attack", "eot_pgd", *on, "--samples", 12, "--eps", "0.3", "--set", "steps=10", "--set", "draws=4",
                    "--views", "rotation=10,noise=0.05", "--out", tmp_path, "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    assert "majority of fresh draws" in said.err
    assert json.loads(said.out)["broken"] > 3


@pytest.mark.parametrize("text", ["turn=3", "rotation", "rotation=-1", "noise=much"])
def test_senseless_ranges_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--views"):
        ranges(text)


def test_only_what_differs_is_randomised() -> None:
    x = torch.rand(4, 1, 8, 8)
    assert not answers_vary(nn.Flatten(), x)
    assert answers_vary(random_view(nn.Flatten(), (1, 8, 8), {"noise": 0.1}), x)
    assert not answers_vary(random_view(nn.Flatten(), (1, 8, 8), {"noise": 0.1, "scale": 0.1}, seed=1), x)
