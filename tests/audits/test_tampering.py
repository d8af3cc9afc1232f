"""Somebody changes a finished run and makes every hash anew: recheck finds it, or lists it as not re-derived."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from forging import put_units, seconds_in, units_in
from safetensors.torch import load_file, save
from torch import nn

from holdfast.audits.context import Context
from holdfast.audits.export import export
from holdfast.audits.folder import RunFolder
from holdfast.audits.journal import Journal
from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.reconcile import compose
from holdfast.audits.run import audit
from holdfast.core.errors import JournalError, UsageError
from holdfast.core.verdict import Status
from holdfast.report.audits import write
from holdfast.report.audits.derive import compared


class Net(nn.Module):
    """Two numbers, two classes, one bend."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.a.weight.data, self.a.bias.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([0.3, 0.2])
        self.b.weight.data, self.b.bias.data = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), torch.tensor([0.1, 0.0])

    def forward(self, x):
        return self.b(self.a(x).relu())


class Forger:
    """A run's folder in the hands of one who knows how it is made."""

    def __init__(self, path: Path):
        self.path = path
        self.context = Context.open(RunFolder(path).plan(), RunFolder(path), Net().eval())
        journal = Journal(path / "journal.sqlite", self.context.identity, read_only=True)
        self.facts: dict[str, str] = dict(journal.facts())
        self.units, self.seconds = units_in(path), seconds_in(path)

    def unit(self, stage: str, chunk: int = 0) -> dict:
        return self.units[stage, chunk]

    def first(self, kind: str) -> tuple[tuple[str, int], str, dict]:
        """A unit that has some of a kind, with one of them."""
        for key, unit in self.units.items():
            for name, record in (unit | unit.get("claims", {})).get(kind, {}).items():
                return key, name, record
        raise AssertionError(kind)

    def seal(self) -> None:
        """Every hash anew: of the units, of the journal, and a whole report from them, if they can be read at all."""
        put_units(self.path, self.units, self.seconds)
        with sqlite3.connect(self.path / "journal.sqlite") as db:
            for row in self.facts.items():
                db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", row)
        db.close()
        sha = hashlib.sha256((self.path / "journal.sqlite").read_bytes()).hexdigest()
        try:
            journal = Journal(self.path / "journal.sqlite", self.context.identity, read_only=True)
        except JournalError:
            return
        document = compose(self.context, journal.units(), journal.seconds(), facts=self.facts, journal=sha)
        export(self.context.run_inputs, document)
        write(self.path, document)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tampering")
    net, x = Net().eval(), torch.rand(24, 2, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    y[:2] = 1 - y[:2]
    np.savez(folder / "d.npz", x=x.numpy(), y=y.numpy())
    plan = Plan.of(
        data=str(folder / "d.npz"), eps="0.05", chunk=12, queries=100, grid="1/64", eps_grid=("0.02",), certify="crown"
    )
    document = audit(plan, folder / "run", model=net)
    write(folder / "run", document)
    assert {s.status for s in document.samples} >= {Status.BROKEN, Status.CERTIFIED, Status.MISCLASSIFIED}
    return folder / "run"


def _found(out: Path) -> list[str]:
    return recheck(out, model=Net().eval(), beside=compared).problems


def test_the_forger_s_tools_change_nothing_by_themselves(finished, tmp_path):
    assert any("nobody compared them" in line for line in recheck(finished, model=Net().eval()).not_rederived)
    result = recheck(finished, model=Net().eval(), beside=compared)
    assert result.ok, result.problems
    assert not any("nobody compared them" in line for line in result.not_rederived)
    assert result.witnesses > 20
    assert result.certificates > 10
    assert any("the attacks spent" in line for line in result.not_rederived)
    shutil.copytree(finished, tmp_path / "run")
    Forger(tmp_path / "run").seal()
    assert _found(tmp_path / "run") == []


def _prediction(f):
    unit = f.unit("clean")
    unit["prediction"][5] = 1 - unit["prediction"][5]


def _scores(f):
    f.unit("clean")["scores"][5] = [9.0, -9.0] if f.unit("clean")["prediction"][5] == 0 else [-9.0, 9.0]


def _right_at_last(f):
    """A sample that the model gets wrong is said to be right."""
    labels = f.context.data.y.tolist()
    f.unit("clean")["prediction"][0] = labels[0]


def _witness_gone(f):
    for (_, k), unit in f.units.items():
        if k == 0:
            unit.get("claims", {}).get("witnesses", {}).clear()


def _witness_nearer(f):
    f.first("witnesses")[2]["distance"] *= 0.5


def _witness_margin(f):
    f.first("witnesses")[2]["margin"] -= 1.0


def _margins_understated(f):
    for unit in f.units.values():
        for record in unit.get("claims", {}).get("witnesses", {}).values():
            record["margin"] *= 0.01


def _margin_of_the_nearest(f):
    """Of the witnesses that the report shows, the surest alone."""
    stage = f.units["shrink", 0]["claims"]["witnesses"]
    record = min(stage.values(), key=lambda one: one["margin"])
    record["margin"] += 1e-3


def _failed_alone(f):
    """A sample is said to have failed, and not by what."""
    f.units["attack:cosine_margin", 0]["raised"] = {"ids": f.units["attack:cosine_margin", 0]["ids"][:1]}


def _failed_elsewhere(f):
    f.units["attack:cosine_margin", 0]["raised"] = {"ids": [23], "why": "ValueError: no such input"}


def _rejected_elsewhere(f):
    f.units["attack:cosine_margin", 0]["claims"]["rejected"] = [23]


def _no_answer_made_up(f):
    at, key, record = f.first("witnesses")
    made_up = {k: record[k] for k in ("attack", "sha256", "distance")} | {"met": "NaN"}
    f.units[at]["claims"]["unanswered"] = {key: made_up}


def _marginal_far(f):
    (stage, k), key, record = f.first("witnesses")
    f.units[stage, k]["claims"]["marginal"] = {key: record | {"distance": record["distance"] * 2}}


def _witness_rounding(f):
    """A clean input is passed off as a witness, within a rounding that covers everything."""
    _, key, record = f.first("witnesses")
    content = save({"x": (f.context.data.x[int(key)] + 1e-4).clamp(0, 1)})
    record["sha256"] = hashlib.sha256(content).hexdigest()
    (f.path / "witnesses" / f"{record['sha256']}.safetensors").write_bytes(content)
    record |= {"rounding": 1e30, "distance": 1e-4}


def _witness_of_another(f):
    (stage, k), _, record = f.first("witnesses")
    unit = f.units[stage, k]
    witnesses = unit["claims"]["witnesses"]
    other = next(i for i in unit["ids"] if str(i) not in witnesses)
    witnesses[str(other)] = record


def _witness_outside(f):
    record = f.first("witnesses")[2]
    content = save({"x": load_file(f.path / "witnesses" / f"{record['sha256']}.safetensors")["x"] + 3})
    record["sha256"] = hashlib.sha256(content).hexdigest()
    (f.path / "witnesses" / f"{record['sha256']}.safetensors").write_bytes(content)


def _witness_other_shape(f):
    record = f.first("witnesses")[2]
    content = save({"x": torch.zeros(3)})
    record["sha256"] = hashlib.sha256(content).hexdigest()
    (f.path / "witnesses" / f"{record['sha256']}.safetensors").write_bytes(content)


def _witness_attack(f):
    f.first("witnesses")[2]["attack"] = "square"


def _witness_file(f):
    (f.path / "witnesses" / f"{f.first('witnesses')[2]['sha256']}.safetensors").unlink()


def _radius_up(f):
    for record in f.unit("certificates")["certificates"].values():
        record["radius"] = 0.099


def _radius_beyond(f):
    f.first("certificates")[2]["radius"] = 0.2


def _radius_down(f):
    for record in f.unit("certificates")["certificates"].values():
        record["radius"] = 0.0


def _certificate_gone(f):
    f.unit("certificates")["certificates"].clear()


def _certificate_of_a_method(f):
    f.first("certificates")[2]["method"] = "milp"


def _certificate_arithmetic(f):
    f.first("certificates")[2]["arithmetic"] = "exact"


def _certificate_estimate(f):
    for record in f.unit("certificates")["certificates"].values():
        record["guarantee"] = "probabilistic"


def _unit_gone(f):
    for stage in {stage for stage, _ in f.units}:
        f.units.pop((stage, 1), None)


def _stage_gone(f):
    del f.units["probe", 0]


def _attack_gone(f):
    f.units["attack:cosine_margin", 0] |= {"ids": [], "claims": {}}


def _attack_spared(f):
    unit = f.units["attack:cosine_margin", 1]
    unit["ids"] = unit["ids"][1:]
    claims = unit["claims"]
    for name in ("found_at", "low_margin"):
        claims[name] = claims[name][1:]
    claims["spent"] = {name: column[1:] for name, column in claims["spent"].items()}


def _stage_added(f):
    f.units["attack:autoattack", 0] = f.units["attack:cosine_margin", 0] | {"ids": [], "claims": {}}


def _preflight_finding(f):
    f.unit("preflight", -1)["findings"].append(
        {"code": "model.fine", "severity": "note", "title": "all is well", "message": "", "remedy": "", "data": {}}
    )


def _diagnostics_gone(f):
    f.unit("diagnostics", -1)["findings"] = []


def _diagnostics_added(f):
    f.unit("diagnostics", -1)["findings"].append(
        {"code": "masking.unstable", "severity": "warning", "title": "x", "message": "x", "remedy": "", "data": {}}
    )


def _diagnostics_weaker(f):
    for finding in f.unit("diagnostics", -1)["findings"]:
        finding["message"] = "no attack is missing"


def _randomised(f):
    f.unit("preflight", -1)["randomised"] = True


def _proved_at_eps(f):
    f.unit("triage")["proved"].pop()


def _grid_broken(f):
    f.unit("eps-grid:1/50")["broken_here"] = []


def _refused(f):
    unit = f.unit("certificates")
    unit["certificates"] = {}
    unit["refused"] = "the model is too good for certificates"


def _emptied(unit, failed):
    unit |= {"ids": [], "claims": {}, "fault": {"ids": failed, "why": "attack: RuntimeError"}}


def _faulty(f):
    """A stage that was done is said to have failed."""
    unit = f.units["probe", 0]
    _emptied(unit, list(range(12)))


def _faulty_elsewhere(f):
    """A stage is said to have failed on samples that it was not run on."""
    _emptied(f.units["attack:cosine_margin", 0], [])


def _record_of_another_stage(f):
    f.units["probe", 0] = f.units["shrink", 0]


def _row_more(f):
    f.units["attack:cosine_margin", 0]["claims"]["found_at"].append(0)


def _field_more(f):
    f.unit("clean")["note"] = "looks fine"


def _prediction_of_the_witness(f):
    record = f.first("witnesses")[2]
    record["prediction"] = 1 - record["prediction"]


def _arithmetics_of_the_witness(f):
    f.first("witnesses")[2]["arithmetics"] = ["float16"]


def _on_grid(f):
    f.unit("grid")["broken_on_grid"] = []


_JOURNAL = [
    _prediction, _scores, _right_at_last, _witness_nearer, _witness_margin, _witness_rounding, _witness_of_another,
    _witness_outside, _witness_other_shape, _witness_attack, _radius_up, _radius_beyond, _radius_down, _certificate_gone,
    _certificate_of_a_method, _certificate_arithmetic, _certificate_estimate, _unit_gone, _stage_gone, _attack_gone,
    _attack_spared, _stage_added, _preflight_finding, _diagnostics_gone, _diagnostics_added, _diagnostics_weaker, _randomised,
    _proved_at_eps, _grid_broken, _refused, _on_grid, _witness_file, _margins_understated, _margin_of_the_nearest,
    _failed_alone, _failed_elsewhere, _rejected_elsewhere, _no_answer_made_up, _marginal_far, _faulty_elsewhere,
    _record_of_another_stage, _row_more, _field_more, _prediction_of_the_witness, _arithmetics_of_the_witness,
]  # fmt: skip


@pytest.mark.parametrize("tamper", _JOURNAL, ids=lambda tamper: tamper.__name__.strip("_"))
def test_a_forged_journal_is_found(finished, tmp_path, tamper):
    shutil.copytree(finished, tmp_path / "run")
    forger = Forger(tmp_path / "run")
    tamper(forger)
    try:
        forger.seal()
    except (ValueError, KeyError, IndexError):
        pytest.fail("the forger could not seal it: this shows nothing")
    assert _found(tmp_path / "run")


def _spent(f):
    f.unit("attack:cosine_margin")["claims"]["spent"]["forwards"][0] += 1000


def _command(f):
    f.facts["command"] = "holdfast audit --suite standard"


def _machine(f):
    f.facts["environment"] = json.dumps(json.loads(f.facts["environment"]) | {"when": "1999-01-01T00:00:00+00:00"})


def _quicker(f):
    f.seconds = dict.fromkeys(f.seconds, 0.0)


def _figures(f):
    for finding in f.unit("diagnostics", -1)["findings"]:
        finding["data"] = {}


def _failed(f):
    """A sample is said to be one that the model raised on."""
    unit = f.units["attack:cosine_margin", 1]
    unit["raised"] = {"ids": unit["ids"][:1], "why": "ValueError: no such input"}


def _rejected(f):
    f.units["attack:cosine_margin", 0]["claims"]["rejected"] = f.units["attack:cosine_margin", 0]["ids"][:1]


def _referee(f):
    f.units["attack:cosine_margin", 0]["referee"] += 100


def _least_margins(f):
    claims = f.units["attack:cosine_margin", 0]["claims"]
    claims["low_margin"] = [m - 1e-4 for m in claims["low_margin"]]


_LISTED = {_spent: "spent", _failed: "the model raised", _rejected: "claims the referee rejected", _referee: "and the referee",
           _least_margins: "least margins", _faulty: "that the stage probe failed", _witness_gone: "attacks found nothing",
           _command: "the command", _machine: "the machine", _quicker: "seconds", _figures: "figures"}  # fmt: skip


@pytest.mark.parametrize("tamper", _LISTED, ids=lambda tamper: tamper.__name__.strip("_"))
def test_what_cannot_be_derived_is_listed_as_such(finished, tmp_path, tamper):
    shutil.copytree(finished, tmp_path / "run")
    forger = Forger(tmp_path / "run")
    tamper(forger)
    forger.seal()
    result = recheck(tmp_path / "run", model=Net().eval())
    assert any(_LISTED[tamper] in " ".join(line.split()) for line in result.not_rederived)


def _flat(value, path=()):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, (*path, name))
    elif isinstance(value, list):
        for k, inner in enumerate(value[:1]):
            yield from _flat(inner, (*path, k))
    else:
        yield path


