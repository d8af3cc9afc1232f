"""Units of work: small where work is dear, read by units of other sizes, and of no influence on what is found."""

import numpy as np
import pytest
import torch

from holdfast.audits.context import Context
from holdfast.audits.folder import RunFolder
from holdfast.audits.plan import Plan
from holdfast.audits.records import AttackRecord, Claims, CleanRecord, Spent, TriageRecord, WitnessRecord
from holdfast.audits.run import audit
from holdfast.audits.units import Layout
from holdfast.core.verdict import Status


@pytest.fixture
def layout(plan, tmp_path):
    def of(**more):
        given = Plan.of(**plan.model_dump() | {"chunk": 256, "samples": 60} | more)
        return Layout.of(Context.open(given, RunFolder(tmp_path / "run")))

    return of


def test_certificates_come_in_small_units_and_cheap_attacks_in_large_ones(layout):
    found = layout()
    assert [len(ids) for ids in found.units("certificates")] == [8] * 7 + [4]
    assert [len(ids) for ids in found.units("triage")] == [16, 16, 16, 12]
    assert [len(ids) for ids in found.units("attack:cosine_margin")] == [60]
    for stage in found.order:
        assert np.concatenate(found.units(stage.name)).tolist() == list(range(60))


def test_no_unit_is_larger_than_the_plan_s_chunk(layout):
    found = layout(chunk=8)
    assert max(len(ids) for stage in found.order for ids in found.units(stage.name)) == 8


def test_a_dear_model_is_attacked_in_small_units(plan, tmp_path):
    context = Context.open(Plan.of(**plan.model_dump() | {"chunk": 256, "samples": 60}), RunFolder(tmp_path / "run"))
    context.base = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 20_000), torch.nn.Linear(20_000, 10))
    assert [len(ids) for ids in Layout.of(context).units("attack:cosine_margin")] == [32, 28]


@pytest.mark.parametrize("suite", ["minimal", "black-box"])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_searches_of_many_steps_come_in_small_units_on_any_model(layout, suite, norm):
    found = layout(suite=suite, norm=norm, certify="none", queries=None, grid=None)
    sizes = {s.name: max(len(ids) for ids in found.units(s.name)) for s in found.order if s.name.startswith("attack:")}
    assert sizes.pop("attack:apgd_ce_inside", 60) == 60, "a short one"
    assert set(sizes.values()) == {32}


def test_what_takes_over_where_gradients_lead_nowhere_comes_in_small_units(layout):
    found = layout(queries=None)
    assert len(found.units("attack:square_blind")) == 2


def test_certificates_wait_for_no_attack(layout):
    found = layout()
    assert found.needed("certificates") == ["clean"]
    names = [stage.name for stage in found.order]
    for name in names[: names.index("certificates")]:
        assert found.needed(name) == names[: names.index(name)]


def test_a_unit_reads_of_larger_and_of_smaller_units_its_own_samples(layout):
    found = layout()
    sixty = tuple(range(60))
    spent = Spent(forwards=tuple(10 * i for i in sixty), backwards=sixty, queries=sixty)
    clean = CleanRecord(ids=sixty, scores=((1.0, 0.0),) * 60, prediction=sixty, spent=spent)
    witness = WitnessRecord(
        distance=0.0, attack="a", sha256="00", margin=-1.0, rounding=0.0, arithmetics=(), prediction=None
    )
    claims = Claims(witnesses={20: witness, 3: witness}, spent=spent, found_at=sixty, low_margin=(0.5,) * 60)
    records = {("clean", 0): clean, ("attack:cosine_margin", 0): AttackRecord(ids=sixty, claims=claims)}
    for k, ids in enumerate(found.units("triage")):
        records["triage", k] = TriageRecord(ids=tuple(ids.tolist()), proved=(int(ids[1]),), refused="no")
    names = ["clean", "attack:cosine_margin", "triage"]
    small = found.evidence(records, names, np.arange(16, 32))
    assert small.prediction.tolist() == list(range(16, 32))
    assert small.forwards.tolist() == [20 * i for i in range(16, 32)]
    assert small.broken.keys() == small.nearest.keys() == {20}
    assert small.tried == {"attack:cosine_margin": set(range(16, 32))}
    assert small.proved == {17}
    large = found.evidence(records, names, np.arange(60))
    assert large.proved == {1, 17, 33, 49}
    assert large.broken.keys() == {3, 20}
    assert large.seen.all()


