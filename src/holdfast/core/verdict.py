"""What is known of a sample in the end, and what each statement is about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from holdfast.core.threat import Guarantee

__all__ = ["NEAREST_TO_REAL", "Certificate", "Clash", "NoAnswer", "Status", "Subject", "Verdict", "Witness", "clash"]

NEAREST_TO_REAL = "float64"
"""The type whose answers stand for those in real numbers: no run comes nearer."""


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


@dataclass(frozen=True, kw_only=True)
class Witness:
    """An input that breaks the model, by reference.

    Attributes:
        distance: its distance from the clean input in the threat model's norm.
        attack: name of the method that found it.
        sha256: hash of the stored tensor.
        margin: the criterion's margin there; negative.
        arithmetics: the types in which it held when the referee asked, for example ``("float32", "float64")``; empty where
            nobody wrote it down.
        prediction: the class that the model gives it; None where its answer names none.
    """

    distance: float
    attack: str
    sha256: str
    margin: float
    arithmetics: tuple[str, ...] = ()
    prediction: int | None = None


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A radius within which nothing breaks the model.

    Attributes:
        radius: in the threat model's norm.
        guarantee: sound, probabilistic or only an estimate.
        method: name of the certifier.
        arithmetic: for SOUND, the arithmetic in which it holds, for example ``real numbers, bounds in float64``.
        alpha: for PROBABILISTIC, the chance that it is wrong.
        fit: for an ESTIMATE by a fitted distribution, the p-value of the fit: small for a bad one.
        deployed: the type in whose arithmetic it holds of the model as it runs, for example ``float16``; None where it holds
            of the model in real numbers.
    """

    radius: float
    guarantee: Guarantee
    method: str
    arithmetic: str = ""
    alpha: float | None = None
    fit: float | None = None
    deployed: str | None = None


class Clash(StrEnum):
    """What a witness inside a certified radius means."""

    CONTRADICTION = "contradiction"
    """One of the two is wrong: the certificate is SOUND, and the witness holds in its arithmetic. It stops a run."""
    FINDING = "finding"
    """Both may be right: a PROBABILISTIC certificate is wrong with the chance ``alpha``, its p-value; or a SOUND one speaks
    of another arithmetic than those in which the witness holds, and rounding decides."""
    NOTE = "note"
    """The certificate is an ESTIMATE, which proves nothing."""


def clash(witness: Witness | NoAnswer, certificate: Certificate) -> Clash | None:
    """What it means that a certificate and a witness stand beside each other; None where they agree.

    Both must be of one sample, one subject and one norm. A radius holds on its edge too. A witness of which nobody says in
    which arithmetics it holds, and an input without an answer, is taken to do so in every one.

    Example:
        >>> from dataclasses import replace
        >>> near = Witness(distance=0.1, attack="pgd", sha256="", margin=-1.0, arithmetics=("float32", "float64"))
        >>> proved = Certificate(radius=0.1, guarantee=Guarantee.SOUND, method="crown")
        >>> clash(near, proved), clash(near, replace(proved, radius=0.0999))
        (<Clash.CONTRADICTION: 'contradiction'>, None)
        >>> clash(near, replace(proved, deployed="float16"))  # it was not asked there
        <Clash.FINDING: 'finding'>
    """
    if not witness.distance <= certificate.radius:
        return None
    if certificate.guarantee is Guarantee.ESTIMATE:
        return Clash.NOTE
    if certificate.guarantee is Guarantee.PROBABILISTIC:
        return Clash.FINDING
    held = witness.arithmetics if isinstance(witness, Witness) else ()
    return Clash.CONTRADICTION if not held or (certificate.deployed or NEAREST_TO_REAL) in held else Clash.FINDING


@dataclass(frozen=True, kw_only=True)
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
