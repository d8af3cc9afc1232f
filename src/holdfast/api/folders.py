"""Folders of results: none is written into a run's, and an attack's are made anew by the next, never mixed with others'."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast.core.errors import UsageError
from holdfast.core.files import write_whole
from holdfast.core.kinds import is_dict

__all__ = ["begin_results", "check_results", "no_run", "results_folder"]

_ABOUT = "run.json"
_WRITTEN = ("adversarial.npz", "adversarial.csv", "evaluation.json", "artefact.safetensors", "attack.json", "pictures")
_RUNS = ("plan.yaml", "journal.sqlite", "report.json")


def no_run(out: Path, own: tuple[str, ...] = ()) -> None:
    """Refuses a folder in which an audit was begun or finished; changes nothing.

    Args:
        out: where results are to go.
        own: files that the command's own earlier results have under a run's names.

    Raises:
        UsageError: it is an audit's or another run's.
    """
    taken = [name for name in (*_RUNS, _ABOUT) if name not in own and (out / name).exists()]
    if taken and not (taken == [_ABOUT] and _ours(out)):
        raise UsageError(
            f"{out} holds another run ({', '.join(taken)}), and results would mix with it; choose another --out"
        )


def results_folder(out: Path) -> None:
    """Refuses what is no folder for results; changes nothing.

    Raises:
        UsageError: it is a file, or holds an audit or another run.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; results need a folder: choose another --out")
    no_run(out)


def check_results(out: Path) -> None:
    """Refuses a folder in which something of others would be written over; changes nothing.

    Raises:
        UsageError: it is an audit's or another run's, or holds files of these names that no attack of ours wrote.
    """
    results_folder(out)
    if _ours(out):
        return
    if taken := [name for name in _WRITTEN if (out / name).exists()]:
        raise UsageError(f"{out} holds {', '.join(taken)}, which would be written over; choose another --out")


def begin_results(out: Path, attack: str) -> bool:
    """Makes the folder, or takes an earlier attack's results out of it; a fit that was interrupted stays, to go on with.

    Returns:
        Whether there were such results.
    """
    check_results(out)
    gone: list[Path] = []
    if _ours(out):
        gone = [out / name for name in _WRITTEN if (out / name).exists()]
        for file in gone:
            for one in file.glob("*.png") if file.is_dir() else (file,):
                one.unlink()
            if file.is_dir():
                with suppress(OSError):  # something of others is in it
                    file.rmdir()
    write_whole(out / _ABOUT, json.dumps({"kind": "attack", "attack": attack}, indent=1) + "\n")
    return bool(gone)


def _ours(out: Path) -> bool:
    try:
        told: Any = json.loads((out / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return is_dict(told) and told.get("kind") == "attack"
