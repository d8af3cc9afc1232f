"""The life of a run folder: refused, killed, moved, taken over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audits import folder as folders
from holdfast.audits.journal import Journal
from holdfast.audits.places import Places
from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.run import audit, resume
from holdfast.audits.stages.attack import AttackStage
from holdfast.core.errors import BudgetError, DataError, HoldfastError, JournalError, UnsafeFileError, UsageError
from holdfast.core.store import locked


class Two(nn.Module):
    """Two numbers, two classes."""

    def __init__(self, tilt: float = 1.0):
        super().__init__()
        self.l = nn.Linear(2, 2)
        self.l.weight.data = torch.tensor([[-tilt, 1.0], [1.0, -tilt]])
        self.l.bias.data = torch.zeros(2)

    def forward(self, x):
        return self.l(x)


def _data(path: Path, n: int = 8) -> Path:
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    np.savez(path, x=x.numpy(), y=(x[:, 0] > x[:, 1]).long().numpy())
    return path


@pytest.fixture
def small(tmp_path) -> Plan:
    return Plan.of(data=str(_data(tmp_path / "d.npz")), eps="0.05", certify="none", queries=50)


def _bytes(folder: Path) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def _changed(plan: Plan, **values) -> Plan:
    return Plan.of(**plan.model_dump() | values)


def _stopped(plan: Plan, out: Path, units: int) -> None:
    """A run that was killed after so many units, its journal's log left beside it."""
    pid = os.fork()
    if pid == 0:
        entered, write = [], Journal.write

        def stop(self, *row):
            payload = write(self, *row)
            entered.append(row)
            if len(entered) == units:
                os.kill(os.getpid(), signal.SIGKILL)
            return payload

        Journal.write = stop
        torch.set_num_threads(1)
        audit(plan, out, model=Two())
        os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("state", ["finished", "killed"])
def test_a_refusal_changes_no_byte(small, tmp_path, state):
    out = tmp_path / "run"
    if state == "finished":
        audit(small, out, model=Two())
    else:
        _stopped(small, out, 3)
        assert (out / "journal.sqlite-wal").exists()
    before = _bytes(out)
    _data(tmp_path / "other.npz", 9)
    refused = [
        lambda: audit(_changed(small, eps="0.06"), out, model=Two()),
        lambda: audit(_changed(small, data=str(tmp_path / "other.npz")), out, model=Two()),
        lambda: audit(_changed(small, data=str(tmp_path / "none.npz")), out, model=Two()),
        lambda: audit(small, out, model=Two(2.0)),
        lambda: audit(small, out),
        lambda: audit(small, out, model=Two(), workers=2),
        lambda: resume(out, model=Two(2.0)),
        lambda: resume(out, model=Two(), places=Places(data=str(tmp_path / "other.npz"))),
        lambda: resume(out, places=Places(model=str(tmp_path / "d.npz"))),
        lambda: Journal(out / "journal.sqlite", {"list": "a", "settings": "b"}),
    ]
    for k, refusal in enumerate(refused):
        with pytest.raises(HoldfastError):
            refusal()
        assert _bytes(out) == before, k
    with locked(out):  # another process is at work
        for call in (lambda: audit(small, out, model=Two()), lambda: resume(out, model=Two())):
            with pytest.raises(JournalError, match="another process"):
                call()
            assert _bytes(out) == before
    if state == "killed":
        with pytest.raises(JournalError, match=f"unfinished.*holdfast resume {out}"):
            recheck(out, model=Two())
        assert _bytes(out) == before
        assert resume(out, model=Two()).complete
    assert recheck(out, model=Two()).ok


def test_another_plan_is_told_field_by_field(small, tmp_path):
    audit(small, tmp_path / "run", model=Two())
    with pytest.raises(JournalError, match=r"eps 0\.05 there, 0\.06 here; seed 0 there, 4 here.*choose another --out"):
        audit(_changed(small, eps="0.06", seed=4), tmp_path / "run", model=Two())


def test_a_start_that_was_refused_leaves_nothing(small, tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.full((8, 2), 7, np.float32), y=np.arange(8) % 2)
    with pytest.raises(DataError, match="pre-flight"):
        audit(_changed(small, data=str(tmp_path / "bad.npz")), tmp_path / "run", model=Two())
    assert not (tmp_path / "run").exists()
    assert audit(small, tmp_path / "run", model=Two()).complete


