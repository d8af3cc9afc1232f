"""The referee judges every final witness afresh. An attack never grades itself.

A witness holds if it lies in the set without any tolerance and the criterion holds at the referee's own fixed batch, at
batch 1 and, where the model allows it, in float64. One on the edge is moved outward along its own direction, inside the
set, until it holds; if it cannot, it is marginal: listed, not counted as broken.

Not every model can be asked in float64: its forward may insist on float32, its weights may be quantised. A model in
float16 or bfloat16 is another function in float64, as far from it as its rounding reaches. Such models are judged in
their own type alone, and the judgement says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from holdfast.core.findings import Finding, Severity
from holdfast.core.problem import Problem
from holdfast.judge.asking import Model
from holdfast.numerics.distance import contains, measured
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.project import project
from holdfast.numerics.stats import clopper_pearson

__all__ = ["Judgement", "Referee", "Ruling"]

_OUTWARD = (1e-6, 1e-5, 1e-4, 1e-3, 4e-3, 1.6e-2)  # relative moves along the witness's own direction


class Ruling(StrEnum):
    """What the referee says of a claimed witness."""

    HOLDS = "holds"
    MARGINAL = "marginal"
    REJECTED = "rejected"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Rulings on a batch of claimed witnesses.

    Attributes:
        x: (n, \\*features) the witness, moved outward where that was needed.
        holds: (n,) bool: it is upheld, in every way that the model was asked, and lies in the set.
        inside: (n,) bool: it lies in the set, without any tolerance.
        margin: (n,) float64, the largest (worst) margin among the ways it was asked; negative where it holds.
        rounding: (n,) float64, how much the margins of the ways differ: a later flip within it is rounding, not a fault.
        distance: (n,) float64.
        prediction: (n,) int64 the class that the model gives x at the referee's own batch (the most frequent one of fresh
            draws); -1 where its answer names none.
        share: (n,) for randomised models the share of draws that broke; 1 or 0 for others.
        interval: (n, 2) its 95 % interval.
        forwards: samples sent through the model.
        runs: the ways in which the model was asked, in words.
        arithmetics: the types in which it was asked, for example ``("float32", "float64")``.
    """

    x: Tensor
    holds: Tensor
    inside: Tensor
    margin: Tensor
    rounding: Tensor
    distance: Tensor
    prediction: Tensor
    share: Tensor
    interval: Tensor
    forwards: int
    runs: tuple[str, ...] = ()
    arithmetics: tuple[str, ...] = ()

    @property
    def ruling(self) -> tuple[Ruling, ...]:
        """The same in words, one for each sample."""
        return tuple(
            Ruling.HOLDS if holds else Ruling.MARGINAL if inside else Ruling.REJECTED
            for holds, inside in zip(self.holds.cpu().numpy(), self.inside.cpu().numpy(), strict=True)
        )


