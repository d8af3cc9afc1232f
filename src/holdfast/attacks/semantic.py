"""The contract of a semantic attack: a transform with few parameters, and an ordinary attack that searches those.

The search runs on lifted samples (`holdfast.transforms.lifted`), so that engine, inquiry, ledger and referee are those of every
other attack, and each attack on an lp ball is one on semantic parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.core.cards import Card, refuse
from holdfast.core.criterion import Criterion, Misclassified, Targeted
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import method as registered
from holdfast.core.threat import Goal, Norm
from holdfast.data.dataset import Dataset
from holdfast.judge.asking import Model
from holdfast.judge.judged import Judged, judged
from holdfast.judge.ledger import Budget, Ledger
from holdfast.judge.referee import Referee
from holdfast.numerics.evaluation import evaluate, evaluating
from holdfast.transforms.lifted import Lifted, lift
from holdfast.transforms.transform import ImageTransform, Transform

__all__ = ["ImageAttack", "Prepared", "SemanticAttack", "SemanticOutcome", "gradient_search", "run_semantic"]

_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a method makes of samples before it searches.

    Attributes:
        transform: what theta does to the origin of a sample.
        origin: (n, \\*shape) where theta starts from; the images themselves, or codes of them.
        attacked: the model as it is searched and judged; it answers what ``criterion`` reads.
        criterion: when that answer is adversarial, if not by label or target alone.
        refers: the result is a changed x; False where x' has no reference input.
        facts: plain numbers that a reader needs, by name.
    """

    transform: Transform
    origin: Tensor
    attacked: Model
    criterion: Criterion | None = None
    refers: bool = True
    facts: Mapping[str, float] = field(default_factory=dict[str, float])


class SemanticAttack(ABC):
    """A frozen dataclass of parameters that says what may change and how it is searched; `run_semantic` does the rest."""

    card: ClassVar[Card]

    @property
    def norm(self) -> Norm:
        """The norm of theta."""
        return Norm.LINF

    @property
    def eps(self) -> float:
        """The radius of theta; 1 in linf is the whole natural range."""
        return 1.0

    @property
    def learns(self) -> bool:
        """It needs data beside the attacked samples, to train a decoder on."""
        return False

    @abstractmethod
    def prepare(self, x: Tensor, y: Tensor, model: Model, known: Dataset | None, seed: int) -> Prepared:
        """Prepares the search for samples.

        Args:
            x: (n, \\*features) clean inputs in [0, 1].
            y: (n,) labels.
            model: the attacked model.
            known: data to learn from, where the method `learns`.
            seed: keys what is learned.

        Raises:
            UnsupportedError: it cannot serve such inputs.
        """

    @abstractmethod
    def search(self, transform: Transform) -> Attack[Any, Any]:
        """The attack that searches the parameters of the transform."""

    def check(self, x: Tensor, goal: Goal) -> None:
        """Refuses, in words, samples that the attack cannot have.

        Raises:
            UnsupportedError: no images, values outside [0, 1], or a goal that is not on the card.
        """
        title = self.card.title
        refuse(self.card, goal=goal)
        if x.ndim != 4:
            raise UnsupportedError(f"{title} needs images (n, C, H, W), these inputs have the shape {tuple(x.shape)}")
        if len(x) and (float(x.min()) < 0 or float(x.max()) > 1):
            raise UnsupportedError(f"{title} needs images in [0, 1]; declare a normalisation instead of applying it")


class ImageAttack(SemanticAttack):
    """A semantic attack that changes the images themselves, by a transform that needs nothing but their shape."""

    @abstractmethod
    def transform(self, shape: tuple[int, ...]) -> ImageTransform:
        """The transform of images of a shape (C, H, W)."""

    @override
    def prepare(self, x: Tensor, y: Tensor, model: Model, known: Dataset | None, seed: int) -> Prepared:
        shape = tuple(x.shape[1:])
        made = self.transform(shape)
        made.check(shape)
        return Prepared(transform=made, origin=x, attacked=model)


def gradient_search(name: str, **given: Any) -> Attack[Any, Any]:
    """A registered attack with those of the given parameters that it has.

    Raises:
        UsageError: no such attack.

    Example:
        >>> gradient_search("pgd", steps=7, targets=3).iterations
        7
    """
    kind = registered(name)
    if not issubclass(kind, Attack):
        raise UsageError(f"{name} is no attack on samples; take one such as pgd or apgd_ce")
    make: Any = registered(name)
    names = {f.name for f in fields(make)}
    return make(**{k: v for k, v in given.items() if k in names})


