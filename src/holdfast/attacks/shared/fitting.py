"""The loop of a shared attack: its steps on batches in a keyed order, with checkpoints and a ledger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.attacks.shared.artefact import Artefact
from holdfast.attacks.shared.checkpoint import resumed, total, write
from holdfast.attacks.shared.contract import SharedAttack
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import name_of
from holdfast.core.threat import Access
from holdfast.judge.archive import Keep
from holdfast.judge.asking import Model
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget, Ledger
from holdfast.judge.units import ScoreUnits
from holdfast.numerics.evaluation import evaluating

__all__ = ["Fitted", "fit"]

Progress = Callable[[int, int], None]


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
        done, state, spent = resumed(checkpoint, of, attack.state, inquiries)
        if state is None:
            state = attack.start([oracle.on(whole) for oracle in oracles])
        for step in range(done, attack.iterations):
            if attack.finished(state):
                break
            batch = _batch(attack, whole, draws, step)
            state, done = attack.step([oracle.on(batch) for oracle in oracles], state, step), step + 1
            if checkpoint is not None and done % every == 0:
                write(checkpoint, of, done, state, inquiries, spent)
            if progress is not None:
                progress(done, attack.iterations)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Fitted(attack.artefact(state), total(inquiries, spent), done)


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
    parameters = {f.name: repr(getattr(attack, f.name)) for f in fields(attack)}  # type: ignore[arg-type]
    facts = [name_of(attack), parameters, problem.set.describe(), list(problem.x.shape), problem.ids.tolist(), seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
