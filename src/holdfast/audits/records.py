"""What a finished unit of work leaves in the journal: one type a kind of stage, checked when it is read back.

The form of the records is that of `SCHEMA_VERSION`; a journal of another form is refused by it before a record is read.
Witness tensors lie beside the journal under their hashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from typing_extensions import override

from holdfast.core.cost import Cost
from holdfast.core.files import read_json
from holdfast.core.findings import Finding
from holdfast.core.verdict import Certificate, NoAnswer, Witness

__all__ = [
    "SCHEMA_VERSION",
    "AnyRecord",
    "AttackRecord",
    "CertificateRecord",
    "Claims",
    "ClaimsRecord",
    "CleanRecord",
    "DiagnosticsRecord",
    "Fault",
    "GradientsRecord",
    "GridRecord",
    "Ids",
    "PreflightRecord",
    "ProbeRecord",
    "Record",
    "Scores",
    "ShrinkRecord",
    "SizeRecord",
    "Spent",
    "TriageRecord",
    "WitnessRecord",
    "findings_of",
    "parsed",
]

SCHEMA_VERSION = "2"
"""Of the records of an audit's journal. Form 1, of Holdfast 0.1, was a mapping of texts with no type."""

Ids = tuple[int, ...]
Counts = tuple[Annotated[int, Field(ge=0)], ...]
_NEVER = "-inf"


def _decoded(rows: Any) -> Any:
    """Scores of JSON: null is no number, and "-inf" the score of a class which is never chosen."""
    if not isinstance(rows, list | tuple):
        return rows
    table = cast("list[Any]", rows)
    return [[_score(v) for v in cast("list[Any]", row)] if isinstance(row, list | tuple) else row for row in table]


def _score(value: Any) -> Any:
    if value is None:
        return math.nan
    if value == _NEVER:
        return -math.inf
    if isinstance(value, str | bool):  # pydantic would read "inf", "nan", "1" and true as numbers
        raise ValueError(f'a score is a number, null or "{_NEVER}", not {value!r}')
    return value


def _encoded(rows: tuple[tuple[float, ...], ...]) -> list[list[float | str | None]]:
    return [[v if math.isfinite(v) else _NEVER if v == -math.inf else None for v in row] for row in rows]


def _finite(data: Mapping[str, float | int | str]) -> dict[str, float | int | str]:
    """Measured values as JSON can hold them: a number that is not finite becomes the word for it."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}


def findings_of(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings as a record can hold them: a measured value that is not finite becomes the word for it."""
    return tuple(
        Finding(
            code=f.code, severity=f.severity, title=f.title, message=f.message, remedy=f.remedy, data=_finite(f.data)
        )
        for f in findings
    )


Scores = Annotated[
    tuple[tuple[Annotated[float, Field(allow_inf_nan=True)], ...], ...],
    BeforeValidator(_decoded),
    PlainSerializer(_encoded),
]
"""(n, K). Minus infinity is a score, that of a class which is never chosen; not a number and plus infinity are none."""


class _RecordPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WitnessRecord(_RecordPart):
    """A claim that the referee looked at, its input beside the journal.

    Attributes:
        distance: from the clean input, in the threat model's norm.
        attack: name of the method that found it.
        sha256: hash of the stored tensor.
        margin: the criterion's margin there; negative where it breaks the model.
        rounding: how much the margins of the ways in which the referee asked differ.
        arithmetics: the types in which the referee asked.
        prediction: the class that the model gives it; None where its answer names none.
    """

    distance: float = Field(ge=0)
    attack: str
    sha256: str
    margin: float
    rounding: float
    arithmetics: tuple[str, ...]
    prediction: int | None

    @property
    def witness(self) -> Witness:
        """The same without the rounding."""
        return Witness(
            distance=self.distance,
            attack=self.attack,
            sha256=self.sha256,
            margin=self.margin,
            arithmetics=self.arithmetics,
            prediction=self.prediction,
        )


