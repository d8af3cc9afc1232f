"""What a record says of its unit: who was lost, what was asked, who is named; and what it cannot hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from holdfast.audits.records import (
    AnyRecord,
    AttackRecord,
    CertificateRecord,
    Claims,
    CleanRecord,
    DiagnosticsRecord,
    Fault,
    GradientsRecord,
    GridRecord,
    Record,
    Spent,
    WitnessRecord,
    parsed,
)
from holdfast.core.cost import Cost
from holdfast.core.verdict import Certificate, Guarantee, NoAnswer, Witness

WITNESS: dict[str, Any] = {
    "distance": 0.25, "attack": "pgd", "sha256": "00", "margin": -2.0, "rounding": 0.125, "arithmetics": ("float32",),
    "prediction": 3,
}  # fmt: skip
ONE = Spent(forwards=(4,), backwards=(2,), queries=(1,))
SILENT = NoAnswer(distance=0.5, attack="pgd", sha256="11", met="nan")


def _attack(**claims: Any) -> AttackRecord:
    return AttackRecord(ids=(7,), claims=Claims(spent=ONE, found_at=(-1,), low_margin=(0.5,), **claims))


@pytest.mark.parametrize(
    "change",
    [
        {"distance": -0.5}, {"distance": math.nan}, {"distance": math.inf}, {"margin": math.nan}, {"margin": -math.inf},
        {"rounding": math.inf},
    ],
    ids=str,
)  # fmt: skip
def test_a_witness_has_a_distance_and_finite_margins(change: dict[str, Any]) -> None:
    assert WitnessRecord(**WITNESS).distance == 0.25
    with pytest.raises(ValidationError):
        WitnessRecord(**{**WITNESS, **change})


def test_a_witness_is_told_without_its_rounding_and_with_all_else() -> None:
    assert WitnessRecord(**WITNESS).witness == Witness(
        distance=0.25, attack="pgd", sha256="00", margin=-2.0, arithmetics=("float32",), prediction=3
    )


@pytest.mark.parametrize("column", ["forwards", "backwards", "queries"])
def test_nobody_asks_less_than_nothing(column: str) -> None:
    with pytest.raises(ValidationError):
        Spent(**{column: (1, -1)})


def test_what_was_asked_of_all_samples_is_the_sum_of_each_column() -> None:
    assert Spent(forwards=(1, 2), backwards=(10, 20), queries=(100, 200)).total == Cost(3, 30, 300)


def test_columns_of_different_lengths_are_rows_of_no_number() -> None:
    assert ONE.rows() == 1
    for column in ("forwards", "backwards", "queries"):
        assert ONE.model_copy(update={column: (1, 1)}).rows() is None


def test_a_record_is_never_changed() -> None:
    record = GridRecord(ids=(1,))
    with pytest.raises(ValidationError, match="frozen"):
        record.saved = 3


def test_the_samples_that_a_unit_lost_are_those_of_its_fault_or_those_that_the_model_raised_on() -> None:
    fault, raised = Fault(ids=(1, 2), why="all"), Fault(ids=(2,), why="one")
    for given, failed, whole in (
        (Record(), (), True),
        (Record(fault=fault), (1, 2), False),
        (Record(raised=raised), (2,), False),
        (Record(fault=fault, raised=raised), (1, 2), False),
    ):
        assert (given.failed, given.is_whole) == (failed, whole)


def test_each_kind_of_record_tells_what_it_cost() -> None:
    cost = Cost(3, 2, 1)
    told: list[tuple[AnyRecord, Cost]] = [
        (CleanRecord(ids=(7,), scores=((0.0, 1.0),), prediction=(1,), spent=ONE), Cost(4, 2, 1)),
        (_attack(), Cost(4, 2, 1)),
        (GradientsRecord(cost=cost), cost),
        (CertificateRecord(cost=cost), cost),
        (DiagnosticsRecord(cost=cost), cost),
        (GridRecord(referee=5), Cost()),
    ]
    for record, total in told:
        assert record.total == total


def test_every_sample_that_a_record_names_is_told_with_what_is_said_of_it() -> None:
    raised, witness = Fault(ids=(9,), why="it raised"), WitnessRecord(**WITNESS)
    record = _attack(witnesses={1: witness}, marginal={2: witness}, rejected=(3,), unanswered={4: SILENT})
    said = [("failed", 9), ("witnesses", 1), ("marginal", 2), ("rejected", 3), ("no_answer", 4)]
    assert list(record.model_copy(update={"raised": raised}).about()) == said
    proof = Certificate(method="crown", radius=0.5, guarantee=Guarantee.SOUND)
    certificates = CertificateRecord(certificates={5: proof, 6: proof}, raised=raised)
    assert list(certificates.about()) == [("failed", 9), ("certificates", 5), ("certificates", 6)]
    assert list(GridRecord(ids=(1,)).about()) == []


def test_inputs_without_a_usable_answer_are_those_of_a_search_and_of_the_diagnostics() -> None:
    assert _attack(unanswered={4: SILENT}).no_answer == {4: SILENT}
    assert DiagnosticsRecord(unanswered={4: SILENT}).no_answer == {4: SILENT}
    assert GridRecord().no_answer == {}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (column, value)
        for column, values in {
            "scores": ((), ((0.0,), (0.0,))), "prediction": ((), (0, 0)),
            "spent": (Spent(), Spent(forwards=(1,), backwards=(0,)), Spent(forwards=(1, 1), backwards=(0, 0), queries=(1, 1))),
        }.items() for value in values
    ],
)  # fmt: skip
def test_a_clean_record_has_one_row_a_sample(column: str, value: object) -> None:
    given: dict[str, Any] = {"ids": (7,), "scores": ((0.0,),), "prediction": (0,), "spent": ONE}
    assert CleanRecord(**given).ids == (7,)
    with pytest.raises(ValidationError, match=f"{column} is not one for each of 1 samples"):
        CleanRecord(**{**given, column: value})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("spent", Spent()), ("spent", Spent(forwards=(1,), queries=(1,))), ("found_at", ()), ("found_at", (1, 1)),
        ("low_margin", ()), ("low_margin", (1.0, 1.0)),
    ],
)  # fmt: skip
def test_a_search_has_one_row_a_sample(column: str, value: object) -> None:
    claims: dict[str, Any] = {"spent": ONE, "found_at": (-1,), "low_margin": (0.5,)}
    with pytest.raises(ValidationError, match=f"{column} is not one for each of 1 samples"):
        AttackRecord(ids=(7,), claims=Claims(**{**claims, column: value}))


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ('[["inf"]]', "a score is a number, null or \"-inf\", not 'inf'"),
        ('[["-Infinity"]]', "not '-Infinity'"),
        ('[["1.5"]]', r"not '1\.5'"),
        ("[[true]]", "not True"),
        ("[1]", r"clean\.scores\.0: "),
        ('["-inf"]', r"clean\.scores\.0: "),
        ("[[[1]]]", r"clean\.scores\.0\.0: "),
        ("3", r"clean\.scores: "),
    ],
)
def test_a_score_is_a_number_or_one_of_two_words(scores: str, why: str) -> None:
    text = CleanRecord(ids=(7,), scores=((9.5,),), prediction=(0,), spent=ONE).model_dump_json()
    assert '"scores":[[9.5]]' in text
    for written, read in (('[["-inf"]]', -math.inf), ("[[2]]", 2.0)):
        record = parsed(text.replace("[[9.5]]", written))
        assert isinstance(record, CleanRecord)
        assert record.scores == ((read,),)
    with pytest.raises(ValueError, match=why):
        parsed(text.replace("[[9.5]]", scores))
