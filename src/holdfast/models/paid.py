"""What a prediction API was paid for, kept beside a run: how many rows were sent, and the answers of work not yet finished.

A unit of a run that was killed, or whose budget ended, is done again from its beginning and asks the same rows in the same
order. Its k-th question about a row gets the answer that was paid for then: a randomised API that was asked twice keeps both
answers, and a question that was never answered is asked.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from holdfast.core.errors import JournalError

__all__ = ["PaidAnswers"]

_PER_QUESTION = 500


class PaidAnswers:
    """Answers by (unit of work, row, how often it was asked in that unit).

    Nothing is written as long as there is no run; what was paid for until then is written with the next answer.
    """

    def __init__(self, file: Path, run: str, begun: Callable[[], bool]) -> None:
        """Args:
        file: where they are kept; made with the first answer.
        run: whose they are; those of another run are thrown away.
        begun: whether there is a run to keep them for.
        """
        self.file, self._run_id, self._begun, self._ready = file, run, begun, False
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._waiting: list[tuple[bytes, bytes]] = []
        self._uncounted = 0
        self._unit, self._asked = "", Counter[bytes]()

    def begin(self, unit: str) -> int:
        """Starts a unit of work; returns how many rows were sent by earlier processes and in earlier units."""
        with self._lock:
            self._unit, self._asked = unit, Counter[bytes]()
            return self._sent() + self._uncounted

    def keys(self, rows: Tensor) -> list[bytes]:
        """A key for each of rows (n, \\*features), which are asked now."""
        found: list[bytes] = []
        for row in rows.contiguous():
            content = hashlib.sha256(row.numpy().tobytes()).digest()
            self._asked[content] += 1
            found.append(hashlib.sha256(f"{self._unit}\x1f{self._asked[content]}\x1f".encode() + content).digest())
        return found

    def recall(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """The answers that are known, each (K,) float32."""
        with self._lock:
            db, found = self._open(), dict(self._waiting)
            for at in range(0, len(keys) if db else 0, _PER_QUESTION):
                part = keys[at : at + _PER_QUESTION]
                marks = ",".join("?" * len(part))
                found |= dict(self._run(f"SELECT key, answer FROM answers WHERE key IN ({marks})", part))
        wanted = set(keys)
        return {k: torch.frombuffer(bytearray(v), dtype=torch.float32) for k, v in found.items() if k in wanted}

    def charge(self, rows: int) -> None:
        """Counts rows that are about to be sent."""
        with self._lock:
            self._uncounted += rows
            self._flush()

    def keep(self, keys: Sequence[bytes], answers: Tensor) -> None:
        """Keeps answers (n, K) float32 as they come."""
        with self._lock:
            self._waiting += [(k, a.numpy().tobytes()) for k, a in zip(keys, answers.contiguous(), strict=True)]
            self._flush()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _flush(self) -> None:
        if not self._there():
            return
        self._open(make=True)
        self._run("BEGIN IMMEDIATE")
        self._run("UPDATE spent SET rows = rows + ?", (self._uncounted,))
        for item in self._waiting:
            self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", item)
        self._run("COMMIT")
        self._waiting, self._uncounted = [], 0

    def _there(self) -> bool:
        self._ready = self._ready or self._begun()
        return self._ready

    def _sent(self) -> int:
        return int(self._run("SELECT rows FROM spent")[0][0]) if self._open() else 0

    def _open(self, *, make: bool = False) -> sqlite3.Connection | None:
        if self._db is None and self._there() and (make or self.file.exists()):
            self._db = sqlite3.connect(self.file, isolation_level=None, check_same_thread=False)
            self._run("PRAGMA journal_mode=WAL")
            self._run("PRAGMA synchronous=NORMAL")
            self._run("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL)")
            self._run("CREATE TABLE IF NOT EXISTS spent (run TEXT PRIMARY KEY, rows INTEGER NOT NULL)")
            if not self._run("SELECT rows FROM spent WHERE run = ?", (self._run_id,)):
                for text in ("BEGIN IMMEDIATE", "DELETE FROM answers", "DELETE FROM spent"):
                    self._run(text)
                self._run("INSERT INTO spent VALUES (?, 0)", (self._run_id,))
                self._run("COMMIT")
        return self._db

    def _run(self, text: str, values: Sequence[object] = ()) -> list[tuple[bytes, bytes]]:
        assert self._db is not None
        try:
            return self._db.execute(text, tuple(values)).fetchall()
        except sqlite3.DatabaseError as fault:
            raise JournalError(f"{self.file} is no readable store of answers: {fault}; remove it to pay anew") from None
