"""An audit in plain words: what the figures mean, what to be wary of, and the threat model as a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.audits.document import Document
from holdfast.audits.sections import FindingEntry, Gate, Threat
from holdfast.core.threat import Goal, Guarantee, Norm, parse_eps, size_text
from holdfast.core.verdict import Status
from holdfast.core.words import counted
from holdfast.report.markup import percent

__all__ = ["Banner", "attacker", "banners", "crosschecked", "finder", "judged", "meaning", "stage_name", "verdict_of"]

_SIZE = {
    Norm.LINF: "change every input value by at most {eps}",
    Norm.L2: "change the input by at most {eps} in Euclidean length",
    Norm.L1: "change the input values by at most {eps} in total",
    Norm.L0: "change at most {eps} input values, by as much as they like",
}
_ACCESS = {
    "white-box": "sees the weights and their gradients",
    "soft-label": "sees the score of every class, and nothing inside",
    "hard-label": "sees the winning class, and nothing else",
    "transfer": "cannot ask the model, and attacks others in its place",
}
_JUDGED = {
    "model": "the model itself",
    "smoothed": "the model smoothed with noise",
    "learner": "the training algorithm with its data",
}
_WORTH = {
    Guarantee.SOUND: "a proof",
    Guarantee.PROBABILISTIC: "true except with a small stated chance",
    Guarantee.ESTIMATE: "an estimate, not a proof",
}
_STAGES = {
    "preflight": "model and data looked at",
    "clean": "clean inputs",
    "triage": "proofs at eps, before the dear attacks",
    "gradients": "whether gradients lead anywhere",
    "probe": "random points and single steps",
    "shrink": "nearer witnesses of what is broken",
    "grid": "witnesses on the grid",
    "certificates": "certified radii",
    "diagnostics": "whether the upper bound is to be believed",
    "referee": "the referee's own questions",
}
_FINDERS = {"probe": "random points and single steps", "shrink": "short search for the nearest witness"}
_CROSSED = ("certificate.other_arithmetic", "certificate.improbable")
_OPEN = (Status.UNKNOWN, Status.MARGINAL, Status.TIMEOUT, Status.ERROR)


@dataclass(frozen=True)
class Banner:
    """A line across the top of the page that no one should miss."""

    kind: str
    title: str
    text: str


def banners(document: Document) -> list[Banner]:
    """What makes the headline doubtful, worst first."""
    out: list[Banner] = []
    if wrong := document.contradictions:
        ids = ", ".join(str(c.id) for c in wrong[:8]) + (" and more" if len(wrong) > 8 else "")
        text = (
            f"On sample {ids} an input inside a certified radius breaks the model. "
            "One of the two is wrong: trust no figure here."
        )
        out.append(Banner("bad", "CONTRADICTION", text))
    for finding in _crossed(document):
        text = f"{_sentence(finding.title)} The finding {finding.code} says on which samples and what it means."
        out.append(Banner("warn", "BROKEN INSIDE A CERTIFIED RADIUS", text))
    if not document.complete:
        out.append(Banner("bad", "INCOMPLETE", f"{_unfinished(document)} These figures are not final."))
    head = document.headline
    if head.upper_bound_weak:
        why = _sentence(head.upper_bound_note or "the attacks were hindered")
        text = f"{why} The true robust accuracy is likely well below the empirical figure."
        out.append(Banner("bad", "UPPER BOUND WEAK", text))
    elif head.upper_bound_note:
        out.append(Banner("warn", "UPPER BOUND", _sentence(head.upper_bound_note)))
    return out


def _crossed(document: Document) -> list[FindingEntry]:
    """What is said of witnesses inside certified radii where neither need be wrong."""
    return [f for f in document.findings if f.code in _CROSSED]


def _unfinished(document: Document) -> str:
    """Why a run is not complete."""
    failed = [stage_name(s.name) for s in document.stages if s.status == "failed"]
    partial = [stage_name(s.name) for s in document.stages if s.status == "partial"]
    unjudged = document.headline.errors + document.headline.timeouts
    said: list[str] = []
    if unjudged:
        upper = document.headline.empirical_robust_accuracy
        most = upper + unjudged / max(1, document.headline.samples)
        said.append(
            f"{unjudged} of {counted(document.headline.samples, 'sample')} could not be judged. They count as broken in the "
            f"empirical figure of {percent(upper)}; were they all robust, it would be {percent(most)}."
        )
    if failed:
        said.append(f"Failed: {', '.join(failed)}; the finding run.failed says why.")
    if partial:
        said.append(f"Not ended: {', '.join(partial)}.")
    return " ".join(said or ["The run did not end."])


def stage_name(name: str) -> str:
    """A stage of the run in words; its key in the journal is not made for readers.

    Example:
        >>> stage_name("triage"), stage_name("attack:square"), stage_name("eps-grid:1/20")
        ('proofs at eps, before the dear attacks', 'attack square', 'attack at eps 0.05')
    """
    kind, _, rest = name.partition(":")
    if kind == "attack":
        return (
            f"attack {rest.removesuffix('_blind')}{' where gradients lead nowhere' if rest.endswith('_blind') else ''}"
        )
    return f"attack at eps {size_text(parse_eps(rest))}" if kind == "eps-grid" else _STAGES.get(name, name)


def finder(attack: str) -> str:
    """What found a witness, in words: an attack's name, or what another stage of the run is."""
    return _FINDERS.get(attack, attack.removesuffix("_blind"))


