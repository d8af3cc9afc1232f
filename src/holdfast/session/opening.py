"""A session from what a caller names: a model, its data and a threat model."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch

from holdfast.core.errors import UsageError
from holdfast.core.threat import ThreatModel, parse_eps, size_text
from holdfast.models.http import HttpModel
from holdfast.session.reading import as_device, device_of, open_data, open_spec
from holdfast.session.session import Session
from holdfast.session.spec import DataLike, ModelLike, ModelSpec, Surrogates, at_least

__all__ = ["check_radius_max", "open_session"]


def open_session(
    model: ModelLike | ModelSpec | None,
    data: DataLike,
    threat: ThreatModel,
    *,
    samples: int | None = None,
    surrogates: Surrogates | None = None,
    radius_max: Fraction | str | float | None = None,
    queries: int | None = None,
    seed: int = 0,
    slots: int = 256,
    device: str | torch.device | None = None,
) -> Session:
    """Opens model and data under a threat.

    Args:
        model: the model, or a `ModelSpec` that also says how to read it.
        data: a `Dataset`, what `holdfast.data.load_data` reads, or (x, y).
        threat: norm, eps, goal and range.
        samples: the first so many rows; None is all.
        surrogates: the attacker's own models.
        radius_max: largest radius that a certificate is searched for; None: 2 eps.
        queries: the most that an attack may ask for one sample.
        seed: keys all draws.
        slots: samples of a batch.
        device: where the model runs; None: where a module is, else the CPU.

    Raises:
        UsageError: no model, or things that cannot be had together.
        DataError: no samples, or arrays that are none.
        ModelError: the model cannot be read.
        UnsafeFileError: its opening would run code, and it is not trusted.
    """
    largest = None if radius_max is None else parse_eps(radius_max)
    if largest is not None:
        check_radius_max(largest, threat.eps)
    spec = _as_opened(model if isinstance(model, ModelSpec) else ModelSpec(model=model))
    at_least(1, samples=samples, queries=queries)
    at_least(0, seed=seed)
    place = device_of(spec.model) if device is None else as_device(device)
    if spec.table is not None and (threat.grid is not None or (threat.low, threat.high) != (0.0, 1.0)):
        raise UsageError("a table has ranges and whole numbers by column; leave out --grid, low and high")
    found = open_data(data, class_names=spec.class_names, table=spec.table)
    opened = open_spec(spec, place, low=threat.low, high=threat.high)
    return Session(
        base=opened.base,
        subject=opened.subject,
        data=found if samples is None else found.head(samples),
        threat=threat,
        source=opened.source,
        device=place,
        seed=seed,
        slots=slots,
        notes=(*opened.notes, *found.notes),
        spec=spec,
        surrogates=surrogates,
        radius_max=largest,
        queries=queries,
    )


def check_radius_max(radius_max: Fraction, eps: Fraction) -> None:
    """Refuses a search for certificates that ends below the size at which figures are given: all would be zero.

    Raises:
        UsageError: it does.

    Example:
        >>> check_radius_max(Fraction(1, 5), Fraction(1, 10))
    """
    if radius_max < eps:
        raise UsageError(
            f"--radius-max {size_text(radius_max)} is below --eps {size_text(eps)}, so nothing would be certified at it; "
            "raise the one or lower the other"
        )


def _as_opened(spec: ModelSpec) -> ModelSpec:
    """What a prediction API that was opened before says of its answers."""
    if not isinstance(spec.model, HttpModel):
        return spec
    told = spec.model.answers
    return replace(spec, answers=told.access, top_k=told.top_k, scores=told.scores)
