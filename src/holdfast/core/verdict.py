"""What is known of a sample in the end, and what each statement is about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from holdfast.core.threat import Guarantee

__all__ = ["Certificate", "NoAnswer", "Status", "Subject", "Verdict", "Witness"]


class Status(StrEnum):
    """The state of a sample at eps."""

    MISCLASSIFIED = "MISCLASSIFIED"
    BROKEN = "BROKEN"
    CERTIFIED = "CERTIFIED"
    UNKNOWN = "UNKNOWN"
    MARGINAL = "MARGINAL"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Subject:
    """What a witness or a certificate is about; only equal subjects are reconciled or share a headline.

    Attributes:
        kind: ``model`` (f), ``smoothed`` (g = smooth(f, sigma, n)) or ``learner`` (a training algorithm with its data).
        sha256: hash of the weights and the architecture.
        detail: what the kind needs beyond the hash, for example ``sigma=0.25``.
    """

    kind: str
    sha256: str
    detail: str = ""


@dataclass(frozen=True)
class Witness:
    """An input that breaks the model, by reference.

    Attributes:
        distance: its distance from the clean input in the threat model's norm.
        attack: name of the method that found it.
        sha256: hash of the stored tensor.
        margin: the criterion's margin there; negative.
    """

    distance: float
    attack: str
    sha256: str
    margin: float


@dataclass(frozen=True)
class NoAnswer:
    """An input to which the model gives no answer that can be judged, by reference.

    Attributes:
        distance: its distance from the clean input in the threat model's norm.
        attack: name of the method that asked it.
        sha256: hash of the stored tensor.
        met: what the model answers there, in words.
    """

    distance: float
    attack: str
    sha256: str
    met: str


@dataclass(frozen=True)
class Certificate:
    """A radius within which nothing breaks the model.

    Attributes:
        radius: in the threat model's norm.
        guarantee: sound, probabilistic or only an estimate.
        method: name of the certifier.
        arithmetic: for SOUND, the arithmetic in which it holds, for example ``real numbers, bounds in float64``.
        alpha: for PROBABILISTIC, the chance that it is wrong.
        fit: for an ESTIMATE by a fitted distribution, the p-value of the fit: small for a bad one.
    """

    radius: float
    guarantee: Guarantee
    method: str
    arithmetic: str = ""
    alpha: float | None = None
    fit: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Both sides of one sample."""

    id: int
    label: int
    prediction: int
    status: Status
    witness: Witness | None
    certificate: Certificate | None
    forwards: int
    backwards: int
    queries: int
    no_answer: NoAnswer | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain values, as in report.json."""
        return asdict(self)