def crosschecked(document: Document) -> str:
    """How hard certified samples were attacked all the same: what the cross-check of both sides is worth."""
    suite = document.suite
    proved = [s for s in document.samples if s.status is Status.CERTIFIED]
    tried = f"{suite.certified_attacked} of the certified samples were attacked all the same"
    full = f"{suite.certified_full_ladder} of them by the last attack of the suite"
    if document.contradictions:
        return f"{tried}, {full}; see the contradiction"
    if crossed := _crossed(document):
        return f"{tried}, {full}; see {' and '.join(f.code for f in crossed)}"
    if any(s.certificate and s.certificate.guarantee is Guarantee.PROBABILISTIC for s in proved):
        return f"{tried}, {full}; none was broken inside its radius, where that has a small stated chance"
    return f"{tried}, {full}; no proof was contradicted"


def verdict_of(gate: Gate) -> str:
    """The gate and whether it passed, in one line."""
    weak = ", a weak upper bound accepted" if gate.allow_weak else ""
    head = f"{gate.side} robust accuracy of at least {percent(gate.threshold)}{weak}"
    return f"passed: {head}" if gate.passed else f"FAILED: {head}; {'; '.join(gate.reasons)}"


def _sentence(note: str) -> str:
    """A note as a sentence that can stand behind a banner's title.

    Example:
        >>> _sentence("upper bound weak: gradients vanish")
        'Gradients vanish.'
    """
    words = note.removeprefix("upper bound weak: ").rstrip(".")
    return f"{words[:1].upper()}{words[1:]}."


def attacker(threat: Threat) -> str:
    """The threat model as a sentence."""
    goal = "any wrong answer" if threat.goal is Goal.UNTARGETED else "one wrong answer of their choice"
    change = _SIZE[threat.norm].format(eps=threat.eps)
    access = _ACCESS.get(threat.access, f"has {threat.access} access")
    knowledge = f" They also know: {', '.join(threat.known)}." if threat.known else ""
    grid = f" Inputs must lie on a grid of {threat.grid}." if threat.grid else ""
    box = f"within the valid range {threat.low:g} to {threat.high:g}"
    return f"The attacker may {change}, {box}; {access}; and wants {goal}.{grid}{knowledge}"


def judged(document: Document) -> str:
    """What the verdicts are about, and how sure a certificate of it is."""
    chances = [
        s.certificate.alpha
        for s in document.samples
        if s.certificate is not None and s.certificate.guarantee is Guarantee.PROBABILISTIC and s.certificate.alpha
    ]
    said = f"{_JUDGED[document.subject.kind]}{f', {document.subject.detail}' if document.subject.detail else ''}"
    return f"{said}; a certificate holds with probability {1 - max(chances):g} for each sample" if chances else said


def _of_what(document: Document) -> str:
    return " of the smoothed model" if document.subject.kind == "smoothed" else ""


def _samples(number: int, verb: tuple[str, str] = ("is", "are")) -> str:
    return f"{counted(number, 'sample')} {verb[0] if number == 1 else verb[1]}"


def meaning(document: Document) -> list[str]:
    """The headline in a few short paragraphs."""
    head, counts = document.headline, document.counts()
    n, right = head.samples, head.samples - counts[Status.MISCLASSIFIED]
    certified, broken = counts[Status.CERTIFIED], counts[Status.BROKEN]
    gap = n - counts[Status.MISCLASSIFIED] - broken - certified
    eps = f"{document.threat.norm} {document.threat.eps}"
    left_alone = (
        f"Left alone, the model is right on {right} of {counted(n, 'sample')} ({percent(head.clean_accuracy)})."
    )
    attacked = f"Within {eps} of them, the attacks broke none."
    if broken:
        attacked = (
            f"Within {eps} of them, {_samples(broken, ('was', 'were'))} broken: an input was found that changes the answer, and "
            "a referee that took no part in the search judged it again."
        )
    out = [f"{left_alone} {attacked}"]
    if head.certified_robust_accuracy is None:
        out.append(
            "Nothing was certified in this run, so there is no lower bound: the true figure may be anything below."
        )
    else:
        worths = {s.certificate.guarantee for s in document.samples if s.certificate and s.status is Status.CERTIFIED}
        worth = "; ".join(_WORTH[g] for g in Guarantee if g in worths)
        out.append(
            f"{_samples(certified)} certified{f' ({worth})' if worth else ''}: nothing an attacker does within the set "
            f"changes the answer{_of_what(document)}, by any method, known or not."
        )
    if gap:
        kinds = ", ".join(f"{s} {counts[s]}" for s in _OPEN if counts[s])
        out.append(
            f"{_samples(gap)} neither ({kinds}). UNKNOWN is never counted as robust: a stronger attack may "
            "break them, a tighter proof may certify them."
        )
    upper = percent(head.intervals.empirical[1])
    if head.intervals.certified is None:
        interval = f"the 95 % interval of the upper bound reaches up to {upper}"
    else:
        interval = f"the 95 % intervals of the two bounds reach from {percent(head.intervals.certified[0])} to {upper}"
    out.append(f"Beyond {'this' if n == 1 else 'these'} {counted(n, 'sample')}, on data drawn alike, {interval}.")
    return out
