"""The desk behind the oracles: it runs the model, charges each row, and keeps the best feasible witness of each sample.

Witnesses are kept over every row that an attack asks, so that an attack cannot lose one (a returned iterate that is worse
than an earlier one), and only rows inside the set count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access
from holdfast.judge.ledger import Budget, Ledger
from holdfast.judge.oracles import Gradient, HardLabelOracle, Jacobian, SoftLabelOracle, WhiteBoxOracle
from holdfast.models.queries_only import answers_gradients
from holdfast.numerics.distance import contains, measured

__all__ = ["Desk", "Model", "evaluating"]

_ULPS = 4

Model = Callable[[Tensor], Tensor]


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Evaluation mode for the time being; every submodule's own mode is put back, and so is the global random state."""
    modes = [(m, m.training) for model in models if isinstance(model, nn.Module) for m in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


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
                answers are.
        """
        self.model, self.problem, self.budget = model, problem, budget or Budget()
        self.first, self.judges, self.top_k, self.precision = first, judges, top_k, precision
        self.votes = votes
        self.micro_batch = micro_batch or max(1, len(problem))
        n, device = len(problem), problem.x.device
        self.ledger = Ledger(n, device)
        self.found_at = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.distance = torch.full((n,), float("inf"), dtype=torch.float64, device=device)
        self.low_margin = torch.full((n,), float("inf"), dtype=torch.float64, device=device)
        self.witness = problem.x.clone()
        self.trace: list[tuple[Tensor, Tensor]] | None = [] if trace else None
        self._clean = clean
        self._parameters: Mapping[str, Tensor] | None = None

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
    def spent(self) -> Tensor:
        """(n,) bool: nothing more may be asked."""
        if self.budget.unlimited:
            return torch.zeros_like(self.found_at, dtype=torch.bool)
        return self.ledger.left(self.budget) == 0

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
        self._record(p.x, p.rows, size, holds & (self.found_at < 0))

    # what the oracles answer

    def best(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest witness known of each sample (its clean input if none) and its distance (inf if none)."""
        return self.witness[index], self.distance[index]

    def left(self, index: Tensor) -> Tensor:
        """(m,) int64: rows that may still be asked of each sample."""
        return self.ledger.left(self.budget)[index]

    def clean(self, index: Tensor) -> Tensor:
        """(m, K) scores of the clean inputs, asked once for the whole chunk and charged once; the mean of several votes."""
        if self._clean is None:
            p, k = self.problem, self.votes
            scores, _ = self.logits(p.x.repeat_interleave(k, 0), p.rows.repeat_interleave(k))
            self._clean = scores if k == 1 else scores.unflatten(0, (len(p), k)).mean(1)
        return self._clean[index]

    def labels(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) int64 best classes."""
        scores, answered = self.logits(x, index)
        return scores.argmax(-1), answered

    def log_probs(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m, K) log-probabilities; all but the top k are -inf if the deployment shows no more."""
        scores, answered = self.logits(x, index)
        log_p = scores.log_softmax(-1)
        if self.top_k is not None and self.top_k < log_p.shape[-1]:
            least = log_p.topk(self.top_k, dim=-1).values[..., -1:]
            log_p = log_p.masked_fill(log_p < least, float("-inf"))
        return log_p, answered

    def logits(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(m, K) logits."""
        answered = self._charge(index, backwards=0)
        with torch.no_grad():
            scores = self._answer(x, answered, lambda rows: (self._forward(x[rows]),))[0]
        self._judge(x, index, scores, answered)
        return scores, answered

    def gradient(self, x: Tensor, index: Tensor, loss: Callable[..., Tensor], *rows: Tensor) -> Gradient:
        """Gradient of ``loss(scores, *rows)`` with respect to the input, one forward and one backward a row.

        A loss with ``layers`` (see `holdfast.numerics.losses.OnFeatures`) is called ``loss(scores, features, *rows)``.
        """
        layers: tuple[str, ...] = getattr(loss, "layers", ())

        def ask(at: Tensor | slice) -> tuple[Tensor, ...]:
            with torch.enable_grad(), self._watched(layers) as features:
                xi = x[at].detach().requires_grad_()
                scores = self._forward(xi)
                value = loss(scores, *([features] if layers else []), *(r[at] for r in rows))
                grad = _input_gradient(value, xi)
            return scores.detach(), value.detach(), grad

        answered = self._charge(index, backwards=1)
        scores, value, grad = self._answer(x, answered, ask)
        self._judge(x, index, scores, answered)
        return Gradient(scores, value, grad, answered)

    def jacobian(self, x: Tensor, index: Tensor, classes: Tensor) -> Jacobian:
        """Gradients of the logits at ``classes`` (m, k): one forward and k backwards a row."""

        def ask(at: Tensor | slice) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                xi = x[at].detach().requires_grad_()
                scores = self._forward(xi)
                chosen = scores.gather(-1, classes[at])
                k = chosen.shape[-1]
                grads = [_input_gradient(chosen[:, j], xi, keep=j + 1 < k) for j in range(k)]
            return scores.detach(), torch.stack(grads, dim=1)

        answered = self._charge(index, backwards=classes.shape[1])
        scores, grad = self._answer(x, answered, ask)
        self._judge(x, index, scores, answered)
        return Jacobian(scores, grad, answered)

    def features(self, x: Tensor, index: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Output of the module named ``layer``, (m, ...); differentiable in x if gradients are on."""
        with self._watched((layer,)) as features:
            answered = self._charge(index, backwards=0)
            scores = self._forward(x)
        self._judge(x, index, scores.detach(), answered)
        return features[layer], answered

    def at(self, weights: Mapping[str, Tensor]) -> Desk:
        """The desk of the same model with some parameters replaced; ledger and witnesses are shared."""
        other = copy.copy(self)
        other._parameters = weights
        return other

    # how

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

    def _forward(self, x: Tensor) -> Tensor:
        if self._parameters is not None:
            if not isinstance(self.model, nn.Module):
                raise UnsupportedError("weight perturbations need a PyTorch module")
            return torch.func.functional_call(self.model, dict(self._parameters), (x,))
        if self.precision is None:
            scores = self.model(x)
        else:
            with torch.autocast(x.device.type, dtype=self.precision):
                scores = self.model(x).to(x.dtype)
        domains = self.problem.criterion.domains
        if scores.ndim != (3 if domains else 2):
            form = "(n, domains, classes)" if domains else "(n, classes)"
            raise ModelError(f"the model must answer {form}, got {tuple(scores.shape)}; see holdfast doctor")
        return scores

    def _answer(
        self, x: Tensor, answered: Tensor, ask: Callable[[Tensor | slice], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Asks in micro-batches; unanswered rows are left out and come back as zeros."""
        # Reading is free on a CPU.
        if self.budget.unlimited or (x.device.type == "cpu" and bool(answered.all())):
            if len(x) <= self.micro_batch:
                return ask(slice(None))
            parts = [ask(slice(k, k + self.micro_batch)) for k in range(0, len(x), self.micro_batch)]
            return tuple(torch.cat(p) for p in zip(*parts, strict=True))
        rows = answered.nonzero().squeeze(-1)
        parts = [ask(r) for r in rows.split(self.micro_batch)] if len(rows) else [ask(slice(0, 0))]
        joined = (torch.cat(p) for p in zip(*parts, strict=True))
        return tuple(t.new_zeros((len(x), *t.shape[1:])).index_copy_(0, rows, t) for t in joined)

    def _charge(self, index: Tensor, backwards: int) -> Tensor:
        """Charges each row that the budget allows, in the order asked; returns which those are."""
        if self.budget.unlimited:
            answered = torch.ones_like(index, dtype=torch.bool)
            charge = (self.found_at[index] < 0).long() if self.first else torch.ones_like(index)
        else:
            answered = _rank(index) < self.ledger.left(self.budget)[index] // self._price(backwards)
            if self.first:  # a settled sample is charged no more, so it must not be sent either
                answered &= ~self.found[index]
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
        self._weigh(x, index, scores, answered)
        if self.trace is not None:
            self.trace.append((self.ledger.forwards + self.ledger.backwards, self.distance.clone()))

    def _weigh(self, x: Tensor, index: Tensor, scores: Tensor, answered: Tensor) -> None:
        p = self.problem
        with torch.no_grad():
            y, target = p.y[index], p.target[index]
            margin = p.criterion.margin(scores, y, target).double()
            # What rounding decides is no witness: asked anew in another batch, it may not be adversarial.
            holds = p.criterion.holds(scores, y, target) & (margin < -_rounding(scores))
            if not self.budget.unlimited:
                margin, holds = margin.masked_fill(~answered, float("inf")), holds & answered
            if self.votes > 1:
                x, index = x[:: self.votes], index[:: self.votes]
                y, target = y[:: self.votes], target[:: self.votes]
                margin = margin.unflatten(0, (-1, self.votes)).mean(1)
                holds = 2 * holds.unflatten(0, (-1, self.votes)).sum(1) > self.votes
            self.low_margin.scatter_reduce_(0, index, margin.nan_to_num(nan=float("inf")), "amin")
            if self.first:
                holds = holds & (self.found_at[index] < 0)
            if x.device.type == "cpu":  # reading is free there: the rest is for the rows that may become a witness
                rows = holds.nonzero().squeeze(-1)
                if not len(rows):
                    return
                if len(rows) < len(x):
                    x, index, y, target, holds = x[rows], index[rows], y[rows], target[rows], holds[rows]
            clean = p.x[index]
            part = p.set.select(index)
            size = measured(part, x, clean)
            nearer = holds & (size < self.distance[index])
            if x.device.type == "cpu" and not nearer.any():
                return
            holds = nearer & contains(part, x, clean, size)
            if self.precision is not None and holds.any():
                rows = holds.nonzero().squeeze(-1)
                self.ledger.forwards.index_add_(0, index[rows], torch.ones_like(rows))
                sure = p.criterion.holds(self.model(x[rows]), y[rows], target[rows])
                holds = holds.index_copy(0, rows, sure)
            self._record(x, index, size, holds)

    def _record(self, x: Tensor, index: Tensor, size: Tensor, holds: Tensor) -> None:
        """Keeps the nearest of the rows that hold, all of them nearer than what is known; ties go to the row asked
        first. No synchronisation with an accelerator.
        """
        n, m = len(self.distance), len(x)
        d = size.masked_fill(~holds, float("inf"))
        nearest = self.distance.scatter_reduce(0, index, d, "amin")
        row = torch.arange(m, device=x.device)
        wins = holds & (d == nearest[index])
        first_row = torch.full((n,), m, device=x.device).scatter_reduce(0, index, row.masked_fill(~wins, m), "amin")
        better = first_row < m
        if x.device.type == "cpu":
            samples = better.nonzero().squeeze(-1)
            self.witness.index_copy_(0, samples, x.detach()[first_row[samples]])
        else:
            take = first_row.clamp_max(m - 1)
            self.witness.copy_(torch.where(better.view(-1, *[1] * (x.ndim - 1)), x[take].detach(), self.witness))
        self.distance.copy_(nearest)
        self.found_at.copy_(torch.where(better & (self.found_at < 0), self.ledger.queries, self.found_at))


def _rounding(scores: Tensor) -> Tensor:
    """(m,) float64 by how much a model's own rounding may move a margin of these scores, nearly."""
    largest = scores.abs().nan_to_num(nan=0.0, posinf=0.0).flatten(1).amax(1).double()
    return _ULPS * torch.finfo(scores.dtype).eps * largest


def _input_gradient(value: Tensor, x: Tensor, *, keep: bool = False) -> Tensor:
    """Gradient of value (m,) with respect to x alone; zero where the model's graph does not lead back to its input."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(value.sum(), x, retain_graph=keep, materialize_grads=True)[0]


def _rank(index: Tensor) -> Tensor:
    """(m,) how many earlier rows have the same index."""
    if index.device.type == "cpu" and bool((index[1:] > index[:-1]).all()):
        return torch.zeros_like(index)  # one row a sample, the usual case
    order = index.argsort(stable=True)
    sorted_index = index[order]
    position = torch.arange(len(index), device=index.device)
    starts = torch.searchsorted(sorted_index, sorted_index, side="left")
    return torch.empty_like(index).index_copy_(0, order, position - starts)
