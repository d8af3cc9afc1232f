"""What commands write beside what they print: the answer as JSON, its page, and the command that repeats it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from holdfast.cli.console import note

__all__ = ["save_study", "typed"]


def typed() -> str:
    """The command line as it was typed."""
    return shlex.join(["holdfast", *sys.argv[1:]])


def save_study(out: Path, name: str, answer: Any, page: str) -> None:
    """Writes a study's answer and its page, and says where."""
    from holdfast.core.files import write_whole

    write_whole(out / f"{name}.json", json.dumps(answer, indent=1))
    write_whole(out / f"{name}.html", page)
    note(f"saved {out / name}.html and {out / name}.json")
