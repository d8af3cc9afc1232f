"""Both sides against each other: what a sample is called, and a certificate that is proved wrong."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from forging import made_up, proves_everything

from holdfast.audits.clashes import contradictions
from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.folder import RunFolder
from holdfast.audits.journal import Journal
from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.records import AttackRecord, CertificateRecord, Claims, CleanRecord, Fault, Spent, WitnessRecord
from holdfast.audits.run import audit, resume
from holdfast.audits.suite import SPARED_SHARE
from holdfast.audits.verdicts import verdicts
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Certificate, Status, Witness

EPS = 0.25


def _evidence(prediction=0, error=False, failed=False, witness=None, marginal=None, certificate=None):
    """One sample, id 7, of label 0."""
    evidence = Evidence(ids=np.array([7]), labels=np.array([0]), eps=EPS)
    scores = (np.nan, np.nan) if error else (1.0, 0.0)
    one = Spent(forwards=(1,), backwards=(0,), queries=(1,))
    evidence.add("clean", CleanRecord(ids=(7,), scores=(scores,), prediction=(prediction,), spent=one))
    claims = Claims(
        witnesses={} if witness is None else {7: _claimed(witness, -1.0)},
        marginal={} if marginal is None else {7: _claimed(marginal, 0.0)},
        spent=one,
        found_at=(1,),
        low_margin=(0.5,),
    )
    raised = Fault(ids=(7,), why="ValueError") if failed else None
    evidence.add("attack:pgd", AttackRecord(ids=(7,), claims=claims, raised=raised))
    if certificate is not None:
        radius, guarantee = certificate
        record = CertificateRecord(
            ids=(7,), certificates={7: Certificate(radius=radius, guarantee=guarantee, method="crown")}
        )
        evidence.add("certificates", record)
    return evidence


def _claimed(distance, margin):
    return WitnessRecord(
        distance=distance, attack="pgd", sha256="00", margin=margin, rounding=0.0, arithmetics=(), prediction=1
    )


SOUND, CHANCE, GUESS = Guarantee.SOUND, Guarantee.PROBABILISTIC, Guarantee.ESTIMATE


@pytest.mark.parametrize(
    ("status", "given"),
    [
        (Status.UNKNOWN, {}),
        (Status.MISCLASSIFIED, {"prediction": 1}),
        (Status.ERROR, {"error": True}),
        (Status.ERROR, {"error": True, "prediction": 1}),
        (Status.ERROR, {"failed": True}),  # an attack on it failed, and nothing else settles it
        (Status.ERROR, {"failed": True, "marginal": EPS, "witness": 0.3}),
        (Status.BROKEN, {"failed": True, "witness": 0.2}),
        (Status.MISCLASSIFIED, {"failed": True, "prediction": 1}),
        (Status.CERTIFIED, {"failed": True, "certificate": (EPS, SOUND)}),
        (Status.BROKEN, {"witness": EPS}),
        (Status.UNKNOWN, {"witness": np.nextafter(EPS, 1)}),
        (Status.CERTIFIED, {"certificate": (EPS, SOUND)}),
        (Status.CERTIFIED, {"certificate": (EPS, CHANCE)}),
        (Status.UNKNOWN, {"certificate": (EPS, GUESS)}),
        (Status.UNKNOWN, {"certificate": (np.nextafter(EPS, 0), SOUND)}),
        (Status.CERTIFIED, {"certificate": (EPS, SOUND), "witness": 0.3}),
        (Status.BROKEN, {"certificate": (EPS, SOUND), "witness": 0.2}),  # a contradiction counts for the attacker
        (Status.MARGINAL, {"marginal": EPS}),
        (Status.UNKNOWN, {"marginal": 0.3}),
        (Status.CERTIFIED, {"marginal": EPS, "certificate": (EPS, SOUND)}),
        (Status.BROKEN, {"marginal": 0.1, "witness": 0.2}),
        (Status.MISCLASSIFIED, {"prediction": 1, "certificate": (EPS, SOUND)}),
    ],
)
def test_what_a_sample_is_called(status, given):
    (found,) = verdicts([_evidence(**given)])
    assert found.status is status
    assert (found.id, found.label) == (7, 0)


@pytest.mark.parametrize(
    ("radius", "distance", "guarantee", "clash"),
    [
        (0.3, 0.2, SOUND, True),
        (0.3, 0.3, SOUND, True),  # a radius holds on its edge too
        (np.nextafter(0.3, 0), 0.3, SOUND, False),
        (0.3, 0.4, SOUND, False),
        (0.3, 0.2, CHANCE, False),
        (0.3, 0.2, GUESS, False),
    ],
)
def test_only_a_proof_can_be_contradicted(radius, distance, guarantee, clash):
    one = made_up(
        id=3,
        witness=Witness(distance=distance, attack="pgd", sha256="ab", margin=-1.0),
        certificate=Certificate(radius=radius, guarantee=guarantee, method="crown"),
    )
    found = contradictions([one])
    assert [c.id for c in found] == ([3] if clash else [])
    if clash:
        assert (found[0].attack, found[0].method, found[0].sha256) == ("pgd", "crown", "ab")
        assert found[0].radius >= found[0].distance


def test_one_side_alone_is_no_contradiction():
    witness = Witness(distance=0.1, attack="pgd", sha256="ab", margin=-1.0)
    certificate = Certificate(radius=0.2, guarantee=SOUND, method="crown")
    proved = made_up(id=1, status=Status.CERTIFIED, certificate=certificate)
    assert not contradictions([made_up(id=0, witness=witness), proved])
    assert contradictions([replace(proved, witness=witness)])  # both of one sample are


# a certifier that says yes to everything


@pytest.fixture(scope="module")
def planted(small, tmp_path_factory):
    """A run with a certifier that says yes: its folder, which nobody changes, and its document."""
    out = tmp_path_factory.mktemp("planted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphCertifier, "certify", proves_everything)
        return out, audit(small, out)


@pytest.fixture(scope="module")
def small(trained):
    weights, data, _ = trained
    return Plan.of(
        model=str(weights), arch="holdfast.models.zoo:digits_mlp", data=str(data), samples=24, norm="linf", eps="1/16",
        suite="fast", certify="crown", chunk=8, seed=3, queries=150,
    )  # fmt: skip


def _ids(out, stage, name="ids"):
    """What the records of a stage name."""
    context = Context.open(RunFolder(out).plan(), RunFolder(out))
    records = Journal(out / "journal.sqlite", context.identity, read_only=True).units()
    return {i for (of, _), record in records.items() if of == stage for i in getattr(record, name)}


def test_a_planted_contradiction_stops_the_run(small, credulous, planted):
    out, document = planted
    right = {s.id for s in document.samples if s.prediction == s.label}
    proved = _ids(out, "triage", "proved")  # asked of what the first entry left standing
    assert proved
    assert proved < right

    # certified or not, the short attack sees all of them; the dear ones only their keyed share
    first, *dear = small.entries
    assert not first.spares
    assert all(r.spares != r.takes_over for r in dear)
    assert _ids(out, first.stage) == right
    assert document.suite.certified_attacked == len(right)
    for entry in dear:
        assert len(_ids(out, entry.stage)) <= max(3, 4 * len(proved) // SPARED_SHARE)

    broken = {s.id for s in document.samples if s.status is Status.BROKEN}
    near = {
        s.id for s in document.samples if s.witness and s.certificate and s.witness.distance <= s.certificate.radius
    }
    assert len(broken) > 3
    assert broken <= near  # near: also witnesses beyond eps, but inside the radius that was claimed
    assert {c.id for c in document.contradictions} == near
    assert not document.complete
    clash = document.contradictions[0]
    assert clash.guarantee == "sound"
    assert clash.distance <= clash.radius
    assert (out / "witnesses" / f"{clash.sha256}.safetensors").exists()
    head = document.headline
    assert head.empirical_robust_accuracy <= (24 - len(broken)) / 24
    assert head.certified_robust_accuracy <= head.empirical_robust_accuracy  # to the bit: the same samples are counted
    told = json.loads((out / "report.json").read_text())
    assert len(told["contradictions"]) == len(near)
    assert told["complete"] is False
    assert [c.id for c in resume(out).contradictions] == [c.id for c in document.contradictions]


def test_an_honest_certifier_does_not_prove_what_was_planted(planted):
    result = recheck(planted[0])
    assert not result.ok
    assert any("is not proved" in p for p in result.problems), result.problems


def test_the_command_line_exits_with_3(small, credulous, tmp_path, monkeypatch, capsys):
    from holdfast.cli.main import main

    (tmp_path / "plan.yaml").write_text(small.to_yaml())
    out = tmp_path / "run"
    monkeypatch.setattr(
        sys, "argv", ["holdfast", "audit", "--plan", str(tmp_path / "plan.yaml"), "--samples", "8", "--out", str(out)]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 3
    said = capsys.readouterr()
    assert "contradict" in (said.out + said.err).lower()
    assert "contradict" in (out / "report.html").read_text().lower()


def test_an_honest_run_has_none(small, tmp_path):
    out = tmp_path / "run"
    document = audit(small, out)
    assert document.contradictions == []
    assert document.complete
    proved = _ids(out, "triage", "proved")
    assert proved
    assert proved <= _ids(out, "attack:cosine_margin")
    assert document.suite.certified_attacked == len(proved)
    certified = {s.id for s in document.samples if s.status is Status.CERTIFIED}
    assert proved <= certified
