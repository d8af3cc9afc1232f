"""The pre-flight of a verb: what is wrong with a pair of model and data, before anything is spent on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from holdfast.core.errors import DataError
from holdfast.core.findings import Finding, Severity
from holdfast.core.threat import ThreatModel
from holdfast.core.words import sentences
from holdfast.data.checks import check_data
from holdfast.data.dataset import Dataset
from holdfast.judge.asking import Model
from holdfast.models.checks import admitted, preflight
from holdfast.numerics.evaluation import evaluating
from holdfast.session.reading import device_of
from holdfast.session.session import Session

__all__ = ["answers_vary", "is_randomised", "look", "look_at", "look_at_all"]

_ABOUT_ACCURACY = ("model.chance", "model.preprocessing", "model.train_mode")
_ASKED = 8


def look(session: Session, *, anyway: bool = False, trained: bool = True) -> list[str]:
    """The pre-flight of a session; see `look_at`."""
    return look_at(
        session.base, session.data, session.threat, anyway=anyway, trained=trained, classes=session.spec.classes
    )


def look_at(
    model: Model,
    data: Dataset,
    threat: ThreatModel,
    *,
    anyway: bool = False,
    trained: bool = True,
    classes: int | None = None,
) -> list[str]:
    """What a pre-flight warns of, in words. An API, whose rows count, is not asked for it: its data are looked at.

    Args:
        model: where it runs.
        data: what it is asked about.
        threat: says what range a feature has.
        anyway: a model that does worse than guessing goes on.
        trained: its accuracy says something; not where a column is a detector's, or before training.
        classes: K, where the model is not asked.

    Raises:
        DataError: what an audit would refuse.
    """
    if isinstance(model, nn.Module):
        found = preflight(model, data, threat, device=device_of(model))
    else:
        found = check_data(data, threat, classes)
    if not trained:
        found = [f for f in found if f.code not in _ABOUT_ACCURACY]
    return [_in_words(f) for f in admitted(found, anyway=anyway) if f.severity is Severity.WARNING]


def look_at_all(
    models: Mapping[str, nn.Module], data: Dataset, threat: ThreatModel, *, anyway: bool = False
) -> list[str]:
    """The pre-flight of several models on the same data; what is wrong is said with the model's name.

    Raises:
        DataError: what an audit would refuse.
    """
    warnings: list[str] = []
    for name, model in models.items():
        try:
            warnings += look_at(model, data, threat, anyway=anyway)
        except DataError as fault:
            raise DataError(f"{name}: {fault}") from None
    return warnings


def is_randomised(session: Session) -> bool:
    """Whether the model answers the same inputs otherwise the second time; one that can only be asked is not asked for it."""
    return session.differentiable and answers_vary(session.base, session.inputs(session.ids[:_ASKED]))


def answers_vary(model: Model, x: Tensor) -> bool:
    """Whether two forwards of the first inputs differ."""
    with torch.no_grad(), evaluating(model):
        return not torch.equal(model(x[:_ASKED].clone()), model(x[:_ASKED].clone()))


def _in_words(finding: Finding) -> str:
    return f"warning: {finding.title}. {sentences(finding.message, finding.remedy)}"