def test_samples_that_no_unit_has_answered_yet_have_no_decision(layout):
    evidence = layout().evidence({}, ["clean"], np.arange(4))
    assert evidence.error.all()
    assert not evidence.open.any()


def test_what_was_built_on_a_unit_that_failed_is_stale(layout):
    found = layout()
    gone = found.stale([("triage", 1)])
    assert ("attack:cosine_margin_wide", 0) in gone
    assert ("shrink", 0) in gone
    assert not {("clean", 0), ("attack:cosine_margin", 0), ("triage", 0), ("certificates", 1)} & gone


@pytest.fixture(scope="module")
def at_once(trained, tmp_path_factory):
    """Plan and document of a run in units as large as can be."""
    weights, data, _ = trained
    plan = Plan.of(
        model=str(weights), arch="holdfast.models.zoo:digits_mlp", data=str(data), samples=40, norm="linf", eps="1/16",
        suite="fast", certify="ibp", seed=3, queries=100,
    )  # fmt: skip
    return plan, audit(plan, tmp_path_factory.mktemp("once") / "run")


def _said(document):
    return [(s.id, s.status, s.prediction, s.queries, s.certificate and s.certificate.method) for s in document.samples]


@pytest.mark.parametrize(
    "more",
    [{"chunk": 32}, *(pytest.param(m, marks=pytest.mark.slow) for m in ({"chunk": 8}, {"chunk": 8, "slots": 3}))],
)
def test_the_size_of_units_changes_no_verdict(at_once, tmp_path, more):
    plan, document = at_once
    other = audit(Plan.of(**plan.model_dump() | more), tmp_path / "run")
    assert document.counts()[Status.BROKEN] > 3
    assert _said(other) == _said(document)
    for a, b in zip(other.samples, document.samples, strict=True):
        assert (a.witness is None) == (b.witness is None)
        if a.witness is not None and b.witness is not None:
            assert a.witness.distance == pytest.approx(b.witness.distance, rel=1e-3)
        if a.certificate is not None and b.certificate is not None:
            assert a.certificate.radius == pytest.approx(b.certificate.radius, rel=1e-6)


def test_two_processes_find_the_same_and_are_told_in_samples(at_once, tmp_path):
    plan, document = at_once
    told = {}

    def progress(stage, done, total):
        told.setdefault(stage, []).append((done, total))

    threads = torch.get_num_threads()
    other = audit(plan, tmp_path / "run", workers=2, progress=progress)
    assert torch.get_num_threads() == threads
    assert _said(other) == _said(document)
    assert [s.witness and s.witness.sha256 for s in other.samples] == [
        s.witness and s.witness.sha256 for s in document.samples
    ]
    assert list(other.cost.by_stage) == list(document.cost.by_stage)
    assert told["certificates (ibp)"] == [(0, 40), *told["certificates (ibp)"][1:-1], (40, 40)]
    assert {(16, 40), (32, 40)} & set(told["certificates (ibp)"])
    assert all(seen[-1] == (40, 40) for seen in told.values())


def test_a_unit_that_failed_is_done_again_by_the_next_start(at_once, tmp_path, monkeypatch):
    from holdfast.certifiers.bounds.ibp import IBP

    plan, document = at_once
    plan = Plan.of(**plan.model_dump() | {"suite": "minimal"})
    with monkeypatch.context() as patch:
        patch.setattr(IBP, "bounds", lambda *_, **__: 1 / 0)
        first = audit(plan, tmp_path / "run")
    assert not first.complete
    assert first.headline.certified_robust_accuracy == 0
    again = audit(plan, tmp_path / "run")
    assert again.complete
    assert again.headline.certified_robust_accuracy == document.headline.certified_robust_accuracy
