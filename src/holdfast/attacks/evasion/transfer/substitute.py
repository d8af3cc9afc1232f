"""Substitute training: a model learned from the answers of the attacked one, and searched in its place.

Papernot et al. 2017 ask labels, add to each known input one that is moved along the substitute's own Jacobian, ask again,
and so on; with scores the substitute is distilled from them. Each row asked is charged to the sample it stems from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.families.surrogate import searched
from holdfast.attacks.shared import Applied, Artefact, SharedAttack, SharedState
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.data.dataset import Dataset
from holdfast.judge.asks import SoftLabelAsk
from holdfast.models.zoo import substitute
from holdfast.numerics.distance import box
from holdfast.numerics.losses import complete
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

__all__ = ["Substitute", "SubstituteState"]

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class SubstituteState(SharedState):
    """Attributes:
    weights: (p,) float32 those of the substitute, one after the other.
    x: (m, \\*features) the inputs that were asked.
    owner: (m,) int64 the samples that they stem from.
    answer: (m, K) float32 probabilities.
    """

    weights: Tensor
    x: Tensor
    owner: Tensor
    answer: Tensor


@dataclass(frozen=True, kw_only=True)
class Substitute(SharedAttack[SoftLabelAsk, SubstituteState]):
    """``S <- S + {x + lambda sign(grad_x F_k(x)), k the answer to x}``, then the substitute F is trained on S again."""

    rounds: int = parameter(
        6, "times that new inputs are asked, after the first, at least 0", "Papernot et al. 2017: 6"
    )
    move: float = parameter(0.1, "lambda, how far a new input lies from the old one, above 0", "Papernot et al. 2017")
    reservoir: int | None = parameter(
        400, "most new inputs of a round, by reservoir sampling; None: no limit", "Papernot et al. 2017, section 6: 400"
    )
    free_rounds: int = parameter(
        3, "rounds before the reservoir limits them, at least 0", "Papernot et al. 2017, section 6: sigma = 3"
    )
    answers: str = parameter(
        "scores", "scores: distil from probabilities; labels: learn from labels alone", "ours; Papernot et al.: labels"
    )
    train_epochs: int = parameter(10, "passes over all inputs in each round, at least 1", "Papernot et al. 2017: 10")
    attack_steps: int = parameter(10, "MI-FGSM steps on the substitute, at least 1", "Dong et al. 2018")

    state = SubstituteState
    card: ClassVar[Card] = Card(
        title="Substitute training",
        rows=("E36", "T03"),
        paper="Papernot, McDaniel, Goodfellow, Jha, Celik, Swami 2017, Practical Black-Box Attacks against Machine Learning, "
        "arXiv:1602.02697",
        section="2.2",
        summary="A model learned from the attacked one's answers to inputs that its own Jacobian suggests, searched instead.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L2, Norm.LINF),
        shared=True,
        failure_modes=(
            "Queries double with each round until the reservoir holds them: a service may notice, or bill.",
            "It says how well the model was imitated; a failure says nothing of robustness.",
        ),
        checked_by="agreement with the attacked model grows with the rounds; the ledger equals the rows asked",
    )

    @property
    @override
    def iterations(self) -> int:
        return self.rounds + 1

    @override
    def check(self, problem: Problem, models: int) -> None:
        super().check(problem, models)
        if models > 1:
            raise UsageError(f"{self.card.title} learns one model; {models} were given")
        if self.answers not in ("scores", "labels"):
            raise UsageError(f"a substitute learns from scores or labels, not '{self.answers}'")
        least = {"rounds": 0, "free_rounds": 0, "train_epochs": 1, "attack_steps": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} of {self.card.title} must be at least {low}, got {getattr(self, name)}")
        if not self.move > 0 or (self.reservoir is not None and self.reservoir < 1):
            raise UsageError("a new input must lie apart from the old one, and a reservoir hold one at least")

    @override
    def start(self, asks: Sequence[SoftLabelAsk]) -> SubstituteState:
        (ask,) = asks
        problem = ask.problem
        x, owner, answer = self._asked(ask, problem.x, torch.arange(len(problem), device=problem.x.device))
        model = substitute(tuple(problem.x.shape[1:]), answer.shape[1], problem.keyed.draws.seed)
        return SubstituteState(weights=_weights(model), x=x, owner=owner, answer=answer)

    @override
    def step(self, asks: Sequence[SoftLabelAsk], state: SubstituteState, step: int) -> SubstituteState:
        (ask,) = asks
        problem, model = ask.problem, _built(state)
        x, owner, answer = state.x, state.owner, state.answer
        if step:
            more = self._asked(ask, *self._suggested(model, problem, x, owner, answer, step))
            x, owner, answer = (torch.cat(pair) for pair in zip((x, owner, answer), more, strict=True))
        self._learn(model, x, answer, problem.keyed.draws.seed + 1 + step)
        return SubstituteState(weights=_weights(model), x=x, owner=owner, answer=answer)

    @override
    def artefact(self, state: SubstituteState) -> Artefact:
        weights = {f"weights.{k}": v.detach().clone() for k, v in _built(state).state_dict().items()}
        facts = {"shape": list(state.x.shape[1:]), "classes": state.answer.shape[1], "inputs": len(state.x)}
        return Artefact("substitute", weights, facts)

    @override
    def apply(self, artefact: Artefact, x: Tensor, draws: SampleDraws, problem: Problem | None = None) -> Applied:
        if problem is None:
            raise UsageError("a substitute is searched for given labels in a given set; hand over the problem")
        model = _load(substitute(tuple(artefact.facts["shape"]), artefact.facts["classes"], 0), artefact.tensors)
        return Applied(searched(model.to(x.device, x.dtype), replace(problem, x=x, draws=draws), self.attack_steps))

    def _asked(self, ask: SoftLabelAsk, x: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, the samples they stem from, and the answers as probabilities (m, K); what was not answered is left out."""
        some = ask.as_given.at(owner.cpu().numpy())
        if self.answers == "scores":
            scored = some.scores(x)
            told, answered = complete(scored.scores).exp(), scored.answered
        else:
            labelled = some.labels(x)
            told, answered = nn.functional.one_hot(labelled.labels, ask.classes), labelled.answered
        return x[answered], owner[answered], told[answered].to(torch.float32)

    def _suggested(
        self, model: nn.Module, problem: Problem, x: Tensor, owner: Tensor, answer: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """New inputs with the samples they stem from: one for each known input, or a random few of them."""
        if self.reservoir is not None and step > self.free_rounds and len(x) > self.reservoir:
            draws = problem.keyed.draws
            order = torch.randperm(len(x), generator=draws.generator("reservoir", step), device=draws.device)
            keep = order[: self.reservoir].sort().values.to(x.device)
            x, owner, answer = x[keep], owner[keep], answer[keep]
        with torch.enable_grad():
            at = x.detach().to(torch.float32).requires_grad_()
            chosen = model.eval()(at).gather(1, answer.argmax(1, keepdim=True))
            (grad,) = torch.autograd.grad(chosen.sum(), at)
        low, high = box(problem.set, problem.x)
        moved = (x + self.move * grad.sign().to(x.dtype)).clamp(_at(low, owner), _at(high, owner))
        return moved, owner

    def _learn(self, model: nn.Module, x: Tensor, answer: Tensor, seed: int) -> None:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            wanted = answer[batch.ids.to(answer.device)]
            return -(wanted * model(batch.x).log_softmax(1)).sum(1).mean()

        data = Dataset.of(x.to(torch.float32).cpu(), answer.argmax(1).cpu(), name="answers of the attacked model")
        settings = TrainingSettings(epochs=self.train_epochs, batch=_BATCH, validation=0.0, seed=seed)
        with torch.enable_grad():
            fit(model, data, loss, settings=settings, device=x.device)


def _weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _built(state: SubstituteState) -> nn.Module:
    """The substitute of a state; it has parameters and no buffers."""
    model = substitute(tuple(state.x.shape[1:]), state.answer.shape[1], 0).to(state.x.device)
    nn.utils.vector_to_parameters(state.weights.clone(), model.parameters())
    return model


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    return model


def _at(edge: Tensor, rows: Tensor) -> Tensor:
    return edge[rows] if edge.ndim else edge
