"""Where a witness lies inside a certified radius: what stops the run, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from holdfast.audits.context import Context
from holdfast.audits.sections import Contradiction
from holdfast.core.errors import JournalError, UnsupportedError
from holdfast.core.findings import Finding, Severity
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import NEAREST_TO_REAL, Certificate, Clash, NoAnswer, Verdict, Witness, clash
from holdfast.numerics.stats import binomial_p_value

__all__ = ["contradictions", "doubts", "settled"]

_BATCH = 64
_SHOWN = 8  # ids in a message


def settled(context: Context, verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
    """The verdicts, with float64 among the arithmetics of a witness that breaks the certified graph there.

    Where the model itself does not run in float64, the referee cannot tell a witness in real numbers from one of rounding, and
    how far its answers differ bounds no rounding. The graph that a certificate in real numbers speaks of can be asked there.
    """
    unclear = [
        (k, v.id, v.witness)
        for k, v in enumerate(verdicts)
        if v.witness is not None
        and v.certificate is not None
        and v.certificate.guarantee is Guarantee.SOUND
        and v.certificate.deployed is None
        and clash(v.witness, v.certificate) is Clash.FINDING
    ]
    if not unclear:
        return verdicts
    try:
        graph = context.graph.to(torch.float64).as_module()
    except UnsupportedError:
        return verdicts  # of a journal that was altered: there is nothing to certify
    problem = context.problem(np.array([i for _, i, _ in unclear]))
    x = torch.stack([context.folder.witness(witness.sha256) for _, _, witness in unclear])
    if x.shape != problem.x.shape:
        raise JournalError("a witness has another shape than the data")
    with torch.no_grad():
        scores = torch.cat([graph(part) for part in torch.split(x.to(context.device, torch.float64), _BATCH)])
    breaks: list[bool] = (problem.criterion.margin(scores, problem.y, problem.target) < 0).cpu().numpy().tolist()
    out = list(verdicts)
    for (k, _, witness), broken in zip(unclear, breaks, strict=True):
        if broken:
            out[k] = replace(out[k], witness=replace(witness, arithmetics=(*witness.arithmetics, NEAREST_TO_REAL)))
    return out


def contradictions(verdicts: Sequence[Verdict]) -> list[Contradiction]:
    """Witnesses, and inputs without a decision, inside a radius that was proved in an arithmetic in which they hold."""
    return [
        Contradiction(
            id=i,
            radius=c.radius,
            distance=end.distance,
            guarantee=c.guarantee,
            method=c.method,
            attack=end.attack,
            sha256=end.sha256,
            message=f"{_named(end)} lies inside the certified radius: one of the two is wrong",
        )
        for i, end, c in _clashing(verdicts, Clash.CONTRADICTION)
    ]


def doubts(verdicts: Sequence[Verdict]) -> list[Finding]:
    """What witnesses inside certified radii say where neither of the two need be wrong."""
    unlikely, elsewhere = list[int](), list[int]()
    for i, _, certificate in _clashing(verdicts, Clash.FINDING):
        (unlikely if certificate.guarantee is Guarantee.PROBABILISTIC else elsewhere).append(i)
    findings = list[Finding]()
    if ids := sorted(set(unlikely)):
        findings.append(_improbable(verdicts, ids))
    if ids := sorted(set(elsewhere)):
        findings.append(
            Finding(
                code="certificate.other_arithmetic",
                severity=Severity.WARNING,
                title="broken as it runs, where it is proved in another arithmetic",
                message=f"samples {_some(ids)}: a witness lies inside the certified radius, and is upheld in other "
                "arithmetics than that of the certificate; both may be right, the model as it runs is broken there",
                remedy="certify the model as it runs (holdfast certify --deployed), or deploy it in the arithmetic "
                "that was certified",
                data={"samples": len(ids)},
            )
        )
    if ids := sorted({i for i, _, _ in _clashing(verdicts, Clash.NOTE)}):
        findings.append(
            Finding(
                code="certificate.estimate",
                severity=Severity.NOTE,
                title="estimates above the distance of a witness",
                message=f"samples {_some(ids)}: a witness lies inside the estimated radius; an estimate proves nothing",
                data={"samples": len(ids)},
            )
        )
    return findings


def _improbable(verdicts: Sequence[Verdict], ids: Sequence[int]) -> Finding:
    """How likely it is that so many probabilistic certificates are wrong, if each is with its own small chance."""
    chances = [
        v.certificate.alpha or 0.0
        for v in verdicts
        if v.certificate is not None and v.certificate.guarantee is Guarantee.PROBABILISTIC
    ]
    most = max(chances)  # the largest chance of all makes the p-value too large at most, never too small
    p = float(binomial_p_value(len(ids), len(chances), most, "greater"))
    return Finding(
        code="certificate.improbable",
        severity=Severity.WARNING,
        title="witnesses inside radii that hold with high probability",
        message=f"samples {_some(ids)}: a witness lies inside the certified radius. Each certificate is wrong with a "
        f"chance of at most {most:g}; that {len(ids)} of {len(chances)} are has the p-value {p:.3g}",
        remedy="such samples count as broken where the witness lies within eps; if the p-value is small, draw anew with another "
        "seed, and report what stays",
        data={"samples": len(ids), "certificates": len(chances), "alpha": most, "p_value": p},
    )


def _clashing(verdicts: Sequence[Verdict], kind: Clash) -> Iterator[tuple[int, Witness | NoAnswer, Certificate]]:
    for v in verdicts:
        for end in (v.witness, v.no_answer):
            if end is not None and v.certificate is not None and clash(end, v.certificate) is kind:
                yield v.id, end, v.certificate


def _named(end: Witness | NoAnswer) -> str:
    witness = isinstance(end, Witness)
    return "a witness that the referee let stand" if witness else "an input that the model has no decision for"


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