@pytest.mark.parametrize("units", [1, None])
def test_a_start_that_came_to_nothing_is_taken_over(small, tmp_path, units, monkeypatch):
    """Killed after the pre-flight, or left by a version that wrote plan and journal first."""
    out = tmp_path / "run"
    if units:
        _stopped(small, out, units)
    else:
        (out / "witnesses").mkdir(parents=True)
        (out / "plan.yaml").write_text(small.to_yaml())
        with sqlite3.connect(out / "journal.sqlite") as db:
            db.execute("CREATE TABLE units (stage TEXT, chunk INTEGER, payload TEXT, sha256 TEXT, seconds REAL)")
    assert audit(_changed(small, eps="0.06"), out, model=Two()).threat.eps == "0.06"
    assert recheck(out, model=Two()).ok


def test_what_is_not_ours_is_left_alone(small, tmp_path):
    for name, content in {
        "notes.txt": "keep",
        "plan.yaml": "eps: 0.2\n",
        "journal.sqlite": "mine",
        "run.json": "[]",
    }.items():
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text(content)
        if name == "run.json":
            (out / "adversarial.npz").write_text("an attack's")
        before = _bytes(out)
        with pytest.raises((UsageError, JournalError)):
            audit(small, out, model=Two())
        assert _bytes(out) == before
    with pytest.raises(UsageError, match="is a file"):
        audit(small, tmp_path / "d.npz", model=Two())


def _but_for_times(document):
    plain = document.model_dump(mode="json")
    plain["cost"].pop("seconds")
    for row in [*plain["cost"]["by_stage"].values(), *plain["stages"], *plain["suite"]["attacks"]]:
        row.pop("seconds")
    for name in ("environment", "command"):
        plain.pop(name)
    for name in ("journal", "plan"):  # the plan names the data by its path
        plain["hashes"].pop(name)
    return plain


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the small plan's run says when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    plan = Plan.of(data=str(_data(folder / "d.npz")), eps="0.05", certify="none", queries=50)
    return _but_for_times(audit(plan, folder / "run", model=Two()))


