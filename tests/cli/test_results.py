"""An attack's folder is made anew by the next attack, and nobody else's is touched; what is no proof is said so."""

from __future__ import annotations

import pytest

from holdfast.api.folders import begin_results, check_results
from holdfast.checker import Rejected
from holdfast.checker import check as check_proof
from holdfast.core.errors import UsageError


def test_an_attacks_folder_is_made_anew(tmp_path):
    out = tmp_path / "a"
    begin_results(out, "pgd")
    (out / "pictures").mkdir()
    for name in ("adversarial.npz", "pictures/000001.png", "fit.safetensors", "mine.txt"):
        (out / name).write_text("x")
    begin_results(out, "pgd")
    left = sorted(str(f.relative_to(out)) for f in out.rglob("*") if f.is_file())
    assert left == ["fit.safetensors", "mine.txt", "run.json"]


@pytest.mark.parametrize("name", ["plan.yaml", "journal.sqlite", "report.json", "adversarial.npz", "evaluation.json"])
def test_a_folder_of_others_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("x")
    for call in (lambda: check_results(tmp_path), lambda: begin_results(tmp_path, "pgd")):
        with pytest.raises(UsageError, match="choose another --out"):
            call()
    assert [f.name for f in tmp_path.iterdir()] == [name]


_COMMANDS = (
    ("attack", "pgd"), ("bench", "transfer", "--models", "a.pt"), ("bench", "attacks"), ("certify", "ibp"),
    ("study", "posthoc"), ("study", "unseen"), ("study", "manifold"), ("study", "scalability"),
    ("verify", "--instances", "list.csv"),
)  # fmt: skip


@pytest.mark.parametrize("file", ["plan.yaml", "report.json", "run.json"])
@pytest.mark.parametrize("command", _COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_no_command_writes_results_into_a_run(holdfast, tmp_path, command, file):
    """Finished, begun, or begun and killed before anything was done."""
    run = tmp_path / "run"
    run.mkdir()
    (run / file).write_text('{"kind": "audit"}')
    said = holdfast(*command, "--out", run)
    assert said.code == 2
    assert "holds another run" in said.err
    assert [entry.name for entry in run.iterdir()] == [file]


@pytest.mark.parametrize("flags", [("--allow-weak",), ("--fail-on", "certified"), ("--fail-on", "empirical")])
@pytest.mark.parametrize("command", ["audit", "resume"])
def test_a_gate_without_a_threshold_is_refused(holdfast, tmp_path, command, flags):
    said = holdfast(command, *(["--out", tmp_path / "run"] if command == "audit" else [tmp_path]), *flags)
    assert said.code == 2
    assert f"{flags[0]} " in said.err
    assert "give --fail-under SHARE with it" in " ".join(said.err.split())


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_proof_is_said_in_one_sentence(tmp_path, content):
    file = tmp_path / "proof"
    file.write_bytes(content)
    with pytest.raises(Rejected, match="is no proof file; a proof is what"):
        check_proof(file)
