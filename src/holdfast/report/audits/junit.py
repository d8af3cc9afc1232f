"""JUnit XML: the threshold, the state of the run and each finding as test cases that any CI shows."""

from __future__ import annotations

from xml.etree import ElementTree as xml

from holdfast.audits.document import Document
from holdfast.core.findings import Severity
from holdfast.report.markup import percent, printable

__all__ = ["render"]


def render(document: Document) -> str:
    """Test cases: the gate (skipped when there is none), the run being whole, and one per finding.

    Some case fails if, and only if, the exit code is not 0. A finding that is an error fails; a warning or a note passes
    and says itself in the case's output.
    """
    suite = xml.Element("testsuite", name="holdfast audit", timestamp=_clean(document.environment.when))
    _gate(suite, document)
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


def _gate(suite: xml.Element, document: Document) -> None:
    gate, head = document.gate, document.headline
    if gate is None:
        case = _case(suite, "threshold", "robust accuracy, no threshold")
        _say(case, "skipped", "no threshold was asked for (--fail-under)", "")
    else:
        case = _case(suite, "threshold", f"{gate.side} robust accuracy, at least {percent(gate.threshold)}")
        if not gate.passed:
            _say(case, "failure", "; ".join(gate.reasons), head.statement)
    xml.SubElement(case, "system-out").text = _clean(head.statement)


def _case(suite: xml.Element, group: str, name: str) -> xml.Element:
    return xml.SubElement(suite, "testcase", classname=f"holdfast.{group}", name=_clean(name), time="0")


def _say(case: xml.Element, kind: str, message: str, text: str) -> None:
    xml.SubElement(case, kind, message=_clean(message)).text = _clean(text) or None


def _clean(text: str) -> str:
    return printable(text.replace("\u00a0", " "))
