"""A store of finished units of work: one SQLite row each, with its hash, and what the work as a whole was about.

Journals are stores of one kind of record (`holdfast.audits.journal`, `holdfast.verification.journal`). Nothing is written
before it is needed: a store is first read, from a copy where a killed process left a log beside it, and the file itself is
opened for writing by the first `Store.write`. So whatever is refused changes no byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Generic, TypeVar

from holdfast.core.errors import JournalError, UsageError

__all__ = ["LOCK", "SIDECARS", "Key", "Store", "locked"]

R = TypeVar("R")
Key = tuple[str, int]
"""Of a unit: its stage and its chunk."""

SIDECARS = ("-wal", "-shm", "-journal")
"""Ends of the names of what SQLite keeps beside a store while it is open."""

LOCK = ".lock"
"""Name of the file that keeps a second process out of a folder."""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS units (stage TEXT, chunk INTEGER, payload TEXT NOT NULL, "
    "sha256 TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (stage, chunk))",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


@dataclass(frozen=True)
class _Held:
    """What a store's file holds."""

    identity: dict[str, str] = field(default_factory=dict[str, str])
    texts: dict[Key, str] = field(default_factory=dict[Key, str])
    altered: list[Key] = field(default_factory=list[Key])
    seconds: dict[Key, float] = field(default_factory=dict[Key, float])
    facts: dict[str, str] = field(default_factory=dict[str, str])


class Store(ABC, Generic[R]):
    """Finished units by (stage, chunk), each a record, and a few facts about the work as a whole.

    Attributes:
        version: of the form of the records; a store of another one is refused by it, before a record is read.
        instead: what to do with a store of another form.
    """

    version: ClassVar[str]
    instead: ClassVar[str] = "start again, in another folder"

    def __init__(self, path: Path, identity: Mapping[str, str], *, read_only: bool = False) -> None:
        """Reads a store.

        Args:
            path: its file; a new store where there is none.
            identity: hashes of what it is about, of the plan, the model and the data for an audit; they must be those of
                the store, name by name.
            read_only: it must be there, and nothing will be written.

        Raises:
            JournalError: it belongs to something else, is of another version, or is no journal.
        """
        self.path, self._read_only = path, read_only
        self._identity = dict(identity) | {"version": self.version}
        self._db: sqlite3.Connection | None = None
        self._held = self._look()
        known = self._held.identity
        self._check_form(path, self._held)
        for name, value in self._identity.items():
            if known and known.get(name) != value:
                raise JournalError(_another(path, name, str(known.get(name)), value))
        if strange := sorted(known.keys() - self._identity.keys()):
            raise JournalError(f"the journal {path} is of another kind of run: it is bound to a {strange[0]}")
        self._records = {key: self._decoded(key, text) for key, text in self._held.texts.items()}

    def _decoded(self, key: Key, text: str) -> R:
        """A record of the file, as it was written: its hash holds, so that what is no record was put there by hand."""
        try:
            return self.decode(key, text)
        except ValueError as error:
            stage, chunk = key
            raise JournalError(
                f"the journal {self.path} was altered: its unit {stage} of chunk {chunk} is no record of form {self.version} "
                f"({error}); put a copy of the folder in its place, or {self.instead}"
            ) from None

    @classmethod
    def check_form(cls, path: Path) -> None:
        """Refuses a store whose records are of another form than this one's; what cannot be read is refused when it is opened.

        Raises:
            JournalError: its records are of another form.
        """
        try:
            held = _read(path)
        except JournalError:
            return
        cls._check_form(path, held)

    @classmethod
    def _check_form(cls, path: Path, held: _Held) -> None:
        form = held.identity.get("version")
        if held.identity and form != cls.version:
            raise JournalError(
                f"the journal {path} has records of form {form}, as {_writer(held.facts)} wrote them; form {cls.version} is "
                f"the one that is read here: {cls.instead}"
            )

    @abstractmethod
    def encode(self, record: R) -> str:
        """A record as the text that is kept."""

    @abstractmethod
    def decode(self, key: Key, text: str) -> R:
        """The record of a unit's text.

        Raises:
            ValueError: it is none, or none of such a unit; the message says why.
        """

    @classmethod
    def finished(cls, path: Path) -> set[Key]:
        """The units of a store, whatever it is about and whatever its records are; none where there is no file.

        Raises:
            JournalError: it is no store.
        """
        return set(_read(path).seconds) if path.exists() else set()

    def _look(self) -> _Held:
        if not self.path.exists():
            if self._read_only:
                raise JournalError(f"{self.path} is not there")
            return _Held()
        return _read(self.path)

    def units(self) -> dict[Key, R]:
        """All finished units; one whose hash does not match its text is left out, so that it is done again."""
        return dict(self._records)

    def altered(self) -> list[Key]:
        """Units whose text does not match its hash."""
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

    def write(self, stage: str, chunk: int, record: R, seconds: float) -> R:
        """Enters a finished unit, durably; returns it as it will be read, so that a resumed run works on the same.

        Raises:
            UsageError: the disk is full, or the file cannot be written.
        """
        text = self.encode(record)
        entered = self.decode((stage, chunk), text)
        row = (stage, chunk, text, _digest(stage, chunk, text), seconds)
        self._execute("INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?)", row)
        self._held.seconds[stage, chunk] = seconds
        return entered

    def forget(self, keys: Iterable[Key]) -> None:
        """Takes units out, one after the other."""
        for key in keys:
            self._execute("DELETE FROM units WHERE stage = ? AND chunk = ?", key)
            self._records.pop(key, None)
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


def _writer(facts: Mapping[str, str]) -> str:
    """The release that noted where a run was made; a run that did not end has none."""
    try:
        return f"Holdfast {json.loads(facts['environment'])['holdfast']}"
    except (KeyError, TypeError, ValueError):
        return "an earlier Holdfast"


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
        case _:
            return f"{said} ({hashes}); choose another --out"


def _sidecars(path: Path) -> list[Path]:
    beside = [path.with_name(path.name + end) for end in SIDECARS]
    return [file for file in beside if file.exists()]


@contextmanager
def _connected(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """The store, opened so that no byte of it or beside it changes: SQLite would fold a log that was left behind."""
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
                        held.texts[stage, k] = text
                    else:
                        held.altered.append((stage, k))
            return held
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise JournalError(
            f"{path} is no journal that can be read, or was damaged ({error}); put a copy of the folder in its place, or choose "
            "another --out"
        ) from None


def _digest(stage: str, chunk: int, text: str) -> str:
    return hashlib.sha256(f"{stage}\x1f{chunk}\x1f{text}".encode()).hexdigest()


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Keeps other processes from working in the same folder, which exists.

    Raises:
        JournalError: another process does.
    """
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"another process is working on {folder}; wait for it or stop it") from None
        yield
