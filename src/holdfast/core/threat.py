"""The threat model: who attacks, with what access, towards what goal, within what set (survey, sections 1 and 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from fractions import Fraction

from typing_extensions import override

from holdfast.core.errors import UsageError, did_you_mean

__all__ = ["Access", "Formulation", "Goal", "Guarantee", "Norm", "Phase", "ThreatModel", "parse_eps", "size_text"]

_LARGEST = 10**30  # of a size; no input has features that far apart


class Norm(StrEnum):
    """An lp distortion (survey, Table 3)."""

    L0 = "l0"
    L1 = "l1"
    L2 = "l2"
    LINF = "linf"

    @classmethod
    @override
    def _missing_(cls, value: object) -> Norm:
        """The other ways to write a norm: ``Linf``, ``L_inf``, ``inf``, ``2``, ``float("inf")``."""
        text = str(value).strip().lower().replace("_", "").replace("infinity", "inf").removesuffix(".0")
        name = text if text.startswith("l") else f"l{text}"
        for norm in cls:
            if norm.value == name:
                return norm
        raise UsageError(f"no norm '{value}'; use one of {', '.join(cls)}")

    @property
    def dual(self) -> Norm:
        """The norm q with 1/p + 1/q = 1.

        Example:
            >>> Norm.LINF.dual
            <Norm.L1: 'l1'>
        """
        if self is Norm.L0:
            raise UsageError("l0 is no norm and has no dual; use l1, l2 or linf")
        return {Norm.L1: Norm.LINF, Norm.L2: Norm.L2, Norm.LINF: Norm.L1}[self]


class Goal(StrEnum):
    """What the attacker wants of the output."""

    UNTARGETED = "untargeted"
    TARGETED = "targeted"


class Phase(StrEnum):
    """When the attacker acts."""

    TRAINING = "training"
    DEPLOYMENT = "deployment"


class Access(IntEnum):
    """What the attacker may ask of the model; a larger value may do all that a smaller one may."""

    TRANSFER = 0
    HARD_LABEL = 1
    SOFT_LABEL = 2
    WHITE_BOX = 3

    @property
    def label(self) -> str:
        """The name as people write it, for example ``hard-label``."""
        return self.name.lower().replace("_", "-")


class Formulation(StrEnum):
    """The three formulations of an evasion attack (survey, equations 1 to 3)."""

    MINIMAL_DISTORTION = "minimal distortion (1)"
    PENALTY = "penalty (2)"
    BUDGET = "budget (3)"


class Guarantee(StrEnum):
    """What a lower bound is worth."""

    SOUND = "sound"
    PROBABILISTIC = "probabilistic"
    ESTIMATE = "estimate"


def parse_eps(text: str | float | int | Fraction) -> Fraction:
    """A perturbation size as an exact rational: ``8/255``, ``0.1``, ``1e-2``.

    Raises:
        UsageError: not a number from 0 to 1e30.

    Example:
        >>> parse_eps("8/255")
        Fraction(8, 255)
        >>> parse_eps(0.1)
        Fraction(1, 10)
    """
    try:
        value = text if isinstance(text, Fraction) else Fraction(str(text).replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"'{text}' is no perturbation size; write it as 8/255 or 0.03") from None
    if value < 0:
        raise UsageError(f"a perturbation size cannot be negative, got {text}")
    if value > _LARGEST:
        raise UsageError(f"a perturbation size of {str(text)[:40]} is larger than any input; write it as 8/255 or 0.03")
    return value


def size_text(size: Fraction) -> str:
    """A size as people write it: a decimal where it has a short one, else the fraction.

    Example:
        >>> size_text(Fraction(1, 10)), size_text(Fraction(8, 255)), size_text(Fraction(3))
        ('0.1', '8/255', '3')
    """
    short = f"{float(size):.6g}"
    return short if "e" not in short and Fraction(short) == size else str(size)


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Everything that a robustness figure is relative to.

    Attributes:
        norm: the distortion that is bounded.
        eps: its bound, exact.
        goal: untargeted or targeted.
        access: the most that the attacker may ask of the deployed model.
        low: least value of an input feature.
        high: largest value of an input feature.
        grid: if set, inputs must be ``low`` plus a multiple of this (1/255 for 8-bit images).
        known: the parts of the deployment that the attacker knows although the access does not show them: the gray-box
            setting and T06 of the survey's section 1 (``architecture``, ``training-data``, ``surrogate``).
        phase: training or deployment.
    """

    norm: Norm
    eps: Fraction
    goal: Goal = Goal.UNTARGETED
    access: Access = Access.WHITE_BOX
    low: float = 0.0
    high: float = 1.0
    grid: Fraction | None = None
    known: tuple[str, ...] = ()
    phase: Phase = Phase.DEPLOYMENT

    @classmethod
    def of(
        cls,
        norm: Norm | str,
        eps: Fraction | str | float,
        *,
        goal: Goal | str = Goal.UNTARGETED,
        access: Access | str = Access.WHITE_BOX,
        low: float = 0.0,
        high: float = 1.0,
        grid: Fraction | str | float | None = None,
    ) -> ThreatModel:
        """A threat model from values as people write them.

        Args:
            norm: ``l0``, ``l1``, ``l2`` or ``linf``.
            eps: its bound: ``8/255``, ``0.1``.
            goal: ``untargeted`` or ``targeted``.
            access: the most that the attacker may ask: ``white-box``, ``soft-label``, ``hard-label`` or ``transfer``.
            low: least value of an input feature.
            high: largest value of an input feature.
            grid: distance of neighbouring valid values.

        Raises:
            UsageError: no such norm, goal or access, or no size.

        Example:
            >>> ThreatModel.of("linf", "8/255").describe()
            'linf <= 8/255 in [0, 1], untargeted, white-box'
        """
        return cls(
            norm=Norm(norm),
            eps=parse_eps(eps),
            goal=_goal(goal),
            access=_access(access),
            low=low,
            high=high,
            grid=None if grid is None else parse_eps(grid),
        )

    def __post_init__(self) -> None:
        if self.grid is not None and self.grid <= 0:
            raise UsageError(
                "the distance of neighbouring valid values is above 0; leave the grid out where there is none"
            )
        if not self.low < self.high:
            raise UsageError(f"the input range is empty: low {self.low} is not below high {self.high}")
        width = Fraction(self.high) - Fraction(self.low)
        if self.norm is Norm.LINF and self.eps > width / 2:
            raise UsageError(
                f"eps {size_text(self.eps)} is more than half of the input range [{self.low:g}, {self.high:g}]; "
                f"if you meant {size_text(self.eps)}/255, write it so"
            )

    def describe(self, typed: str | None = None) -> str:
        """One line for people, for example ``linf <= 8/255 in [0, 1], untargeted, white-box``.

        Args:
            typed: eps as its reader wrote it.
        """
        parts = [
            f"{self.norm} <= {typed or size_text(self.eps)} in [{self.low:g}, {self.high:g}]",
            str(self.goal),
            self.access.label,
        ]
        if self.grid:
            parts.append(f"grid {size_text(self.grid)}")
        if self.known:
            parts.append(f"known to the attacker: {', '.join(self.known)}")
        return ", ".join(parts)


def _goal(name: Goal | str) -> Goal:
    if name not in list(Goal):
        raise UsageError(f"there is no goal '{name}'. {did_you_mean(name, list(Goal))}")
    return Goal(name)


def _access(name: Access | str) -> Access:
    if isinstance(name, Access):
        return name
    labels = {a.label: a for a in Access}
    if name not in labels:
        raise UsageError(f"there is no access '{name}'. {did_you_mean(name, labels)}")
    return labels[name]
