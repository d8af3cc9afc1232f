"""JUnit XML: the threshold, the state of the run and each finding as test cases that any CI shows."""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree as xml

from holdfast.audit.document import Document
from holdfast.core.findings import Severity
from holdfast.report.markup import percent, printable

__all__ = ["Side", "render"]

Side = Literal["empirical", "certified"]


def render(document: Document, fail_under: float | None = None, side: Side = "empirical") -> str:
    """Test cases: the threshold (skipped when there is none), the run being whole, and one per finding.

    A finding that is an error fails; a warning or a note passes and says itself in the case's output.

    Args:
        document: what the audit found.
        fail_under: robust accuracy in [0, 1] that ``side`` must reach.
        side: the bound that is held to it.
    """
    suite = xml.Element("testsuite", name="holdfast audit", timestamp=_clean(document.environment.when))
    _threshold(suite, document, fail_under, side)
    whole = _case(suite, "run", "the run is complete and contradicts itself nowhere")
    if document.contradictions:
        ids = ", ".join(str(c.id) for c in document.contradictions)
        _say(whole, "failure", "a witness lies inside a certified radius", f"samples {ids}")
    elif not document.complete:
        _say(whole, "failure", "the run is incomplete", "its figures are not final")
    for finding in document.findings:
        case = _case(suite, "findings", f"{finding.code}: {finding.title}")
        if finding.severity is Severity.ERROR:
            _say(case, "failure", finding.title, f"{finding.message}\n{finding.remedy}")
        else:
            out = xml.SubElement(case, "system-out")
            out.text = _clean(f"{finding.severity}: {finding.message}\n{finding.remedy}")
    cases = list(suite)
    for kind, name in (("failure", "failures"), ("skipped", "skipped")):
        suite.set(name, str(sum(c.find(kind) is not None for c in cases)))
    suite.set("tests", str(len(cases)))
    suite.set("errors", "0")
    suite.set("time", f"{document.cost.seconds:.3f}")
    root = xml.Element("testsuites")
    root.append(suite)
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _threshold(suite: xml.Element, document: Document, fail_under: float | None, side: Side) -> None:
    head = document.headline
    reached = head.empirical_robust_accuracy if side == "empirical" else head.certified_robust_accuracy
    wanted = "no threshold" if fail_under is None else f"at least {percent(fail_under)}"
    case = _case(suite, "threshold", f"{side} robust accuracy, {wanted}")
    if fail_under is None:
        _say(case, "skipped", "no threshold was asked for (--fail-under)", "")
    elif reached is None or reached < fail_under:
        told = f"{side} robust accuracy is {percent(reached)}, below {percent(fail_under)}"
        _say(case, "failure", told, head.statement)
    xml.SubElement(case, "system-out").text = _clean(head.statement)


def _case(suite: xml.Element, group: str, name: str) -> xml.Element:
    return xml.SubElement(suite, "testcase", classname=f"holdfast.{group}", name=_clean(name), time="0")


def _say(case: xml.Element, kind: str, message: str, text: str) -> None:
    xml.SubElement(case, kind, message=_clean(message)).text = _clean(text) or None


def _clean(text: str) -> str:
    return printable(text.replace("\u00a0", " "))
