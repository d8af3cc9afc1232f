"""A session with the plan and the folder of a run: what its units share; opened once in each process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn
from typing_extensions import override

from holdfast.audits.consent import admit
from holdfast.audits.folder import RunFolder
from holdfast.audits.inputs import RunInputs
from holdfast.audits.places import importable
from holdfast.audits.plan import Plan
from holdfast.audits.substitute import trained_surrogate
from holdfast.core.errors import UsageError
from holdfast.models.http import HttpModel
from holdfast.models.paid import PaidAnswers
from holdfast.session.reading import as_device, open_spec
from holdfast.session.session import Session
from holdfast.session.smoothed_predictor import smoothed_subject

__all__ = ["Context"]


@dataclass(kw_only=True)
class Context(Session):
    """A plan with everything that it names, opened.

    Attributes:
        plan: the plan.
        folder: where the run lives.
        at: the plan with its files where they are now; None: where the plan says.
    """

    plan: Plan
    folder: RunFolder
    at: Plan | None = None

    @classmethod
    def open(cls, plan: Plan, folder: RunFolder, model: nn.Module | None = None, *, at: Plan | None = None) -> Context:
        """Loads the model and the data of a plan; ``model`` is the module itself where the plan names no file.

        Raises:
            UnsafeFileError: it would run code that only a plan file names.
            BudgetError: it would ask an API that only a plan file names, or there is no budget for it.
        """
        place = plan if at is None else at
        admit(place, given=model is not None)
        device = as_device(place.device)
        data = RunInputs.open(plan, folder, at=at).data
        spec = place.spec if model is None else replace(place.spec, model=model, request=None, answer=None)
        with importable(place, folder):
            opened = open_spec(spec, device, low=place.low, high=place.high, paid=_paid(plan, folder))
        subject, sigma = opened.subject, plan.smoothing
        return cls(
            base=opened.base,
            subject=subject if sigma is None else smoothed_subject(subject, sigma, plan.seed),
            data=data,
            threat=plan.threat,
            source=_source(opened.source, plan, place),
            device=device,
            seed=plan.seed,
            slots=plan.slots,
            notes=(*opened.notes, *data.notes),
            spec=spec,
            surrogates=place.surrogates,
            radius_max=plan.largest_radius,
            queries=plan.queries,
            sigma=sigma,
            plan=plan,
            folder=folder,
            at=at,
        )

    def check_suite(self) -> None:
        """Refuses an audit whose attacks or certificates need more than the model gives.

        Raises:
            UsageError: the message says what can be had.
        """
        plan = self.plan
        if not self.differentiable and (not plan.composition.queries_only or plan.lower_bound is not None):
            raise UsageError(
                f"{self.source} can only be asked ({self.why}): use --suite black-box --certify none, with --answers labels "
                "if it gives labels alone"
            )
        self.check_answers()

    def begin(self, unit: str) -> None:
        """Starts a unit of work: a prediction API is not paid twice for what it answered in it before."""
        if isinstance(self.base, HttpModel):
            self.base.begin(unit)

    @property
    def run_inputs(self) -> RunInputs:
        """What pages and tables show of the run."""
        return RunInputs(plan=self.plan, folder=self.folder, data=self.data)

    @property
    def identity(self) -> dict[str, str]:
        """Hashes that a journal is bound to."""
        return {"plan": self.plan.sha256, "model": self.subject.sha256, "data": self.data.sha256}

    @cached_property
    @override
    def surrogate(self) -> nn.Module:
        """The attacker's own model: that of the plan, an ensemble of several, or one trained on the data the attacker knows."""
        plan = self.plan if self.at is None else self.at
        if plan.train_data is not None and plan.surrogate is None:
            return trained_surrogate(plan, self.folder, self.classes)
        return super().surrogate


def _source(source: str, plan: Plan, place: Plan) -> str:
    if place.model != plan.model and place.model is not None and plan.model is not None:
        source = source.replace(str(Path(place.model)), str(Path(plan.model)), 1)
    if place.arch != plan.arch and place.arch is not None and plan.arch is not None:
        source = source.replace(f"({place.arch})", f"({plan.arch})")
    return source


def _paid(plan: Plan, folder: RunFolder) -> PaidAnswers:
    """The answers of the run, once it has begun: not before, since a start that is refused leaves no trace."""

    def begun() -> bool:
        return folder.plan_file.is_file() and folder.plan().sha256 == plan.sha256

    return PaidAnswers(folder.path / "answers.sqlite", plan.sha256, begun)
