"""The contract of a shared attack: one artefact for many samples, fitted once, applied to inputs it has not seen.

A universal perturbation, a patch, a texture and a substitute model are artefacts. `fit` drives the attack's steps, keeps
checkpoints and charges what is asked to the sample that caused it; `evaluate` lets the referee judge `apply` on held-out
samples with fresh draws.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from holdfast.core.cards import Card, refuse
from holdfast.core.draws import Draws, SampleDraws
from holdfast.core.errors import JournalError, UnsafeFileError, UnsupportedError, UsageError
from holdfast.core.files import write_whole
from holdfast.core.problem import Problem
from holdfast.core.registry import name_of
from holdfast.core.threat import Access, Formulation
from holdfast.judge.archive import Keep
from holdfast.judge.asking import Model
from holdfast.judge.asks import HardLabelAsk
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget, Ledger
from holdfast.judge.referee import Referee
from holdfast.judge.units import ScoreUnits
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.stats import clopper_pearson

__all__ = ["Applied", "Artefact", "Evaluation", "Fitted", "SharedAttack", "SharedState", "evaluate", "fit"]

_ROWS = 256
_FORM = "2"  # of a checkpoint; 1 held the state by names of its own and did not say so

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Artefact:
    """What a fit made: tensors and facts, one safetensors file on disk.

    Attributes:
        method: name of the attack that made it and that applies it.
        tensors: by name.
        facts: plain values that `apply` or a reader needs.

    Example:
        >>> Artefact("uap", {"delta": torch.zeros(1, 8, 8)}).tensors["delta"].shape
        torch.Size([1, 8, 8])
    """

    method: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def save(self, path: Path) -> None:
        """Writes the artefact whole or not at all."""
        header = {"method": self.method, "facts": json.dumps(dict(self.facts), sort_keys=True)}
        write_whole(path, save({k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}, header))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Artefact:
        """Reads what `save` wrote.

        Raises:
            UnsafeFileError: the file is not such an artefact.
        """
        tensors, header = _read(path, device)
        if "method" not in header or "facts" not in header:
            raise UnsafeFileError(
                f"{path} is no artefact of a shared attack; 'holdfast attack' writes artefact.safetensors"
            )
        return cls(header["method"], tensors, json.loads(header["facts"]))

    @property
    def sha256(self) -> str:
        """Hash of tensors and facts."""
        digest = hashlib.sha256(json.dumps([self.method, dict(self.facts)], sort_keys=True).encode())
        for name in sorted(self.tensors):
            value = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Applied:
    """Inputs with the artefact on them.

    Attributes:
        x: (n, \\*features).
        conditions: (n,) each, what was drawn for a sample, under names that people read (``angle``, ``scale``).
    """

    x: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class SharedState:
    """What a shared attack knows between two steps; the fields of a subclass are tensors, all that a checkpoint holds."""

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


A_contra = TypeVar("A_contra", bound=HardLabelAsk, contravariant=True)
S = TypeVar("S", bound=SharedState)


class SharedAttack(ABC, Generic[A_contra, S]):
    """A frozen dataclass of parameters with the paper's loop in `start`, `step` and `artefact`; `fit` owns the rest.

    ``asks`` holds one ask for each model, narrowed to the card's access and all about the same samples: those of the step,
    which are all, or ``batch`` of them in a keyed order.

    Attributes:
        state: the class of its state, as which a checkpoint is read.
    """

    card: ClassVar[Card]
    state: ClassVar[type[SharedState]]

    @property
    def iterations(self) -> int:
        """Steps of a fit: the field ``steps``.

        Raises:
            UsageError: the attack has no such field and does not override this.
        """
        made = getattr(self, "steps", None)
        if made is None:
            raise UsageError(f"{type(self).__name__} must have a field steps, or say its iterations")
        return int(made)

    @property
    def samples_a_step(self) -> int | None:
        """Samples of a step; None for all of them."""
        return None

    @property
    def draws(self) -> int:
        """Fresh draws of a held-out sample that an evaluation needs; 1 where `apply` leaves nothing to chance."""
        return 1

    @abstractmethod
    def start(self, asks: Sequence[A_contra]) -> S:
        """The state before the first step; the asks are about all samples."""

    @abstractmethod
    def step(self, asks: Sequence[A_contra], state: S, step: int) -> S:
        """One iteration on the step's samples."""

    @abstractmethod
    def artefact(self, state: S) -> Artefact:
        """What was learned so far."""

    def finished(self, state: S) -> bool:
        """The artefact is as good as was asked for, before the steps are up; False if the attack does not look."""
        return False

    @abstractmethod
    def apply(self, artefact: Artefact, x: Tensor, draws: SampleDraws, problem: Problem | None = None) -> Applied:
        """x (n, \\*features) with the artefact on it; ``draws`` decides what chance decides.

        ``problem`` has the set that x' must lie in, where the method has a norm.
        """

    def check(self, problem: Problem, models: int) -> None:
        """Refuses, in words, a problem that the attack cannot have.

        Raises:
            UnsupportedError: norm or goal are not on the card, or there are no samples.
        """
        card = self.card
        if not len(problem):
            raise UsageError(f"{card.title} needs samples to fit on")
        if card.norms and card.formulation is Formulation.BUDGET and not bool(problem.set.eps.isfinite().all()):
            raise UnsupportedError(f"{card.title} searches inside a budget; give a finite eps")
        if problem.criterion.detector and getattr(self, "loss", None) != "joint":
            raise UnsupportedError(
                f"{card.title} knows no detector; attack single inputs, for example by pgd with loss=joint"
            )
        if problem.criterion.domains:
            raise UnsupportedError(f"{card.title} takes several models as they are, not as domains of one")
        refuse(card, problem.set.norm if card.norms else None, problem.goal)


