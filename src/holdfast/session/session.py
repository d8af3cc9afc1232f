"""A model, its data and a threat model, opened: what every verb asks and judges with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.engine import Settings
from holdfast.certifiers.smoothed import SmoothedSurrogate
from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import FeatureGrid, LpBall
from holdfast.core.threat import Goal, ThreatModel
from holdfast.core.verdict import Subject
from holdfast.data.dataset import Dataset
from holdfast.graph.model import Graph
from holdfast.judge.asking import Model
from holdfast.judge.referee import Referee
from holdfast.models.believed import Believed, believed
from holdfast.models.http import HttpModel
from holdfast.models.queries_only import QueriesOnly, answers_gradients
from holdfast.numerics.evaluation import evaluating
from holdfast.session.reading import open_data, open_surrogates
from holdfast.session.smoothed_predictor import SmoothedPredictor
from holdfast.session.spec import DataLike, ModelSpec, Surrogates

__all__ = ["Session"]

_RANDOMISED_DRAWS = 25
_SURROGATE_COPIES = 16
_HEAVY, _HEAVY_ON_A_GPU = (3072, 1_000_000), (150_000, 100_000_000)  # features of an input, parameters


@dataclass(kw_only=True)
class Session:
    """A model, samples and a threat, opened once; `open_session` makes one.

    Attributes:
        base: the model f that was given: x (m, \\*features) -> scores (m, K).
        subject: what the verdicts are about.
        data: the samples.
        threat: what an attacker may change, and what he wants.
        source: where the model came from, for people.
        device: where it runs.
        spec: what the caller said of the model.
        seed: keys all draws.
        slots: samples of a batch.
        notes: what was noticed on opening.
        surrogates: the attacker's own models.
        radius_max: the largest radius that is searched for; None: 2 eps.
        queries: the most that an attack may ask for one sample.
        sigma: noise of smoothing, where the subject is g = smooth(f, sigma); None: it is f.
        randomised: the model's answers differ from one forward to the next.
        progress: told by a long attack of (samples done, samples).
    """

    base: Model
    subject: Subject
    data: Dataset
    threat: ThreatModel
    source: str
    device: torch.device
    spec: ModelSpec
    seed: int = 0
    slots: int = 256
    notes: tuple[str, ...] = ()
    surrogates: Surrogates | None = None
    radius_max: Fraction | None = None
    queries: int | None = None
    sigma: float | None = None
    randomised: bool = False
    progress: Callable[[int, int], None] | None = None

    @cached_property
    def model(self) -> Model:
        """The model that is asked by the clean pass and the referee: f, or g by its own predictor."""
        return self.base if self.sigma is None else SmoothedPredictor(self.module, self.sigma, self.seed)

    @cached_property
    def search(self) -> Model:
        """What attacks search on: f, or a differentiable stand-in for g."""
        if self.sigma is None:
            return self.base
        return SmoothedSurrogate(self.module, self.sigma, _SURROGATE_COPIES, self.seed)

    @property
    def module(self) -> nn.Module:
        """The model itself, with its gradients.

        Raises:
            UsageError: it can only be asked.
        """
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

    def check_answers(self) -> None:
        """Refuses to ask for scores where a model that runs here gives labels alone.

        Raises:
            UsageError: it does, or does not say how many classes it has.
        """
        if self.differentiable or isinstance(self.base, HttpModel) or self.spec.answers == "labels":
            return
        try:
            with torch.no_grad():
                scores = self.base(self.inputs(np.arange(min(1, len(self.data)))))
        except ModelError:
            return  # the pre-flight says it, with what was asked
        if scores.ndim == 2 and bool((scores.isneginf().sum(1) == scores.shape[1] - 1).all()):
            raise UsageError(f"{self.source} answers labels alone; say so with --answers labels")

    @property
    def grid(self) -> Fraction | FeatureGrid | None:
        """The valid values that witnesses are also judged on."""
        return self.threat.grid if self.spec.table is None else self.spec.table.grid

    @property
    def largest_radius(self) -> Fraction:
        """The largest radius that is searched for."""
        return 2 * self.threat.eps if self.radius_max is None else self.radius_max

    @property
    def settings(self) -> Settings:
        """How the engine works."""
        return Settings(slots=self.slots)

    @property
    def differentiable(self) -> bool:
        """Gradients can be asked."""
        return answers_gradients(self.base)

    def referee(self) -> Referee:
        """A referee of the model."""
        exact = self.differentiable and self.sigma is None
        draws = _RANDOMISED_DRAWS if self.randomised else 0
        if isinstance(self.base, HttpModel):  # a batch filled up with copies would be paid for
            return Referee(self.model, batch=1, draws=draws, exact=exact)
        return Referee(self.model, draws=draws, exact=exact)

    @cached_property
    def classes(self) -> int:
        """K; a prediction API is not asked, the caller says it.

        Raises:
            UsageError: the caller says another number than the model.
        """
        if isinstance(self.base, HttpModel):
            return self.base.classes
        declared = self.spec.classes
        with torch.no_grad(), evaluating(self.search):
            answered = int(self.search(self.inputs(np.arange(1))).shape[-1])
        if declared is not None and declared != answered:
            raise UsageError(
                f"--classes {declared}, and the model has {answered}; leave --classes out, it is for prediction APIs, which "
                "do not say how many they have"
            )
        return answered

    @cached_property
    def surrogate(self) -> nn.Module:
        """The attacker's own model, or the ensemble of several."""
        if self.surrogates is None:
            raise UsageError(
                "a transfer attack needs a surrogate; give --surrogate FILE --surrogate-arch MODULE:FUNCTION"
            )
        return open_surrogates(self.surrogates, self.device)

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
        low, high = (torch.full_like(x[0], end, dtype=torch.float64) for end in (self.threat.low, self.threat.high))
        return believed(self.module, x, low, high)

    @cached_property
    def _captured(self) -> Believed | UnsupportedError:
        try:
            everywhere = self.problem(np.arange(len(self.data)), float(max(self.threat.eps, self.largest_radius)))
            return believed(self.module, everywhere.x[:1], *everywhere.set.hull(everywhere.x))
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

    @property
    def ids(self) -> np.ndarray:
        """(n,) the ids of all samples."""
        return np.arange(len(self.data))

    def inputs(self, ids: np.ndarray) -> Tensor:
        """(n, \\*features) clean inputs on the device."""
        return self.data.x[torch.as_tensor(ids)].to(self.device)

    def labels(self, ids: np.ndarray) -> Tensor:
        """(n,) labels on the device."""
        return self.data.y[torch.as_tensor(ids)].to(self.device)

    def problem(self, ids: np.ndarray, eps: float | Tensor | None = None) -> Problem:
        """The problem of some samples: at the threat's eps, at another one, or at one for each sample."""
        return self._problem(self.inputs(ids), self.labels(ids), ids, eps)

    def problem_of(self, data: DataLike) -> Problem:
        """The problem of other data, under the same threat; what an artefact is fitted on.

        Raises:
            UsageError: their inputs have another shape.
        """
        other = open_data(data, class_names=self.spec.class_names, table=self.spec.table)
        if other.x.shape[1:] != self.data.x.shape[1:]:
            shapes = [tuple(d.x.shape[1:]) for d in (other, self.data)]
            name = data if isinstance(data, str) else other.name
            raise UsageError(f"{name} has inputs of shape {shapes[0]}, the attacked data of shape {shapes[1]}")
        return self._problem(other.x.to(self.device), other.y.to(self.device), np.arange(len(other)), None)

    def _problem(self, x: Tensor, y: Tensor, ids: np.ndarray, eps: float | Tensor | None) -> Problem:
        threat, table = self.threat, self.spec.table
        mask = None if table is None or table.mask is None else table.mask.to(self.device)
        ball = LpBall.uniform(
            threat.norm, threat.eps, len(ids), threat.low, threat.high, mask=mask, device=self.device, dtype=x.dtype
        )
        target = None
        if threat.goal is Goal.TARGETED:
            target = (y + 1) % self.classes
        return Problem.of(x, y, ball if eps is None else ball.with_eps(eps), target=target, ids=ids)
