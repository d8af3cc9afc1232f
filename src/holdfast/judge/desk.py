"""The desk behind the oracles: it runs the model, charges each row, and keeps the best feasible witness of each sample.

Witnesses are kept over every row that an attack asks, so that an attack cannot lose one (a returned iterate that is worse
than an earlier one), and only rows inside the set count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil, sqrt

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from holdfast.core.criterion import usable
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.judge.answers import Answers, Question
from holdfast.judge.asking import Model, ModelFault
from holdfast.judge.gradients import Gradient, Gradients, Jacobian, input_gradient
from holdfast.judge.ledger import Budget, Ledger
from holdfast.judge.oracles import HardLabelOracle, SoftLabelOracle, WhiteBoxOracle
from holdfast.judge.outcome import Outcome
from holdfast.judge.rows import first_of, rank, reads_freely
from holdfast.judge.units import ScoreUnits
from holdfast.models.queries_only import answers_gradients
from holdfast.numerics.distance import contains, measured

__all__ = ["Desk", "Model"]

_CONFIRM = 3  # times the votes: fresh draws that a claim which was not unanimous must pass


class Desk:
    """Serves one attack on one chunk of samples."""

    def __init__(
        self,
        model: Model,
        problem: Problem,
        *,
        budget: Budget | None = None,
        first: bool = True,
        judges: bool = True,
        top_k: int | None = None,
        clean: Tensor | None = None,
        micro_batch: int | None = None,
        precision: torch.dtype | None = None,
        trace: bool = False,
        votes: int = 1,
        confidence: float = 0.0,
        unit: float = 1.0,
        scales: bool = False,
    ) -> None:
        """Opens a desk.

        Args:
            model: x (m, \\*features) -> scores (m, K), or (m, domains, K) where the criterion is about domains.
            problem: the whole chunk; ``index`` in calls points into it.
            budget: the most that may be asked for one sample.
            first: a sample is settled by its first witness (budget formulation); otherwise the nearest one is kept.
            judges: the model that is asked is the attacked one. For a surrogate: no witnesses, no queries.
            top_k: how many classes a soft-label answer shows.
            clean: (n, K) scores of the clean inputs, if they are known already.
            micro_batch: rows sent through the model at once.
            precision: autocast dtype for the search; a success is then confirmed in full precision.
            trace: keep what each sample had cost, and how near its witness was, after every call.
            votes: each point is asked so many times in a row, for randomised models; it is adversarial if most of its
                answers are, and settles its sample if all are.
            confidence: the margin that a witness must have.
            unit: the unit of the points that are asked, and of the gradients and distances that are told.
            scales: the scores that are told, and what losses read, are in a unit of each sample's own (`ScoreUnits`);
                witnesses are judged by the scores as they are. Not where a confidence is asked for, which is in them.
        """
        self.model, self.problem, self.budget = model, problem, budget or Budget()
        self.first, self.judges, self.precision = first, judges, precision
        self.votes, self.confidence, self.unit = votes, confidence, unit
        self._answers = Answers(model, problem, micro_batch or max(1, len(problem)), precision)
        n, device = len(problem), problem.x.device
        self.ledger = Ledger(n, device)
        self.found_at = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.distance = torch.full((n,), float("inf"), dtype=torch.float64, device=device)
        self.low_margin = torch.full((n,), float("inf"), dtype=torch.float64, device=device)
        self.unusable = torch.zeros_like(self.found_at)
        self.no_answer: Tensor | None = None
        self.no_answer_at = torch.full_like(self.distance, float("inf"))
        self.gradients = Gradients.none(self.found_at)
        self.witness = problem.x.clone()
        self.trace: list[tuple[Tensor, Tensor]] | None = [] if trace else None
        self._sure = torch.zeros_like(self.found_at, dtype=torch.bool)
        self._merit = torch.full_like(self.distance, float("inf"))
        self.units = ScoreUnits(problem, top_k, needed=scales and not confidence)
        self._clean = clean
        if clean is not None:
            self._answers.admit(clean)
            self.units.see(clean, problem.rows)
            self.units.look()

    # what the engine asks

    def oracle(self, access: Access) -> HardLabelOracle:
        """An oracle narrowed to an access."""
        kinds = {Access.HARD_LABEL: HardLabelOracle, Access.SOFT_LABEL: SoftLabelOracle}
        if access in kinds:
            return kinds[access](self)
        if not answers_gradients(self.model):
            raise UnsupportedError(
                "this model answers queries only; choose a soft-label, hard-label or transfer attack"
            )
        return WhiteBoxOracle(self)

    @property
    def found(self) -> Tensor:
        """(n,) bool: a witness is known."""
        return self.found_at >= 0

    @property
    def failed(self) -> Tensor:
        """(n,) bool: the model raised on a point of the sample."""
        return self._answers.failed

    @property
    def fault(self) -> str | None:
        """What the model raised first."""
        return self._answers.fault

    @property
    def settled(self) -> Tensor:
        """(n,) bool: a witness is known that ends a search for the first one."""
        return self._sure if self.votes > 1 else self.found

    @property
    def spent(self) -> Tensor:
        """(n,) bool: nothing more may be asked, or the model fails on the sample."""
        if self.budget.unlimited:
            return self.failed
        return self.failed | (self.ledger.left(self.budget) == 0)

    @property
    def classes(self) -> int:
        """K; read off the clean scores, which are asked and charged if nobody has yet."""
        return self.clean(self.problem.rows[:1]).shape[-1]

    def settle_clean(self) -> None:
        """Samples that are adversarial as they are: witness x, distance 0."""
        if not self.judges:
            return
        p = self.problem
        if self._clean is None:
            self.clean(p.rows)  # asking also judges
            return
        size = torch.zeros_like(self.distance)
        holds = p.criterion.holds(self._clean, p.y, p.target) & contains(p.set, p.x, p.x, size)
        if self.confidence:
            holds = holds & (p.criterion.margin(self._clean, p.y, p.target) <= -self.confidence)
        self._record(p.x, p.rows, size, size, holds & (self.found_at < 0))
        self._sure |= holds

    def confirm(self) -> None:
        """Asks the witnesses of a randomised model anew that not all votes upheld: a claim is what fresh draws uphold."""
        doubtful = (self.found & ~self._sure & (self.distance > 0)).nonzero().squeeze(-1) if self.votes > 1 else None
        if doubtful is None or not len(doubtful):
            return
        draws = _CONFIRM * self.votes
        index = doubtful.repeat_interleave(draws)
        x, answered = self.witness[index], self._charge(index, backwards=0)
        with torch.no_grad():
            (scores,) = self._ask(x, index, answered, lambda rows: (self._answers.scores(x[rows]),))
        p = self.problem
        holds = p.criterion.certain(scores, p.y[index], p.target[index], self.confidence) & answered
        votes, asked = (t.unflatten(0, (-1, draws)).sum(1) for t in (holds, answered))
        fallen = doubtful[(2 * votes <= asked) & (asked > 0)]
        self.found_at[fallen], self.distance[fallen] = -1, float("inf")
        self.witness[fallen] = p.x[fallen]

    def outcome(self, slots: int) -> Outcome:
        """What is known here, of a search in so many slots."""
        trace = None
        if self.trace:
            costs, distances = zip(*self.trace, strict=True)
            trace = torch.stack(costs), torch.stack(distances)
        return Outcome(
            x=self.witness, found=self.found, distance=self.distance, found_at=self.found_at, low_margin=self.low_margin,
            ledger=self.ledger, slots=slots, trace=trace, gradients=self.gradients, failed=self.failed, fault=self.fault,
            unusable=self.unusable, no_answer=self.no_answer, no_answer_at=self.no_answer_at,
        )  # fmt: skip

    # what the oracles answer

    def best(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest witness known of each sample (its clean input if none) and its distance (inf if none)."""
        size = self.distance[index]
        return self.witness[index] / self.unit, size if self.problem.set.norm is Norm.L0 else size / self.unit

    def left(self, index: Tensor) -> Tensor:
        """(m,) int64: rows that may still be asked of each sample."""
        return self.ledger.left(self.budget)[index]

    def clean(self, index: Tensor) -> Tensor:
        """(m, K) scores of the clean inputs, asked once for the whole chunk and charged once; the mean of several votes."""
        if self._clean is None:
            p, k = self.problem, self.votes
            scores, _ = self._asked(p.x.repeat_interleave(k, 0), p.rows.repeat_interleave(k))
            self._clean = scores if k == 1 else scores.unflatten(0, (len(p), k)).mean(1)
            self.units.look()
        return self._clean[index]

    def clean_told(self, index: Tensor) -> Tensor:
        """`clean`, as an attack is told scores."""
        return self.units.told(self.clean(index), index)

    def labels(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) int64 best classes."""
        scores, answered = self._asked(x * self.unit, index)
        return scores.argmax(-1), answered

    def log_probs(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m, K) log-probabilities; all but the top k are -inf if the deployment shows no more."""
        scores, answered = self._asked(x * self.unit, index)
        return self.units.log_probs(scores, index), answered

    def logits(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m, K) logits."""
        scores, answered = self._asked(x * self.unit, index)
        return self.units.told(scores, index), answered

    def _asked(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        answered = self._charge(index, backwards=0)
        with torch.no_grad():
            (scores,) = self._ask(x, index, answered, lambda rows: (self._scores(x[rows], index[rows]),))
        self._judge(x, index, scores, answered)
        return scores, answered

    def gradient(self, x: Tensor, index: Tensor, loss: Callable[..., Tensor], *rows: Tensor) -> Gradient:
        """Gradient of ``loss(scores, *rows)`` with respect to the input, one forward and one backward a row.

        A loss with ``layers`` (see `holdfast.numerics.losses.OnFeatures`) is called ``loss(scores, features, *rows)``.
        """
        layers: tuple[str, ...] = getattr(loss, "layers", ())
        x = x * self.unit

        def ask(at: Tensor | slice) -> tuple[Tensor, ...]:
            with torch.enable_grad(), self._watched(layers) as features:
                xi = x[at].detach().requires_grad_()
                scores = self._scores(xi, index[at])
                value = loss(
                    self.units.told(scores, index[at]), *([features] if layers else []), *(r[at] for r in rows)
                )
                grad = input_gradient(value, xi)
            return scores.detach(), value.detach(), grad

        answered, open_ = self._charge(index, backwards=1), self._open(index)
        scores, value, grad = self._ask(x, index, answered, ask, (), tuple(x.shape[1:]))
        self.gradients.note(grad, index, answered & open_)
        self._judge(x, index, scores, answered)
        return Gradient(self.units.told(scores, index), value, grad * self.unit, answered)

    def jacobian(self, x: Tensor, index: Tensor, classes: Tensor) -> Jacobian:
        """Gradients of the logits at ``classes`` (m, k): one forward and k backwards a row."""
        x = x * self.unit

        def ask(at: Tensor | slice) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                xi = x[at].detach().requires_grad_()
                scores = self._scores(xi, index[at])
                chosen = self.units.told(scores, index[at]).gather(-1, classes[at])
                k = chosen.shape[-1]
                grads = [input_gradient(chosen[:, j], xi, keep=j + 1 < k) for j in range(k)]
            return scores.detach(), torch.stack(grads, dim=1)

        answered, open_ = self._charge(index, backwards=classes.shape[1]), self._open(index)
        scores, grad = self._ask(x, index, answered, ask, (classes.shape[1], *x.shape[1:]))
        self.gradients.note(grad, index, answered & open_)
        self._judge(x, index, scores, answered)
        return Jacobian(self.units.told(scores, index), grad * self.unit, answered)

    def features(self, x: Tensor, index: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Output of the module named ``layer``, (m, ...); differentiable in x if gradients are on."""
        x = x * self.unit
        with self._watched((layer,)) as features:
            answered = self._charge(index, backwards=0)
            try:
                scores = self._answers.scores(x)
            except ModelFault as fault:
                raise self._answers.named(fault, len(x)) from fault.__cause__
        self._judge(x, index, scores.detach(), answered)
        return features[layer], answered

    def at(self, weights: Mapping[str, Tensor]) -> Desk:
        """The desk of the same model with some parameters replaced; ledger and witnesses are shared."""
        other = copy.copy(self)
        other._answers = self._answers.at(weights)
        return other

    # how

    def _scores(self, x: Tensor, index: Tensor) -> Tensor:
        scores = self._answers.scores(x)
        self.units.see(scores, index)
        return scores

    @contextmanager
    def _watched(self, layers: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
        """What the named modules last gave, for the time being."""
        features: dict[str, Tensor] = {}
        if not layers:
            yield features
            return
        if not isinstance(self.model, nn.Module):
            raise UnsupportedError("features need a PyTorch module")
        names = dict(self.model.named_modules())
        hooks: list[RemovableHandle] = []
        try:
            for layer in layers:
                if layer not in names:
                    raise UsageError(f"the model has no layer '{layer}'; it has {', '.join(list(names)[1:12])} ...")

                def keep(_module: nn.Module, _inputs: object, output: Tensor, layer: str = layer) -> None:
                    features[layer] = output

                hooks.append(names[layer].register_forward_hook(keep))
            yield features
        finally:
            for hook in hooks:
                hook.remove()

    def _ask(
        self, x: Tensor, index: Tensor, answered: Tensor, question: Question, *forms: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        return self._answers.of(x, index, question, *forms, only=None if self.budget.unlimited else answered)

    def _open(self, index: Tensor) -> Tensor:
        """(m,) bool: the rows of samples that are still searched for."""
        return ~self.settled[index] if self.first else torch.ones_like(index, dtype=torch.bool)

    def _charge(self, index: Tensor, backwards: int) -> Tensor:
        """Charges each row that the budget allows, in the order asked; returns which those are."""
        if self.budget.unlimited:
            answered = torch.ones_like(index, dtype=torch.bool)
            charge = (~self.settled[index]).long() if self.first else torch.ones_like(index)
        else:
            answered = rank(index) < self.ledger.left(self.budget)[index] // self._price(backwards)
            if self.first:  # a settled sample is charged no more, so it must not be sent either
                answered &= ~self.settled[index]
            charge = answered.long()
        self.ledger.forwards.index_add_(0, index, charge)
        if backwards:
            self.ledger.backwards.index_add_(0, index, charge * backwards)
        if self.judges:
            self.ledger.queries.index_add_(0, index, charge)
        return answered

    def _price(self, backwards: int) -> int:
        return 1 if self.budget.passes is None else 1 + backwards

    def _judge(self, x: Tensor, index: Tensor, scores: Tensor, answered: Tensor) -> None:
        if not self.judges:
            return
        if len(x):
            self._weigh(x, index, scores, answered)
        if self.trace is not None:
            self.trace.append((self.ledger.passes, self.distance.clone()))

    def _weigh(self, x: Tensor, index: Tensor, scores: Tensor, answered: Tensor) -> None:
        p = self.problem
        with torch.no_grad():
            y, target = p.y[index], p.target[index]
            margin = p.criterion.margin(scores, y, target).double()
            # What rounding decides is no witness: asked anew in another batch, it may not be adversarial. What was asked in
            # low precision is asked anew below.
            judge = p.criterion.certain if self.precision is None else p.criterion.holds
            holds = judge(scores, y, target)
            if self.confidence:
                holds = holds & (margin <= -self.confidence)
            unusable = ~usable(scores.flatten(1))
            if not self.budget.unlimited:
                margin, holds = margin.masked_fill(~answered, float("inf")), holds & answered
                unusable = unusable & answered
            self.unusable.index_add_(0, index, unusable.long())
            # an accelerator is not waited for to learn which rows matter: all are measured, once for both uses
            lies = None if reads_freely(x) else self._lies(x, index)
            self._note_unusable(x, index, unusable, lies)
            merit, every = None, holds
            if self.votes > 1:
                x, index = x[:: self.votes], index[:: self.votes]
                lies = None if lies is None else (lies[0][:: self.votes], lies[1][:: self.votes])
                y, target = y[:: self.votes], target[:: self.votes]
                margin = margin.unflatten(0, (-1, self.votes)).mean(1)
                each = holds.unflatten(0, (-1, self.votes))
                every, holds = each.all(1), 2 * each.sum(1) > self.votes
                if self.first:  # the most convincing point, not the nearest: a lucky majority must not end the search
                    merit = margin.nan_to_num(nan=float("inf"))
                else:
                    holds = each.sum(1) >= _beyond_luck(self.votes)
            self.low_margin.scatter_reduce_(0, index, margin.nan_to_num(nan=float("inf")), "amin")
            if self.first:
                holds = holds & ~self.settled[index]
            if reads_freely(x):  # the rest is for the rows that may become a witness
                rows = holds.nonzero().squeeze(-1)
                if not len(rows):
                    return
                if len(rows) < len(x):
                    x, index, y, target, holds, every = (t[rows] for t in (x, index, y, target, holds, every))
                    merit = None if merit is None else merit[rows]
            clean, part = p.x[index], p.set.select(index)
            size = measured(part, x, clean) if lies is None else lies[0]
            merit = size if merit is None else merit
            better = holds & (merit < self._merit[index])
            if reads_freely(x) and not better.any():
                return
            holds = better & (contains(part, x, clean, size) if lies is None else lies[1])
            if self.precision is not None and holds.any():
                rows = holds.nonzero().squeeze(-1)
                self.ledger.forwards.index_add_(0, index[rows], torch.ones_like(rows))
                whole = self._answers.exact_scores(x[rows])
                sure = p.criterion.certain(whole, y[rows], target[rows], self.confidence)
                holds = holds.index_copy(0, rows, sure)
            if self.votes > 1:
                self._sure |= torch.zeros_like(self._sure).index_put((index,), holds & every, accumulate=True)
            self._record(x, index, size, merit, holds)

    def _lies(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) float64 distances of rows from their samples, and (m,) bool which lie in the set."""
        part, clean = self.problem.set.select(index), self.problem.x[index]
        size = measured(part, x, clean)
        return size, contains(part, x, clean, size)

    def _note_unusable(
        self, x: Tensor, index: Tensor, unusable: Tensor, lies: tuple[Tensor, Tensor] | None
    ) -> None:  # fmt: skip
        """Keeps the nearest input in the set that the model gave no usable answer to, of each sample; what it raised on is
        told by `failed`. No synchronisation with an accelerator, but where a precision was given.

        Args:
            x: (m, \\*features) what was asked.
            index: (m,) their samples.
            unusable: (m,) bool.
            lies: what `_lies` says of the rows, where it is known.
        """
        p, unusable = self.problem, unusable & ~self.failed[index]
        if reads_freely(x) or self.precision is not None:
            rows = unusable.nonzero().squeeze(-1)
            if self.precision is not None and len(rows):  # what overflows in low precision alone is not the model's
                rows = rows[~usable(self._answers.exact_scores(x[rows]).flatten(1))]
            if not len(rows):
                return
            x, index, unusable = x[rows], index[rows], unusable[rows]
            lies = None if lies is None else (lies[0][rows], lies[1][rows])
        size, inside = self._lies(x, index) if lies is None else lies
        inside = unusable & inside
        d = size.masked_fill(~inside, float("inf"))
        best = self.no_answer_at.scatter_reduce(0, index, d, "amin")
        first_row = first_of(index, inside & (d == best[index]) & (d < self.no_answer_at[index]), len(best))
        known = p.x if self.no_answer is None else self.no_answer
        taken = x.detach()[first_row.clamp_max(len(x) - 1)]
        self.no_answer = torch.where(p.flat(first_row < len(x)), taken, known)
        self.no_answer_at = best

    def _record(self, x: Tensor, index: Tensor, size: Tensor, merit: Tensor, holds: Tensor) -> None:
        """Keeps the best of the rows that hold, all of them better than what is known: the nearest as a rule; ties go to the
        row asked first. No synchronisation with an accelerator.
        """
        n, m = len(self.distance), len(x)
        d = merit.masked_fill(~holds, float("inf"))
        best = self._merit.scatter_reduce(0, index, d, "amin")
        first_row = first_of(index, holds & (d == best[index]), n)
        better = first_row < m
        if reads_freely(x):
            samples = better.nonzero().squeeze(-1)
            self.witness.index_copy_(0, samples, x.detach()[first_row[samples]])
        else:
            take = first_row.clamp_max(m - 1)
            self.witness.copy_(torch.where(better.view(-1, *[1] * (x.ndim - 1)), x[take].detach(), self.witness))
        self.distance.copy_(
            torch.where(better, size[first_row.clamp_max(max(0, m - 1))], self.distance) if m else self.distance
        )
        self._merit.copy_(best)
        self.found_at.copy_(torch.where(better & (self.found_at < 0), self.ledger.queries, self.found_at))


def _beyond_luck(votes: int) -> int:
    """Votes that a fair coin gives once in a hundred times, or all.

    Example:
        >>> [_beyond_luck(n) for n in (2, 10, 100)]
        [2, 9, 60]
    """
    return min(votes, -(-votes // 2) + ceil(sqrt(votes)))