@dataclass(frozen=True)
class Fitted:
    """A fitted artefact and what it cost.

    Attributes:
        artefact: what was made.
        ledger: rows asked for each fitting sample, over all models.
        steps: steps made.
    """

    artefact: Artefact
    ledger: Ledger
    steps: int


def fit(
    attack: SharedAttack[Any, Any],
    problem: Problem,
    models: Model | Sequence[Model],
    *,
    seed: int = 0,
    budget: Budget | None = None,
    checkpoint: Path | None = None,
    every: int = 50,
    micro_batch: int = 1024,
    progress: Progress | None = None,
) -> Fitted:
    """Fits an artefact.

    Args:
        attack: the attack.
        problem: the fitting samples; their set is the one that the artefact must respect, where the method has a norm.
        models: one model, or several that the artefact must fool together.
        seed: keys all draws.
        budget: the most that may be asked for one sample.
        checkpoint: file to continue from, written every so many steps and removed at the end.
        every: steps between two checkpoints.
        micro_batch: rows sent through a model at once.
        progress: told (steps made, steps).

    Returns:
        The artefact and its ledger.

    Raises:
        UsageError: no samples or no models.
        UnsupportedError: the attack cannot serve the problem.
        JournalError: the checkpoint is of another fit or form.
    """
    group = (models,) if callable(models) else tuple(models)
    if not group:
        raise UsageError("a shared attack needs at least one model")
    attack.check(problem, len(group))
    draws = Draws(seed, name_of(attack), problem.x.device)
    whole = replace(problem, draws=draws.of(problem.ids, 0))
    access = attack.card.access or Access.WHITE_BOX
    inquiries = [_inquiry(model, whole, access, budget, micro_batch) for model in group]
    oracles = [one.oracle(access) for one in inquiries]
    of = _identity(attack, problem, seed)
    with evaluating(*group):
        done, state, spent = _resume(checkpoint, of, attack.state, inquiries)
        if state is None:
            state = attack.start([oracle.on(whole) for oracle in oracles])
        for step in range(done, attack.iterations):
            if attack.finished(state):
                break
            batch = _batch(attack, whole, draws, step)
            state, done = attack.step([oracle.on(batch) for oracle in oracles], state, step), step + 1
            if checkpoint is not None and done % every == 0:
                _keep(checkpoint, of, done, state, inquiries, spent)
            if progress is not None:
                progress(done, attack.iterations)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Fitted(attack.artefact(state), _total(inquiries, spent), done)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How an artefact does on samples that it was not fitted on.

    Attributes:
        broken: (n, k) bool: the referee upholds the sample in this draw.
        right: (n,) bool: the clean sample is not adversarial as it is; only these count.
        conditions: (n, k) each: what was drawn.
        x: (n, \\*features) the inputs of the first draw.
        distance: (n,) float64 distance of those, in the norm of the problem.
        forwards: rows that the judging asked.
    """

    broken: Tensor
    right: Tensor
    conditions: Mapping[str, Tensor]
    x: Tensor
    distance: Tensor
    forwards: int

    @property
    def success(self) -> float:
        """Share of (sample, draw) pairs that break, among samples that were right."""
        return float(self.broken[self.right].double().mean()) if bool(self.right.any()) else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the share of samples that break in most draws."""
        n = int(self.right.sum())
        if not n:
            return 0.0, 1.0
        most = (self.broken[self.right].double().mean(1) > 0.5).sum()
        low, high = clopper_pearson(np.array([int(most)]), n, 0.05)
        return float(np.asarray(low).flat[0]), float(np.asarray(high).flat[0])

    def by(self, condition: str, bins: int = 6) -> list[tuple[float, float, int, float]]:
        """Success over equal slices of a condition: (from, to, pairs, share that breaks).

        Raises:
            UsageError: nothing of that name was drawn.
        """
        if condition not in self.conditions:
            raise UsageError(f"no condition '{condition}' was drawn; there are {', '.join(self.conditions) or 'none'}")
        value = self.conditions[condition][self.right].double().flatten()
        hit = self.broken[self.right].double().flatten()
        if not len(value):
            return []
        low, high = float(value.min()), float(value.max())
        width = (high - low) / bins or 1.0
        which = ((value - low) / width).long().clamp(0, bins - 1)
        rows: list[tuple[float, float, int, float]] = []
        for k in range(bins):
            mine = which == k
            if bool(mine.any()):
                rows.append((low + k * width, low + (k + 1) * width, int(mine.sum()), float(hit[mine].mean())))
        return rows


