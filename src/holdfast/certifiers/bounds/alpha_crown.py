"""alpha-CROWN: CROWN with optimised slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.propagation.specification import best_specification, specification
from holdfast.core.cards import Card, parameter
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["AlphaCROWN"]

_BETAS = (0.9, 0.999)  # Adam's
_FLAT = 1e-3
_LOOSE = 1e-3


class _OpenRows(NamedTuple):
    """Samples of a batch, and of each the rows that are still in question.

    Attributes:
        region: the set around them.
        x: the samples.
        c: their rows, those in question first; the others that are needed to make a rectangle are left as they are.
        d: offsets (m, k).
        open: (m, k) bool, which rows are in question.
        samples: (m,) their places in the batch.
        rows: (m, k) the places of the rows.
    """

    region: LpBall
    x: Tensor
    c: Tensor
    d: Tensor
    open: Tensor
    samples: Tensor
    rows: Tensor

    @staticmethod
    def of(region: LpBall, x: Tensor, c: Tensor, d: Tensor, wanted: Tensor) -> _OpenRows:
        """What a mask (n, rows) of rows in question leaves."""
        samples = wanted.any(1).nonzero().flatten()
        wanted = wanted[samples]
        count = int(wanted.sum(1).max())
        rows = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        chosen = c[samples].gather(1, rows.unsqueeze(2).expand(-1, -1, c.shape[2]))
        shift = d[samples].gather(1, rows)
        return _OpenRows(region.select(samples), x[samples], chosen, shift, wanted.gather(1, rows), samples, rows)


@dataclass(frozen=True)
class AlphaCROWN(GraphCertifier):
    """CROWN whose lower slopes are chosen by gradient ascent on the bound (Xu et al. 2020 and 2021).

    Every choice of slopes gives a sound bound and the best of all is kept, so the result is never below CROWN's. The
    work is staged: first the slopes of the last backward pass alone, one for each row and neuron, which is cheap; then,
    for what is still not settled (a bound is not positive), also those behind the boxes of the values before
    activations, shared by the entries of a box; and once more the first stage inside the better boxes. Slopes are sought
    in float32 without regard to rounding; what they are worth is found out in float64 with it.
    """

    deployable: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        title="alpha-CROWN",
        rows=("V10",),
        paper="Xu et al. 2020, Automatic Perturbation Analysis for Scalable Certified Robustness, arXiv 2002.12920; "
        "Xu et al. 2021, Fast and Complete, arXiv 2011.13824",
        section="3.3",
        summary="CROWN with lower slopes optimised by Adam, first in the last backward pass, then in all.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=("cannot pass the barrier of single-neuron relaxations; use branch and bound beyond it",),
        checked_by="never below CROWN, sampled points, exact optima of small networks, auto_LiRPA's bounds",
    )

    iterations: int = parameter(20, "steps on the slopes of the last pass, at least 0", "auto_LiRPA: 20")
    deep_iterations: int = parameter(
        10, "steps on all slopes, for unsettled samples, at least 0", "ours: each costs one to two times CROWN"
    )
    step: float = parameter(
        0.3, "Adam's learning rate, above 0", "ours: best of 0.1, 0.3 and 0.5 on two MNIST networks"
    )
    decay: float = parameter(0.95, "what the rate is multiplied by at each step, in (0, 1]", "ours")
    settle: bool = parameter(
        True, "leave rows alone once their bounds are positive", "ours: what is proved needs no better bound"
    )
    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`; without gradient."""
        with torch.no_grad():
            c = c.to(x.device, torch.float64).expand(len(x), *c.shape[-2:])
            graph, rough = graph.to(torch.float64), graph.to(torch.float32)
            found = Propagation(graph, Region(region, x), memory=self.memory)
            found.run(refine=lambda _: True)
            best = best_specification(found, c, d)
            boxes, d = found.boxes, torch.zeros_like(c[..., 0]) if d is None else d.to(c).expand(c.shape[:2])
            for deep, steps in ((False, self.iterations), (True, self.deep_iterations)):
                wanted = ~(best > 0) if self.settle else torch.ones_like(best, dtype=torch.bool)
                if not steps or not wanted.any():
                    continue
                part = _OpenRows.of(region, x, c, d, wanted)
                known = [Box(b.lower[part.samples], b.upper[part.samples]) for b in boxes]
                inside = Propagation(graph, Region(part.region, part.x), memory=self.memory)
                if deep:
                    last, inner = self._seek(rough, part, known, steps, deep=True)
                    inside.run(refine=lambda _: True, alphas=inner, known=known)
                    self._keep(best, part, specification(inside, part.c, part.d, last))
                    known = inside.boxes
                    if not self.iterations:
                        continue
                else:
                    inside.run(refine=lambda _: False, known=known)
                last, _ = self._seek(rough, part, known, self.iterations, deep=False)
                self._keep(best, part, specification(inside, part.c, part.d, last))
        return best

    def _keep(self, best: Tensor, part: _OpenRows, lower: Tensor) -> None:
        """Writes what is better into the bounds of the batch, in place."""
        before = best[part.samples]
        now = before.gather(1, part.rows)
        now = torch.where(part.open & (lower > now), lower, now)
        best[part.samples] = before.scatter(1, part.rows, now)

    def _seek(
        self, rough: Graph, part: _OpenRows, known: list[Box], steps: int, *, deep: bool
    ) -> tuple[dict[int, Tensor], dict[int, dict[int, Tensor]]]:
        """The best slopes of the last pass, (rows, n, \\*shape), and, if deep, of the passes behind each box."""
        region = Region(part.region, part.x, torch.float32)
        found = Propagation(rough, region, sound=False, memory=self.memory)
        boxes = [_loosened(b, _LOOSE if deep else 0.0) for b in known]
        found.run(refine=lambda _: False, known=boxes)
        c, d, open_ = part.c.float(), part.d.float(), part.open
        rows = c.shape[1]
        last = {k: s.repeat(rows, *(1,) * s.ndim) for k, s in found.alphas(len(found.graph.nodes) - 1).items()}
        inner: dict[int, dict[int, Tensor]] = {}
        if deep:
            inner = {i: {k: s.unsqueeze(0) for k, s in found.alphas(i).items()} for i in found.tightened()}

        def evaluate() -> Tensor:
            if deep:
                found.run(refine=lambda _: True, alphas=inner, known=boxes)
            return specification(found, c, d, last)

        variables = [*last.values(), *(s for slopes in inner.values() for s in slopes.values())]
        kept = self._ascend(variables, evaluate, open_, steps, together=deep)
        wide = iter(t.double() for t in kept)
        last = {k: next(wide) for k in last}
        return last, {i: {k: next(wide) for k in slopes} for i, slopes in inner.items()}

    def _ascend(
        self, slopes: list[Tensor], evaluate: Callable[[], Tensor], open_: Tensor, steps: int, *, together: bool
    ) -> list[Tensor]:
        """Adam over slopes in [0, 1] on the bounds of open rows: the best slopes of each row, or of each sample.

        A row (a sample) that is positive is left there, so that what it gets does not depend on the others.
        """
        if not slopes:
            return []
        kept = [s.clone() for s in slopes]
        first, second = ([torch.zeros_like(s) for s in slopes] for _ in range(2))
        best = torch.full_like(open_, -torch.inf, dtype=torch.float32)
        rate = self.step
        for k in range(steps + 1):
            for s in slopes:
                s.requires_grad_(k < steps)
            gradients: Sequence[Tensor | None] = ()
            with torch.set_grad_enabled(k < steps):
                lower = evaluate()
                if k < steps:
                    total = lower.masked_fill(~open_, 0).sum()
                    gradients = torch.autograd.grad(total, slopes, allow_unused=True)
            score = lower.detach()
            if together:
                score = score.masked_fill(~open_, 0).sum(1, keepdim=True).expand_as(score)
            running = open_ & ~(best > 0).all(1, keepdim=True) if together and self.settle else open_
            better = (score > best) & running
            best = torch.where(better, score, best)
            for s, keep in zip(slopes, kept, strict=True):
                where = better.T if len(s) > 1 or not together else better.any(1).unsqueeze(0)
                keep.copy_(torch.where(where.view(*where.shape, *(1,) * (s.ndim - 2)), s.detach(), keep))
            if k == steps or (self.settle and not together and bool(((best > 0) | ~open_).all())):
                break
            for s, gradient, m, v in zip(slopes, gradients, first, second, strict=True):
                if gradient is None:  # pyright: ignore[reportUnnecessaryComparison]
                    continue
                m.lerp_(gradient, 1 - _BETAS[0])
                v.lerp_(gradient.square(), 1 - _BETAS[1])
                size = (v / (1 - _BETAS[1] ** (k + 1))).sqrt()
                # what is below a thousandth of a row's steepest slope is rounding, which must not become a step
                floor = _FLAT * size.flatten(2).amax(2).view(*size.shape[:2], *(1,) * (size.ndim - 2)) + 1e-30
                move = m / (1 - _BETAS[0] ** (k + 1)) / (size + floor)
                s.requires_grad_(False).add_(rate * move).clamp_(0, 1)
            rate *= self.decay
        return kept


def _loosened(box: Box, part: float) -> Box:
    """The box in float32 with ends that are open moved out by a part of its width.

    The first slopes give the known box again: whether a gradient passes through the maximum of the two would be up to
    rounding.
    """
    room = part * (box.upper - box.lower)
    lower = torch.where(box.lower < 0, box.lower - room, box.lower)
    upper = torch.where(box.upper > 0, box.upper + room, box.upper)
    return Box(lower.float(), upper.float())