@dataclass(frozen=True, kw_only=True)
class SemanticOutcome:
    """What a semantic attack found, as the referee judged it.

    Attributes:
        x: (n, \\*features) the changed image of each sample that was broken, else its clean image.
        theta: (n, k) the scaled parameters, in [-1, 1]; 0 where nothing was found.
        natural: (n,) each, the same in natural units, by name.
        units: of those, by name.
        found: (n,) bool: the referee upholds x.
        right: (n,) bool: neither the image nor what theta = 0 makes of it is adversarial; success is counted among these.
        refers: x is a changed sample; False where there is no reference input.
        marginal: samples whose witness the referee did not uphold.
        distance: (n,) float64 size of theta; inf where nothing was found.
        ledger: what each sample cost the search.
        facts: plain numbers of the method.
        lifted: the lifted model.
        problem: the lifted problem.
    """

    x: Tensor
    theta: Tensor
    natural: Mapping[str, Tensor]
    units: Mapping[str, str]
    found: Tensor
    right: Tensor
    refers: bool
    marginal: int
    distance: Tensor
    ledger: Ledger
    facts: Mapping[str, float]
    lifted: Lifted
    problem: Problem

    @property
    def success(self) -> float:
        """Share of the samples that were right and are broken."""
        return float(self.found[self.right].double().mean()) if bool(self.right.any()) else float("nan")


def run_semantic(
    method: SemanticAttack,
    x: Tensor,
    y: Tensor,
    model: Model,
    *,
    target: Tensor | None = None,
    known: Dataset | None = None,
    prepared: Prepared | None = None,
    ids: object = None,
    seed: int = 0,
    budget: Budget | None = None,
    draws: int = 0,
    settings: Settings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SemanticOutcome:
    """Runs a semantic attack and lets the referee judge what it found.

    Args:
        method: the attack.
        x: (n, C, H, W) images in [0, 1].
        y: (n,) labels.
        model: images -> scores (n, K).
        target: (n,) targets of a targeted attack.
        known: data to learn from, for methods that do.
        prepared: what `SemanticAttack.prepare` gave for these samples, so that several models share what was learned.
        ids: of the samples; they key the draws.
        seed: keys all draws.
        budget: the most that may be asked for one sample.
        draws: the referee's draws of a randomised model; 0 for a deterministic one.
        settings: how the engine works.
        progress: told (samples done, samples).

    Raises:
        UnsupportedError: the attack cannot serve such inputs or such a goal.
        UsageError: it learns, and there is nothing to learn from.

    Example:
        >>> from holdfast.attacks.evasion.semantic.brightness_contrast import LightShift
        >>> f = lambda x: torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), 0.6)], 1)  # dark images are of class 1
        >>> out = run_semantic(LightShift(), torch.full((1, 1, 2, 2), 0.5), torch.tensor([1]), f)
        >>> bool(out.found[0]), bool(out.x.mean() > 0.6)
        (True, True)
    """
    method.check(x, Goal.UNTARGETED if target is None else Goal.TARGETED)
    if method.learns and known is None and prepared is None:
        raise UsageError(f"{method.card.title} learns what images look like; give it data beside the attacked samples")
    prepared = prepared or method.prepare(x, y, model, known, seed)
    lifted = Lifted(prepared.attacked, prepared.transform, prepared.origin.shape[1:])
    axes, criterion = len(prepared.transform.axes), prepared.criterion
    problem = lift(prepared.origin, y, axes, method.norm, method.eps, target=target, criterion=criterion, ids=ids)
    search = method.search(prepared.transform)
    outcome = run(search, problem, lifted, seed=seed, budget=budget, settings=settings, progress=progress)
    done = judged(Referee(lifted, draws=draws, exact=lifted.differentiable and not draws), problem, outcome)
    wrong = done.clean_wrong
    if prepared.origin is not x and prepared.refers:
        wrong = wrong | _wrong(model, problem, x, target)
    return _outcome(x, prepared, lifted, problem, outcome.ledger, done, wrong)


def _outcome(
    x: Tensor, prepared: Prepared, lifted: Lifted, problem: Problem, ledger: Ledger, done: Judged, wrong: Tensor
) -> SemanticOutcome:
    """What was judged, in images and natural units; ``wrong`` (n,) are those that were not right to begin with."""
    found = done.broken | done.clean_wrong
    kept = found.nonzero().squeeze(-1)
    z = torch.where(problem.flat(found), done.x, problem.x)
    with torch.no_grad(), evaluating(lifted):
        moved = torch.cat([lifted.transformed(z[kept][k : k + _ROWS]) for k in range(0, max(1, len(kept)), _ROWS)])
    theta = lifted.theta(z)
    return SemanticOutcome(
        x=x.index_copy(0, kept, moved.to(x.dtype)),
        theta=theta,
        natural=prepared.transform.natural(theta),
        units={a.name: a.unit for a in prepared.transform.axes},
        found=found,
        right=~wrong if prepared.refers else torch.ones_like(found),
        refers=prepared.refers,
        marginal=int((done.marginal | done.rejected).sum()),
        distance=done.distance,
        ledger=ledger,
        facts=prepared.facts,
        lifted=lifted,
        problem=problem,
    )


def _wrong(model: Model, problem: Problem, x: Tensor, target: Tensor | None) -> Tensor:
    """(n,) bool: the image itself, not the picture of its code, is adversarial as it is."""
    criterion = Misclassified() if target is None else Targeted()
    return criterion.holds(evaluate(model, x), problem.y, problem.target)
