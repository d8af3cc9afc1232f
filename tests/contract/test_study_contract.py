"""Every registered study under its public contract, and each breach of it noticed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from typing_extensions import override

from holdfast.core.cards import Card, parameter
from holdfast.report.studies import page
from holdfast.studies import Study, StudyResult
from holdfast.testing import ContractError, check_study, parametrize_with_checks

DEAR = ["manifold", "scalability", "transfer", "unseen"]


@parametrize_with_checks("study", slow={"same-again": DEAR, "untouched": DEAR})
def test_a_study_keeps_its_contract(method, check):
    check(method)


@dataclass(frozen=True, kw_only=True)
class CountResult(StudyResult):
    """How many samples there are.

    Attributes:
        count: of them.
        note: what else there is to say.
        labels: of the samples.
    """

    count: float
    note: str = "<counted>"
    labels: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Counting(Study[CountResult]):
    """Counts the samples."""

    card: ClassVar[Card] = Card(
        title="Counting", rows=("T12",), paper="ours", section="1", summary="Counts.", failure_modes=("none",),
        checked_by="this test",
    )  # fmt: skip
    first: int = parameter(0, "where to begin", "ours")

    @override
    def run(self, session, *, progress=None):
        if progress is not None:
            progress("counting", len(session.ids), len(session.ids))
        return CountResult(count=len(session.ids))


class Silent(Counting):
    """Its card does not say when it fails."""

    card = replace(Counting.card, failure_modes=())


class Infinite(Counting):
    """Its answer is no number."""

    def run(self, session, *, progress=None):
        return CountResult(count=float("nan"))


class Halfway(Counting):
    """Ends before it is done."""

    def run(self, session, *, progress=None):
        if progress is not None:
            progress("counting", 1, 2)
        return CountResult(count=1)


class Casts(Counting):
    """Draws its answer."""

    def run(self, session, *, progress=None):
        return CountResult(count=float(torch.rand(1)))


class Marks(Counting):
    """Changes the model that it was given."""

    def run(self, session, *, progress=None):
        with torch.no_grad():
            next(session.module.parameters()).mul_(1.0001)
        return CountResult(count=1)


def test_a_study_of_ones_own_keeps_the_contract_and_has_a_page():
    check_study(Counting)
    shown = page(CountResult(count=3.0), "<about>", "holdfast study counting")
    assert "&lt;counted&gt;" in shown
    assert "&lt;about&gt;" in shown
    assert "<h1>Count</h1>" in shown


@pytest.mark.parametrize(
    ("study", "check", "message"),
    [
        (Silent, "card", "when it is known to fail"),
        (Infinite, "answer", "cannot be written as JSON"),
        (Halfway, "answer", "without telling that"),
        (Casts, "same-again", "another answer"),
        (Casts, "untouched", "global random state"),
        (Marks, "untouched", "the model was changed in place"),
    ],
)
def test_a_study_s_breach_is_noticed(study, check, message):
    with pytest.raises(ContractError, match=message):
        check_study(study, only=[check])
