"""A run's folder: plan, journal, witnesses, and the lock that keeps a second process out."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from holdfast.audit.plan import Plan
from holdfast.core.errors import JournalError, UsageError
from holdfast.core.files import write_whole

__all__ = ["RunFolder"]


class RunFolder:
    """Paths and files of a run."""

    def __init__(self, path: Path) -> None:
        """Names the folder; nothing is made until `create`."""
        self.path = path
        self.plan_file, self.journal_file = path / "plan.yaml", path / "journal.sqlite"
        self.report_file, self.witnesses = path / "report.json", path / "witnesses"

    def create(self, plan: Plan) -> None:
        """Makes the folder of a new run, or opens the one of the same plan.

        Raises:
            JournalError: the folder belongs to another plan.
            UsageError: the folder is no run and not empty, or cannot be written.
        """
        if self.plan_file.exists():
            if self.plan().sha256 != plan.sha256:
                raise JournalError(f"{self.path} holds a run of another plan; choose another --out, or resume that run")
        elif self.path.exists() and any(self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty and no run; choose another --out")
        try:
            self.witnesses.mkdir(parents=True, exist_ok=True)
            write_whole(self.plan_file, plan.to_yaml().encode())
        except OSError as error:
            raise UsageError(f"cannot write to {self.path}: {error.strerror}; choose another --out") from None

    def plan(self) -> Plan:
        """The plan of the run."""
        if not self.plan_file.exists():
            raise UsageError(f"{self.path} is no run: it has no plan.yaml")
        return Plan.read(self.plan_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from working on the same run.

        Raises:
            JournalError: another process does.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JournalError(f"another process is working on {self.path}; wait for it or stop it") from None
            yield

    def store(self, x: Tensor) -> str:
        """Stores one witness under the hash of its file; returns the hash."""
        content = save({"x": x.detach().cpu().contiguous()})
        name = hashlib.sha256(content).hexdigest()
        target = self.witnesses / f"{name}.safetensors"
        if not target.exists():
            write_whole(target, content)
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
