"""A run's folder: plan, journal, witnesses, and the lock that keeps a second process out.

`RunFolder.check` looks and refuses, and changes nothing; `RunFolder.begin` makes or continues the run under the lock. In
between the caller opens the model and the data and looks at them, so that a start that is refused leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from holdfast.audits.journal import PREFLIGHT, Journal
from holdfast.audits.plan import Plan
from holdfast.core.errors import JournalError, UsageError
from holdfast.core.files import read_json, write_whole
from holdfast.core.store import LOCK, SIDECARS, locked

__all__ = ["DATA", "RunFolder"]

DATA = "data.npz"
"""Samples that were handed over as arrays."""
_JOURNAL = "journal.sqlite"
_ABOUT, _WITNESSES, _PLAN = "run.json", "witnesses", "plan.yaml"
_OURS = frozenset({LOCK, _ABOUT, _WITNESSES, _PLAN, DATA, _JOURNAL, *(_JOURNAL + end for end in SIDECARS)})
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DRAFT = re.compile(r"\.[\w.:-]+\.\d+")  # what `write_whole` leaves when it is killed


class RunFolder:
    """Paths and files of a run."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Names the folder; nothing is made until `begin`, and nothing at all where it is only read."""
        self.path, self._read_only = path, read_only
        self.plan_file, self.journal_file = path / _PLAN, path / _JOURNAL
        self.report_file, self.witnesses = path / "report.json", path / _WITNESSES
        self.about_file = path / _ABOUT

    def check(self, plan: Plan) -> bool:
        """Whether work of this plan is there to go on with. Changes nothing.

        A folder in which we began a run that finished no stage, be it of another plan, is free: False.

        Raises:
            JournalError: the folder belongs to another plan; the message says what differs.
            UsageError: it is no run's and not empty.
        """
        if not self.path.is_dir():
            if self.path.exists():
                raise UsageError(f"{self.path} is a file; a run needs a folder: choose another --out")
            return False
        names = {entry.name for entry in self.path.iterdir()}
        if kind := self._other_kind():
            raise UsageError(f"{self.path} holds the results of 'holdfast {kind}'; choose another --out")
        begun = bool(names & (_OURS - {_PLAN, LOCK}))
        if not self.plan_file.exists():
            if not self._only_ours(names) or Journal.finished(self.journal_file):
                raise UsageError(f"{self.path} is not empty and no run: it has no {_PLAN}; choose another --out")
            return False
        there = self.plan()
        work = Journal.finished(self.journal_file) - {PREFLIGHT}
        if there.sha256 == plan.sha256:
            return bool(work)
        if work or not begun:
            raise JournalError(
                f"{self.path} holds a run of another plan ({'; '.join(there.differences(plan)[:6])}); "
                f"choose another --out, or go on with that run: holdfast resume {self.path}"
            )
        return False

    def _only_ours(self, names: set[str]) -> bool:
        """Nothing but what a run makes before its plan is written."""
        return all(name in _OURS or _DRAFT.fullmatch(name) for name in names)

    def _other_kind(self) -> str | None:
        kind = self.about().get("kind", "audit")
        return None if kind == "audit" else str(kind)

    def about(self) -> dict[str, str]:
        """What was noted when the run was begun: its kind, the folder in which it was, and the command."""
        try:
            told = read_json(self.about_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(told, dict):
            return {}
        return {k: v for k, v in cast("dict[str, Any]", told).items() if isinstance(v, str)}

    @contextmanager
    def begin(self, plan: Plan, command: str = "") -> Generator[None, None, None]:
        """Makes the folder of a new run, or opens the one of the same plan, and keeps others out meanwhile.

        The folder in which a run was begun, and by which command, are noted once. Killed at any moment in here, the same
        call goes on.

        Raises:
            JournalError: another process works on it, or began another run there just now.
            UsageError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                if not self.check(plan):
                    known = self.about_file.exists() and self.plan_file.exists() and self.plan().sha256 == plan.sha256
                    self._clear(keep_plan=known)
                    if not known:
                        about = {"kind": "audit", "start": str(Path.cwd()), "command": command}
                        write_whole(self.about_file, json.dumps(about, indent=1) + "\n")
                self.witnesses.mkdir(exist_ok=True)
                text = plan.to_yaml().encode()
                if not self.plan_file.exists() or self.plan_file.read_bytes() != text:
                    write_whole(self.plan_file, text)
                for folder in (self.path, self.witnesses):
                    for file in folder.iterdir():
                        if _DRAFT.fullmatch(file.name):
                            file.unlink(missing_ok=True)
                yield
        except OSError as error:
            if error.errno not in _UNWRITABLE and not str(error.filename or "").startswith(str(self.path)):
                raise
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot write to {self.path}: {error.strerror or error}; make room there or choose another --out, and run the "
            "command again: what was finished is kept"
        )

    def _clear(self, *, keep_plan: bool) -> None:
        """Takes away what a start left that came to nothing; the plan last, since it says whose the rest is."""
        for end in ("", *SIDECARS):
            self.journal_file.with_name(_JOURNAL + end).unlink(missing_ok=True)
        for file in self.witnesses.glob("*.safetensors"):
            file.unlink()
        if not keep_plan:
            for file in self.path.glob("answers.sqlite*"):  # a prediction API's, to another plan
                file.unlink()
            self.plan_file.unlink(missing_ok=True)

    def plan(self) -> Plan:
        """The plan of the run."""
        if not self.plan_file.exists():
            raise UsageError(f"{self.path} is no run: it has no {_PLAN}")
        return Plan.read(self.plan_file)

    def store(self, x: Tensor) -> str:
        """Stores one witness under the hash of its file, where the folder may be written to; returns the hash.

        Raises:
            UsageError: it cannot be written.
        """
        content = save({"x": x.detach().cpu().contiguous()})
        name = hashlib.sha256(content).hexdigest()
        target = self.witnesses / f"{name}.safetensors"
        try:
            if not self._read_only and not target.exists():
                write_whole(target, content)
        except OSError as error:
            raise self._unwritable(error) from None
        return name

    def witness(self, sha256: str) -> Tensor:
        """Reads a witness and checks its hash.

        Raises:
            JournalError: it is missing or was altered.
        """
        file = self.witnesses / f"{sha256}.safetensors"
        try:
            content = file.read_bytes()
        except OSError:
            raise JournalError(f"the witness {sha256[:12]} is missing from {self.witnesses}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise JournalError(f"the witness {sha256[:12]} was altered: its hash does not match its name")
        try:
            return load(content)["x"]
        except (SafetensorError, KeyError):
            raise JournalError(f"the witness {sha256[:12]} is no witness file") from None
