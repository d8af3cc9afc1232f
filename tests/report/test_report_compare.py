"""What changed between audits, and several audits on one page."""

import json

import pytest

from holdfast.audits.document import Document
from holdfast.core.errors import UsageError
from holdfast.core.verdict import Status
from holdfast.report.audits.compare import render, write_compare
from holdfast.report.audits.diff import StatusChange, diff


def _restated(document: Document, statuses: dict[int, str]) -> Document:
    """The same audit with some statuses changed and the headline made to follow."""
    values = json.loads(document.text())
    for s in values["samples"]:
        s["status"] = statuses.get(s["id"], s["status"])
    n = len(values["samples"])
    lost = sum(s["status"] in ("BROKEN", "MISCLASSIFIED") for s in values["samples"])
    sure = sum(s["status"] == "CERTIFIED" for s in values["samples"])
    values["headline"] |= {
        "empirical_robust_accuracy": (n - lost) / n,
        "certified_robust_accuracy": sure / n,
        "unknown": (n - lost - sure) / n,
    }
    return Document.model_validate(values)


def _ids(document: Document, status: Status) -> list[int]:
    return [s.id for s in document.samples if s.status is status]


def test_nothing_differs_from_itself(document):
    same = diff(document, document)
    assert same.comparable
    assert (same.moves, same.settings, same.gained, same.lost, same.p_value) == ((), (), 0, 0, 1.0)
    assert all(c.delta == 0 for c in same.figures)


def test_gained_and_lost_are_counted_per_sample(document):
    broken, certified, unknown = (_ids(document, s) for s in (Status.BROKEN, Status.CERTIFIED, Status.UNKNOWN))
    moved = dict.fromkeys(broken[:6], "UNKNOWN") | {certified[0]: "MISCLASSIFIED", unknown[0]: "MARGINAL"}
    change = diff(document, _restated(document, moved))
    assert (change.gained, change.lost) == (6, 1)
    assert change.p_value == pytest.approx(2 * 8 / 2**7)
    assert set(change.moves) == {
        StatusChange(i, next(s.status for s in document.samples if s.id == i), Status(t)) for i, t in moved.items()
    }
    assert change.flows()[0] == (Status.BROKEN, Status.UNKNOWN, 6)
    deltas = {c.name: c.delta for c in change.figures}
    assert deltas["empirical robust accuracy"] == pytest.approx(5 / 200)
    assert deltas["certified robust accuracy"] == pytest.approx(-1 / 200)
    assert "+2.5 points" in change.text()
    assert json.loads(json.dumps(change.as_dict()))["gained"] == 6


def test_another_question_is_called_another_question(make, document):
    threat = document.threat.model_copy(update={"eps": "4/255", "eps_value": 4 / 255})
    change = diff(document, make(threat=threat))
    assert not change.comparable
    assert [(s.name, s.before, s.after, s.decides) for s in change.settings] == [("threat.eps", "8/255", "4/255", True)]
    assert "must not be compared" in change.text()
    assert "NOT THE SAME QUESTION" in render([("a", document), ("b", make(threat=threat))])


def test_samples_of_one_side_only_are_told(make, document):
    change = diff(document, make(n=150))
    assert len(change.only_before) == 50
    assert not change.comparable


def test_another_model_on_the_same_question_compares(make, document):
    hashes = document.hashes.model_copy(update={"model": "55" * 32})
    change = diff(document, make(strength=1.5, hashes=hashes))
    assert change.comparable
    assert [s.name for s in change.settings] == ["model"]


def test_compare_page_escapes_names_and_is_the_same_each_time(make, document, tmp_path):
    runs = [("<b>before</b>", document), ("after", make(strength=1.5)), ("third", make(seed=4))]
    write_compare(tmp_path / "compare.html", runs)
    page = (tmp_path / "compare.html").read_text()
    assert page == render(runs)
    assert "<b>before</b>" not in page
    assert "&lt;b&gt;before&lt;/b&gt;" in page
    assert "NOT THE SAME QUESTION" not in page
    assert page.count("<figure>") == 2


def test_one_run_is_no_comparison_and_each_norm_has_its_own_section(make, document):
    with pytest.raises(UsageError, match="two"):
        render([("a", document)])
    other = make(threat=document.threat.model_copy(update={"norm": "l2"}))
    page = render([("a", document), ("b", other), ("c", document)])
    assert "SEVERAL NORMS" in page
    assert page.count("<h2>Security curves</h2>") == 2
    assert "From a to c" in page
    assert "From a to b" not in page
    assert "SEVERAL NORMS" not in render([("a", document), ("c", document)])


def test_a_size_typed_otherwise_is_the_same_size(make, document):
    tenth, point = (
        make(threat=document.threat.model_copy(update={"eps": e, "eps_value": 0.1})) for e in ("1/10", "0.1")
    )
    assert diff(tenth, point).comparable
    assert not diff(tenth, make(threat=tenth.threat.model_copy(update={"eps": "0.2"}))).comparable
