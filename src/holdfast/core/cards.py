"""A method's card: what it is, where it comes from, what it needs and what it is held to.

Cards make `holdfast methods`, the method pages, the coverage table and the report's appendix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any

from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Access, Formulation, Goal, Guarantee, Norm, Phase

__all__ = ["Card", "Knows", "Parameter", "parameter", "parameters_of", "refuse", "refuse_below_one"]


class Knows(StrEnum):
    """What a method of the training phase asks for beside the data; see `holdfast.core.knowledge`."""

    SURROGATE = "surrogate"
    TARGETS = "targets"
    CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class Card:
    """The card of a method.

    Attributes:
        title: the name as the paper writes it.
        rows: ids of the coverage rows it belongs to.
        paper: the reference in words: authors, year, title or venue, arXiv number.
        section: section of the survey.
        summary: one sentence that says what the method does.
        phase: when the attacker or defender acts.
        access: what it asks of the model; None for methods that are no attacks.
        goals: goals that it can serve.
        formulation: the survey's formulation, for attacks.
        norms: distortions that it can serve.
        modality: kinds of input it serves.
        guarantee: what its bounds are worth, for certifiers.
        knows: what it asks to know beside the data, for attacks on the training phase.
        shared: one perturbation or artefact serves many samples.
        affine_ratio: for each norm, the median ratio to the true least distance that the contract suite holds it to on
            the exact affine oracle.
        failure_modes: when it is known to fail or to mislead.
        checked_by: how else it is checked.
    """

    title: str
    rows: tuple[str, ...]
    paper: str
    section: str
    summary: str
    phase: Phase = Phase.DEPLOYMENT
    access: Access | None = None
    goals: tuple[Goal, ...] = (Goal.UNTARGETED,)
    formulation: Formulation | None = None
    norms: tuple[Norm, ...] = ()
    modality: tuple[str, ...] = ("any",)
    guarantee: Guarantee | None = None
    knows: tuple[Knows, ...] = ()
    shared: bool = False
    affine_ratio: Mapping[Norm, float] = field(default_factory=dict[Norm, float])
    failure_modes: tuple[str, ...] = ()
    checked_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a method: name, default, meaning with range, and where the default comes from."""

    name: str
    default: object
    meaning: str
    source: str


def parameter(default: Any, meaning: str, source: str) -> Any:
    """Declares a dataclass field of a method together with what its card says of it.

    Args:
        default: the default value.
        meaning: what it is, with unit and range.
        source: where the default comes from: the paper and its section, or ``ours`` with the reason.
    """
    return field(default=default, metadata={"meaning": meaning, "source": source})


def parameters_of(method: type) -> tuple[Parameter, ...]:
    """The parameters that a method declares, in order."""
    return tuple(
        Parameter(
            name=f.name,
            default=None if f.default is MISSING else f.default,
            meaning=f.metadata["meaning"],
            source=f.metadata["source"],
        )
        for f in fields(method)
        if "meaning" in f.metadata
    )


def refuse(card: Card, norm: Norm | None = None, goal: Goal | None = None) -> None:
    """Refuses, in words, a norm or a goal that the card lacks; what is None is not asked for.

    Raises:
        UnsupportedError: the message names what the method serves.

    Example:
        >>> toy = Card(title="Toy", rows=(), paper="", section="", summary="", norms=(Norm.L1, Norm.L2))
        >>> refuse(toy, Norm.LINF)
        Traceback (most recent call last):
        holdfast.core.errors.UnsupportedError: Toy has no linf form; it serves l1, l2
    """
    if norm is not None and norm not in card.norms:
        raise UnsupportedError(f"{card.title} has no {norm} form; it serves {', '.join(card.norms)}")
    if goal is not None and goal not in card.goals:
        raise UnsupportedError(f"{card.title} has no {goal} form; use one of {', '.join(card.goals)}")


def refuse_below_one(tool: Any, *names: str) -> None:
    """Refuses counts of a method that are no whole numbers of at least 1; a parameter that it lacks is none of them.

    Raises:
        UsageError: the message names the parameter.
    """
    for name in {f.name for f in fields(tool)} & set(names):
        value = getattr(tool, name)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} of {tool.card.title} must be a whole number of at least 1, got {value}")