def test_every_field_of_the_report_is_compared(finished, tmp_path):
    """Each leaf is changed alone, where the document still agrees with itself; the run's own words are enough to find it."""
    from holdfast.audits.document import Document
    from holdfast.audits.recheck import Recheck, _compare
    from holdfast.core.errors import DataError

    whole = Document.load(finished)
    tried = 0
    for path in _flat(json.loads(whole.text())):
        told = json.loads(whole.text())
        at = told
        for name in path[:-1]:
            at = at[name]
        value = at[path[-1]]
        at[path[-1]] = (
            (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"
        )
        (tmp_path / "report.json").write_text(json.dumps(told))
        try:
            report = Document.load(tmp_path)
        except DataError:
            continue
        result = Recheck()
        _compare(report, whole, result)
        assert result.problems or result.not_rederived, path
        tried += 1
    assert tried > 80


@pytest.mark.parametrize("name", ["report.html", "report.sarif", "junit.xml", "samples.csv", "adversarial.npz"])
def test_the_files_of_the_report_are_compared(finished, tmp_path, name):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / name
    content = file.read_bytes()
    if name == "adversarial.npz":
        with np.load(file) as held:
            values = dict(held)
        values["adversarial"] = values["x"]
        np.savez(file, **values)
    else:
        file.write_bytes(content.replace(b"BROKEN", b"CERTIFIED", 1) if b"BROKEN" in content else content + b" ")
    assert _found(tmp_path / "run") == [f"{name} says something else than the journal"]
    file.write_bytes(b"\x00" * 9)
    assert _found(tmp_path / "run") == [f"{name} says something else than the journal"]


def test_the_table_of_samples_and_the_arrays_say_what_the_report_says(finished):
    report = json.loads((finished / "report.json").read_text())
    rows = (finished / "samples.csv").read_text().splitlines()
    assert rows[0].startswith("id,label,prediction,status,distance,attack")
    assert len(rows) == 1 + len(report["samples"])
    broken = [s for s in report["samples"] if s["status"] == "BROKEN"]
    with np.load(finished / "adversarial.npz") as held:
        assert held["ids"].tolist() == [s["id"] for s in broken]
        assert (held["prediction"] != held["y"]).all()
        far = np.abs(held["adversarial"].astype(np.float64) - held["x"]).max(1)
        assert np.allclose(far, [s["witness"]["distance"] for s in broken])


@pytest.mark.parametrize(
    "name", ["report.html", "report.sarif", "junit.xml", "samples.csv", "adversarial.npz", "run.json"]
)
def test_a_file_that_a_run_writes_is_missed(finished, tmp_path, name):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (problem,) = _found(tmp_path / "run")
    assert problem.startswith(f"{name} is missing")


def test_pages_that_were_never_written_are_listed(finished, tmp_path):
    """A run from Python has none until somebody asks for them; one from the command line has."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("report.html", "report.sarif", "junit.xml"):
        (tmp_path / "run" / name).unlink()
    result = recheck(tmp_path / "run", model=Net().eval(), beside=compared)
    assert result.ok
    assert any("report.html, report.sarif, junit.xml: they are missing" in line for line in result.not_rederived)
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(told | {"command": "holdfast audit"}))
    assert sum("is missing" in problem for problem in _found(tmp_path / "run")) == 3


def _first_of_two(text, name, value):
    """The same JSON with a name given twice, the one that counts last."""
    at = text.index(f'"{name}"')
    return f'{text[:at]}"{name}": {json.dumps(value)}, {text[at:]}'


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("report.json", "clean_accuracy", 1.0),
        ("report.json", "schema_version", "1"),
        ("report.json", "status", "CERTIFIED"),
        ("report.sarif", "level", "none"),
        ("run.json", "start", "/"),
    ],
)
def test_what_is_said_twice_is_found(finished, tmp_path, file, name, value):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / file
    path.write_text(_first_of_two(path.read_text(), name, value))
    assert any(file in problem for problem in _found(tmp_path / "run"))


def test_a_plan_that_says_something_twice_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    plan = tmp_path / "run" / "plan.yaml"
    plan.write_text("eps: '0.001'\n" + plan.read_text())
    with pytest.raises(UsageError, match="'eps' is given twice"):
        _found(tmp_path / "run")


def _spaced(text):
    return json.dumps(json.loads(text), indent=2)


def _escaped(text):
    return text.replace("certified", "\\u0063ertified", 1)


@pytest.mark.parametrize("change", [_spaced, _escaped, lambda text: text + " "])
def test_a_report_is_compared_letter_by_letter(finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "report.json"
    path.write_text(change(path.read_text()))
    assert _found(tmp_path / "run") == ["report.json says what the journal says, and is not written as a run writes it"]


@pytest.mark.parametrize("change", [{"command": "holdfast audit"}, {"kind": "verify"}, {"more": "x"}, {"start": 3}])
def test_run_json_is_one_that_a_run_writes(finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert any(problem.startswith("run.json ") for problem in _found(tmp_path / "run"))
