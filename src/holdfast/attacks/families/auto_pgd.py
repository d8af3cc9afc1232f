"""Auto-PGD: projected gradient ascent that halves its own step (Croce & Hein 2020b, algorithm 1), and its l1 form with
steps of adaptive sparsity (Croce & Hein 2021, algorithm 1).

A step evaluates the iterate that it finds and then moves on, so that a start costs nothing, and the last iterate is
asked by `finalize`: N steps are N gradients and one forward more.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.core.arrays import on_device
from holdfast.core.cards import parameter
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.asks import WhiteBoxAsk
from holdfast.numerics import ascent
from holdfast.numerics.distance import between
from holdfast.numerics.losses import Loss
from holdfast.numerics.project import linf_bounds, project
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import pinned_by_box

__all__ = ["AutoPGD", "AutoPGDState", "checkpoints"]

_FIRST, _SHORTER, _LEAST = 22, 3, 6  # percent of the steps: first window, what each next one is shorter by, shortest
_MOMENTUM = 0.75
_FULL_SIZE = 2.0  # first step in eps
_L1_RADII = (3.0, 2.0, 1.0)  # radii of the stages of the l1 form, in eps
_L1_STAGE = 0.3  # share of the steps of each stage but the last
_L1_WINDOW = 0.04  # share of the steps of a stage between two looks at the sparsity
_L1_SHRINK = 1.5  # what the support is divided by for the sparsity of a step, and what a step is divided by
_L1_LEAST_SIZE = 0.1  # smallest step, in the radius of the stage
_L1_SETTLED = 0.95  # a support that keeps this share of itself no longer shrinks


def checkpoints(steps: int) -> tuple[int, ...]:
    """The steps at which the step size is looked at: w_1, w_2, ... of the paper, below ``steps``.

    Example:
        >>> checkpoints(100)
        (22, 41, 57, 70, 80, 87, 93, 99)
    """
    marks: list[int] = []
    at, window = _FIRST, _FIRST
    while (step := -(-at * steps // 100)) < steps:
        if not marks or step > marks[-1]:
            marks.append(step)
        window = max(window - _SHORTER, _LEAST)
        at += window
    return tuple(marks)


@dataclass(frozen=True, kw_only=True)
class AutoPGDState(State):
    """What Auto-PGD knows of each sample.

    Attributes:
        target: (n,) int64, the class to reach; -1 for none.
        previous: the iterate before x.
        best_x: the iterate with the largest loss.
        best_grad: the gradient there.
        best_loss: (n,) that loss.
        loss: (n,) the loss of the iterate before x; infinite if there is none.
        size: (n,) float64 step size over the radius of the set.
        rises: (n,) how often the loss rose since the last checkpoint.
        mark: (n,) the best loss at the last checkpoint.
        halved: (n,) bool: the step was halved at the last checkpoint.
        fraction: (n,) float64, l1: share of the features that a step moves.
        support: (n,) float64, l1: features that differed from x at the last checkpoint.
        low: (n, \\*features) least values of the linf set; (n, 0) for the other norms.
        high: largest values, likewise.
    """

    target: Tensor
    previous: Tensor
    best_x: Tensor
    best_grad: Tensor
    best_loss: Tensor
    loss: Tensor
    size: Tensor
    rises: Tensor
    mark: Tensor
    halved: Tensor
    fraction: Tensor
    support: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class AutoPGD(Attack[WhiteBoxAsk, AutoPGDState]):
    """``z = project(x + size * steepest(grad))``, ``x <- project(x + 0.75 (z - x) + 0.25 (x - previous))``; at
    checkpoints a sample whose loss rises too rarely goes back to its best iterate with half the step.
    """

    steps: int = parameter(100, "gradient steps of a start, at least 1", "Croce & Hein 2020b, section 4.2 (AutoAttack)")
    restarts: int = parameter(1, "random starts, at least 1", "Croce & Hein 2020b: AutoAttack as released")
    rho: float = parameter(
        0.75, "share of the steps of a window that must raise the loss, in (0, 1)", "Croce & Hein 2020b, section 3.4"
    )

    @abstractmethod
    def loss(self, problem: Problem, classes: int) -> Loss:
        """What is maximised, of scores, y and the targets."""

    @abstractmethod
    def aim(self, ask: WhiteBoxAsk) -> Tensor:
        """(n,) int64 the class that each sample heads for in its round; -1 for none."""

    @override
    def start(self, ask: WhiteBoxAsk) -> AutoPGDState:
        problem = ask.problem
        x0, ball = problem.x, problem.ball
        sparse, boxed = ball.norm is Norm.L1, ball.norm is Norm.LINF
        step = np.zeros(len(x0), dtype=np.int64)
        if sparse:
            noise = problem.keyed.normal("start", tuple(x0.shape[1:])).to(x0)
            x = project(self._radius(ball, step), x0 + noise, x0)
        else:
            x = uniform_in_ball(ball, x0, problem.keyed, "start")
        low, high = linf_bounds(ball, x0) if boxed else (x0.new_empty(len(x0), 0), x0.new_empty(len(x0), 0))
        never = x0.new_full((len(x0),), -inf)
        support = between(Norm.L0, x, x0)
        return AutoPGDState(
            x,
            step,
            target=self.aim(ask),
            previous=x,
            best_x=x,
            best_grad=torch.zeros_like(x),
            best_loss=never,
            loss=-never,
            size=torch.full_like(ball.eps, 1.0 if sparse else _FULL_SIZE),
            rises=torch.zeros_like(problem.y),
            mark=never,
            halved=torch.zeros_like(problem.y, dtype=torch.bool),
            fraction=_share(support, x0),
            support=support,
            low=low,
            high=high,
        )

    @override
    def step(self, ask: WhiteBoxAsk, state: AutoPGDState) -> AutoPGDState:
        problem = ask.problem
        ball = problem.ball
        sparse = ball.norm is Norm.L1
        if sparse:
            ball = self._radius(ball, state.step)
            state = self._enter(problem, ball, state)
        g = ask.gradient(state.x, self.loss(problem, ask.classes), target=state.target)
        better = g.value > state.best_loss
        wide = problem.flat(better)
        state = replace(
            state,
            best_x=torch.where(wide, state.x, state.best_x),
            best_grad=torch.where(wide, g.grad, state.best_grad),
            best_loss=torch.where(better, g.value, state.best_loss),
            loss=g.value,
            rises=state.rises + (g.value > state.loss),
        )
        if sparse:
            return _sparse_move(problem, ball, *self._sparsify(problem, state, g.grad))
        return _dense_move(problem, ball, *self._halve(problem, state, g.grad))

    def _halve(self, problem: Problem, state: AutoPGDState, grad: Tensor) -> tuple[AutoPGDState, Tensor]:
        """At a checkpoint: half the step and back to the best iterate, if the loss rose too rarely since the last one,
        or if neither the step nor the best loss changed between the two.
        """
        marks = np.array((0, *checkpoints(self.steps)))
        which = np.searchsorted(marks, state.step, side="right") - 1
        here = (marks[which] == state.step) & (which > 0)
        if not here.any():
            return state, grad
        due = on_device(here, grad.device)
        window = on_device(marks[which] - marks[np.maximum(which - 1, 0)], grad.device)
        rare = state.rises < self.rho * window
        stuck = ~state.halved & (state.mark >= state.best_loss)
        halve = due & (rare | stuck)
        state, grad = _back_to_best(problem, state, grad, halve)
        state = replace(
            state,
            size=torch.where(halve, state.size / 2, state.size),
            halved=torch.where(due, halve, state.halved),
            mark=torch.where(due, state.best_loss, state.mark),
            rises=state.rises.masked_fill(due, 0),
        )
        return state, grad

    def _stage(self, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The stage of the l1 form that each sample is in, and the steps that it made there."""
        starts = np.arange(len(_L1_RADII)) * int(_L1_STAGE * self.steps)
        stage = np.searchsorted(starts, step, side="right") - 1
        return stage, step - starts[stage]

    def _radius(self, ball: LpBall, step: np.ndarray) -> LpBall:
        """The ball of the stage: the l1 form starts with larger ones."""
        factor = on_device(np.array(_L1_RADII)[self._stage(step)[0]], ball.eps.device)
        return ball.with_eps(ball.eps * factor)

    def _enter(self, problem: Problem, ball: LpBall, state: AutoPGDState) -> AutoPGDState:
        """Samples at the first step of a stage start it from their best iterate, projected on its ball."""
        stage, made = self._stage(state.step)
        first = (made == 0) & (stage > 0)
        if not first.any():
            return state
        enters = on_device(first, state.x.device)
        x = torch.where(problem.flat(enters), project(ball, state.best_x, problem.x), state.x)
        support = torch.where(enters, between(Norm.L0, x, problem.x), state.support)
        return replace(
            state,
            x=x,
            best_loss=state.best_loss.masked_fill(enters, -inf),
            size=state.size.masked_fill(enters, 1.0),
            support=support,
            fraction=torch.where(enters, _share(support, x), state.fraction),
        )

    def _sparsify(self, problem: Problem, state: AutoPGDState, grad: Tensor) -> tuple[AutoPGDState, Tensor]:
        """At the end of a window: steps as sparse as the best iterate; the full step from there while its support
        shrinks, smaller steps otherwise.
        """
        stage, made = self._stage(state.step)
        first = int(_L1_STAGE * self.steps)
        length = np.where(stage == len(_L1_RADII) - 1, self.steps - first * (len(_L1_RADII) - 1), first)
        window = np.maximum((_L1_WINDOW * length).astype(np.int64), 1)
        here = (made > 0) & (made % window == 0)
        if not here.any():
            return state, grad
        due = on_device(here, grad.device)
        support = between(Norm.L0, state.best_x, problem.x)
        shrinks = due & (support < _L1_SETTLED * state.support)
        smaller = (state.size / _L1_SHRINK).clamp_min(_L1_LEAST_SIZE)
        state, grad = _back_to_best(problem, state, grad, shrinks)
        state = replace(
            state,
            size=torch.where(due, torch.where(shrinks, 1.0, smaller), state.size),
            fraction=torch.where(due, _share(support, grad), state.fraction),
            support=torch.where(due, support, state.support),
        )
        return state, grad


