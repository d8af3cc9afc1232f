"""What the units of a run share: the model, the data, the referee; loaded once in each process."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.common.ensemble import Ensemble
from holdfast.attacks.engine import Settings
from holdfast.audits.consent import admit
from holdfast.audits.folder import RunFolder
from holdfast.audits.places import importable
from holdfast.audits.plan import Plan, names_of
from holdfast.audits.substitute import trained_surrogate
from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.certifiers.smoothed import Smoothed, SmoothedSurrogate
from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import FeatureGrid, LpBall
from holdfast.core.threat import Goal
from holdfast.core.verdict import Subject
from holdfast.data.dataset import Dataset
from holdfast.data.load import load_data
from holdfast.graph.model import Graph
from holdfast.judge.desk import Model
from holdfast.judge.referee import Referee
from holdfast.models.believed import Believed, believed
from holdfast.models.fingerprint import fingerprint
from holdfast.models.http import HttpModel
from holdfast.models.load import load_model
from holdfast.models.opening import open_model
from holdfast.models.paid import PaidAnswers
from holdfast.models.queries_only import QueriesOnly, answers_gradients
from holdfast.models.wrap import Normalisation, Normalised, Ranged, with_two_classes
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.stats import binomial_p_value

__all__ = ["Context"]

_RANDOMISED_DRAWS = 25
_SURROGATE_COPIES = 16
_TOKEN = "HOLDFAST_API_TOKEN"
_HEAVY, _HEAVY_ON_A_GPU = (3072, 1_000_000), (150_000, 100_000_000)  # features of an input, parameters
_PREDICT_DRAWS, _PREDICT_ALPHA = 1000, 0.001


@dataclass
class Context:
    """A plan with everything that it names, opened.

    Attributes:
        plan: the plan.
        folder: where the run lives.
        base: the model f that was given: x (m, \\*features) -> scores (m, K).
        subject: what the verdicts are about.
        data: the audited samples.
        source: where the model came from, for people.
        notes: what was noticed on opening.
        randomised: the model's answers differ from one forward to the next.
        at: the plan with its files where they are now; None: where the plan says.
        progress: told by a long attack of (samples done, samples).
    """

    plan: Plan
    folder: RunFolder
    base: Model
    subject: Subject
    data: Dataset
    source: str
    notes: tuple[str, ...] = ()
    randomised: bool = False
    at: Plan | None = None
    progress: Callable[[int, int], None] | None = None

    @classmethod
    def open(cls, plan: Plan, folder: RunFolder, model: nn.Module | None = None, *, at: Plan | None = None) -> Context:
        """Loads the model and the data of a plan; ``model`` is the module itself where the plan names no file.

        Raises:
            UnsafeFileError: it would run code that only a plan file names.
            BudgetError: it would ask an API that only a plan file names, or there is no budget for it.
        """
        place = plan if at is None else at
        admit(place, given=model is not None)
        data = _data(place, place.data)
        if plan.samples is not None:
            data = data.head(plan.samples)
        with importable(place, folder):
            found, subject, source, notes = _model(place, model, _paid(plan, folder))
        if at is not None:  # the document names files as the plan does, wherever they are now
            if data.name == Path(at.data).name:
                data = replace(data, name=Path(plan.data).name)
            if at.model != plan.model and at.model is not None and plan.model is not None:
                source = source.replace(str(Path(at.model)), str(Path(plan.model)), 1)
            if at.arch != plan.arch and at.arch is not None and plan.arch is not None:
                source = source.replace(f"({at.arch})", f"({plan.arch})")
        if plan.certify == "smoothing":
            detail = f"sigma={plan.sigma:g}, predictor of {_PREDICT_DRAWS} draws at alpha {_PREDICT_ALPHA:g}, seed {plan.seed}"
            subject = Subject("smoothed", subject.sha256, detail)
        return cls(plan, folder, found, subject, data, source, (*notes, *data.notes), at=at)

    @cached_property
    def model(self) -> Model:
        """The audited model, asked by the clean pass and the referee: f, or g by its own predictor."""
        return self.base if self.plan.certify != "smoothing" else SmoothedPredictor(self._module(), self.plan)

    @cached_property
    def search(self) -> Model:
        """What attacks search on: f, or a differentiable stand-in for g."""
        if self.plan.certify != "smoothing":
            return self.base
        return SmoothedSurrogate(self._module(), self.plan.sigma, _SURROGATE_COPIES, self.plan.seed)

    def _module(self) -> nn.Module:
        if not isinstance(self.base, nn.Module) or not self.differentiable:
            raise UsageError(
                f"{self.source} can only be asked ({self.why}): no bound and no certificate; use --certify none"
            )
        return self.base

    @property
    def why(self) -> str:
        """Why a model that gives no gradients does not."""
        parts = self.base.modules() if isinstance(self.base, nn.Module) else ()
        return next((part.why for part in parts if isinstance(part, QueriesOnly)), "it is a prediction API")

    def check_suite(self) -> None:
        """Refuses an audit whose attacks or certificates need more than the model gives.

        Raises:
            UsageError: the message says what can be had.
        """
        plan = self.plan
        if not self.differentiable and (plan.suite != "black-box" or plan.certify != "none"):
            raise UsageError(
                f"{self.source} can only be asked ({self.why}): use --suite black-box --certify none, with --answers labels "
                "if it gives labels alone"
            )
        self.check_answers()

    def check_answers(self) -> None:
        """Refuses to ask for scores where a model that runs here gives labels alone.

        Raises:
            UsageError: it does, or does not say how many classes it has.
        """
        if self.differentiable or isinstance(self.base, HttpModel) or self.plan.answers == "labels":
            return
        try:
            with torch.no_grad():
                scores = self.base(self.inputs(np.arange(min(1, len(self.data)))))
        except ModelError:
            return  # the pre-flight says it, with what was asked
        if scores.ndim == 2 and bool((scores.isneginf().sum(1) == scores.shape[1] - 1).all()):
            raise UsageError(f"{self.source} answers labels alone; say so with --answers labels")

    def begin(self, unit: str) -> None:
        """Starts a unit of work: a prediction API is not paid twice for what it answered in it before."""
        if isinstance(self.base, HttpModel):
            self.base.begin(unit)

    @property
    def identity(self) -> dict[str, str]:
        """Hashes that a journal is bound to."""
        return {"plan": self.plan.sha256, "model": self.subject.sha256, "data": self.data.sha256}

    @cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.plan.device)

    @property
    def grid(self) -> Fraction | FeatureGrid | None:
        """The valid values that witnesses are also judged on."""
        return self.plan.threat.grid if self.plan.table is None else self.plan.table.grid

    @property
    def settings(self) -> Settings:
        """How the engine works in this run."""
        return Settings(slots=self.plan.slots)

    @property
    def differentiable(self) -> bool:
        """Gradients can be asked."""
        return answers_gradients(self.base)

    def referee(self) -> Referee:
        """A referee of the audited model."""
        exact = self.differentiable and self.plan.certify != "smoothing"
        draws = _RANDOMISED_DRAWS if self.randomised else 0
        if isinstance(self.base, HttpModel):  # a batch filled up with copies would be paid for
            return Referee(self.model, batch=1, draws=draws, exact=exact)
        return Referee(self.model, draws=draws, exact=exact)

    @cached_property
    def classes(self) -> int:
        """K; a prediction API is not asked, the plan says it.

        Raises:
            UsageError: the plan says another number than the model.
        """
        if isinstance(self.base, HttpModel):
            return self.base.classes
        told = self.plan.classes
        with torch.no_grad(), evaluating(self.search):
            found = int(self.search(self.inputs(np.arange(1))).shape[-1])
        if told is not None and told != found:
            raise UsageError(
                f"--classes {told}, and the model has {found}; leave --classes out, it is for prediction APIs, which do not "
                "say how many they have"
            )
        return found

    @cached_property
    def surrogate(self) -> nn.Module:
        """The attacker's own model: that of the plan, an ensemble of several, or one trained on the data the attacker knows."""
        plan = self.plan if self.at is None else self.at
        if plan.train_data is not None and plan.surrogate is None:
            return trained_surrogate(plan, self.folder, self.classes)
        if plan.surrogate is None:
            raise UsageError(
                "a transfer attack needs a surrogate; give --surrogate FILE --surrogate-arch MODULE:FUNCTION"
            )
        files, archs = names_of(plan.surrogate), names_of(plan.surrogate_arch) or (None,)
        pairs = zip(files, archs * len(files) if len(archs) == 1 else archs, strict=True)
        members = [load_model(f, arch=a, trust=plan.trust, device=plan.device).module for f, a in pairs]
        return members[0] if len(members) == 1 else Ensemble(members)

    @property
    def graph(self) -> Graph:
        """The simplified graph of the model, for bounds; captured once in a process, and so is a refusal.

        Raises:
            UnsupportedError: it has none, or one that is not the model's; the message says why.
        """
        return self.believed.graph

    @property
    def believed(self) -> Believed:
        """The graph, with what it was held against over the sets of all samples; as `graph`."""
        if isinstance(self._captured, UnsupportedError):
            raise self._captured
        return self._captured

    def graph_of_all_inputs(self) -> Believed:
        """As `believed`, for sets that reach over the whole range of valid inputs."""
        x = self.inputs(np.arange(1))
        low, high = (torch.full_like(x[0], end, dtype=torch.float64) for end in (self.plan.low, self.plan.high))
        return believed(self._module(), x, low, high)

    @cached_property
    def _captured(self) -> Believed | UnsupportedError:
        try:
            everywhere = self.problem(
                np.arange(len(self.data)), float(max(self.plan.exact_eps, self.plan.largest_radius))
            )
            return believed(self._module(), everywhere.x[:1], *everywhere.set.hull(everywhere.x))
        except UnsupportedError as refusal:
            return refusal
        except ModelError as fault:  # cannot be captured: no certificate, and no fault of the run
            return UnsupportedError(str(fault))

    @cached_property
    def heavy(self) -> bool:
        """A pass of the model is so dear that units of many samples would take long; the limits are rough."""
        if not isinstance(self.base, nn.Module):
            return True
        features, weights = _HEAVY if self.device.type == "cpu" else _HEAVY_ON_A_GPU
        return self.data.x[:1].numel() >= features or sum(p.numel() for p in self.base.parameters()) >= weights

    def inputs(self, ids: np.ndarray) -> Tensor:
        """(n, \\*features) clean inputs on the device."""
        return self.data.x[torch.from_numpy(ids)].to(self.device)

    def labels(self, ids: np.ndarray) -> Tensor:
        """(n,) labels on the device."""
        return self.data.y[torch.from_numpy(ids)].to(self.device)

    def problem(self, ids: np.ndarray, eps: float | Tensor | None = None) -> Problem:
        """The problem of some samples: at the plan's eps, at another one, or at one for each sample."""
        return self._problem(self.inputs(ids), self.labels(ids), ids, eps)

    def problem_of(self, name: str) -> Problem:
        """The problem of other data, under the same threat; what an artefact is fitted on.

        Raises:
            UsageError: their inputs have another shape.
        """
        data = _data(self.plan, name)
        if data.x.shape[1:] != self.data.x.shape[1:]:
            shapes = [tuple(d.x.shape[1:]) for d in (data, self.data)]
            raise UsageError(f"{name} has inputs of shape {shapes[0]}, the attacked data of shape {shapes[1]}")
        return self._problem(data.x.to(self.device), data.y.to(self.device), np.arange(len(data)), None)

    def _problem(self, x: Tensor, y: Tensor, ids: np.ndarray, eps: float | Tensor | None) -> Problem:
        plan = self.plan
        mask = None if plan.table is None or plan.table.mask is None else plan.table.mask.to(self.device)
        ball = LpBall.uniform(
            plan.norm, plan.exact_eps, len(ids), plan.low, plan.high, mask=mask, device=self.device, dtype=x.dtype
        )  # fmt: skip
        target = None
        if plan.goal is Goal.TARGETED:
            target = (y + 1) % self.classes
        return Problem.of(x, y, ball if eps is None else ball.with_eps(eps), target=target, ids=ids)