@pytest.mark.parametrize(
    "moment", ["mkdir", "about", "plan", "journal", "unit 1", "unit 2", "unit 7", "close", "report"]
)
def test_killed_at_a_chosen_moment_the_same_call_goes_on(small, tmp_path, moment, whole):
    out = tmp_path / "run"
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)

        def end(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        write = folders.write_whole

        def at(file):
            return lambda path, content: end() if path.name == file else write(path, content)

        match moment.split():
            case ["mkdir"]:
                folders.locked = end
            case ["about"]:
                folders.write_whole = at("run.json")
            case ["plan"]:

                def half(path, content):
                    if path.name == "plan.yaml":
                        path.with_name(f".plan.yaml.{os.getpid()}").write_bytes(content[:20])
                        end()
                    write(path, content)

                folders.write_whole = half
            case ["journal"]:
                Journal.write = end
            case ["unit", n]:
                os._exit(_stopped(small, out, int(n)) or 0)
            case ["close"]:
                Journal.close = end
            case ["report"]:
                from holdfast.audits.document import Document

                Document.save = end
        audit(small, out, model=Two())
        os._exit(1)
    assert os.waitpid(pid, 0)[1] in (0, signal.SIGKILL)
    again = audit(small, out, model=Two())
    assert _but_for_times(again) == whole
    assert not list(out.glob(".*.*")), "no draft is left"


def test_a_finished_run_resumed_is_the_same_to_the_byte(small, tmp_path):
    out = tmp_path / "run"
    audit(small, out, model=Two(), command="holdfast audit --fail-under 0.3 --out run")
    before = _bytes(out)
    assert (
        resume(out, model=Two(), command="holdfast resume run").command == "holdfast audit --fail-under 0.3 --out run"
    )
    assert _bytes(out) == before


def test_a_unit_that_failed_is_done_again(small, tmp_path, monkeypatch, whole):
    """With what was built on it; the others stay."""
    unit, failed = AttackStage.unit, []

    def moody(*given):
        if not failed:
            failed.append(1)
            raise RuntimeError("not today")
        return unit(*given)

    monkeypatch.setattr(AttackStage, "unit", moody)
    first = audit(small, tmp_path / "run", model=Two())
    assert not first.complete
    assert any(f.code == "run.failed" and "not today" in f.message for f in first.findings)
    assert any(s.status == "failed" for s in first.stages)
    monkeypatch.undo()
    assert _but_for_times(resume(tmp_path / "run", model=Two())) == whole


def test_a_full_disk_is_told_in_one_sentence(small, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(folders, "write_whole", full)
    with pytest.raises(UsageError, match=r"cannot write to .*run: No space left on device; make room"):
        audit(small, tmp_path / "run", model=Two())
    monkeypatch.undo()
    assert audit(small, tmp_path / "run", model=Two()).complete


@pytest.fixture
def moved(tmp_path, monkeypatch) -> Path:
    """A run of relative paths begun in one folder, with its code, looked at from another."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    _data(home / "d.npz")
    torch.save(Two().state_dict(), "m.pt")
    (home / "net.py").write_text(
        "import torch\nfrom torch import nn\nclass Two(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.l = nn.Linear(2, 2)\n    def forward(self, x):\n        return self.l(x)\n"
    )
    plan = Plan.of(
        model="m.pt", arch="net.py:Two", data="d.npz", eps="0.05", certify="none", queries=50, suite="black-box"
    )
    audit(plan, "runs/r")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    return home


def test_from_any_folder_and_after_a_move(moved, tmp_path, monkeypatch):
    run, trusted = moved / "runs" / "r", Places(trust=True)
    with pytest.raises(UnsafeFileError):
        recheck(run)
    assert recheck(run, places=trusted).ok
    before = _bytes(run)
    resume(run, places=trusted)
    assert _bytes(run) == before
    shutil.move(moved, tmp_path / "new")
    run = tmp_path / "new" / "runs" / "r"
    with pytest.raises(
        DataError, match=r"no model at m\.pt and no arch at net\.py:\w+ and no data at d\.npz.*--model --arch --data$"
    ):
        recheck(run, places=trusted)
    for name in ("m.pt", "net.py", "d.npz"):  # beside the run, as an archive would have it
        shutil.copy(tmp_path / "new" / name, run / name)
    assert recheck(run, places=trusted).ok
    for name, new in (("m.pt", "w.pt"), ("net.py", "code.py"), ("d.npz", "rows.npz")):
        os.rename(run / name, tmp_path / "away" / new)
    here = Places(model="w.pt", arch="code.py:Two", data="rows.npz")
    found = recheck(run, places=here)
    assert found.ok, found.problems
    before = _bytes(run)
    resume(run, places=here)
    assert _bytes(run) == before
    torch.save(Two(1.5).state_dict(), "w.pt")
    assert any("another model" in p and "--model" in p for p in recheck(run, places=here).problems)
    torch.save(Two().state_dict(), "w.pt")
    _data(tmp_path / "away" / "rows.npz", 7)
    assert any("other data" in p and "--data" in p for p in recheck(run, places=here).problems)


def test_a_run_of_an_api_is_gone_on_with_by_name_only(tmp_path):
    out = tmp_path / "theirs"
    out.mkdir()
    (out / "plan.yaml").write_text(
        "model: http://127.0.0.1:9/\nclasses: 3\nmax_queries: 9\nsuite: black-box\ncertify: none\nsamples: 1\n"
    )
    before = _bytes(out)
    for go_on in (resume, recheck):
        with pytest.raises(BudgetError, match="no consent to send data"):
            go_on(out)
        with pytest.raises(UsageError, match="is another model"):
            go_on(out, places=Places(model="http://127.0.0.1:10/"))
    assert _bytes(out) == before


def test_the_start_is_noted_and_not_hashed(small, tmp_path):
    audit(small, tmp_path / "run", model=Two())
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["start"] == str(Path.cwd())
    assert about["kind"] == "audit"


@pytest.mark.slow
def test_120_kills_from_the_first_millisecond_on_give_the_same_document(small, tmp_path, whole):
    """Each start is killed a little later than the one before, in one folder after the other, until 120 were."""
    import time

    kills, run, delay = 0, 0, 0.001
    while kills < 120:
        out = tmp_path / f"run{run}"
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            audit(small, out, model=Two())
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)[1] == 0
        kills += not ended
        delay = 0.001 if ended else delay * 1.25
        if ended:
            assert _but_for_times(audit(small, out, model=Two())) == whole
            run += 1
    assert _but_for_times(audit(small, tmp_path / f"run{run}", model=Two())) == whole
    assert recheck(tmp_path / f"run{run}", model=Two()).ok
