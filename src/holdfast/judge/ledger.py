"""What each sample cost, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.cost import Cost
from holdfast.core.errors import BudgetError
from holdfast.judge.rows import rank

__all__ = ["Budget", "Ledger"]


@dataclass(frozen=True)
class Budget:
    """The most that an attack may ask for one sample; None is no limit.

    Attributes:
        queries: rows sent to the attacked model.
        passes: forwards plus backwards, through the attacked model or a surrogate.
    """

    queries: int | None = None
    passes: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("queries", self.queries), ("passes", self.passes)):
            if value is not None and value < 1:
                raise BudgetError(f"a budget of {value} {name} lets an attack ask nothing; give at least 1 or none")

    @property
    def unlimited(self) -> bool:
        """Nothing is limited."""
        return self.queries is None and self.passes is None

    def within(self, other: Budget) -> Budget:
        """The stricter of two budgets."""

        def least(a: int | None, b: int | None) -> int | None:
            return b if a is None else a if b is None else min(a, b)

        return Budget(least(self.queries, other.queries), least(self.passes, other.passes))


class Ledger:
    """Per-sample counts, (n,) int64 on the device of the inputs. A forward is one sample through a model once.

    Attributes:
        forwards, backwards, queries: the counts.
        budget: the most that may be asked for one sample.
    """

    def __init__(self, n: int, device: torch.device, budget: Budget | None = None) -> None:
        """Opens the ledger of ``n`` samples, all counts 0; without a budget nothing is limited."""
        self.budget = budget or Budget()
        self.forwards, self.backwards, self.queries = (
            torch.zeros(n, dtype=torch.int64, device=device) for _ in range(3)
        )

    def __add__(self, other: Ledger) -> Ledger:
        """What both cost, sample by sample."""
        both = Ledger(len(self.forwards), self.forwards.device)
        both.forwards = self.forwards + other.forwards
        both.backwards = self.backwards + other.backwards
        both.queries = self.queries + other.queries
        return both

    @property
    def passes(self) -> Tensor:
        """(n,) int64 forwards and backwards together."""
        return self.forwards + self.backwards

    @classmethod
    def of(cls, stacked: Tensor) -> Ledger:
        """The ledger that `stacked` is of."""
        ledger = cls(stacked.shape[1], stacked.device)
        ledger.forwards, ledger.backwards, ledger.queries = stacked.clone().unbind()
        return ledger

    @property
    def stacked(self) -> Tensor:
        """(3, n) int64 forwards, backwards and queries, as a file keeps them."""
        return torch.stack([self.forwards, self.backwards, self.queries])

    @property
    def total(self) -> Cost:
        """All samples together."""
        return Cost(int(self.forwards.sum()), int(self.backwards.sum()), int(self.queries.sum()))

    def spread(self, at: Tensor, n: int) -> Ledger:
        """The ledger of n samples, of which those ``at`` (m,) cost what is here, and the others nothing."""
        wide = Ledger(n, self.forwards.device)
        wide.forwards[at], wide.backwards[at], wide.queries[at] = self.forwards, self.backwards, self.queries
        return wide

    def left(self) -> Tensor:
        """(n,) int64: how many more rows may be asked of each sample."""
        free = torch.full_like(self.queries, torch.iinfo(torch.int64).max)
        if self.budget.queries is not None:
            free = torch.minimum(free, self.budget.queries - self.queries)
        if self.budget.passes is not None:
            free = torch.minimum(free, self.budget.passes - self.passes)
        return free.clamp_min(0)

    def charge(self, index: Tensor, backwards: int, *, settled: Tensor | None, queries: bool) -> Tensor:
        """Charges each row that the budget allows, in the order asked; no synchronisation with an accelerator.

        Args:
            index: (m,) the sample of each row; an index may repeat.
            backwards: backward passes that a row takes.
            settled: (n,) bool: samples that are charged no more; None if there are none.
            queries: the rows are put to the attacked model.

        Returns:
            (m,) bool: the rows that are to be answered.
        """
        if self.budget.unlimited:
            answered = torch.ones_like(index, dtype=torch.bool)
            charge = torch.ones_like(index) if settled is None else (~settled[index]).long()
        else:
            price = 1 if self.budget.passes is None else 1 + backwards
            answered = rank(index) < self.left()[index] // price
            if settled is not None:  # a settled sample is charged no more, so it must not be sent either
                answered &= ~settled[index]
            charge = answered.long()
        self.forwards.index_add_(0, index, charge)
        if backwards:
            self.backwards.index_add_(0, index, charge * backwards)
        if queries:
            self.queries.index_add_(0, index, charge)
        return answered
