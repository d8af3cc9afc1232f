"""holdfast study posthoc and unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_before_and_after(holdfast, on, tmp_path: Path) -> None:
    said = holdfast(
        "study", "posthoc", *on, "--samples", 60, "--eps", "0.1", "--adjust", "prune:0.6,int8,temperature", "--attack",
        "pgd", "--set", "steps=10", "--out", tmp_path,
    )  # fmt: skip
    assert said.code == 0, said.err
    lines = [line.split("\t") for line in said.out.strip().splitlines()[1:]]
    assert [line[0] for line in lines] == ["model", "original", "prune:0.6", "int8", "temperature"]
    told = json.loads((tmp_path / "posthoc.json").read_text())
    assert told["samples"] == told["fitted_on"] == 30
    page = (tmp_path / "posthoc.html").read_text()
    assert "60% smallest weights" in page
    assert "style=" not in page


def test_known_and_unseen(holdfast, on, tmp_path: Path) -> None:
    said = holdfast(
        "study",
        "unseen",
        *on,
        "--samples",
        20,
        "--eps",
        "0.03",
        "--set",
        "steps=10",
        "--queries",
        100,
        "--out",
        tmp_path,
    )
    assert said.code == 0, said.err
    told = json.loads((tmp_path / "unseen.json").read_text())
    assert told["rows"][0]["kind"] == "known"
    assert {r["kind"] for r in told["rows"]} == {"known", "other loss", "other method", "black-box", "other norm"}
    assert told["certified"] <= told["bounds"][0]["worst"] <= told["known"] <= told["accuracy"]
    page = (tmp_path / "unseen.html").read_text()
    assert "Proved (CROWN)" in page
    assert "style=" not in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("posthoc", "--adjust", "prune:2"), "between 0 and 1"),
        (("posthoc", "--adjust", "int9"), "no adjustment 'int9'"),
        (("posthoc", "--set", "steps=3"), "--set needs one method"),
        (("posthoc", "--samples", "1"), "give --held-out"),
        (("unseen", "--known", "crown"), "is no attack"),
    ],
)
def test_what_cannot_be_had_is_refused(holdfast, on, tmp_path: Path, arguments, told: str) -> None:
    said = holdfast("study", arguments[0], *on, "--out", tmp_path, *arguments[1:])
    assert said.code == 2
    assert told in said.err


def test_a_detector_in_the_loop(holdfast, on, tmp_path: Path) -> None:
    file = tmp_path / "watched.py"
    file.write_text(
        "import torch\nfrom torch import nn\nfrom holdfast.models.zoo import digits_mlp\n"
        "class Watched(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return torch.cat([super().forward(x), x.mean((1, 2, 3)).unsqueeze(1) - 0.33], 1)\n"
        "def watched():\n    return Watched(*digits_mlp())\n"
    )

    def run(*flags: object):
        return holdfast(
            "attack", "pgd", "--model", on[1], "--arch", f"{file}:watched", "--data", on[5], "--samples", 30, "--eps",
            "0.15", "--out", tmp_path / "a", "--format", "json", "--trust", "--detector", *flags,
        )  # fmt: skip

    said = run("--set", "loss=joint")
    assert said.code == 0, said.err
    assert json.loads(said.out)["broken"] > 0
    plain = run()
    assert plain.code == 2
    assert "loss=joint" in plain.err


def test_scalability_measures_every_verifier_on_every_network(holdfast, tmp_path: Path) -> None:
    said = holdfast("study", "scalability", "--method", "ibp,crown", "--depth", "1,2", "--width", "16", "--side", "8",
                    "--samples", 2, "--out", tmp_path, "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    rows = json.loads(said.out)["rows"]
    assert [(r["axis"], r["size"], r["method"]) for r in rows] == [
        (a, s, m) for a, s in (("depth", 1), ("depth", 2), ("width", 16), ("side", 8)) for m in ("ibp", "crown")
    ]
    for loose, tight in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < loose["radius"] <= tight["radius"] * 1.05  # of two searches with a tolerance
        assert -1e-9 <= tight["gap"] <= loose["gap"] + 0.05 <= 1.05
    assert "<svg" in (tmp_path / "scalability.html").read_text()
    assert "graph certifiers" in holdfast("study", "scalability", "--method", "pgd", "--out", tmp_path).err