class SmoothedPredictor:
    """g's own predictor as a model: log of the vote shares; not a number where it abstains.

    Each row is asked with the same keyed noise, so that its answer does not depend on the batch.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        """Wraps f."""
        self._ask = ModuleAsk(copy.deepcopy(module).eval())
        self._g = Smoothed(self._ask, plan.sigma, plan.seed)

    def __call__(self, x: Tensor) -> Tensor:
        """(m, \\*features) -> (m, K) float32."""
        votes = self._g.votes(x, [0] * len(x), _PREDICT_DRAWS, "judge")
        top = votes.topk(2, dim=1).values.cpu().numpy()
        abstains = torch.as_tensor(binomial_p_value(top[:, 0], top.sum(1), 0.5) > _PREDICT_ALPHA, device=x.device)
        shares = ((votes + 0.5) / (_PREDICT_DRAWS + 0.5 * votes.shape[1])).log().to(x.dtype)
        return shares.masked_fill(abstains.unsqueeze(1), float("nan"))


def _data(plan: Plan, name: str) -> Dataset:
    data = load_data(name, classes=plan.class_names)
    return data if plan.table is None else plan.table.to_units(data)


def _fitted(plan: Plan, module: nn.Module) -> nn.Module:
    """The module as the plan's data need it: columns get their own values back."""
    return module if plan.table is None else Ranged.of(module, plan.table)


