"""``holdfast doctor``: what is wrong with a model and its data, before an audit."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options as o
from holdfast.cli.console import Spoken, say, say_json
from holdfast.cli.opening import opened
from holdfast.cli.spread import Without, spread
from holdfast.core.words import counted, numbered, sentences

if TYPE_CHECKING:
    from holdfast.api.doctor import Examination
    from holdfast.session.session import Session

__all__ = ["doctor"]

_ERRORS = 2
_OWN = ("--format", "-q", "--quiet", "-v", "--verbose")
_TABLE = "--table columns.yaml"
_STYLES = {"error": "red", "warning": "yellow", "note": None}


@spread
def doctor(
    model: Annotated[o.ModelOptions, Without("anyway")],
    threat: o.NormOptions,
    asked: o.AskedOptions,
    run: Annotated[o.RunOptions, Without("seed")],
    talk: o.TalkOptions,
) -> None:
    """Look at a model and its data together; exits with 2 if an audit would not start. Nothing is changed.

    It prints the clean accuracy, how the classes are numbered, what is wrong and what mends it, whether the bounds know the
    model, how long an audit would take, and the command that starts it.
    """
    from holdfast.api.doctor import examine

    session = opened(model, o.threat(threat.norm, threat.eps, asked=asked), run, asked=asked, looks=False)
    found = examine(session, Spoken())
    command = _command(session, [str(f.data["flags"]) for f in found.findings if f.data.get("flags")], found.budget)
    names = dict(enumerate(session.data.classes or ()))
    if talk.json:
        say_json(
            {
                "source": session.source,
                "findings": [f.as_dict() for f in found.findings],
                "clean_accuracy": found.accuracy,
                "classes": names,
                "bounds": found.bounds,
                "time": found.cost,
                "command": command,
                "asked": {} if found.first is None else found.first.to_dict(),
            }
        )
    else:
        _say(session, found, list(names.values()))
        say("an audit can start:" if not found.errors else f"{counted(found.errors, 'error')} to mend first; then:")
        if any(f.data.get("flags") == _TABLE for f in found.findings):
            say(f"  {shlex.join(['holdfast', 'columns', str(model.data), '--out', 'columns.yaml'])}")
        say(f"  {command}")
    if found.errors:
        raise typer.Exit(_ERRORS)


def _say(session: Session, found: Examination, names: list[str]) -> None:
    say(f"{session.source}")
    shape, n = session.data.x.shape[1:], len(session.data)
    of = counted(shape[0], "feature") if len(shape) == 1 else "x".join(map(str, shape))
    say(f"{session.data.name}: {counted(n, 'sample')} of {of}")
    if names:
        say(f"classes: {numbered(names)}")
    if found.accuracy is not None:
        rows = min(n, found.rows)
        say(f"clean accuracy: {found.accuracy:.1%} of {'the first ' if rows > 1 else ''}{counted(rows, 'sample')}")
    if found.first is not None:
        say(str(found.first))
    for f in found.findings:
        say(f"{f.severity}: {f.title} [{f.code}]. {sentences(f.message, f.remedy)}", style=_STYLES[f.severity])
    say(f"certificates: {found.bounds or ('not looked at' if session.differentiable else f'none, {session.why}')}")
    if found.cost:
        say(found.cost if session.spec.remote else f"time of an audit (suite {found.suite}): {found.cost}")


def _command(session: Session, flags: list[str], most: int | None) -> str:
    """The command line of an audit: what was typed, what the findings say is missing, and the budget that it needs."""
    typed = sys.argv[1:]
    typed = typed[typed.index("doctor") + 1 :] if "doctor" in typed else typed
    kept = [t for k, t in enumerate(typed) if t not in _OWN and (k == 0 or typed[k - 1] != "--format")]
    if most is not None:
        kept = _with_budget(kept, most)
    remote = ["--suite", "black-box", "--certify", "none"] if not session.differentiable else []
    named = [] if "--out" in kept else ["--out", "runs/first"]
    return " ".join([shlex.join(["holdfast", "audit", *kept, *remote, *named]), *dict.fromkeys(flags)])


def _with_budget(words: list[str], most: int) -> list[str]:
    """The words with another budget."""
    at = next((k for k, word in enumerate(words) if word.partition("=")[0] == "--max-queries"), len(words))
    after = at + 1 if at < len(words) and "=" in words[at] else at + 2
    return [*words[:at], "--max-queries", str(most), *words[after:]]