class Fault(_RecordPart):
    """What was raised, in words, and the samples that were lost by it."""

    ids: Ids
    why: str


class Spent(_RecordPart):
    """What was asked for each of some samples."""

    forwards: Counts = ()
    backwards: Counts = ()
    queries: Counts = ()

    @property
    def total(self) -> Cost:
        """All samples together."""
        return Cost(sum(self.forwards), sum(self.backwards), sum(self.queries))

    def rows(self) -> int | None:
        """How many samples; None where the three disagree."""
        counts = {len(self.forwards), len(self.backwards), len(self.queries)}
        return counts.pop() if len(counts) == 1 else None


class Record(_RecordPart):
    """A finished unit.

    Attributes:
        ids: the samples that it was run on.
        fault: it failed as a whole.
        raised: the samples that the model raised on, the others are done.
        referee: rows with which the referee judged.
    """

    ids: Ids = ()
    fault: Fault | None = None
    raised: Fault | None = None
    referee: int = Field(default=0, ge=0)

    @property
    def failed(self) -> Ids:
        """The samples that were lost."""
        return next((fault.ids for fault in (self.fault, self.raised) if fault is not None), ())

    @property
    def total(self) -> Cost:
        """What was asked of the model, the referee's questions apart."""
        return Cost()

    @property
    def no_answer(self) -> Mapping[int, NoAnswer]:
        """By id, the nearest input that the model gives no usable answer to."""
        return {}

    def about(self) -> Iterator[tuple[str, int]]:
        """What it says of which samples: (kind, id)."""
        yield from (("failed", i) for i in (() if self.raised is None else self.raised.ids))

    @property
    def is_whole(self) -> bool:
        """Nothing in it failed."""
        return self.fault is None and self.raised is None


class PreflightRecord(Record):
    """The look at model and data."""

    kind: Literal["preflight"] = "preflight"
    findings: tuple[Finding, ...]
    randomised: bool


class CleanRecord(Record):
    """Predictions on the clean inputs; -1 where there is none."""

    kind: Literal["clean"] = "clean"
    scores: Scores
    prediction: tuple[int, ...]
    spent: Spent

    @property
    @override
    def total(self) -> Cost:
        return self.spent.total

    @model_validator(mode="after")
    def _one_row_a_sample(self) -> Self:
        _same_length(self.ids, scores=len(self.scores), prediction=len(self.prediction), spent=self.spent.rows())
        return self


class TriageRecord(Record):
    """Which open samples the bounds prove at eps; ``refused`` says why none is asked about."""

    kind: Literal["triage"] = "triage"
    proved: Ids = ()
    refused: str | None = None
    held_against: str | None = None


class GradientsRecord(Record):
    """On which samples the gradients of the model lead nowhere."""

    kind: Literal["gradients"] = "gradients"
    hindered: Ids = ()
    cost: Cost = Cost()

    @property
    @override
    def total(self) -> Cost:
        return self.cost


class Claims(_RecordPart):
    """What a search claimed, as the referee let it stand, and what it spent.

    Attributes:
        witnesses: by id, what holds in every way that it was asked.
        marginal: by id, what lies in the set and does not hold in every way.
        rejected: ids of claims that do not lie in the set.
        unanswered: by id, the nearest input that the model gives no usable answer to.
        spent: for each sample of the unit.
        found_at: for each, the queries spent when its first witness was found; -1 where none was.
        low_margin: for each, the least margin of any row that was asked.
    """

    witnesses: dict[int, WitnessRecord] = Field(default_factory=dict[int, WitnessRecord])
    marginal: dict[int, WitnessRecord] = Field(default_factory=dict[int, WitnessRecord])
    rejected: Ids = ()
    unanswered: dict[int, NoAnswer] = Field(default_factory=dict[int, NoAnswer])
    spent: Spent = Spent()
    found_at: tuple[int, ...] = ()
    low_margin: tuple[float, ...] = ()


