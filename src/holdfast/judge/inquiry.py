"""What one search asks about one chunk of samples: served by a model, charged to each sample, kept in an archive."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.judge.archive import Archive, Keep, VotingArchive
from holdfast.judge.asking import Model, check_classes
from holdfast.judge.gradients import Gradient, Gradients, Jacobian
from holdfast.judge.ledger import Budget, Ledger
from holdfast.judge.oracles import HardLabelOracle, SoftLabelOracle, WhiteBoxOracle
from holdfast.judge.outcome import Outcome
from holdfast.judge.serving import Reply, Rows, ServedModel
from holdfast.judge.units import ScoreUnits

__all__ = ["Inquiry"]

_CONFIRM = 3  # times the votes: fresh draws that a claim which was not unanimous must pass


class Inquiry:
    """Asks a model about samples on behalf of one search.

    Attributes:
        served: the model.
        problem: the whole chunk; ``index`` in calls points into it.
        ledger: what each sample has cost.
        archive: the witnesses; None where the model is not the attacked one: then nothing is kept, and nothing is a query.
        units: in which scores are told.
        gradients: what the gradients were like that were given.
        failed: (n,) bool: the model raised on a point of the sample.
    """

    def __init__(
        self,
        served: ServedModel,
        problem: Problem,
        archive: Archive | None,
        *,
        budget: Budget | None = None,
        units: ScoreUnits | None = None,
        clean: Tensor | None = None,
        unit: float = 1.0,
    ) -> None:
        """Opens an inquiry; `of` does it in the usual way.

        Args:
            served: the model.
            problem: the whole chunk.
            archive: of the same problem; None for a surrogate.
            budget: the most that may be asked for one sample.
            units: a unit of each sample's own that scores are told in, and that losses read; witnesses are judged by the
                scores as they are. By default scores are told as they are.
            clean: (n, K) scores of the clean inputs, if they are known already.
            unit: the unit of the points that are asked, and of the gradients and distances that are told.
        """
        self.served, self.problem, self.archive, self.unit = served, problem, archive, unit
        self.ledger = Ledger(len(problem), problem.x.device, budget)
        self.units = units or ScoreUnits(problem, None, needed=False)
        self.failed = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.gradients = Gradients.none(self.ledger.queries)
        self._clean, self._checked = clean, False
        if clean is not None:
            served.admit(clean)
            self.see(clean, problem.rows)
            self.units.look()

    @classmethod
    def of(
        cls,
        model: Model,
        problem: Problem,
        keep: Keep | None = Keep.FIRST,
        *,
        budget: Budget | None = None,
        clean: Tensor | None = None,
        micro_batch: int | None = None,
        units: ScoreUnits | None = None,
    ) -> Inquiry:
        """Asks a model as it is about samples.

        Args:
            model: x (m, \\*features) -> scores (m, K), or (m, domains, K) where the criterion is about domains.
            problem: the whole chunk.
            keep: which witness is kept; None for a surrogate, of which none is.
            budget: the most that may be asked for one sample.
            clean: (n, K) scores of the clean inputs, if they are known already.
            micro_batch: rows sent through the model at once; all by default.
            units: see the class.
        """
        served = ServedModel(model, problem.criterion, micro_batch=micro_batch or max(1, len(problem)))
        archive = None if keep is None else Archive(problem, keep)
        return cls(served, problem, archive, budget=budget, units=units, clean=clean)

    def oracle(self, access: Access) -> HardLabelOracle:
        """An oracle narrowed to an access.

        Raises:
            UnsupportedError: the model answers no gradients.
        """
        if access is Access.HARD_LABEL:
            return HardLabelOracle(self)
        if access is Access.SOFT_LABEL:
            return SoftLabelOracle(self)
        if not self.served.differentiable:
            raise UnsupportedError(
                "this model answers queries only; choose a soft-label, hard-label or transfer attack"
            )
        return WhiteBoxOracle(self)

    # what the engine asks

    @property
    def spent(self) -> Tensor:
        """(n,) bool: nothing more may be asked, or the model fails on the sample."""
        if self.ledger.budget.unlimited:
            return self.failed
        return self.failed | (self.ledger.left() == 0)

    @property
    def classes(self) -> int:
        """K; read off the clean scores, which are asked and charged if nobody has yet."""
        return self.clean(self.problem.rows[:1]).shape[-1]

    def settle_clean(self) -> None:
        """Samples that are adversarial as they are: witness x, distance 0."""
        if self.archive is None:
            return
        if self._clean is None:
            self.clean(self.problem.rows)  # asking also keeps
        else:
            self.archive.record_clean(self._clean, self.ledger)

    def confirm(self) -> None:
        """Asks the witnesses of a randomised model anew that not all votes upheld."""
        archive = self.archive
        if not isinstance(archive, VotingArchive):
            return
        samples, draws = archive.doubtful, _CONFIRM * archive.votes
        if not len(samples):
            return
        index = samples.repeat_interleave(draws)
        x, answered = archive.witness[index], self._charge(index, backwards=0)
        reply = self.served.scores(x, reader=_Plain(), only=self._only(answered))
        self._hear(reply, index)
        archive.upholds(
            samples, reply.scores.reshape(len(samples), draws, *reply.scores.shape[1:]), answered.view(-1, draws)
        )

    def outcome(self, slots: int) -> Outcome:
        """What is known so far, of a search in so many slots; of a surrogate that is no witness."""
        archive = self.archive or Archive(self.problem, Keep.NEAREST)
        trace = None
        if archive.trace:
            costs, distances = zip(*archive.trace, strict=True)
            trace = torch.stack(costs), torch.stack(distances)
        return Outcome(
            x=archive.witness,
            found=archive.found,
            distance=archive.distance,
            found_at=archive.found_at,
            low_margin=archive.low_margin,
            ledger=self.ledger,
            slots=slots,
            trace=trace,
            gradients=self.gradients,
            failed=self.failed,
            fault=self.served.fault,
            unusable=archive.unusable,
            no_answer=archive.no_answer,
            no_answer_at=archive.no_answer_at,
        )

    # what the oracles answer

    def best(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest witness known of each sample (its clean input if none) and its distance (inf if none)."""
        if self.archive is None:
            return self.problem.x[index] / self.unit, torch.full_like(self.problem.set.eps[index], float("inf"))
        size = self.archive.distance[index]
        return self.archive.witness[index] / self.unit, size if self.problem.set.norm is Norm.L0 else size / self.unit

    def left(self, index: Tensor) -> Tensor:
        """(m,) int64: rows that may still be asked of each sample."""
        return self.ledger.left()[index]

    def clean(self, index: Tensor) -> Tensor:
        """(m, K) scores of the clean inputs, asked once for the whole chunk and charged once; the mean of several votes."""
        if self._clean is None:
            p = self.problem
            votes = self.archive.votes if isinstance(self.archive, VotingArchive) else 1
            scores, _ = self._asked(p.x.repeat_interleave(votes, 0), p.rows.repeat_interleave(votes))
            self._clean = scores if votes == 1 else scores.reshape(len(p), votes, *scores.shape[1:]).mean(1)
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

    def gradient(self, x: Tensor, index: Tensor, loss: Callable[..., Tensor], *rows: Tensor) -> Gradient:
        """Gradient of ``loss(scores, *rows)`` with respect to the input, one forward and one backward a row.

        A loss with ``layers`` (see `holdfast.numerics.losses.OnFeatures`) is called ``loss(scores, features, *rows)``.
        """
        x = x * self.unit
        answered, counts = self._charge(index, backwards=1), self._open(index)
        reply = self.served.gradient(x, loss, *rows, reader=_SampleReader(self, index), only=self._only(answered))
        self._hear(reply, index)
        self.gradients.note(reply.grad, index, answered & counts)
        self._keep(x, index, reply.scores, answered)
        return Gradient(self.units.told(reply.scores, index), reply.value, reply.grad * self.unit, answered)

    def jacobian(self, x: Tensor, index: Tensor, classes: Tensor) -> Jacobian:
        """Gradients of the logits at ``classes`` (m, k): one forward and k backwards a row."""
        x = x * self.unit
        answered, counts = self._charge(index, backwards=classes.shape[1]), self._open(index)
        reply = self.served.jacobian(x, classes, reader=_SampleReader(self, index), only=self._only(answered))
        self._hear(reply, index)
        self.gradients.note(reply.grad, index, answered & counts)
        self._keep(x, index, reply.scores, answered)
        return Jacobian(self.units.told(reply.scores, index), reply.grad * self.unit, answered)

    def features(self, x: Tensor, index: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Output of the module named ``layer``, (m, ...); differentiable in x if gradients are on."""
        x = x * self.unit
        answered = self._charge(index, backwards=0)
        scores, features = self.served.features(x, layer)
        self._check(scores)
        self._keep(x, index, scores.detach(), answered)
        return features, answered

    def at(self, weights: Mapping[str, Tensor]) -> Inquiry:
        """The same about the model with some parameters replaced; ledger and archive are shared."""
        other = copy.copy(self)
        other.served = self.served.at(weights)
        return other

    # how

    def _asked(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        answered = self._charge(index, backwards=0)
        reply = self.served.scores(x, reader=_SampleReader(self, index), only=self._only(answered))
        self._hear(reply, index)
        self._keep(x, index, reply.scores, answered)
        return reply.scores, answered

    def _only(self, answered: Tensor) -> Tensor | None:
        return None if self.ledger.budget.unlimited else answered

    def _charge(self, index: Tensor, backwards: int) -> Tensor:
        archive = self.archive
        settled = None if archive is None else archive.closed
        return self.ledger.charge(index, backwards, settled=settled, queries=archive is not None)

    def _open(self, index: Tensor) -> Tensor:
        """(m,) bool: the rows of samples that are still searched for."""
        closed = None if self.archive is None else self.archive.closed
        return torch.ones_like(index, dtype=torch.bool) if closed is None else ~closed[index]

    def _hear(self, reply: Reply, index: Tensor) -> None:
        """Notes the samples that the model raised on."""
        if reply.raised is not None:
            self.failed[index[reply.raised]] = True

    def _keep(self, x: Tensor, index: Tensor, scores: Tensor, answered: Tensor) -> None:
        if self.archive is not None:
            self.archive.record(x, index, scores, ledger=self.ledger, answered=self._only(answered), failed=self.failed)

    def see(self, scores: Tensor, index: Tensor) -> None:
        """Holds that scores are such, and sets the units of samples that have none."""
        self._check(scores)
        self.units.see(scores, index)

    def _check(self, scores: Tensor) -> None:
        """Refuses, at the first answer, labels that the model has no class for."""
        if not self._checked:
            check_classes(self.problem, scores.shape[-1])
            self._checked = True


@dataclass(frozen=True, slots=True)
class _SampleReader:
    """Reads scores on behalf of the samples ``index`` (m,)."""

    inquiry: Inquiry
    index: Tensor

    def see(self, scores: Tensor, at: Rows) -> None:
        """Sets the units of samples that have none."""
        self.inquiry.see(scores, self.index[at])

    def told(self, scores: Tensor, at: Rows) -> Tensor:
        """Scores in the units of the samples."""
        return self.inquiry.units.told(scores, self.index[at])


class _Plain:
    """Reads scores as they are."""

    def see(self, scores: Tensor, at: Rows) -> None:
        """Nothing to do."""

    def told(self, scores: Tensor, at: Rows) -> Tensor:
        """The same."""
        return scores