def _dense_move(problem: Problem, ball: LpBall, state: AutoPGDState, grad: Tensor) -> AutoPGDState:
    """The linf and l2 step, with momentum from the second one on."""

    bounds = (state.low, state.high) if ball.norm is Norm.LINF else None
    length = problem.flat(state.size * ball.eps).to(grad.dtype)
    z = ascent.step(ball, state.x, grad, problem.x, length, bounds=bounds)
    pull = problem.flat(on_device(np.where(state.step > 0, _MOMENTUM, 1.0), grad.device)).to(grad.dtype)
    moved = state.x + pull * (z - state.x) + (1 - pull) * (state.x - state.previous)
    x = project(ball, moved, problem.x) if bounds is None else moved.clamp(*bounds)
    return replace(state, x=x, previous=state.x)


def _sparse_move(problem: Problem, ball: LpBall, state: AutoPGDState, grad: Tensor) -> AutoPGDState:
    """The l1 step, which has no momentum. Features that the box keeps at their clean value are no part of it; changed ones
    at its edge are: pushed further out, they stay there when the projection takes its share from every feature.
    """
    length = problem.flat(state.size * ball.eps).to(grad.dtype)
    pinned = pinned_by_box(ball, state.x, problem.x, grad) & (state.x == problem.x)
    x = ascent.step(ball, state.x, grad, problem.x, length, sparsity=state.fraction, pinned=pinned)
    return replace(state, x=x, previous=state.x)


def _back_to_best(problem: Problem, state: AutoPGDState, grad: Tensor, who: Tensor) -> tuple[AutoPGDState, Tensor]:
    wide = problem.flat(who)
    return replace(state, x=torch.where(wide, state.best_x, state.x)), torch.where(wide, state.best_grad, grad)


def _share(support: Tensor, x: Tensor) -> Tensor:
    """(n,) float64: the share of the features that an l1 step moves, two thirds of the support, rounded down: rounded up
    it would stay at two features for ever.
    """
    return ((support / _L1_SHRINK).floor() - 0.5).clamp_min(0) / max(x[:1].numel(), 1)
