"""Is the upper bound to be believed?

The checklists of Athalye et al. 2018 and Carlini et al. 2019 and the indicators of Pintor et al. 2022 as findings, each with
its remedy. A finding ``masking.*`` of severity WARNING makes the headline say ``upper bound weak``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from holdfast.audits.claims import unanswered
from holdfast.audits.context import Context
from holdfast.audits.evidence import Evidence
from holdfast.audits.records import DiagnosticsRecord, findings_of
from holdfast.audits.stages.gradients import difference_agrees, is_zero, margin_of
from holdfast.core.draws import Draws
from holdfast.core.findings import Finding, Severity
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Norm
from holdfast.core.words import counted
from holdfast.judge.archive import Keep
from holdfast.judge.inquiry import Inquiry
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.losses import cross_entropy
from holdfast.numerics.project import project
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.numerics.steps import steepest

__all__ = ["diagnose"]

_SAMPLES = 48
_STEPS, _LAST = 30, 10
_FEW = 0.05  # share of samples above which an indicator is called
_NEAR, _JUMP = 1e-3, 0.25  # smooth models spread by the share _NEAR there
_GRAIN = 1e-4  # of the largest score: what differs less differs by rounding


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """What a plain ascent of the margin showed on some samples."""

    zero: Tensor
    ever: Tensor
    last: Tensor
    moving: Tensor


def diagnose(context: Context, parts: Sequence[Evidence]) -> DiagnosticsRecord:
    """The findings of a finished suite, on a few samples that were classified right."""
    noticed = [*_reported(context, parts), *_compared(context, parts)]
    ids = np.concatenate([s.ids[s.correct] for s in parts]) if parts else np.zeros(0, dtype=np.int64)
    if not len(ids) or context.plan.access is not Access.WHITE_BOX or not context.differentiable:
        return DiagnosticsRecord(findings=findings_of(noticed))
    chosen = np.sort(ids[np.linspace(0, len(ids) - 1, min(_SAMPLES, len(ids))).astype(np.int64)])
    problem = context.problem(chosen)
    problem = replace(problem, draws=Draws(context.plan.seed, "diagnostics", context.device).of(chosen))
    inquiry = Inquiry.of(context.search, problem, Keep.NEAREST, micro_batch=context.plan.slots)
    with evaluating(context.search):
        noticed += [*_gradients(inquiry, problem), *_stability(inquiry, problem)]
        broken = {i for s in parts for i in s.broken}
        # g is judged by its own predictor: what a walk on its stand-in reaches is no witness that a suite missed
        noticed += _optimisation(inquiry, problem, broken if context.subject.kind == "model" else set(chosen.tolist()))
        noticed += _unconstrained(context, problem)
    return DiagnosticsRecord(
        findings=findings_of(noticed),
        cost=inquiry.ledger.total,
        unanswered=unanswered(context, problem, inquiry.outcome(context.plan.slots), "diagnostics"),
    )


def _walk(inquiry: Inquiry, problem: Problem) -> _Walk:
    """Steepest ascent of the margin with a fixed step, its every iterate looked at."""
    x = uniform_in_ball(problem.set, problem.x, problem.keyed, "walk")
    eps = problem.flat(problem.set.eps).to(x.dtype)
    zeros, holds, values = list[Tensor](), list[Tensor](), list[Tensor]()
    for _ in range(_STEPS):
        g = inquiry.gradient(x, problem.rows, margin_of(problem), problem.y, problem.target)
        zeros.append(is_zero(g.grad))
        holds.append(problem.criterion.holds(g.scores, problem.y, problem.target))
        values.append(g.value)
        direction = g.grad.sign() if problem.set.norm is Norm.L0 else steepest(problem.set.norm, g.grad)
        x = project(problem.set, x + 2.5 / _STEPS * eps * direction, problem.x)
    best = torch.stack(values).cummax(0).values
    span = (best[-1] - best[0]).clamp_min(1e-9)
    moving = (best[-1] - best[-1 - _LAST]) / span > 0.05
    return _Walk(
        zero=torch.stack(zeros).double().mean(0), ever=torch.stack(holds).any(0), last=holds[-1], moving=moving
    )


def _gradients(inquiry: Inquiry, problem: Problem) -> list[Finding]:
    """Zero and saturated gradients; gradients that disagree with finite differences."""
    findings: list[Finding] = []
    plain = inquiry.gradient(problem.x, problem.rows, margin_of(problem), problem.y, problem.target)
    ce = inquiry.gradient(problem.x, problem.rows, cross_entropy, problem.y, problem.target)
    zero, saturated = is_zero(plain.grad), is_zero(ce.grad) & ~is_zero(plain.grad)
    if float(zero.double().mean()) > _FEW:
        findings.append(
            Finding(
                code="masking.zero_gradient",
                severity=Severity.WARNING,
                title="gradients vanish",
                message=f"{int(zero.sum())} of {len(zero)} samples have a zero or undefined gradient of the margin",
                remedy="attack through a differentiable stand-in (BPDA wrapper) and add --suite black-box",
                data={"share": float(zero.double().mean())},
            )
        )
    if float(saturated.double().mean()) > _FEW:
        findings.append(
            Finding(
                code="gradients.saturated",
                severity=Severity.NOTE,
                title="cross-entropy has no gradient left",
                message=f"for {int(saturated.sum())} of {len(saturated)} samples cross-entropy is flat where the margin is not",
                remedy="the suites use margin and DLR losses; do not judge this model by a cross-entropy attack",
                data={"share": float(saturated.double().mean())},
            )
        )
    agree = difference_agrees(inquiry, problem, problem.x, plain.grad).double().mean()
    if float(agree) < 0.5:
        findings.append(
            Finding(
                code="masking.gradient_mismatch",
                severity=Severity.WARNING,
                title="gradients do not describe the model",
                message=f"the derivative along the gradient agrees with finite differences on "
                f"{100 * float(agree):.0f} % of the samples",
                remedy="look for quantisation, detach or rounding in forward; wrap it with a BPDA backward, add "
                "--suite black-box",
                data={"agreement": float(agree)},
            )
        )
    return findings


def _stability(inquiry: Inquiry, problem: Problem) -> list[Finding]:
    """Whether the margin jumps from point to point (IoAF: unstable predictions).

    Points a thousand times closer together differ a thousand times less where the model is smooth, whatever the margin
    is; where its answers are noise they differ as much as before.
    """
    far, near = (_spread(inquiry, problem, share) for share in (0.5, 0.5 * _NEAR))
    size = inquiry.clean(problem.rows).abs().nan_to_num(posinf=0, neginf=0).amax(1).double()
    share = float(((near > _JUMP * far) & (far > _GRAIN * size)).double().mean())
    if share <= 0.25:
        return []
    return [
        Finding(
            code="masking.unstable",
            severity=Severity.WARNING,
            title="the margin jumps between neighbouring points",
            message=f"on {100 * share:.0f} % of the samples, points {1 / _NEAR:.0f} times closer together differ almost as much "
            "in their margins as points at eps/2",
            remedy="a noisy loss surface hides gradients: average them (EOT wrapper) and add --suite black-box",
            data={"share": share},
        )
    ]


def _spread(inquiry: Inquiry, problem: Problem, share: float) -> Tensor:
    """(n,) how far the margins of random points within a share of eps lie apart."""
    ball, loss = problem.set.with_eps(problem.set.eps * share), margin_of(problem)
    values = list[Tensor]()
    for k in range(10):
        x = uniform_in_ball(ball, problem.x, problem.keyed, f"spread-{share:g}", k)
        values.append(loss(inquiry.logits(x, problem.rows)[0], problem.y, problem.target).double())
    return torch.stack(values).std(0)


def _optimisation(inquiry: Inquiry, problem: Problem, broken: set[int]) -> list[Finding]:
    """Lost successes, and losses that are still rising when the steps are up."""
    walk = _walk(inquiry, problem)
    findings: list[Finding] = []
    lost = int((walk.ever & ~walk.last).sum())
    if lost:
        findings.append(
            Finding(
                code="attack.silent_success",
                severity=Severity.NOTE,
                title="last iterates are not the best ones",
                message=f"a plain ascent broke {counted(lost, 'sample')} on its way and lost what it had again at its last step",
                remedy="nothing to do here: every row that an attack asks is kept; tools that return the last iterate "
                "would miss them",
                data={"samples": lost},
            )
        )
    robust = torch.tensor([i not in broken for i in problem.ids.tolist()], device=walk.moving.device)
    moving = float((walk.moving & robust).double().sum() / robust.double().sum().clamp_min(1))
    if moving > 0.5:
        findings.append(
            Finding(
                code="attack.unconverged",
                severity=Severity.NOTE,
                title="a plain ascent is still rising after its last step",
                message=f"on {100 * moving:.0f} % of the samples that stand, the best margin still moved in the last "
                f"{_LAST} steps",
                remedy="run --suite standard: its attacks take more steps",
                data={"share": moving},
            )
        )
    ever: list[bool] = walk.ever.cpu().numpy().tolist()
    missed = [i for i, b in zip(problem.ids.tolist(), ever, strict=True) if b and i not in broken]
    if missed:
        findings.append(
            Finding(
                code="masking.suite_missed",
                severity=Severity.WARNING,
                title="a plain ascent beats the suite",
                message=f"{counted(len(missed), 'sample')} that the suite left standing fell to a plain ascent",
                remedy="run --suite standard and compare; look for randomness in the model",
                data={"samples": len(missed)},
            )
        )
    zero = float((walk.zero > 0.5).double().mean())
    if zero > _FEW:
        findings.append(
            Finding(
                code="masking.flat_path",
                severity=Severity.WARNING,
                title="gradients vanish along the path",
                message=f"on {100 * zero:.0f} % of the samples most iterates of an ascent have no gradient",
                remedy="attack with restarts and --suite black-box",
                data={"share": zero},
            )
        )
    return findings


def _unconstrained(context: Context, problem: Problem) -> list[Finding]:
    """With the whole box allowed, every sample must fall (Athalye et al. 2018)."""
    width = float((problem.set.upper - problem.set.lower).max())
    whole = replace(problem.set.with_eps(width), norm=Norm.LINF)  # the box is the same set for every norm
    open_problem = replace(problem, set=whole)
    walk = _walk(Inquiry.of(context.search, open_problem, Keep.NEAREST), open_problem)
    share = float(walk.ever.double().mean())
    if share >= 0.95:
        return []
    return [
        Finding(
            code="masking.unconstrained",
            severity=Severity.WARNING,
            title="even an unconstrained attack fails",
            message=f"with the whole input range allowed, an ascent broke only {100 * share:.0f} % of the samples; 100 % is due",
            remedy="gradients are of no use here: use --suite black-box, a BPDA or an EOT wrapper",
            data={"share": share},
        )
    ]


def _reported(context: Context, parts: Sequence[Evidence]) -> list[Finding]:
    """What a reader must know to judge the figure: which attacks ran, and on how many samples."""
    n = sum(len(s.ids) for s in parts)
    plan = context.plan
    ran = {r.name: sum(len(s.tried.get(r.stage, ())) for s in parts) for r in plan.entries}
    ran = {name: tried for name, tried in ran.items() if tried}
    none = "none came to its end" if any(bool(s.correct.any()) for s in parts) else "no sample was classified right"
    worst = ", ".join(f"{name} (on {tried})" for name, tried in ran.items()) or f"no attack: {none}"
    findings = [
        Finding(
            code="report.scope",
            severity=Severity.NOTE,
            title="what the upper bound stands on",
            message=f"{plan.threat.describe(plan.eps_text)}; suite {plan.suite}, seed {plan.seed}, {counted(n, 'sample')}, "
            f"worst case over {worst}",
            remedy="",
            data={"samples": n, "attacks": len(ran)},
        )
    ]
    if blind := sum(len(s.hindered) for s in parts):
        right = sum(int(s.correct.sum()) for s in parts)
        findings.append(
            Finding(
                code="gradients.hindered",
                severity=Severity.NOTE,
                title="gradients that lead nowhere",
                message=f"on {blind} of {right} samples the first attack left standing, the gradient is zero, "
                "undefined or does not describe the model; attacks that only ask scores and labels were run there at "
                "full strength",
                remedy="wrap the operation that hides the gradient with a BPDA backward, and audit again",
                data={"samples": blind},
            )
        )
    return findings


def _compared(context: Context, parts: Sequence[Evidence]) -> list[Finding]:
    """Weak attacks that break what strong ones did not: per sample, not on average."""
    n = max(1, sum(len(s.ids) for s in parts))
    access = {r.stage: r.card.access for r in context.plan.entries}
    white = [stage for stage, a in access.items() if a is Access.WHITE_BOX]
    findings: list[Finding] = []
    by_queries = sum(
        1 for s in parts for c in s.broken.values() if access.get(c.stage) in (Access.SOFT_LABEL, Access.HARD_LABEL)
    )
    if white and by_queries / n > 0.002:
        findings.append(
            Finding(
                code="masking.black_box_wins",
                severity=Severity.WARNING,
                title="a random search beats the gradients",
                message=f"{counted(by_queries, 'sample')} withstood every gradient attack and fell to one that only asks scores",
                remedy="gradients are masked: trust the figure less, raise the queries (--suite black-box --queries 20000)",
                data={"samples": by_queries},
            )
        )
    by_probe = sum(1 for s in parts for c in s.broken.values() if c.stage == "probe")
    if by_probe:
        findings.append(
            Finding(
                code="masking.probe_wins",
                severity=Severity.WARNING,
                title="random points or a single step beat the suite",
                message=f"{counted(by_probe, 'sample')} withstood the suite and fell to random points of the set or "
                "to one gradient step",
                remedy="the attacks are hindered: look for masked or noisy gradients",
                data={"samples": by_probe},
            )
        )
    if context.randomised:
        findings.append(
            Finding(
                code="masking.randomised",
                severity=Severity.WARNING,
                title="the model answers at random",
                message="its answers differ from one call to the next; witnesses were judged by the majority of fresh draws",
                remedy="attack the expectation: wrap the model with holdfast.models.wrap.Eot",
                data={},
            )
        )
    return findings
