"""A whole audit: killed, resumed, rechecked, tampered with, shared among workers."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import torch

from holdfast.audits.context import Context
from holdfast.audits.document import Document
from holdfast.audits.evidence import Claim
from holdfast.audits.folder import RunFolder
from holdfast.audits.journal import Journal
from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.replay import Replay
from holdfast.audits.run import audit, resume
from holdfast.core.errors import DataError, JournalError, UsageError
from holdfast.core.verdict import Status, Witness
from holdfast.report.audits.text import plain


def but_for_times(document: Document) -> dict:
    """The document without what a clock says."""
    plain = document.model_dump(mode="json")
    plain["cost"].pop("seconds")
    for row in [*plain["cost"]["by_stage"].values(), *plain["stages"], *plain["suite"]["attacks"]]:
        row.pop("seconds")
    plain["environment"].pop("when")
    plain["hashes"].pop("journal")
    plain.pop("command")
    return plain


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """One finished run of the plan, and its document."""
    weights, data, _ = trained
    plan = Plan.of(
        model=str(weights), arch="holdfast.models.zoo:digits_mlp", data=str(data), samples=30, norm="linf", eps="1/16",
        suite="fast", certify="crown", chunk=10, grid="1/16", eps_grid=("1/32",), seed=3, queries=150,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("run") / "run"
    return out, audit(plan, out)


def test_the_document_says_what_the_graph_was_held_against(finished):
    out, document = finished
    assert document.model.held_against == "the module itself"
    assert "held against the module itself" in plain(document)
    assert "held against" not in " ".join(recheck(out).not_rederived)
    old = document.model_dump(mode="json")
    del old["model"]["held_against"]  # as a version before wrote it
    assert Document.model_validate(old).model.held_against is None


def test_both_sides_of_every_sample(finished):
    _, document = finished
    head, counts = document.headline, document.counts()
    assert head.samples == 30
    assert counts[Status.BROKEN] > 3
    assert counts[Status.CERTIFIED] > 3
    assert head.certified_robust_accuracy <= head.empirical_robust_accuracy <= head.clean_accuracy
    for s in document.samples:
        if s.witness is not None and s.certificate is not None:
            assert s.certificate.radius < s.witness.distance
        if s.status is Status.BROKEN:
            assert s.witness.distance <= 1 / 16
        if s.status is not Status.MISCLASSIFIED:
            assert s.witness is not None  # a nearest witness, be it beyond eps


def test_cost_counts_the_attacks_and_the_clean_pass(finished):
    _, document = finished
    stages = document.cost.by_stage
    attacks = [v for k, v in stages.items() if k.startswith("attack:") or k == "clean"]
    assert document.cost.forwards == sum(a.forwards for a in attacks)
    assert document.cost.forwards == sum(s.forwards for s in document.samples)
    assert document.cost.backwards == sum(s.backwards for s in document.samples)
    assert {"referee", "diagnostics", "certificates", "shrink"} <= set(stages)


def test_recheck_holds(finished):
    out, _ = finished
    result = recheck(out)
    assert result.ok, result.problems
    assert result.witnesses > 30
    assert result.certificates > 20


def test_the_same_plan_gives_the_same_document(finished, plan, tmp_path):
    _, document = finished
    assert but_for_times(audit(plan, tmp_path / "again")) == but_for_times(document)


def test_chunks_do_not_change_the_draws(finished, plan, tmp_path):
    _, document = finished
    other = audit(Plan.of(**plan.model_dump() | {"chunk": 7, "slots": 5}), tmp_path / "other")
    assert [s.status for s in other.samples] == [s.status for s in document.samples]


@pytest.mark.parametrize("unit", [4, 16, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 9))])
def test_interrupted_after_any_unit_and_resumed(finished, plan, tmp_path, monkeypatch, unit):
    _, document = finished
    write, entered = Journal.write, []

    def stop(self, *row):
        if len(entered) == unit:
            raise KeyboardInterrupt
        entered.append(row)
        return write(self, *row)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            audit(plan, tmp_path / "run")
    assert but_for_times(resume(tmp_path / "run")) == but_for_times(document)
    assert recheck(tmp_path / "run").ok


def test_killed_and_resumed(finished, plan, tmp_path):
    _, document = finished
    out = tmp_path / "run"
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from holdfast.audits.plan import Plan\n"
        "from holdfast.audits.run import audit\n"
        "audit(Plan.read(Path(sys.argv[1])), sys.argv[2])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "plan.yaml"), str(out)])
    journal = out / "journal.sqlite"
    while process.poll() is None:
        time.sleep(0.05)
        if _units(journal) >= 6:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert not (out / "report.json").exists()
    assert but_for_times(resume(out)) == but_for_times(document)


def _units(journal):
    if not journal.exists():
        return 0
    reader = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        return reader.execute("SELECT COUNT(*) FROM units").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        reader.close()


def test_workers_give_the_same(finished, plan, tmp_path):
    _, document = finished
    assert but_for_times(audit(plan, tmp_path / "run", workers=2)) == but_for_times(document)


def _copy(out, target):
    import shutil

    shutil.copytree(out, target)
    return target


def test_one_flipped_byte_in_a_witness_is_found(finished, tmp_path):
    out = _copy(finished[0], tmp_path / "run")
    sha = next(s.witness.sha256 for s in finished[1].samples if s.status is Status.BROKEN)
    file = out / "witnesses" / f"{sha}.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    result = recheck(out)
    assert not result.ok
    assert "altered" in result.problems[0]


def test_recheck_tells_how_far_it_is(finished):
    out, document = finished
    told = {}
    assert recheck(out, progress=lambda what, done, total: told.setdefault(what, []).append((done, total))).ok
    assert {"clean predictions", "certificates, proved anew"} <= told.keys()
    for what, steps in told.items():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps), what
        assert {total for _, total in steps} == {len(document.samples)}


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.6, 0.99])
def test_one_flipped_byte_in_the_journal_is_found(finished, tmp_path, share):
    out = _copy(finished[0], tmp_path / "run")
    file = out / "journal.sqlite"
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 1
    file.write_bytes(content)
    assert not recheck(out).ok


def test_a_report_that_says_something_else_is_found(finished, tmp_path):
    out = _copy(finished[0], tmp_path / "run")
    text = (out / "report.json").read_text()
    broken = next(s for s in finished[1].samples if s.status is Status.BROKEN)
    (out / "report.json").write_text(text.replace(f'"distance": {broken.witness.distance!r}', '"distance": 0.001', 1))
    assert any("samples" in p for p in recheck(out).problems)


@pytest.mark.parametrize(("margin", "rounding"), [(-1e-3, 0.0), (-1e-3, 1e-4)])
def test_a_witness_that_left_its_set_is_no_rounding(finished, margin, rounding):
    out, document = finished
    context = Context.open(RunFolder(out).plan(), RunFolder(out))
    broken = max((s for s in document.samples if s.status is Status.BROKEN), key=lambda s: s.witness.distance)
    found = broken.witness
    claim = Claim(
        Witness(distance=found.distance, attack=found.attack, sha256=found.sha256, margin=margin), rounding, "attack:x"
    )
    replay = Replay(context, Journal(out / "journal.sqlite", context.identity, read_only=True).units())
    replay.judge([(broken.id, claim)], found.distance / 2)  # a set that it does not lie in
    assert replay.notes.problems
    assert not replay.notes.marginal


def test_standard_is_only_standard_whole():
    def stamp(**given):
        plan = Plan.of(suite="standard", **given)
        return plan.composition.stamp(plan.suite_request)

    assert stamp().startswith("standard")
    assert stamp(queries=100).startswith("not standard")


def test_a_journal_of_another_model_is_refused(finished, plan, trained, tmp_path):
    out = _copy(finished[0], tmp_path / "run")
    folder = RunFolder(out)
    other = Plan.of(**plan.model_dump() | {"seed": 4})
    with pytest.raises(JournalError, match="another plan"):
        folder.check(other)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    found = recheck(out, model=module)
    assert not found.ok
    assert any("another model" in p for p in found.problems)


def test_a_second_process_is_kept_out(plan, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.begin(plan), pytest.raises(JournalError, match="another process"):
        audit(plan, tmp_path / "run")


def test_a_folder_that_is_no_run_is_left_alone(plan, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty and no run"):
        audit(plan, tmp_path)


def test_preflight_stops_a_wrong_pair(plan, trained, tmp_path):
    import numpy as np

    np.savez(
        tmp_path / "bad.npz", x=np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype("float32"), y=np.arange(8)
    )
    with pytest.raises(DataError, match="pre-flight"):
        audit(Plan.of(**plan.model_dump() | {"data": str(tmp_path / "bad.npz")}), tmp_path / "run")


def test_a_module_in_python(trained, tmp_path):
    _, data, model = trained
    plan = Plan.of(data=str(data), samples=8, norm="l2", eps="0.3", certify="none", suite="fast", queries=150)
    document = audit(plan, tmp_path / "run", model=model)
    assert document.headline.certified_robust_accuracy is None
    assert recheck(tmp_path / "run", model=model).ok


def test_a_fault_of_the_model_makes_errors_and_an_incomplete_run(trained, tmp_path):
    _, data, model = trained

    class Faulty(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            if x.requires_grad:
                raise RuntimeError("no gradients today")
            return self.inner(x)

    plan = Plan.of(data=str(data), samples=8, norm="linf", eps="0.1", certify="none", suite="fast", queries=150)
    document = audit(plan, tmp_path / "run", model=Faulty())
    assert not document.complete
    assert document.headline.errors > 0
    assert any(f.code == "run.failed" for f in document.findings)


@pytest.mark.parametrize(("norm", "eps"), [("l0", "2"), ("l1", "2"), ("l2", "0.5"), ("linf", "0.1")])
def test_the_minimal_suite_gives_every_sample_its_nearest_witness(plan, tmp_path, norm, eps):
    given = plan.model_dump() | {
        "norm": norm, "eps": eps, "suite": "minimal", "certify": "none", "samples": 6, "eps_grid": (), "radius_max": None,
    }  # fmt: skip
    document = audit(Plan.of(**given), tmp_path)
    right = [s for s in document.samples if s.prediction == s.label]
    assert right
    for s in right:  # broken or not, each has a witness at some distance, and eps alone decides its status
        assert s.witness is not None
        assert (s.status is Status.BROKEN) == (s.witness.distance <= float(Plan.of(**given).eps))
    assert not recheck(tmp_path).problems


@pytest.mark.parametrize("certify", ["crown", "ibp"])
def test_linear_bounds_certify_l0_and_no_witness_lies_inside(plan, tmp_path, certify):
    given = plan.model_dump() | {
        "norm": "l0", "eps": "1", "suite": "minimal", "certify": certify, "samples": 6, "eps_grid": (), "grid": None,
        "radius_max": None,
    }  # fmt: skip
    document = audit(Plan.of(**given), tmp_path)
    assert document.complete
    certified = [s for s in document.samples if s.certificate is not None]
    assert certified
    assert all(s.witness is None or s.witness.distance > s.certificate.radius for s in certified)
    assert not recheck(tmp_path).problems
