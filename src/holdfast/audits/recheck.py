"""Recheck: judge a finished run anew, years later, from its folder and the model alone.

Three looks: what the journal says is held against the model (`holdfast.audits.replay`); the whole document is composed anew
from it and compared with report.json field by field; and the report's files are written anew and compared. What none of them
can derive is listed, so that nobody takes it for checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from pydantic import JsonValue
from torch import nn

from holdfast.audits.context import Context
from holdfast.audits.document import Document
from holdfast.audits.folder import RunFolder
from holdfast.audits.journal import Journal, Records, preflighted
from holdfast.audits.places import Places
from holdfast.audits.reconcile import compose
from holdfast.audits.replay import Replay
from holdfast.audits.workers import Progress
from holdfast.core.cost import Cost
from holdfast.core.errors import DataError, JournalError
from holdfast.core.files import read_json
from holdfast.core.version import __version__

__all__ = ["FilesCheck", "Recheck", "recheck"]

FilesCheck: TypeAlias = Callable[[Context, Document], tuple[list[str], list[str]]]
"""What is wrong with the files beside ``report.json``, and which could not be compared; of a document that was derived."""

_NEVER = (
    "what the attacks spent, and the referee (forwards, backwards, queries, seconds) and after how many queries they found "
    "what they found",
    "that the attacks found nothing where there is no witness: they are not run again",
    "that the model raised, or had no decision, at no other inputs than those that are named: the attacks are not run again",
    "what the model raised, in words, and which claims the referee rejected",
    "the least margins that the attacks reached, on which hangs which samples later attacks were run on",
    "the command, the time and the machine of the run: compared with its journal alone",
    "figures inside the texts of findings",
    "the folder in which the run was begun",
)
_BESIDE = "the files beside report.json: nobody compared them (holdfast recheck does)"
_PROSE = frozenset(
    {"methods", "not_tested", "statement", "stamp", "title", "upper_bound_note", "findings", "message", "remedy"}
)


@dataclass(kw_only=True)
class Recheck:
    """What a recheck found.

    Attributes:
        witnesses: how many were judged anew.
        certificates: how many were proved anew.
        marginal: ids whose witness flips within the rounding that was stored with it.
        problems: what does not hold; empty if the run stands.
        not_rederived: what the run says and nothing here can derive.
        cost: what the referee asked of every claim, and smoothing to draw its certificates again; the cheap stages that
            are done again beside them are not in it.
    """

    witnesses: int = 0
    certificates: int = 0
    marginal: list[int] = field(default_factory=list[int])
    problems: list[str] = field(default_factory=list[str])
    not_rederived: list[str] = field(default_factory=list[str])
    cost: Cost = field(default_factory=Cost)

    @property
    def ok(self) -> bool:
        """Everything that can be derived holds."""
        return not self.problems


def recheck(
    out: Path | str,
    *,
    model: nn.Module | None = None,
    places: Places | None = None,
    progress: Progress | None = None,
    beside: FilesCheck | None = None,
) -> Recheck:
    """Judges every witness and certificate of a run anew, the journal against the model, and the report against the journal.

    Args:
        out: the run's folder; nothing in it is changed.
        model: the module, where the plan names no file.
        places: where files are that moved since, and what the plan may do that only its file says.
        progress: told (what is looked at, samples done, samples).
        beside: compares the files beside report.json with what was derived, as `holdfast.report.audits.derive.compared`
            does; None: they are not looked at, and the result says so.

    Raises:
        JournalError: the run is unfinished, or its journal is of a former form.
        UnsafeFileError: the plan names code to run, and nobody said that it may.
        BudgetError: the plan names a prediction API, and nobody said that it may be asked.
    """
    folder = RunFolder(Path(out), read_only=True)
    plan = folder.plan()
    context = Context.open(plan, folder, model, at=(places or Places()).located(plan, folder))
    _refuse_unfinished(folder)
    Journal.check_form(folder.journal_file)
    result = Recheck(not_rederived=list(_NEVER))
    try:
        report = Document.load(folder.report_file)
        if (plan.model is None) != (model is not None):  # a module then, and its file now, or the other way round
            context.source = report.model.source
            result.not_rederived.append("what the model was called: it is given here in another way than to the run")
        journal = Journal(folder.journal_file, context.identity, read_only=True)
        result.problems += [f"the journal's unit {stage} of chunk {k} was altered" for stage, k in journal.altered()]
        records = journal.units()
        look = preflighted(records)
        context.randomised = look is not None and look.randomised
        _replay(context, records, result, progress)
        again = _derived(context, records, journal, report, result)
    except (DataError, JournalError) as error:
        result.problems.append(str(error))
        return result
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        result.problems.append(f"the journal is not one that a run writes: {type(error).__name__}: {error}")
        return result
    before = len(result.problems)
    _compare(report, again, result)
    if len(result.problems) == before:
        _compare_text(folder, again, result)
    _begun(folder, again, result)
    problems, unread = ([], [_BESIDE]) if beside is None else beside(context, again)
    result.problems += problems
    result.not_rederived += unread
    return result


def _refuse_unfinished(folder: RunFolder) -> None:
    """A run without a report is no altered run, but one that has not come to its end."""
    if folder.report_file.exists():
        return
    done = len(Journal.finished(folder.journal_file))
    raise JournalError(
        f"{folder.path} is unfinished: it has no report, and {done} units of its work are done; go on with: holdfast resume "
        f"{folder.path}"
    )


def _replay(context: Context, records: Records, result: Recheck, progress: Progress | None) -> None:
    replay = Replay(context, records, progress)
    replay.run()
    notes = replay.notes
    result.witnesses, result.certificates, result.cost = notes.witnesses, notes.certificates, notes.cost
    result.marginal += sorted(set(notes.marginal))
    result.problems += notes.problems
    result.not_rederived += notes.unread


def _derived(context: Context, records: Records, journal: Journal, report: Document, result: Recheck) -> Document:
    """The document that the journal gives."""
    facts = journal.facts()
    if not {"command", "environment"} <= facts.keys():
        facts = {"command": report.command, "environment": report.environment.model_dump_json()}
        result.not_rederived.append("the command and the machine: the journal is of a version that did not note them")
    sha256 = hashlib.sha256(journal.path.read_bytes()).hexdigest()
    again = compose(context, records, journal.seconds(), facts=facts, journal=sha256)
    if report.gate is not None:
        again = again.gated(report.gate.threshold, report.gate.side, allow_weak=report.gate.allow_weak)
        result.not_rederived.append("the threshold that the run was held to")
    for clash in again.contradictions:
        result.problems.append(
            f"sample {clash.id}: at {clash.distance:.6g}, inside the radius {clash.radius:.6g} that was proved safe, "
            f"{clash.message}"
        )
    return again


def _compare(report: Document, again: Document, result: Recheck) -> None:
    """Every field of the report must be what was derived."""
    told, due = json.loads(report.text()), json.loads(again.text())
    for path, was, is_ in _differences(told, due):
        if report.environment.holdfast != __version__ and _PROSE & set(path.split(".")):
            result.not_rederived.append(f"'{path}': worded otherwise by Holdfast {__version__}")
        elif path == "hashes.journal":
            result.problems.append("the journal was altered: its hash is not the one in report.json")
        else:
            result.problems.append(f"report.json says something else than the journal about '{path}': {was}, not {is_}")


def _compare_text(folder: RunFolder, again: Document, result: Recheck) -> None:
    """What says the same is written the same, so that no reader of JSON finds something else in it."""
    if folder.report_file.read_bytes() == again.text().encode():
        return
    if again.environment.holdfast != __version__:
        result.not_rederived.append(f"report.json, letter by letter: this is Holdfast {__version__}")
    else:
        result.problems.append("report.json says what the journal says, and is not written as a run writes it")


def _begun(folder: RunFolder, again: Document, result: Recheck) -> None:
    """run.json is one that a run writes, and names the command that the journal names."""
    try:
        told = read_json(folder.about_file.read_bytes())
    except OSError:
        result.problems.append("run.json is missing: it says by which command the run was begun")
        return
    except ValueError as error:
        result.problems.append(f"run.json is not one that a run writes: {error}")
        return
    names = {"kind", "start", "command"}
    told = cast("dict[str, Any]", told) if isinstance(told, dict) else {}
    if told.keys() != names or not all(isinstance(v, str) for v in told.values()):
        result.problems.append(f"run.json is not one that a run writes: it holds {', '.join(sorted(names))} as texts")
    elif told["kind"] != "audit" or (told["command"] and told["command"] != again.command):
        result.problems.append(
            "run.json says something else than the journal about the kind and the command of the run"
        )


def _differences(told: JsonValue, due: JsonValue, path: str = "") -> Iterator[tuple[str, str, str]]:
    """The fields in which two plain values differ; of a long list the first."""
    if isinstance(told, dict) and isinstance(due, dict):
        for name in dict.fromkeys([*due, *told]):
            yield from _differences(told.get(name), due.get(name), f"{path}.{name}" if path else name)
    elif isinstance(told, list) and isinstance(due, list) and len(told) == len(due):
        for k, (a, b) in enumerate(zip(told, due, strict=True)):
            if a != b:
                yield from _differences(a, b, f"{path}.{k}")
                return
    elif told != due:
        yield path, _short(told), _short(due)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
