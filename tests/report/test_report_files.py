"""The files of a run: what machines read, and the same bytes for the same audit."""

import json
from xml.etree import ElementTree as xml

import pytest
from pydantic import ValidationError

from holdfast.audits.document import Document
from holdfast.report.audits import junit, sarif, write
from holdfast.report.audits.page import render as render_page

ERROR = {
    "code": "masking.zero",
    "severity": "error",
    "title": "zero gradients",
    "message": "All are 0.",
    "remedy": "Use it.",
}


def test_writes_four_files_with_the_same_bytes_each_time(document, pictures, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, document, pictures)
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert set(files) == {"report.html", "report.json", "report.sarif", "junit.xml"}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert len(files["report.html"]) < 1_000_000


def test_sarif_names_each_finding_once_with_its_help(make):
    document = make(findings=[ERROR, ERROR | {"severity": "note"}], model={"source": "a dir/m<1>.pt"})
    log = json.loads(sarif.render(document))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [r["id"] for r in rules] == ["holdfast.broken", "masking.zero"]
    assert rules[1]["help"]["text"] == "Use it."
    assert [r["level"] for r in run["results"]] == ["warning", "error", "note"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri == "a%20dir/m%3C1%3E.pt"
    assert "never counted as robust" in run["results"][0]["message"]["text"]
    assert run["invocations"][0]["executionSuccessful"] is False  # a finding that is an error: exit code 3


def test_sarif_reports_a_contradiction_as_an_error(make):
    wrong = {
        "id": 3,
        "radius": 0.1,
        "distance": 0.05,
        "guarantee": "sound",
        "method": "crown",
        "attack": "pgd",
        "sha256": "00",
    }
    log = json.loads(sarif.render(make(contradictions=[wrong], complete=False)))
    assert log["runs"][0]["results"][0]["ruleId"] == "holdfast.contradiction"
    assert log["runs"][0]["results"][0]["level"] == "error"
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False


def _cases(text: str) -> tuple[xml.Element, dict[str, xml.Element]]:
    suite = xml.fromstring(text).find("testsuite")
    assert suite is not None
    return suite, {f"{c.get('classname')} {c.get('name')}".replace("holdfast.", ""): c for c in suite}


@pytest.mark.parametrize(
    ("threshold", "side", "fails"),
    [(0.49, "empirical", False), (0.4901, "empirical", True), (0.34, "certified", False), (0.35, "certified", True)],
)
def test_a_gate_holds_the_bound_to_the_threshold(document, threshold, side, fails):
    held = document.gated(threshold, side)
    suite, cases = _cases(junit.render(held))
    (case,) = [c for name, c in cases.items() if name.startswith("threshold")]
    assert (case.find("failure") is not None) == fails
    assert suite.get("failures") == str(int(fails))
    assert suite.get("tests") == str(len(cases))
    assert (held.gate.passed, held.exit_code) == (not fails, int(fails))


WEAK = {"upper_bound_weak": True, "upper_bound_note": "gradients vanish"}


@pytest.mark.parametrize(
    ("head", "changes", "gate", "code"),
    [
        ({}, {}, None, 0),
        (WEAK, {}, None, 0),
        ({}, {"complete": False}, None, 3),
        ({}, {"findings": [ERROR]}, None, 3),
        (WEAK, {}, (0.4, "empirical", False), 1),
        (WEAK, {}, (0.4, "empirical", True), 0),
        (WEAK, {}, (0.5, "empirical", True), 1),
        (WEAK, {}, (0.3, "certified", False), 0),  # what is proved does not hang on the attacks
        (WEAK, {"complete": False}, (0.4, "empirical", True), 3),
        ({}, {"complete": False}, (0.0, "certified", False), 3),
        ({}, {}, (0.4, "empirical", False), 0),
    ],
)
def test_junit_and_sarif_say_what_the_exit_code_says(make, document, head, changes, gate, code):
    found = make(headline=document.headline.model_copy(update=head), **changes)
    if gate is not None:
        found = found.gated(gate[0], gate[1], allow_weak=gate[2])
        assert found.gate.passed == (code == 0)
    assert found.exit_code == code
    assert Document.model_validate(found.model_dump(mode="json")) == found
    suite, _ = _cases(junit.render(found))
    assert (suite.get("failures") == "0") == (code == 0)
    (run,) = json.loads(sarif.render(found))["runs"]
    assert run["invocations"][0]["exitCode"] == code
    assert run["invocations"][0]["executionSuccessful"] == (code != 3)
    told = [r for r in run["results"] if r["ruleId"] == "holdfast.gate"]
    assert bool(told) == (gate is not None and code != 0)
    assert all(r["level"] == "error" for r in told)
    page = render_page(found)
    assert ("FAILED" in page) == (gate is not None and code != 0)


def test_a_gate_that_is_said_to_have_passed_and_did_not_is_refused(document):
    told = document.gated(0.9).model_dump(mode="json")
    told["gate"] |= {"passed": True, "reasons": []}
    with pytest.raises(ValidationError, match="gate"):
        Document.model_validate(told)


def test_junit_without_a_threshold_skips_its_case(document):
    suite, _ = _cases(junit.render(document))
    assert (suite.get("skipped"), suite.get("failures")) == ("1", "0")


def test_junit_fails_on_errors_and_unfinished_runs_only(make):
    note = ERROR | {"code": "a.note", "severity": "note", "title": "by\x00the\x1bway"}
    suite, cases = _cases(junit.render(make(findings=[ERROR, note], complete=False)))
    assert suite.get("failures") == "2"
    assert cases["findings masking.zero: zero gradients"].find("failure") is not None
    assert cases["findings a.note: by?the?way"].find("failure") is None
