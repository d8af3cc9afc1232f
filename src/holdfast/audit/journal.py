"""The journal of a run: one SQLite row for each finished unit of work (a stage of a chunk), with its hash.

A unit is pure: the same plan, stage, chunk and earlier units give the same payload. A run that was killed is resumed by
doing the units that have no row; at most one chunk of work is lost.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from holdfast.core.errors import JournalError

__all__ = ["Journal", "Payload"]

Payload = dict[str, Any]
_VERSION = "1"


class Journal:
    """Finished units by (stage, chunk)."""

    def __init__(self, path: Path, identity: dict[str, str], *, read_only: bool = False) -> None:
        """Opens a journal.

        Args:
            path: its file.
            identity: hashes of the plan, the model and the data; they must be those of the journal.
            read_only: open without touching the file.

        Raises:
            JournalError: it belongs to something else, is of a newer version, or is no journal.
        """
        self.path = path
        try:
            if read_only:
                self._db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, isolation_level=None)
            else:
                self._db = sqlite3.connect(path, isolation_level=None)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS units (stage TEXT, chunk INTEGER, payload TEXT NOT NULL, "
                    "sha256 TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (stage, chunk))"
                )
            self._belong(identity | {"version": _VERSION}, read_only)
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{path} is no readable journal: {error}") from None

    def _belong(self, identity: dict[str, str], read_only: bool) -> None:
        known = dict(self._db.execute("SELECT name, value FROM identity"))
        for name, value in identity.items():
            if name in known and known[name] != value:
                raise JournalError(
                    f"the journal {self.path} was written for another {name}: {known[name][:12]}, now {value[:12]}"
                )
        if not read_only:
            self._db.executemany("INSERT OR IGNORE INTO identity VALUES (?, ?)", identity.items())

    def units(self) -> dict[tuple[str, int], Payload]:
        """All finished units; one whose hash does not match its payload is left out, so that it is done again."""
        return {key: json.loads(text) for key, text, ok in self._rows() if ok}

    def altered(self) -> list[tuple[str, int]]:
        """Units whose payload does not match its hash."""
        return [key for key, _, ok in self._rows() if not ok]

    def _rows(self) -> list[tuple[tuple[str, int], str, bool]]:
        try:
            rows = self._db.execute("SELECT stage, chunk, payload, sha256 FROM units ORDER BY rowid").fetchall()
        except sqlite3.DatabaseError as error:
            raise JournalError(f"{self.path} was altered: {error}") from None
        return [((stage, chunk), text, _digest(stage, chunk, text) == sha) for stage, chunk, text, sha in rows]

    def seconds(self) -> dict[str, float]:
        """Working seconds by stage."""
        return dict(self._db.execute("SELECT stage, SUM(seconds) FROM units GROUP BY stage"))

    def write(self, stage: str, chunk: int, payload: Payload, seconds: float) -> None:
        """Enters a finished unit, durably."""
        text = json.dumps(payload, sort_keys=True, allow_nan=False)
        self._db.execute(
            "INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?)",
            (stage, chunk, text, _digest(stage, chunk, text), seconds),
        )

    def close(self) -> str:
        """Folds the write-ahead log into the one file; returns the file's hash."""
        try:
            self._db.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.OperationalError:
            raise JournalError(f"another program reads {self.path}; close it and run holdfast resume") from None
        finally:
            self._db.close()
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def _digest(stage: str, chunk: int, text: str) -> str:
    return hashlib.sha256(f"{stage}\x1f{chunk}\x1f{text}".encode()).hexdigest()
