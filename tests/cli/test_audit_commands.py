"""audit, resume, recheck, report and diff on one small run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

RUN = ["--samples", 12, "--norm", "linf", "--eps", "0.05", "--certify", "ibp"]


@pytest.fixture(scope="session")
def finished() -> dict[str, Path]:
    """The run, once it was made; tests copy it before they change it."""
    return {}


@pytest.fixture
def run(holdfast, on, finished, tmp_path_factory) -> Path:
    if "run" not in finished:
        out = tmp_path_factory.mktemp("runs") / "run"
        said = holdfast("audit", *on, *RUN, "--out", out)
        assert said.code == 0, said.err
        assert "<= true robust accuracy <=" in said.out
        assert "\x1b" not in said.out + said.err
        finished["run"] = out
    return finished["run"]


def test_a_run_holds_what_it_promises(run: Path) -> None:
    for name in ("report.html", "report.json", "report.sarif", "junit.xml", "plan.yaml", "journal.sqlite", "witnesses"):
        assert (run / name).exists(), name
    document = json.loads((run / "report.json").read_text())
    assert document["headline"]["samples"] == 12
    assert document["command"].startswith("holdfast audit --model")
    broken = [s for s in document["samples"] if s["status"] == "BROKEN"]
    assert broken
    assert all((run / "witnesses" / f"{s['witness']['sha256']}.safetensors").exists() for s in broken)
    assert "data:image/png" in (run / "report.html").read_text(), "the page shows pictures"


def test_recheck_holds_and_finds_a_flipped_byte(holdfast, run: Path, tmp_path: Path) -> None:
    said = holdfast("recheck", run)
    assert said.code == 0, said.out + said.err
    assert "all hold" in said.out
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    witness = next((copy / "witnesses").iterdir())
    content = bytearray(witness.read_bytes())
    content[-1] ^= 1
    witness.write_bytes(content)
    said = holdfast("recheck", copy)
    assert said.code == 3, said.out + said.err


def test_the_gate(holdfast, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert holdfast("resume", copy, "--fail-under", "0%").code == 0
    said = holdfast("resume", copy, "--fail-under", "1")
    assert said.code == 1
    assert "gate FAILED: empirical robust accuracy of at least 100.0 %" in said.out
    assert json.loads((copy / "report.json").read_text())["gate"]["passed"] is False
    assert holdfast("resume", copy, "--fail-under", "40").code == 2
    assert holdfast("resume", copy, "--allow-weak").code == 2
    assert holdfast("resume", copy, "--fail-under", "0.9", "--fail-on", "certified").code == 1


def test_resume_of_a_finished_run_says_the_same(holdfast, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    told = json.loads(holdfast("resume", copy, "--format", "json").out)
    before = json.loads((run / "report.json").read_text())
    assert (told["samples"], told["headline"]) == (before["samples"], before["headline"])
    said = holdfast("resume", tmp_path / "nowhere")
    assert said.code == 2
    assert "is no run" in said.err


def test_another_plan_in_the_same_folder_is_refused(holdfast, on, run: Path) -> None:
    said = holdfast("audit", *on, *RUN, "--seed", 1, "--out", run)
    assert said.code == 3
    assert "another plan" in said.err


def test_a_plan_file_repeats_the_run(holdfast, run: Path, tmp_path: Path) -> None:
    said = holdfast("audit", "--plan", run / "plan.yaml", "--samples", 4, "--certify", "none", "--out", tmp_path / "r")
    assert said.code == 0, said.err
    told = json.loads((tmp_path / "r" / "report.json").read_text())
    assert told["headline"]["samples"] == 4
    assert told["headline"]["certified_robust_accuracy"] is None
    before = json.loads((run / "report.json").read_text())
    assert [s["prediction"] for s in told["samples"]] == [s["prediction"] for s in before["samples"][:4]]


def test_report_compare_and_diff(holdfast, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "report.html").unlink()
    assert holdfast("report", other).code == 0
    assert (other / "report.html").exists()
    page = tmp_path / "new" / "compare.html"
    assert holdfast("report", "--compare", run, other, "--out", page).code == 0
    assert "other" in page.read_text()
    said = holdfast("diff", run, other)
    assert said.code == 0
    assert "gained 0, lost 0" in said.out
    assert json.loads(holdfast("diff", run, other, "--format", "json").out)["comparable"] is True
    assert holdfast("report", run, other).code == 2
    assert holdfast("diff", run, tmp_path).code == 2


def test_a_report_without_its_model_keeps_its_pictures(holdfast, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    plan = (copy / "plan.yaml").read_text()
    (copy / "plan.yaml").write_text(plan.replace("model.safetensors", "gone.safetensors"))
    said = holdfast("report", copy)
    assert said.code == 0, said.err
    assert "broken samples" not in said.err
    assert (copy / "report.html").read_text() == (run / "report.html").read_text()


def test_a_report_without_its_data_goes_without_pictures(holdfast, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    plan = yaml.safe_load((copy / "plan.yaml").read_text())
    for data, why in (("gone.npz", "no data at gone.npz"), ("digits:train", "holds other data than those of the run")):
        (copy / "plan.yaml").write_text(yaml.safe_dump(plan | {"data": data}))
        said = holdfast("report", copy)
        assert said.code == 0, said.err
        assert "without the broken samples" in said.err
        assert why in said.err
        assert "data:image/png" not in (copy / "report.html").read_text()


def test_what_was_not_given_is_said_and_what_does_not_fit_is_refused(holdfast, on, tmp_path: Path) -> None:
    model = list(map(str, on))[: list(map(str, on)).index("--data")]
    said = holdfast(
        "audit",
        *model,
        "--samples",
        4,
        "--eps",
        "0",
        "--certify",
        "none",
        "--suite",
        "minimal",
        "--out",
        tmp_path / "r",
    )
    assert said.code == 0, said.err
    assert "embedded digits" in said.err
    assert "--eps 0: no change is allowed" in said.err
    said = holdfast("audit", *on, "--samples", 4, "--classes", 3, "--certify", "none", "--out", tmp_path / "s")
    assert said.code == 2
    assert "--classes 3, and the model has 10" in said.err


def test_workers_of_a_fresh_process_find_what_one_process_finds(on, tmp_path: Path) -> None:
    # in this process autograd has been used before anything was exported, which hides what a user's first run meets
    told = []
    for workers in ("1", "2"):
        program = "from holdfast.cli.main import main; main()"
        few = ["--samples", "10", "--eps", "0.1", "--queries", "200"]
        flags = [*map(str, on), *few, "--workers", workers, "--out", tmp_path / workers]
        done = subprocess.run(
            [sys.executable, "-c", program, "audit", *map(str, flags)],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told.append(json.loads((tmp_path / workers / "report.json").read_text())["headline"])
    assert told[0] == told[1]