class Referee:
    """Judges claims about one model; asks it anew each time."""

    def __init__(self, model: Model, *, batch: int = 64, draws: int = 0, exact: bool = True) -> None:
        """Args:
        model: the attacked model.
        batch: the referee's own fixed batch; the last one is filled up with copies.
        draws: 0 for a deterministic model; otherwise how many fresh draws vote.
        exact: also ask in float64, where the model is a module that can be; `without_double` says why it is not.
        """
        self.model, self.batch, self.draws, self.forwards = model, batch, draws, 0
        self._double: Callable[[Tensor], Tensor] | None = None
        self.without_double = ""
        if exact and not draws:
            self._double, self.without_double = _in_double(model)

    @property
    def runs(self) -> tuple[str, ...]:
        """The ways in which the model is asked, in words."""
        if self.draws:
            return (f"{self.draws} fresh draws at batch {self.batch}",)
        double = () if self._double is None else ("float64",)
        return (f"batch {self.batch}", "batch 1", *double)

    def finding(self, x: Tensor) -> Finding | None:
        """What is to be said before anything is judged, from an answer to some inputs: that float64 is not asked."""
        with torch.no_grad(), evaluating(self.model):
            self._ask_double(x)
        if not self.without_double or not isinstance(self.model, nn.Module):
            return None
        return Finding(
            code="referee.own_type",
            severity=Severity.NOTE,
            title="witnesses are judged in the model's own type",
            message=f"{self.without_double[:1].upper()}{self.without_double[1:]}. Witnesses are asked again as they are, at "
            f"{' and '.join(self.runs)}.",
        )

    def judge(self, problem: Problem, x: Tensor) -> Judgement:
        """Rules on the claim that each of x (n, \\*features) is a witness of its problem."""
        before = self.forwards
        if not len(x):  # not every model takes an empty batch
            return self._nothing(x)
        with torch.no_grad(), evaluating(self.model):
            if self.draws:
                return self._vote(problem, x, before)
            inside = contains(problem.set, x, problem.x)
            x, margin, rounding, prediction = self._outward(problem, x, inside)
        holds = (margin < 0) & inside
        share = holds.double()
        return Judgement(
            x=x,
            holds=holds,
            inside=inside,
            margin=margin,
            rounding=rounding,
            distance=measured(problem.set, x, problem.x),
            prediction=prediction,
            share=share,
            interval=torch.stack([share, share], 1),
            forwards=self.forwards - before,
            runs=self.runs,
            arithmetics=self.arithmetics(x),
        )

    def _nothing(self, x: Tensor) -> Judgement:
        none = torch.zeros(0, dtype=torch.float64, device=x.device)
        return Judgement(
            x=x,
            holds=none.bool(),
            inside=none.bool(),
            margin=none,
            rounding=none,
            distance=none,
            prediction=none.long(),
            share=none,
            interval=none.view(0, 2),
            forwards=0,
            runs=self.runs,
            arithmetics=self.arithmetics(x),
        )

    def arithmetics(self, x: Tensor) -> tuple[str, ...]:
        """The types in which the model is asked about inputs x: its own, which is that of x where it has no parameters."""
        module = self.model if isinstance(self.model, nn.Module) else nn.Module()
        own = next((t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), x.dtype)
        both = (own,) if self._double is None else (own, torch.float64)
        return tuple(dict.fromkeys(str(kind).removeprefix("torch.") for kind in both))

    def _outward(self, problem: Problem, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Moves witnesses on the edge outward, a little more each time, as long as any does not hold.

        Returns:
            The witnesses, their margins, the rounding of those, and the classes that they are given.
        """
        x = x.clone()
        margin, rounding, prediction = self._margins(problem, x)
        for move in _OUTWARD:
            rows = (inside & ~(margin < 0)).nonzero().squeeze(-1)
            if not len(rows):
                break
            part = problem.select(rows.cpu().numpy())
            moved = project(part.set, part.x + (1 + move) * (x[rows] - part.x), part.x)
            m, r, label = self._margins(part, moved)
            better = (m < 0) & contains(part.set, moved, part.x)
            x[rows[better]], margin[rows[better]], rounding[rows[better]] = moved[better], m[better], r[better]
            prediction[rows[better]] = label[better]
        return x, margin, rounding, prediction

    def _margins(self, problem: Problem, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) the worst margin over the ways to ask, how much they differ, and the class at the referee's own batch."""
        ways = [self._ask(self.model, x, self.batch), self._ask(self.model, x, 1)]
        double = self._ask_double(x)
        if double is not None and double.shape == ways[0].shape:
            ways.append(double)
        margins = list[Tensor]()
        for scores in ways:
            margin = problem.criterion.margin(scores.double(), problem.y, problem.target)
            broken = problem.criterion.holds(scores, problem.y, problem.target)
            margins.append(torch.where(broken, margin, margin.clamp_min(0).nan_to_num(nan=float("inf"))))
        stacked = torch.stack(margins)
        return stacked.amax(0), stacked.amax(0) - stacked.amin(0), _classes(problem, ways[0])

    def _ask_double(self, x: Tensor) -> Tensor | None:
        """The scores in float64; a model that turns out not to run there is from then on judged in its own type."""
        if self._double is None:
            return None
        try:
            return self._ask(self._double, x.double(), self.batch)
        except Exception as fault:  # the model's own code, in a type that it never claimed to serve, may raise anything
            self._double = None
            self.without_double = f"the model does not run in float64 ({type(fault).__name__}: {str(fault)[:200]})"
            return None

    def _ask(self, model: Model, x: Tensor, batch: int) -> Tensor:
        self.forwards += len(x)
        parts: list[Tensor] = []
        for part in torch.split(x, batch):
            filled = torch.cat([part, part[-1:].expand(batch - len(part), *part.shape[1:])])
            parts.append(model(filled)[: len(part)])
        return torch.cat(parts)

    def _vote(self, problem: Problem, x: Tensor, before: int) -> Judgement:
        """Randomised models: the majority of fresh draws, with its interval."""
        votes = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        margins, classes = list[Tensor](), list[Tensor]()
        for draw in range(self.draws):
            torch.manual_seed(draw)  # pyright: ignore[reportUnknownMemberType]
            scores = self._ask(self.model, x, self.batch)
            votes += problem.criterion.holds(scores, problem.y, problem.target)
            margins.append(problem.criterion.margin(scores.double(), problem.y, problem.target))
            classes.append(_classes(problem, scores))
        inside = contains(problem.set, x, problem.x)
        share = votes / self.draws
        low, high = clopper_pearson(votes.cpu().numpy(), self.draws, 0.05)
        interval = torch.stack([torch.as_tensor(low), torch.as_tensor(high)], 1).to(x.device)
        stacked = torch.stack(margins)
        return Judgement(
            x=x,
            holds=(share > 0.5) & inside,
            inside=inside,
            margin=stacked.mean(0),
            rounding=stacked.std(0, correction=min(1, self.draws - 1)),
            distance=measured(problem.set, x, problem.x),
            prediction=torch.stack(classes).mode(0).values,
            share=share,
            interval=interval,
            forwards=self.forwards - before,
            runs=self.runs,
            arithmetics=self.arithmetics(x),
        )


def _classes(problem: Problem, scores: Tensor) -> Tensor:
    """(n,) int64 the best class of each row of scores; -1 where they are numbers, or of several models."""
    criterion = problem.criterion
    if criterion.domains or not criterion.counts_classes:
        return torch.full((len(scores),), -1, device=scores.device)
    return (scores[..., :-1] if criterion.detector else scores).argmax(-1)


def _in_double(model: Model) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """The same network in float64; or None and why."""
    if not isinstance(model, nn.Module):
        return None, "the model is no module"
    narrow = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.float16, torch.bfloat16)}
    if narrow:
        kind = str(narrow.pop()).removeprefix("torch.")
        return None, f"the model computes in {kind}: in float64 it is another function"
    try:
        return copy.deepcopy(model).double().eval(), ""
    except Exception as fault:  # compiled, quantised and exported modules refuse each in its own way
        return None, f"the model cannot be converted to float64 ({type(fault).__name__}: {str(fault)[:200]})"
