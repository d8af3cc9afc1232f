"""The journal of a run: one SQLite row for each finished unit of work (a stage of a chunk), with its hash.

A unit is pure: the same plan, stage, chunk and earlier units give the same payload. A run that was killed is resumed by
doing the units that have no row; at most one chunk of work is lost.

Nothing is written before it is needed: a journal is first read, from a copy where a killed process left a log beside it, and
the file itself is opened for writing by the first `Journal.write`. So whatever is refused changes no byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from holdfast.core.errors import JournalError, UsageError
from holdfast.core.files import read_json

__all__ = ["SIDECARS", "Journal", "Key", "Payload"]

Payload = dict[str, Any]
Key = tuple[str, int]
"""Of a unit: its stage and its chunk."""

SIDECARS = ("-wal", "-shm", "-journal")
"""Ends of the names of what SQLite keeps beside a journal while it is open."""

_VERSION = "1"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS units (stage TEXT, chunk INTEGER, payload TEXT NOT NULL, "
    "sha256 TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (stage, chunk))",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


@dataclass(frozen=True)
class _Held:
    """What a journal's file holds."""

    identity: dict[str, str] = field(default_factory=dict)
    payloads: dict[Key, Payload] = field(default_factory=dict)
    altered: list[Key] = field(default_factory=list)
    seconds: dict[Key, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


class Journal:
    """Finished units by (stage, chunk), and a few facts about the run as a whole."""

    def __init__(self, path: Path, identity: Mapping[str, str], *, read_only: bool = False) -> None:
        """Reads a journal.

        Args:
            path: its file; a new journal where there is none.
            identity: hashes of what it is about, of the plan, the model and the data for an audit; they must be those of
                the journal, name by name.
            read_only: it must be there, and nothing will be written.

        Raises:
            JournalError: it belongs to something else, is of a newer version, or is no journal.
        """
        self.path, self._read_only = path, read_only
        self._identity = dict(identity) | {"version": _VERSION}
        self._db: sqlite3.Connection | None = None
        self._held = self._look()
        known = self._held.identity
        for name, value in self._identity.items():
            if known and known.get(name) != value:
                raise JournalError(_another(path, name, str(known.get(name)), value))
        if strange := sorted(known.keys() - self._identity.keys()):
            raise JournalError(f"the journal {path} is of another kind of run: it is bound to a {strange[0]}")

    @classmethod
    def finished(cls, path: Path) -> set[Key]:
        """The units of a journal, whatever it is about; none where there is no file.

        Raises:
            JournalError: it is no journal.
        """
        return set(_read(path).seconds) if path.exists() else set()

    def _look(self) -> _Held:
        if not self.path.exists():
            if self._read_only:
                raise JournalError(f"{self.path} is not there")
            return _Held()
        return _read(self.path)

    def units(self) -> dict[Key, Payload]:
        """All finished units; one whose hash does not match its payload is left out, so that it is done again."""
        return dict(self._held.payloads)

    def altered(self) -> list[Key]:
        """Units whose payload does not match its hash."""
        return self._held.altered

    def facts(self) -> dict[str, str]:
        """What was noted of the run as a whole: where and when it was made, and by which command."""
        return self._held.facts

    def seconds(self) -> dict[str, float]:
        """Working seconds by stage."""
        spent: dict[str, float] = {}
        for (stage, _), seconds in self._held.seconds.items():
            spent[stage] = spent.get(stage, 0.0) + seconds
        return spent

    def write(self, stage: str, chunk: int, payload: Payload, seconds: float) -> Payload:
        """Enters a finished unit, durably; returns it as it will be read, so that a resumed run works on the same.

        Raises:
            UsageError: the disk is full, or the file cannot be written.
        """
        text = json.dumps(payload, sort_keys=True, allow_nan=False)
        row = (stage, chunk, text, _digest(stage, chunk, text), seconds)
        self._execute("INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?)", row)
        self._held.seconds[stage, chunk] = seconds
        return json.loads(text)

    def forget(self, keys: Iterable[Key]) -> None:
        """Takes units out, one after the other."""
        for key in keys:
            self._execute("DELETE FROM units WHERE stage = ? AND chunk = ?", key)
            self._held.payloads.pop(key, None)
            self._held.seconds.pop(key, None)

    def note(self, facts: Mapping[str, str]) -> None:
        """Enters facts, in the place of those of the same names."""
        for row in facts.items():
            self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", row)
        self._held.facts.update(facts)

    def _execute(self, statement: str, row: tuple[object, ...]) -> None:
        try:
            if self._db is None:
                self._db = self._open()
            self._db.execute(statement, row)
        except sqlite3.Error as error:
            raise UsageError(
                f"cannot write to {self.path}: {error}; make room or give it the right to be written, and run the same "
                "command again: what was finished is kept"
            ) from None

    def _open(self) -> sqlite3.Connection:
        if self._read_only:
            raise JournalError(f"{self.path} was opened to be read")
        db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        for table in _TABLES:
            db.execute(table)
        db.executemany("INSERT OR IGNORE INTO identity VALUES (?, ?)", self._identity.items())
        return db

    def close(self) -> str:
        """Folds the log of this or of a killed process into the one file; returns the file's hash."""
        try:
            if self._db is None and not self._read_only and _sidecars(self.path):
                self._db = self._open()
            if self._db is not None:
                self._db.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise JournalError(f"another program reads {self.path}; close it and run holdfast resume") from None
            raise UsageError(f"cannot write to {self.path}: {error}; make room and run holdfast resume") from None
        finally:
            if self._db is not None:
                self._db.close()
                self._db = None
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def _another(path: Path, name: str, known: str, value: str) -> str:
    said = f"the journal {path} was written for {'other data' if name == 'data' else f'another {name}'}"
    hashes = f"{known[:12]} there, {value[:12]} here"
    match name:
        case "model":
            return (
                f"{said}, by its hash ({hashes}); say where the right one is with --model, what builds it with --arch"
            )
        case "data":
            return f"{said}, by its hash ({hashes}); say where the right ones are with --data"
        case "version":
            return f"{said} of Holdfast's journals ({hashes}); read it with that one"
        case _:
            return f"{said} ({hashes}); choose another --out"


def _sidecars(path: Path) -> list[Path]:
    beside = [path.with_name(path.name + end) for end in SIDECARS]
    return [file for file in beside if file.exists()]


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """The journal, opened so that no byte of it or beside it changes: SQLite would fold a log that was left behind."""
    beside = _sidecars(path)
    if not beside:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            yield db
        return
    with TemporaryDirectory() as folder:
        for file in (path, *beside):
            if not file.name.endswith("-shm"):  # an index into the log that SQLite makes anew
                shutil.copyfile(file, Path(folder) / file.name)
        with closing(sqlite3.connect(Path(folder) / path.name)) as db:
            yield db


def _read(path: Path) -> _Held:
    try:
        with _connected(path) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            held = _Held(
                identity=dict(db.execute("SELECT name, value FROM identity")) if "identity" in tables else {},
                facts=dict(db.execute("SELECT name, value FROM facts")) if "facts" in tables else {},
            )
            if "units" in tables:
                for stage, k, text, sha, seconds in db.execute(
                    "SELECT stage, chunk, payload, sha256, seconds FROM units ORDER BY rowid"
                ):
                    held.seconds[stage, k] = float(seconds)
                    if _digest(stage, k, text) == sha:
                        held.payloads[stage, k] = read_json(text)
                    else:
                        held.altered.append((stage, k))
            return held
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise JournalError(f"{path} is no readable journal, or was altered: {error}") from None


def _digest(stage: str, chunk: int, text: str) -> str:
    return hashlib.sha256(f"{stage}\x1f{chunk}\x1f{text}".encode()).hexdigest()
