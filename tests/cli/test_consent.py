"""What a person says yes to: an API that only a file names is asked for, and a file that is there is not written over."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from holdfast.audits.plan import Plan
from holdfast.models.load import load_model
from holdfast.models.serve import serve

ARCH = "holdfast.models.zoo:digits_mlp"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def api(place: Path):
    with serve(load_model(place / "model.safetensors", arch=ARCH).module) as served:
        yield served


@pytest.fixture
def file(api, place: Path, tmp_path: Path) -> Path:
    plan = Plan.of(
        model=api.url, classes=10, suite="black-box", certify="none", data=str(place / "test.npz"), samples=3, eps="0.3",
        queries=20, max_queries=2000,
    )  # fmt: skip
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    return tmp_path / "plan.yaml"


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_an_api_that_only_a_plan_names_is_asked_after_a_typed_yes(
    holdfast, api, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    monkeypatch.setenv("HOLDFAST_API_TOKEN", "secret")
    said = holdfast("audit", "--plan", file, "--out", tmp_path / "run")
    assert said.code == code, said.err
    question = " ".join((said.out + said.err).split())
    assert f"Send data to {api.url} (at most 2000 rows; no token" in question
    assert (api.rows > 0) == (code == 0)
    assert (tmp_path / "run").exists() == (code == 0)


def test_off_a_terminal_nobody_is_asked_and_nothing_is_sent(
    holdfast, api, file: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    said = holdfast("audit", "--plan", file, "--out", tmp_path / "run")
    assert said.code == 2
    assert f"--model {api.url}" in said.err
    assert api.rows == 0


def test_resume_asks_too(holdfast, api, file: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "run"
    assert holdfast("audit", "--plan", file, "--model", api.url, "--max-queries", 40, "--out", out).code == 3
    before = api.rows
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert holdfast("resume", out, "--max-queries", 2000).code == 2
    assert api.rows == before
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert holdfast("resume", out, "--max-queries", 2000).code == 0
    assert api.rows > before


def test_harden_writes_over_weights_only_with_force(holdfast, on: list[object], place: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.safetensors"
    out.write_bytes(b"weights of somebody")
    command = ("harden", "--model", on[1], "--arch", ARCH, "--data", place / "train.npz", "--eps", "0.1", "--epochs", 1,
               "--set", "steps=1", "--out", out)  # fmt: skip
    said = holdfast(*command)
    assert said.code == 2
    assert "--force writes over it, or choose another --out" in said.err
    assert out.read_bytes() == b"weights of somebody"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.safetensors"]
    said = holdfast(*command, "--force")
    assert said.code == 0, said.err
    load_model(out, arch=ARCH)


def test_a_comparison_says_what_it_left_out(holdfast, on: list[object], tmp_path: Path) -> None:
    for name in ("a", "b"):
        few = ("--samples", 4, "--eps", "0.1", "--queries", 100, "--certify", "none")
        assert holdfast("audit", *on, *few, "--out", tmp_path / name).code == 0
    assert holdfast("attack", "pgd", *on, "--samples", 4, "--eps", "0.1", "--out", tmp_path / "c").code == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    page = tmp_path / "all.html"
    said = holdfast("report", "--compare", *sorted(tmp_path.iterdir()), "--out", page)
    assert said.code == 0, said.err
    assert said.out.strip() == f"comparison of 2 runs: {page}"
    left_out = [line for line in said.err.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3
    for name in ("c", "empty", "notes.txt"):
        assert sum(str(tmp_path / name) in line for line in left_out) == 1
    into = holdfast("report", "--compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "a" / "report.html")
    assert (into.code, "holds another run" in into.err) == (2, True)
    none = holdfast("report", "--compare", tmp_path / "c", tmp_path / "empty", "--out", tmp_path / "none.html")
    assert none.code == 2
    assert not (tmp_path / "none.html").exists()
