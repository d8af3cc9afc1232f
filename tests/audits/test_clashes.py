"""A witness inside a certified radius: by guarantee and by arithmetic."""

import numpy as np
import pytest
import torch
from forging import made_up
from torch import nn

from holdfast.audits.clashes import contradictions, doubts
from holdfast.audits.document import Document
from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.run import audit
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Certificate, Clash, NoAnswer, Status, Witness, clash
from holdfast.report.audits import page
from holdfast.report.audits.derive import compared
from holdfast.report.audits.text import plain

SOUND, CHANCE, GUESS = Guarantee.SOUND, Guarantee.PROBABILISTIC, Guarantee.ESTIMATE
BOTH = ("float32", "float64")


def _witness(distance, *arithmetics):
    return Witness(distance=distance, attack="pgd", sha256="ab", margin=-1.0, arithmetics=arithmetics)


def _verdict(i, distance, certificate, *arithmetics):
    return made_up(id=i, witness=_witness(distance, *arithmetics), certificate=certificate)


@pytest.mark.parametrize(
    ("guarantee", "deployed", "held", "meaning"),
    [
        (SOUND, None, BOTH, Clash.CONTRADICTION),
        (SOUND, None, ("float64",), Clash.CONTRADICTION),
        (SOUND, None, (), Clash.CONTRADICTION),  # nobody wrote down where it holds: the stricter reading
        (SOUND, None, ("float16",), Clash.FINDING),  # rounding of float16 may be what breaks it
        (SOUND, "float32", BOTH, Clash.CONTRADICTION),
        (SOUND, "float16", BOTH, Clash.FINDING),  # the model as it runs there was never asked
        (CHANCE, None, BOTH, Clash.FINDING),
        (GUESS, None, BOTH, Clash.NOTE),
    ],
)
def test_a_witness_within_a_radius_means_what_guarantee_and_arithmetic_say(guarantee, deployed, held, meaning):
    certificate = Certificate(radius=0.3, guarantee=guarantee, method="crown", deployed=deployed)
    assert clash(_witness(0.3, *held), certificate) is meaning
    assert clash(_witness(np.nextafter(0.3, 1), *held), certificate) is None


def test_a_distance_that_is_no_number_clashes_with_nothing():
    assert clash(_witness(float("nan"), *BOTH), Certificate(radius=0.3, guarantee=SOUND, method="crown")) is None


def test_an_input_without_an_answer_contradicts_a_proof():
    assert (
        clash(
            NoAnswer(distance=0.2, attack="pgd", sha256="ab", met="NaN"),
            Certificate(radius=0.2, guarantee=SOUND, method="crown"),
        )
        is Clash.CONTRADICTION
    )


def test_the_report_counts_how_unlikely_broken_probabilistic_certificates_are():
    sure = Certificate(radius=0.3, guarantee=CHANCE, method="cohen", alpha=0.01)
    verdicts = [_verdict(i, 0.2 if i < 2 else 0.4, sure, "float32") for i in range(10)]
    proof = Certificate(radius=0.3, guarantee=SOUND, method="crown")
    verdicts += [
        _verdict(10, 0.2, None, "float32"),
        _verdict(11, 0.4, proof, *BOTH),
    ]  # neither is wrong with some chance
    assert contradictions(verdicts) == []
    (finding,) = doubts(verdicts)
    assert finding.code == "certificate.improbable"
    assert (finding.data["samples"], finding.data["certificates"]) == (2, 10)
    assert finding.data["p_value"] == pytest.approx(1 - 0.99**10 - 10 * 0.01 * 0.99**9)
    (alone,) = doubts(verdicts[:1])
    assert alone.data["p_value"] == pytest.approx(0.01)


def test_other_arithmetics_and_estimates_are_told_apart_from_contradictions():
    real, half, guess = (
        Certificate(radius=0.3, guarantee=SOUND, method="crown"),
        Certificate(radius=0.3, guarantee=SOUND, method="ibp", deployed="float16"),
        Certificate(radius=0.3, guarantee=GUESS, method="clever"),
    )
    verdicts = [
        _verdict(0, 0.2, real, *BOTH),
        _verdict(1, 0.2, half, *BOTH),
        _verdict(2, 0.2, guess, *BOTH),
        _verdict(3, 0.4, guess, *BOTH),
    ]
    assert [c.id for c in contradictions(verdicts)] == [0]
    assert {f.code: f.message.split(":")[0] for f in doubts(verdicts)} == {
        "certificate.other_arithmetic": "samples 1",
        "certificate.estimate": "samples 2",
    }


# models that run in float32 alone: the referee cannot ask them in the arithmetic of a proof in real numbers


class Pinned(nn.Module):
    """Casts its input, as many models do. Class 0 where twice the first number, through a large one and back, is above 1/4."""

    def __init__(self, large: float):
        super().__init__()
        self.out, self.back = nn.Linear(2, 1), nn.Linear(1, 2)
        self.out.weight.data, self.out.bias.data = torch.tensor([[2.0, 0.0]]), torch.tensor([large])
        self.back.weight.data, self.back.bias.data = torch.tensor([[1.0], [0.0]]), torch.tensor([-large, 0.25])

    def forward(self, x):
        return self.back(self.out(x.float()))


def _audited(folder, model, first, eps) -> Document:
    np.savez(
        folder / "d.npz", x=np.array([[v, 0.5] for v in first], dtype=np.float32), y=np.zeros(len(first), dtype=int)
    )
    plan = Plan.of(data=str(folder / "d.npz"), eps=eps, certify="crown", queries=100)
    return audit(plan, folder / "run", model=model.eval())


def test_a_model_that_only_runs_in_float32_does_not_hide_a_certificate_that_is_wrong(credulous, tmp_path):
    document = _audited(tmp_path, Pinned(0.0), (0.15, 0.2, 0.9), "0.1")
    broken = {s.id for s in document.samples if s.status is Status.BROKEN}
    assert broken == {0, 1}
    assert all(s.witness.arithmetics == ["float32"] for s in document.samples if s.id in broken)
    assert broken <= {c.id for c in document.contradictions}
    assert document.exit_code == 3
    assert not document.complete


def test_what_breaks_by_rounding_alone_is_broken_and_told_and_contradicts_no_proof(tmp_path):
    """Numbers near 2^24 are 2 apart in float32: 0.8 is rounded to 0 and 1.1 to 2, the margin jumps by more than any doubt.

    How far the referee's answers differ says nothing of it: they are the same at any batch.
    """
    document = _audited(tmp_path, Pinned(2.0**24), (0.55, 0.9), "0.15")
    one, other = document.samples
    assert (one.status, other.status) == (Status.BROKEN, Status.CERTIFIED)
    assert one.witness.distance <= 0.15 <= one.certificate.radius
    assert one.witness.margin == -0.25
    assert document.contradictions == []
    assert (document.exit_code, document.complete) == (0, True)
    assert document.headline.certified_robust_accuracy == document.headline.empirical_robust_accuracy == 0.5
    (told,) = (f for f in document.findings if f.code == "certificate.other_arithmetic")
    assert told.message.startswith("samples 0: ")
    for text in (plain(document), page.render(document)):
        assert "BROKEN INSIDE A CERTIFIED RADIUS" in text
        assert "no proof was contradicted" not in text
    again = recheck(tmp_path / "run", model=Pinned(2.0**24).eval(), beside=compared)
    assert again.ok, again.problems
