"""The contract of a rule that joins the updates of clients.

from holdfast.testing import check_aggregator
check_aggregator("median")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import DataError, UsageError
from holdfast.defences.aggregator import Aggregator, AggregatorState
from holdfast.numerics.distance import vector_norm
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing.contract import ContractSuite, refuses, require

__all__ = ["AGGREGATOR_CHECKS", "AGGREGATOR_SUITE", "check_aggregator"]

_CLIENTS, _PARAMETERS = 11, 30
_FAR, _SPREADS = 1e9, 10.0


def _updates(clients: int = _CLIENTS) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    updates = 0.1 + torch.randn(clients, _PARAMETERS, generator=stream, dtype=torch.float64)
    return updates, torch.randint(1, 50, (clients,), generator=stream)


def _joined(tool: Aggregator, updates: Tensor, sizes: Tensor) -> Tensor:
    return tool.aggregate(updates, sizes, tool.start(torch.zeros(updates.shape[1], dtype=torch.float64)))[0]


def _shape(tool: Aggregator) -> None:
    updates, sizes = _updates()
    for given in (updates, updates.float()):
        joined = _joined(tool, given, sizes)
        require(joined.shape == updates.shape[1:], f"{tuple(updates.shape)} updates became {tuple(joined.shape)}")
        require(
            joined.dtype == torch.float64, f"the joined update is {joined.dtype}: differences are joined in float64"
        )
        require(bool(joined.isfinite().all()), "the joined update is not finite")


def _order(tool: Aggregator) -> None:
    updates, sizes = _updates()
    joined = _joined(tool, updates, sizes)
    for shift in range(1, _CLIENTS):  # each client stands once in each place
        moved = _joined(tool, updates.roll(shift, 0), sizes.roll(shift))
        require(torch.allclose(joined, moved, rtol=1e-9, atol=1e-12), "the order of the clients changes the result")


def _unanimous(tool: Aggregator) -> None:
    updates, sizes = _updates()
    for same in (updates[0], updates[0] * 0):
        joined = _joined(tool, same.expand(_CLIENTS, -1).clone(), sizes)
        require(torch.allclose(joined, same, rtol=1e-9), "clients that send the same update get another one back")


def _outliers(tool: Aggregator) -> None:
    for clients in (_CLIENTS, _CLIENTS + 1):  # odd and even
        _withstands(tool, clients)


def _withstands(tool: Aggregator, clients: int) -> None:
    """As many hostile clients as it tolerates leave the result near the honest ones."""
    updates, sizes = _updates(clients)
    count = tool.tolerates(clients)
    require(0 <= count < clients, f"it says that it tolerates {count} hostile clients of {clients}")
    honest = updates[: clients - count]
    centre = honest.mean(0)
    spread = vector_norm(honest - centre, dim=1).amax()
    lies = sizes.clone()
    lies[clients - count :] = int(_FAR)
    for far, claimed in product((_FAR, -_FAR), (sizes, lies)):
        hostile = updates.clone()
        hostile[clients - count :] = far
        away = vector_norm(_joined(tool, hostile, claimed) - centre)
        require(
            away <= _SPREADS * spread,
            f"{count} of {clients} clients, which it says it tolerates, carry the result {float(away / spread):.3g} spreads "
            f"of the honest updates away{' when they lie about their samples' if claimed is lies else ''}",
        )


def _what_came_in(tool: Aggregator) -> None:
    updates, sizes = _updates()
    bad = updates.clone()
    bad[4, 2] = float("nan")
    for wrong, counts, what in (
        (bad, sizes, "an update that is not a number"),
        (updates[:0], sizes[:0], "a round without clients"),
        (updates, sizes[:-1], "fewer sample counts than updates"),
        (updates, sizes * 0, "clients without samples"),
    ):
        refuses(lambda u=wrong, s=counts: _joined(tool, u, s), DataError, what)


def _few_clients(tool: Aggregator) -> None:
    for clients in (1, 2, 3):
        updates, sizes = _updates(clients)
        try:
            joined = _joined(tool, updates, sizes)
        except UsageError:
            continue  # it is made for more, and says so
        require(joined.isfinite().all(), f"a round of {clients} clients is joined to something that is not finite")


def _rounds(tool: Aggregator) -> None:
    updates, sizes = _updates()
    state = tool.start(updates[0])
    for number in (1, 2, 3):
        joined, state = tool.aggregate(number * updates, sizes, state)
        given: Any = state  # whatever the annotation promises
        require(isinstance(given, AggregatorState), f"after a round its state is {given!r}, and no AggregatorState")
        require(joined.isfinite().all(), f"the joined update of round {number} is not finite")


def _untouched(tool: Aggregator) -> None:
    updates, sizes = _updates()
    state = tool.start(updates[0])
    with leaving_alone(updates, sizes):
        one = tool.aggregate(updates, sizes, state)[0]
    require(torch.equal(one, tool.aggregate(updates, sizes, state)[0]), "the same round from the same state differs")


CHECKS: dict[str, Callable[[Aggregator], None]] = {
    "card": whole_card,
    "shape": _shape,
    "order": _order,
    "unanimous": _unanimous,
    "outliers": _outliers,
    "what-came-in": _what_came_in,
    "few-clients": _few_clients,
    "rounds": _rounds,
    "untouched": _untouched,
}

AGGREGATOR_SUITE = ContractSuite("an aggregator", Aggregator, CHECKS)

AGGREGATOR_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_aggregator(aggregator: str | type[Aggregator] | Aggregator, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of an aggregator; each check is made, and all that fail are told together.

    Args:
        aggregator: a registered name, a class that needs no arguments, or an instance.
        only: names of `AGGREGATOR_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_aggregator("median", only=["order", "outliers"])
    """
    AGGREGATOR_SUITE(aggregator, only)
