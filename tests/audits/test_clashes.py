"""A witness inside a certified radius: by guarantee and by arithmetic."""

import numpy as np
import pytest

from holdfast.audits.clashes import contradictions, doubts
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Certificate, Clash, NoAnswer, Status, Verdict, Witness, clash

SOUND, CHANCE, GUESS = Guarantee.SOUND, Guarantee.PROBABILISTIC, Guarantee.ESTIMATE
BOTH = ("float32", "float64")


def _witness(distance, *arithmetics):
    return Witness(distance=distance, attack="pgd", sha256="ab", margin=-1.0, arithmetics=arithmetics)


def _verdict(i, distance, certificate, *arithmetics):
    return Verdict(
        id=i,
        label=0,
        prediction=0,
        status=Status.BROKEN,
        witness=_witness(distance, *arithmetics),
        certificate=certificate,
        forwards=1,
        backwards=1,
        queries=1,
    )


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
    assert contradictions(verdicts) == []
    (finding,) = doubts(verdicts)
    assert finding.code == "certificate.improbable"
    assert finding.data["samples"] == 2
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
