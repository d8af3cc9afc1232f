"""The contract of an adversary in federated training.

from holdfast.testing import check_adversary
check_adversary("model_replacement")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.attacks.adversary import Adversary, Round
from holdfast.core.draws import Draws
from holdfast.testing._manners import leaving_alone, whole_card
from holdfast.testing.contract import ContractSuite, require

__all__ = ["ADVERSARY_CHECKS", "ADVERSARY_SUITE", "check_adversary"]

_CLIENTS, _PARAMETERS = 7, 40


def _round(hostile: list[int]) -> Round:
    stream = torch.Generator().manual_seed(0)
    return Round(
        number=3,
        weights=torch.randn(_PARAMETERS, generator=stream, dtype=torch.float64),
        sizes=torch.arange(10, 10 + _CLIENTS),
        hostile=torch.tensor(hostile),
        rate=0.5,
    )


def _own(count: int) -> Tensor:
    return torch.randn(count, _PARAMETERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _sent(tool: Adversary, hostile: list[int], own: Tensor, seed: int = 0) -> Tensor:
    return tool.update(_round(hostile), own, Draws(seed, "check"))


def _shape(tool: Adversary) -> None:
    for hostile, scale in (([2], 1), ([1, 4, 5], 1), (list(range(_CLIENTS)), 1), ([1, 4], 0)):
        own = scale * _own(len(hostile))
        sent = _sent(tool, hostile, own)
        require(sent.shape == own.shape, f"{tuple(own.shape)} updates became {tuple(sent.shape)}: one for each client")
        require(sent.dtype == own.dtype, f"updates of {own.dtype} became {sent.dtype}")
        what = "" if scale else ", where its own training moved nothing"
        require(
            bool(sent.isfinite().all()),
            f"an update of {len(hostile)} hostile clients of {_CLIENTS} is not finite{what}; a server drops such a client",
        )


def _acts(tool: Adversary) -> None:
    own = _own(2)
    require(not torch.equal(_sent(tool, [1, 4], own), own), "it sends what its honest training gave: it does nothing")


def _seeds(tool: Adversary) -> None:
    one, two = (_sent(tool, [1, 4], _own(2), seed=3) for _ in range(2))
    require(torch.equal(one, two), "the same seed gave other updates: draw from `draws`")


def _order(tool: Adversary) -> None:
    own = _own(3)
    there, back = _sent(tool, [1, 4, 5], own), _sent(tool, [5, 1, 4], own[[2, 0, 1]])
    require(torch.allclose(there[[2, 0, 1]], back, rtol=1e-12), "the order of its clients changes what they send")
    turned = torch.arange(_CLIENTS).roll(2)  # client k stands in place k + 2
    now = _round([1, 4, 5])
    moved = replace(now, sizes=now.sizes[turned], hostile=(now.hostile + 2) % _CLIENTS)
    sent = tool.update(moved, own, Draws(0, "check"))
    require(
        torch.allclose(there, sent, rtol=1e-12),
        "the place of its clients in the round changes what they send: their sizes are `sizes[hostile]`",
    )


def _untouched(tool: Adversary) -> None:
    own, round = _own(2), _round([1, 4])
    with leaving_alone(own, round.weights, round.sizes, round.hostile):
        tool.update(round, own, Draws(0, "check"))


CHECKS: dict[str, Callable[[Adversary], None]] = {
    "card": whole_card,
    "shape": _shape,
    "acts": _acts,
    "seeds": _seeds,
    "order": _order,
    "untouched": _untouched,
}

ADVERSARY_SUITE = ContractSuite("an adversary", Adversary, CHECKS)

ADVERSARY_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_adversary(adversary: str | type[Adversary] | Adversary, *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of an adversary; each check is made, and all that fail are told together.

    Args:
        adversary: a registered name, a class that needs no arguments, or an instance.
        only: names of `ADVERSARY_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_adversary("model_replacement", only=["shape", "order"])
    """
    ADVERSARY_SUITE(adversary, only)