class ClaimsRecord(Record):
    """A stage that searches."""

    claims: Claims = Claims()

    @property
    @override
    def total(self) -> Cost:
        return self.claims.spent.total

    @property
    @override
    def no_answer(self) -> Mapping[int, NoAnswer]:
        return self.claims.unanswered

    @override
    def about(self) -> Iterator[tuple[str, int]]:
        yield from super().about()
        of = self.claims
        kinds = (("witnesses", of.witnesses), ("marginal", of.marginal), ("rejected", of.rejected))
        for kind, ids in (*kinds, ("no_answer", of.unanswered)):
            yield from ((kind, i) for i in ids)

    @model_validator(mode="after")
    def _one_row_a_sample(self) -> Self:
        of = self.claims
        _same_length(self.ids, spent=of.spent.rows(), found_at=len(of.found_at), low_margin=len(of.low_margin))
        return self


class AttackRecord(ClaimsRecord):
    """An attack of the suite."""

    kind: Literal["attack"] = "attack"


class ProbeRecord(ClaimsRecord):
    """Random points and a single step; how many samples each of them broke."""

    kind: Literal["probe"] = "probe"
    noise: int = 0
    one_step: int = 0


class SizeRecord(ClaimsRecord):
    """An attack at a further size; ``broken_here`` also names what earlier witnesses break there."""

    kind: Literal["eps-grid"] = "eps-grid"
    broken_here: Ids = ()


class ShrinkRecord(ClaimsRecord):
    """Nearer witnesses."""

    kind: Literal["shrink"] = "shrink"


class GridRecord(Record):
    """The witnesses on the grid of valid inputs, and as pictures."""

    kind: Literal["grid"] = "grid"
    broken_on_grid: Ids = ()
    saved: int = 0
    still_breaking: int = 0


class CertificateRecord(Record):
    """The largest certified radii; ``refused`` says why there are none."""

    kind: Literal["certificates"] = "certificates"
    certificates: dict[int, Certificate] = Field(default_factory=dict[int, Certificate])
    refused: str | None = None
    held_against: str | None = None
    cost: Cost = Cost()

    @property
    @override
    def total(self) -> Cost:
        return self.cost

    @override
    def about(self) -> Iterator[tuple[str, int]]:
        yield from super().about()
        yield from (("certificates", i) for i in self.certificates)


class DiagnosticsRecord(Record):
    """Whether the upper bound is to be believed; of the run as a whole."""

    kind: Literal["diagnostics"] = "diagnostics"
    findings: tuple[Finding, ...] = ()
    cost: Cost = Cost()
    unanswered: dict[int, NoAnswer] = Field(default_factory=dict[int, NoAnswer])

    @property
    @override
    def total(self) -> Cost:
        return self.cost

    @property
    @override
    def no_answer(self) -> Mapping[int, NoAnswer]:
        return self.unanswered


AnyRecord: TypeAlias = (
    PreflightRecord
    | CleanRecord
    | TriageRecord
    | GradientsRecord
    | AttackRecord
    | ProbeRecord
    | SizeRecord
    | ShrinkRecord
    | GridRecord
    | CertificateRecord
    | DiagnosticsRecord
)
_ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="kind")])


def parsed(text: str) -> AnyRecord:
    """The record of a JSON text.

    Raises:
        ValueError: it is none; the message names the field.

    Example:
        >>> parsed(GridRecord(ids=(3, 4), broken_on_grid=(4,)).model_dump_json()).ids
        (3, 4)
        >>> parsed('{"kind": "grid", "saved": "many"}')
        Traceback (most recent call last):
        ValueError: grid.saved: Input should be a valid integer, unable to parse string as an integer
    """
    try:
        return _ADAPTER.validate_python(read_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record as a whole"
        raise ValueError(f"{where}: {first['msg']}") from None


def _same_length(ids: Ids, **columns: int | None) -> None:
    for name, length in columns.items():
        if length != len(ids):
            raise ValueError(f"{name} is not one for each of {len(ids)} samples")
