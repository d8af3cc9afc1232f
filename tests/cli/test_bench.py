"""holdfast bench transfer, and several surrogates of one attack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from holdfast.data.load import load_data
from holdfast.models.zoo import digits_mlp
from holdfast.training.checkpoint import save_weights
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

ARCH = "holdfast.models.zoo:digits_mlp"


@pytest.fixture(scope="module")
def others(place: Path) -> list[Path]:
    """Two more networks of the same architecture, trained from other starts."""
    files = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = digits_mlp()
        fit(model, load_data("digits:train"), lambda model, batch: F.cross_entropy(model(batch.x), batch.y),
            settings=TrainingSettings(epochs=3, seed=seed))  # fmt: skip
        files.append(place / f"other{seed}.safetensors")
        save_weights(model, files[-1])
    return files


def test_a_matrix_of_source_and_target(holdfast, on, others, tmp_path: Path) -> None:
    said = holdfast(
        "bench", "transfer", "--models", f"mine={on[1]},{others[0]}", "--models", others[1], "--archs", ARCH,
        "--data", on[5], "--samples", 30, "--eps", "0.1", "--methods", "surrogate_transfer,di_fgsm", "--ensembles",
        "--out", tmp_path / "t",
    )  # fmt: skip
    assert said.code == 0, said.err
    lines = [line.split("\t") for line in said.out.strip().splitlines()]
    assert lines[0] == ["method", "source", "mine", "other1", "other2"]
    assert [line[1] for line in lines[1:7]] == ["mine", "other1", "other2", *(f"all but {m}" for m in lines[0][2:])]
    assert len(lines) == 13
    told = json.loads((tmp_path / "t" / "transfer.json").read_text())
    assert [m["attack"] for m in told] == ["surrogate_transfer", "di_fgsm"]
    cells = {(c["source"], c["target"]): c for c in told[0]["cells"]}
    assert cells["mine", "mine"]["white_box"]
    assert not cells["all but mine", "mine"]["white_box"]
    assert cells["mine", "mine"]["share"] > cells["mine", "other1"]["share"] > 0
    assert all(c["interval"][0] <= c["share"] <= c["interval"][1] for c in cells.values())
    page = (tmp_path / "t" / "transfer.html").read_text()
    assert page.count("<svg") == 3  # the patterns, two maps
    assert "DI-FGSM" in page
    assert "style=" not in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--methods", "pgd"), "asks the attacked model itself"),
        (("--methods", "crown"), "is no attack"),
        (("--methods", "di_fgsm,ti_fgsm", "--set", "steps=3"), "--set needs one method"),
        (("--archs", f"{ARCH},{ARCH},{ARCH}"), "one for all, or one for each"),
        (("--ensembles",), "three with ensembles"),
    ],
)
def test_what_cannot_be_had_is_refused(holdfast, on, others, tmp_path: Path, arguments, told: str) -> None:
    more = () if "--archs" in arguments else ("--archs", ARCH)
    said = holdfast("bench", "transfer", "--models", f"{on[1]},{others[0]}", "--data", on[5], "--samples", 4, "--out",
                    tmp_path, *more, *arguments)  # fmt: skip
    assert said.code == 2
    assert told in said.err


@pytest.mark.parametrize("command", [("bench", "transfer"), ("study", "manifold", "--train-data", "digits:train")])
def test_model_and_data_are_looked_at_before_the_work(holdfast, on, others, tmp_path: Path, command) -> None:
    """Labels that are one too high: refused as an audit refuses them, with the model's name."""
    import numpy as np

    with np.load(on[5]) as held:
        np.savez(tmp_path / "bad.npz", x=held["x"], y=(held["y"] + 1) % 10)
    given = ("--models", f"mine={on[1]},{others[0]}", "--archs", ARCH, "--data", tmp_path / "bad.npz")
    said = holdfast(*command, *given, "--eps", "0.1", "--out", tmp_path / "t")
    assert said.code == 2
    assert "mine: the pre-flight found" in said.err
    assert "--anyway" in said.err
    assert not (tmp_path / "t").exists()


def test_two_models_of_one_name_need_names(holdfast, on, tmp_path: Path) -> None:
    said = holdfast(
        "bench", "transfer", "--models", f"{on[1]},{on[1]}", "--archs", ARCH, "--data", on[5], "--out", tmp_path
    )
    assert said.code == 2
    assert "NAME=FILE" in said.err


def test_several_surrogates_make_an_ensemble(holdfast, on, others, tmp_path: Path) -> None:
    def broken(*surrogates: object) -> int:
        flags = [flag for s in surrogates for flag in ("--surrogate", s)]
        said = holdfast("attack", "surrogate-transfer", *on, *flags, "--surrogate-arch", ARCH, "--samples", 60, "--eps",
                        "0.1", "--out", tmp_path / str(len(surrogates)), "--format", "json")  # fmt: skip
        assert said.code == 0, said.err
        return json.loads(said.out)["broken"]

    assert broken(*others) == broken(f"{others[0]},{others[1]}") >= broken(others[0])


def test_a_substitute_is_trained_by_queries_and_judged_on_the_victim(holdfast, on, tmp_path: Path) -> None:
    said = holdfast(
        "attack", "substitute", *on, "--samples", 40, "--eps", "0.2", "--set", "rounds=2", "--out", tmp_path
    )
    assert said.code == 0, said.err
    assert "queries 80" in said.out, "20 samples to fit on, twice doubled"
