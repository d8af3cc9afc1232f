"""A journal of a former form is refused by name and version; its records are read back as what they were."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest
from forging import sha_of_unit
from pydantic import ValidationError

from holdfast.audits.journal import Journal
from holdfast.audits.recheck import recheck
from holdfast.audits.records import (
    SCHEMA_VERSION,
    AttackRecord,
    Claims,
    CleanRecord,
    GridRecord,
    PreflightRecord,
    Spent,
    findings_of,
    parsed,
)
from holdfast.audits.run import audit, resume
from holdfast.core.errors import JournalError
from holdfast.core.findings import Finding, Severity

IDENTITY = {"plan": "a", "model": "b", "data": "c"}
ONE = Spent(forwards=(1,), backwards=(0,), queries=(1,))


def _made_former(folder, *, facts=True):
    with sqlite3.connect(folder / "journal.sqlite") as db:
        db.execute("UPDATE identity SET value = '1' WHERE name = 'version'")
        if not facts:
            db.execute("DELETE FROM facts")
    db.close()


@pytest.mark.parametrize("look", [resume, recheck])
def test_a_journal_of_a_former_form_is_refused_by_name_and_version(plan, tmp_path, look):
    out = tmp_path / "run"
    audit(plan.model_copy(update={"samples": 2}), out)
    _made_former(out)
    with pytest.raises(JournalError, match=r"records of form 1, as Holdfast [\d.]+ wrote them; form 2 .* audit again"):
        look(out)


def test_a_former_journal_that_does_not_say_its_release_is_refused_too(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", IDENTITY)
    journal.write("grid", 0, GridRecord(), 0.0)
    journal.close()
    _made_former(tmp_path, facts=False)
    with pytest.raises(JournalError, match=f"form 1, as an earlier Holdfast wrote them; form {SCHEMA_VERSION}"):
        Journal(tmp_path / "journal.sqlite", IDENTITY)


def test_a_record_is_read_back_as_what_was_written(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", IDENTITY)
    rows = ((1.0, -np.inf, 0.1 + 0.2), (1e-320, 3.0, -5.5))
    clean = CleanRecord(
        ids=(4, 5), scores=rows, prediction=(0, 1), spent=Spent(forwards=(1, 1), backwards=(0, 0), queries=(1, 1))
    )
    finding = Finding(
        code="a.b",
        severity=Severity.NOTE,
        title="title",
        message="message",
        data={"share": float("nan"), "n": 3, "x": 0.5},
    )
    look = PreflightRecord(findings=findings_of([finding]), randomised=False)
    assert journal.write("clean", 0, clean, 0.5) == clean
    assert journal.write("preflight", -1, look, 0.5) == look
    journal.close()
    units = Journal(tmp_path / "journal.sqlite", IDENTITY, read_only=True).units()
    assert units == {("clean", 0): clean, ("preflight", -1): look}
    assert units["preflight", -1].findings[0].data == {"share": "nan", "n": 3, "x": 0.5}


def test_scores_that_are_none_come_back_as_none():
    record = CleanRecord(ids=(4,), scores=((np.nan, np.inf, -np.inf),), prediction=(0,), spent=ONE)
    (row,) = parsed(record.model_dump_json()).scores
    assert [str(value) for value in row] == ["nan", "nan", "-inf"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "attacks"}, "the record as a whole: Input tag 'attacks'"),
        ({"kind": None}, "the record as a whole: Input tag 'None'"),
        ({"more": 1}, "clean.more: Extra inputs"),
        ({"ids": [1]}, "scores is not one for each of 1 samples"),
        ({"prediction": ["zero"]}, r"clean\.prediction\.0: Input should be a valid integer"),
        ({"spent": {}}, "spent is not one for each of 2 samples"),
        ({"raised": {"ids": [4]}}, r"clean\.raised\.why: Field required"),
        ({"referee": -1}, "clean.referee: Input should be greater than or equal to 0"),
        ({"scores": [["inf"], [0.0]]}, "clean.scores: .* a score is a number"),
    ],
)
def test_what_is_no_record_is_none_and_the_message_names_its_field(change, why):
    spent = Spent(forwards=(1, 1), backwards=(0, 0), queries=(1, 1))
    good = CleanRecord(ids=(4, 5), scores=((0.0,), (1.0,)), prediction=(0, 0), spent=spent)
    assert parsed(good.model_dump_json()) == good
    text = json.dumps(json.loads(good.model_dump_json()) | change)
    with pytest.raises(ValueError, match=why):
        parsed(text)


def test_a_column_of_another_length_is_refused_when_it_is_made():
    with pytest.raises(ValidationError, match="low_margin is not one for each of 1 samples"):
        AttackRecord(ids=(3,), claims=Claims(spent=ONE, found_at=(1,), low_margin=()))


def test_a_record_of_one_stage_is_entered_for_no_other(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", IDENTITY)
    with pytest.raises(ValueError, match="it is one of 'grid'"):
        journal.write("probe", 0, GridRecord(), 0.0)
    assert not (tmp_path / "journal.sqlite").exists()


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ('{"kind": "triage"}', "it is one of 'triage'"),
        ('{"kind": "trojan-scan", "ids": [1]}', "'trojan-scan'"),
        ('{"ids": [1]}', "discriminator"),
        ('{"kind": "grid", "ids": [', "delimiter|value"),
        ('{"kind": "grid", "saved": 1, "saved": 2}', "'saved' is given twice"),
    ],
)
def test_what_is_no_record_is_refused_with_its_unit_and_what_to_do(tmp_path, payload, why):
    file = tmp_path / "journal.sqlite"
    journal = Journal(file, IDENTITY)
    journal.write("grid", 0, GridRecord(), 0.0)
    journal.close()
    with sqlite3.connect(file) as db:
        db.execute("UPDATE units SET payload = ?, sha256 = ?", (payload, sha_of_unit("grid", 0, payload)))
    db.close()
    before = file.read_bytes()
    with pytest.raises(
        JournalError, match=f"its unit grid of chunk 0 is no record of form 2 .*{why}.* audit again, into"
    ):
        Journal(file, IDENTITY)
    file.write_bytes(before[:64] + bytes(len(before) - 64))
    with pytest.raises(JournalError, match=r"no journal that can be read.* put a copy of the folder in its place"):
        Journal(file, IDENTITY)