def _paid(plan: Plan, folder: RunFolder) -> PaidAnswers:
    """The answers of the run, once it has begun: not before, since a start that is refused leaves no trace."""

    def begun() -> bool:
        return folder.plan_file.is_file() and folder.plan().sha256 == plan.sha256

    return PaidAnswers(folder.path / "answers.sqlite", plan.sha256, begun)


def _model(plan: Plan, model: nn.Module | None, paid: PaidAnswers) -> tuple[Model, Subject, str, tuple[str, ...]]:
    normalise = None if plan.normalise is None else Normalisation(*plan.normalise)
    names: int | tuple[str, ...] | None = plan.class_names or plan.classes
    if isinstance(model, QueriesOnly) and normalise is plan.binary is plan.table is None:
        return model, model.subject, model.what, model.notes
    if model is not None:
        module = _fitted(
            plan, with_two_classes(model if normalise is None else Normalised(model, normalise), plan.binary)
        )
        return module.to(plan.device), Subject("model", fingerprint(module)), type(model).__name__, ()
    if plan.model is None:
        raise UsageError("no model: give --model FILE --arch MODULE:FUNCTION, or pass the module to audit() in Python")
    if plan.remote:
        before = _fitted(plan, nn.Identity() if normalise is None else Normalised(nn.Identity(), normalise))
        api = HttpModel(
            plan.model, classes=names or 0, max_queries=plan.max_queries, access=plan.answers, top_k=plan.top_k,
            scores=plan.scores, request=plan.request, answer=plan.answer, before=before, paid=paid,
            # a token goes to no host but the one that the caller named himself
            token_env=_TOKEN if _TOKEN in os.environ and "model" not in plan.theirs else None,
        )  # fmt: skip
        return api, api.subject, plan.model, ()
    loaded = open_model(
        plan.model, arch=plan.arch, trust=plan.trust, normalise=normalise, binary=plan.binary, device=plan.device,
        output=plan.output, classes=names, pixel=255 / plan.high if plan.low == 0 else 255.0,
    )  # fmt: skip
    if plan.table is None:
        return loaded.module, loaded.subject, loaded.source, loaded.notes
    module = _fitted(plan, loaded.module).to(plan.device)
    return module, Subject("model", fingerprint(module)), loaded.source, loaded.notes
