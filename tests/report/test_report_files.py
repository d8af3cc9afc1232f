"""The files of a run: what machines read, and the same bytes for the same audit."""

import json
from xml.etree import ElementTree as xml

import pytest

from holdfast.report import junit, sarif, write

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
    assert run["invocations"][0]["executionSuccessful"] is True


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
def test_junit_holds_the_bound_to_the_threshold(document, threshold, side, fails):
    suite, cases = _cases(junit.render(document, threshold, side))
    (case,) = [c for name, c in cases.items() if name.startswith("threshold")]
    assert (case.find("failure") is not None) == fails
    assert suite.get("failures") == str(int(fails))
    assert suite.get("tests") == str(len(cases))


def test_junit_without_a_threshold_skips_its_case(document):
    suite, _ = _cases(junit.render(document))
    assert (suite.get("skipped"), suite.get("failures")) == ("1", "0")


def test_junit_fails_on_errors_and_unfinished_runs_only(make):
    note = ERROR | {"code": "a.note", "severity": "note", "title": "by\x00the\x1bway"}
    suite, cases = _cases(junit.render(make(findings=[ERROR, note], complete=False)))
    assert suite.get("failures") == "2"
    assert cases["findings masking.zero: zero gradients"].find("failure") is not None
    assert cases["findings a.note: by?the?way"].find("failure") is None
