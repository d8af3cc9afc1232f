"""An attack's folder is made anew by the next attack, and nobody else's is touched; what is no proof is said so."""

from __future__ import annotations

import pytest

from holdfast.checker import Rejected
from holdfast.checker import check as check_proof
from holdfast.cli.results import begin_results, check_results
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


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_proof_is_said_in_one_sentence(tmp_path, content):
    file = tmp_path / "proof"
    file.write_bytes(content)
    with pytest.raises(Rejected, match="is no proof file; a proof is what"):
        check_proof(file)
