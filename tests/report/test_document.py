"""report.json: its schema, its promises about itself, and reading it back."""

import json
import subprocess
import sys

import jsonschema
import pytest
from pydantic import ValidationError

from holdfast.audits.document import Document, schema
from holdfast.audits.sections import Sample
from holdfast.core.errors import DataError
from holdfast.core.threat import Guarantee
from holdfast.core.verdict import Certificate, Status, Verdict, Witness


def test_report_follows_its_schema(document):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(json.loads(document.text()))


def test_schema_refuses_what_it_does_not_know(document):
    values = json.loads(document.text()) | {"surprise": 1}
    assert not jsonschema.Draft202012Validator(schema()).is_valid(values)
    with pytest.raises(ValidationError, match="surprise"):
        Document.model_validate(values)


def test_command_writes_the_schema():
    out = subprocess.run([sys.executable, "-m", "holdfast.audits.document"], capture_output=True, check=True, text=True)
    assert json.loads(out.stdout) == schema()


def test_saved_and_loaded_is_the_same_to_the_byte(document, tmp_path):
    document.save(tmp_path / "report.json")
    again = Document.load(tmp_path)
    assert again == document
    assert again.text() == document.text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_failed_write_leaves_the_old_file_and_no_draft(document, tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    file.write_text("old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="space"):
        document.save(file)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert file.read_text() == "old"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[]", "schema_version None"),
        ('{"schema_version": "2"}', "schema_version '2'"),
        ('{"schema_version": "1"}', "headline"),
    ],
)
def test_what_is_no_report_is_refused_in_words(tmp_path, text, says):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=says):
        Document.load(tmp_path)
    with pytest.raises(DataError, match="no report at"):
        Document.load(tmp_path / "missing")


@pytest.mark.parametrize("figure", ["samples", "empirical_robust_accuracy", "certified_robust_accuracy", "unknown"])
def test_headline_must_follow_from_the_samples(document, figure):
    values = json.loads(document.text())
    values["headline"][figure] = 199 if figure == "samples" else values["headline"][figure] + 0.005
    with pytest.raises(ValidationError, match="headline"):
        Document.model_validate(values)


def test_certified_is_null_only_when_nothing_is_certified(document):
    values = json.loads(document.text())
    values["headline"]["certified_robust_accuracy"] = None
    with pytest.raises(ValidationError, match="certified_robust_accuracy is None"):
        Document.model_validate(values)


@pytest.mark.parametrize(("status", "artefact"), [("BROKEN", "witness"), ("CERTIFIED", "certificate")])
def test_no_verdict_without_its_artefact(document, status, artefact):
    values = json.loads(document.text())
    next(s for s in values["samples"] if s["status"] == status)[artefact] = None
    with pytest.raises(ValidationError, match=f"{status} without a {artefact}"):
        Document.model_validate(values)


def test_no_number_in_the_file_is_infinite_or_not_a_number(document):
    values = json.loads(document.text())
    values["findings"][0]["data"] = {"max": float("inf"), "rows": [float("nan"), 1.0]}
    broken = next(s for s in values["samples"] if s["witness"])
    broken["witness"]["margin"] = float("-inf")
    read = json.loads(Document.model_validate(values).text(), parse_constant=pytest.fail)
    assert read["findings"][0]["data"] == {"max": "inf", "rows": ["nan", 1.0]}
    assert next(s for s in read["samples"] if s["id"] == broken["id"])["witness"]["margin"] is None
    values["threat"]["eps_value"] = float("nan")
    with pytest.raises(ValidationError, match="finite"):
        Document.model_validate(values)


def test_verdict_becomes_a_sample():
    verdict = Verdict(
        id=3,
        label=1,
        prediction=1,
        status=Status.BROKEN,
        witness=Witness(distance=0.1, attack="pgd", sha256="ab", margin=-0.5),
        certificate=Certificate(radius=0.05, guarantee=Guarantee.SOUND, method="ibp"),
        forwards=9,
        backwards=8,
        queries=0,
    )
    sample = Sample.model_validate(verdict)
    assert sample == Sample.model_validate(verdict.as_dict())
    assert sample.witness is not None
    assert sample.witness.attack == "pgd"