def evaluate(
    attack: SharedAttack[Any, Any],
    artefact: Artefact,
    problem: Problem,
    model: Model,
    *,
    draws: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Judges an artefact on held-out samples with fresh draws.

    Args:
        attack: of the method that made the artefact.
        artefact: what `fit` gave.
        problem: held-out samples; x' must lie in their set where the method has a norm, in the box otherwise.
        model: the attacked model.
        draws: fresh draws of each sample, at least 1; the attack's own number by default.
        seed: keys them.

    Returns:
        Success, sample by sample and draw by draw.
    """
    draws = attack.draws if draws is None else draws
    if draws < 1:
        raise UsageError(f"an evaluation needs at least 1 draw, got {draws}")
    keyed = Draws(seed, name_of(attack) + ".judge", problem.x.device)
    bound = problem if attack.card.norms else replace(problem, set=replace(problem.set.unbounded(), mask=None))
    referee = Referee(model)
    with torch.no_grad(), evaluating(model):
        scores = torch.cat([model(problem.x[k : k + _ROWS]) for k in range(0, len(problem), _ROWS)])
        right = ~problem.criterion.holds(scores, problem.y, problem.target)
    hits: list[Tensor] = []
    conditions: dict[str, list[Tensor]] = {}
    first, distance = problem.x, torch.zeros_like(problem.set.eps)
    for k in range(draws):
        applied = attack.apply(artefact, bound.x, keyed.of(bound.ids, k), bound)
        ruling = referee.judge(bound, applied.x)
        hits.append(ruling.holds)
        for name, value in applied.conditions.items():
            conditions.setdefault(name, []).append(value)
        if k == 0:
            first, distance = applied.x, ruling.distance
    return Evaluation(
        broken=torch.stack(hits, 1),
        right=right,
        conditions={k: torch.stack(v, 1) for k, v in conditions.items()},
        x=first,
        distance=distance,
        forwards=referee.forwards,
    )


def _inquiry(model: Model, problem: Problem, access: Access, budget: Budget | None, micro_batch: int) -> Inquiry:
    """What asks a model; where the attack's access is not the model itself, its witnesses are kept and told."""
    keep = None if access is Access.WHITE_BOX else Keep.NEAREST
    return Inquiry.of(model, problem, keep, budget=budget, micro_batch=micro_batch, units=ScoreUnits(problem, None))


def _batch(attack: SharedAttack[Any, Any], whole: Problem, draws: Draws, step: int) -> Problem:
    """The samples of a step: all, or the next of a keyed order that is shuffled anew for each pass over the data."""
    size = attack.samples_a_step
    if size is None or size >= len(whole):
        return whole
    each = len(whole) // size
    order = torch.randperm(len(whole), generator=draws.generator("epoch", step // each), device=draws.device)
    at = step % each * size
    return whole.select(order[at : at + size].cpu().numpy())


def _identity(attack: SharedAttack[Any, Any], problem: Problem, seed: int) -> str:
    told = {f.name: repr(getattr(attack, f.name)) for f in fields(attack)}  # type: ignore[arg-type]
    facts = [name_of(attack), told, problem.set.describe(), list(problem.x.shape), problem.ids.tolist(), seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _total(inquiries: Sequence[Inquiry], before: Ledger | None) -> Ledger:
    """What all inquiries charged, and what was charged before a resume."""
    ledgers = [inquiry.ledger for inquiry in inquiries] + ([] if before is None else [before])
    return sum(ledgers[1:], ledgers[0])


def _keep(
    path: Path, of: str, step: int, state: SharedState, inquiries: Sequence[Inquiry], spent: Ledger | None
) -> None:
    # cloned, for a state may hold one tensor twice and a file may not
    tensors = {f"state.{k}": v.detach().cpu().contiguous().clone() for k, v in state.tensors().items()}
    tensors["ledger"] = _total(inquiries, spent).stacked.cpu()
    tensors["units"] = torch.stack([one.units.values for one in inquiries]).cpu()
    write_whole(path, save(tensors, {"form": _FORM, "of": of, "step": str(step)}))


def _resume(
    path: Path | None, of: str, kind: type[SharedState], inquiries: Sequence[Inquiry]
) -> tuple[int, SharedState | None, Ledger | None]:
    """Steps made, the state after them and what they cost, where there is a checkpoint; the units of scores go on as well."""
    if path is None or not path.exists():
        return 0, None, None
    tensors, header = _read(path, inquiries[0].units.values.device)
    form = header.get("form", "1")
    if "of" in header and form != _FORM:
        raise JournalError(
            f"{path} is a checkpoint of form {form}, and this version of Holdfast reads form {_FORM}; remove it to start "
            "anew, or finish the fit with the version that began it"
        )
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    if header.get("of") != of or "units" not in tensors or set(state) != {f.name for f in fields(kind)}:
        raise JournalError(f"{path} is the checkpoint of another fit; remove it or name another file")
    for inquiry, values in zip(inquiries, tensors["units"], strict=True):
        inquiry.units.resume(values)
    return int(header["step"]), kind(**state), Ledger.of(tensors["ledger"])


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        opened: Any = safe_open(path, framework="pt", device=str(device))
        with opened as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as fault:
        raise UnsafeFileError(f"{path} cannot be read as safetensors: {fault}") from None
