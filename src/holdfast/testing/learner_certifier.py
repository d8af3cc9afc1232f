"""The contract of a certificate for a training set.

from holdfast.testing import check_learner_certifier
check_learner_certifier("deep_partition")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import floor

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.learner_certifier import CertifiedPredictions, LearnerCertifier
from holdfast.core.threat import Guarantee
from holdfast.data.dataset import Dataset
from holdfast.testing._manners import leaving_alone, under_two_states, whole_card
from holdfast.testing.contract import ContractSuite, reduced, require
from holdfast.training.learner import Learner, Predictor

__all__ = ["LEARNER_CERTIFIER_CHECKS", "LEARNER_CERTIFIER_SUITE", "check_learner_certifier"]

_FEW = {"parts": 8}  # even, so that votes can be equal
_TRIALS, _POOL = 40, 48


class _Nearest(Learner):
    """The label of the nearest sample, of equal ones the least: one edit can turn it."""

    @override
    def learn(self, x: Tensor, y: Tensor, classes: int) -> Predictor:
        order = y.argsort(stable=True)
        near, label = x[order].flatten(1).double(), y[order]

        def predict(z: Tensor) -> Tensor:
            apart = (z.flatten(1).double().unsqueeze(1) - near).square().sum(2)
            return label[(apart == apart.amin(1, keepdim=True)).long().argmax(1)]

        return predict

    @override
    def describe(self) -> str:
        return "nearest sample"


class _Constant(Learner):
    """The last class, whatever the data; remembers of how many classes it was told."""

    def __init__(self) -> None:
        self.classes: set[int] = set()

    @override
    def learn(self, x: Tensor, y: Tensor, classes: int) -> Predictor:
        self.classes.add(classes)
        return lambda z: torch.full((len(z),), classes - 1)

    @override
    def describe(self) -> str:
        return "the last class"


def _small(tool: LearnerCertifier) -> LearnerCertifier:
    return reduced(tool, _FEW)


def _case() -> tuple[Dataset, Tensor]:
    """30 points of two classes on a line, most of them of the second, and points to predict."""
    stream = torch.Generator().manual_seed(4)
    y = (torch.rand(30, generator=stream) < 0.75).long()
    x = (y.float() + 0.8 * torch.rand(30, generator=stream)).unsqueeze(1)
    return Dataset.of(x, y, classes=["left", "right"]), torch.tensor([[1.2], [1.6], [0.3], [0.95]])


def _certified(tool: LearnerCertifier, data: Dataset, x: Tensor) -> CertifiedPredictions:
    return _small(tool).certify(_Nearest(), data, x)


def _radius(claimed: CertifiedPredictions, k: int) -> float:
    certificate = claimed.certificates[k]
    return 0.0 if certificate is None else certificate.radius


def _shape(tool: LearnerCertifier) -> None:
    data, x = _case()
    claimed = _certified(tool, data, x)
    require(
        claimed.prediction.shape == (len(x),) and claimed.prediction.dtype == torch.int64,
        "one int64 label for each input",
    )
    require(len(claimed.certificates) == len(x), "one certificate, or None, for each input")
    require(any(c is not None for c in claimed.certificates), "nothing is certified where the classes are far apart")
    for certificate in filter(None, claimed.certificates):
        require(
            certificate.guarantee is tool.card.guarantee,
            f"its card says {tool.card.guarantee}, a certificate {certificate.guarantee}",
        )
        require(certificate.radius >= 1, f"a radius of {certificate.radius} edits certifies nothing; give None")
        sure = certificate.guarantee is not Guarantee.PROBABILISTIC or certificate.alpha is not None
        require(
            sure and (certificate.arithmetic or certificate.guarantee is not Guarantee.SOUND),
            "a certificate names alpha or arithmetic",
        )


def _learner(tool: LearnerCertifier) -> None:
    data, x = _case()
    three, learner = replace(data, classes=(*(data.classes or ()), "neither")), _Constant()
    claimed = _small(tool).certify(learner, three, x)
    require(learner.classes, "it never trains the learner that it is given")
    require(
        learner.classes == {3},
        f"it tells the learner of {sorted(learner.classes)} classes, and the data have 3: an edit may bring the one that none "
        "has yet",
    )
    require(bool((claimed.prediction == 2).all()), "its predictions are not those of the learner that it is given")


def _order(tool: LearnerCertifier) -> None:
    data, x = _case()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    one = _certified(tool, data, x)
    two = _certified(tool, Dataset.of(data.x[order], data.y[order], classes=data.classes), x)
    same = torch.equal(one.prediction, two.prediction) and one.certificates == two.certificates
    require(
        same, "the order of the data changes predictions or radii: what is split or drawn must see the samples alone"
    )


def _same_again(tool: LearnerCertifier) -> None:
    data, x = _case()
    one, two = under_two_states(lambda: _certified(tool, data, x))
    require(torch.equal(one.prediction, two.prediction) and one.certificates == two.certificates, "two runs differ")


def _edited(data: Dataset, drop: list[int], add: list[tuple[float, int]]) -> Dataset:
    keep = torch.tensor([k for k in range(len(data)) if k not in drop], dtype=torch.int64)
    x = torch.cat([data.x[keep], torch.tensor([[v] for v, _ in add]).view(-1, 1)])
    y = torch.cat([data.y[keep], torch.tensor([label for _, label in add], dtype=torch.int64)])
    return Dataset.of(x, y, classes=data.classes)


def _random_edits(tool: LearnerCertifier) -> None:
    data, x = _case()
    claimed = _certified(tool, data, x)
    stream = torch.Generator().manual_seed(2)
    most = floor(max(_radius(claimed, k) for k in range(len(x))))
    for trial in range(_TRIALS):
        count = 1 + trial % max(1, most)
        gone = int(torch.randint(0, count + 1, (1,), generator=stream))
        drop = [int(r) for r in torch.randperm(len(data), generator=stream)[:gone].numpy()]
        add = [_sample(x, stream) for _ in range(count - gone)]
        _stands(claimed, _certified(tool, _edited(data, drop, add), x), count)


def _sample(x: Tensor, stream: torch.Generator) -> tuple[float, int]:
    """A sample next to one of the inputs, of either class."""
    k, label = (int(v) for v in torch.randint(0, 4, (2,), generator=stream).numpy())
    return float(x[k, 0]) + 0.01 * float(torch.rand(1, generator=stream)), label % 2


def _stands(claimed: CertifiedPredictions, after: CertifiedPredictions, edits: int) -> None:
    for k in range(len(claimed.certificates)):
        if edits <= _radius(claimed, k):
            require(
                int(after.prediction[k]) == int(claimed.prediction[k]),
                f"{edits} edits moved a prediction whose certified radius is {_radius(claimed, k):g} edits",
            )


def _greedy_edits(tool: LearnerCertifier) -> None:
    """Each edit is the one of many that leaves the least radius: the search that a certificate has to withstand."""
    data, x = _case()
    claimed = _certified(tool, data, x)
    for k in range(len(x)):
        point, drop, add = x[k : k + 1], list[int](), list[tuple[float, int]]()
        stream = torch.Generator().manual_seed(k)
        for edits in range(1, floor(_radius(claimed, k)) + 1):
            near = (float(point) + 0.001 * torch.rand(_POOL, generator=stream)).double().numpy()
            pool = [(float(v), 1 - int(claimed.prediction[k])) for v in near]
            tries = [
                (drop, [*add, new]) for new in pool
            ]  # of equal radii the first: who turns a vote beats who takes one
            tries += [([*drop, r], add) for r in range(len(data)) if r not in drop]
            outcomes = [(_certified(tool, _edited(data, *t), point), t) for t in tries]
            moved = any(int(f.prediction[0]) != int(claimed.prediction[k]) for f, _ in outcomes)
            require(
                not moved, f"{edits} edits moved a prediction whose certified radius is {_radius(claimed, k):g} edits"
            )
            drop, add = min(outcomes, key=lambda item: _radius(item[0], 0))[1]


def _untouched(tool: LearnerCertifier) -> None:
    data, x = _case()
    with leaving_alone(data, x):
        _certified(tool, data, x)


CHECKS: dict[str, Callable[[LearnerCertifier], None]] = {
    "card": whole_card,
    "shape": _shape,
    "learner": _learner,
    "order": _order,
    "same-again": _same_again,
    "random-edits": _random_edits,
    "greedy-edits": _greedy_edits,
    "untouched": _untouched,
}

LEARNER_CERTIFIER_SUITE = ContractSuite("a certifier of training sets", LearnerCertifier, CHECKS)

LEARNER_CERTIFIER_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_learner_certifier(
    learner_certifier: str | type[LearnerCertifier] | LearnerCertifier, *, only: Iterable[str] | None = None
) -> None:
    """Runs the contract of a certifier of training sets; each check is made, and all that fail are told together.

    Args:
        learner_certifier: a registered name, a class that needs no arguments, or an instance.
        only: names of `LEARNER_CERTIFIER_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_learner_certifier("deep_partition", only=["shape", "order"])
    """
    LEARNER_CERTIFIER_SUITE(learner_certifier, only)
