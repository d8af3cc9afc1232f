"""Where the files of a run are now: it may be looked at from another folder, on another machine, years later.

Paths in a plan are as they were typed. They are looked for in the folder in which the run was begun, in the run's own folder
and in the current one; a file that is in none of them is named by the caller. Whether it is the right one is for its hash to
say, not for its path.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from holdfast.audits.folder import RunFolder
from holdfast.audits.plan import Plan, names_of
from holdfast.core.errors import DataError, UsageError

__all__ = ["Places", "importable"]

_FILES = ("model", "arch", "data", "train_data", "surrogate", "surrogate_arch")


@dataclass(frozen=True)
class Places:
    """What the caller says of a run that was begun before.

    Attributes:
        model: where the model file is now; for a prediction API its URL, which is the consent to ask it and to send it the
            token.
        arch: what builds it, where that has moved; naming code is the consent to run it.
        data: where the data are now.
        train_data: likewise.
        surrogate: likewise.
        surrogate_arch: likewise.
        trust: open files and run code that the plan names.
        may_ask: ask the prediction API that the plan names, without a token.
        max_queries: the most rows that it may be sent, those of earlier starts included, where that is another number now.
    """

    model: str | None = None
    arch: str | None = None
    data: str | None = None
    train_data: str | None = None
    surrogate: str | tuple[str, ...] | None = None
    surrogate_arch: str | tuple[str, ...] | None = None
    trust: bool = False
    may_ask: bool = False
    max_queries: int | None = None

    def located(self, plan: Plan, folder: RunFolder, *, names: tuple[str, ...] = _FILES) -> Plan:
        """The plan with its files where they are; its own text and hash stay what the run is known by.

        Args:
            plan: the run's.
            folder: the run's.
            names: the fields whose files are looked for.

        Raises:
            DataError: a file is in none of the places; the message names them and the flag.
            UsageError: another API than the run's.
        """
        if plan.remote and self.model not in (None, plan.model):
            raise UsageError(f"this run asked {plan.model}, and {self.model} is another model; start a new run for it")
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("trust", "may_ask")}
        given = {k: v for k, v in given.items() if v is not None}
        confirmed = plan.confirmed(may_ask=self.may_ask, trust=self.trust or plan.trust, **given)
        roots = _roots(folder)
        moved, missing = dict[str, str | tuple[str, ...]](), list[tuple[str, str]]()
        for name in names:
            value = getattr(plan, name)
            if value is not None and name not in given:
                paths = tuple((v, _find(v, roots, name)) for v in names_of(value))
                missing += [(name, v) for v, path in paths if path is None]
                known = tuple(v if path is None else path for v, path in paths)
                moved[name] = known if isinstance(value, tuple) else known[0]
        if missing:
            raise _missing(missing, roots)
        return confirmed.model_copy(update=moved)  # and not confirmed: whose word they are stays as it was


def _roots(folder: RunFolder) -> list[Path]:
    start = folder.about().get("start")
    begun = [] if start is None else [Path(start)]
    return [*begun, folder.path.absolute(), Path.cwd()]


def _missing(files: list[tuple[str, str]], roots: list[Path]) -> DataError:
    """All files that are in none of the places, in one sentence, with the flags that say where they are."""
    words = [f"no {name.replace('_', ' ')} at {text}" for name, text in files]
    flags = dict.fromkeys(f"--{name.replace('_', '-')}" for name, _ in files)
    looked = ", ".join(str(root) for root in dict.fromkeys(roots))
    return DataError(f"there is {' and '.join(words)}, looked for in {looked}; say where with {' '.join(flags)}")


def _find(text: str, roots: list[Path], name: str) -> str | None:
    """The first place where a name is one of a file, None where it is nowhere; names of other things stay as they are."""
    source, colon, rest = text.rpartition(":")
    if colon and source.endswith(".py"):
        file = _find(source, roots, name)
        return None if file is None else f"{file}:{rest}"
    if name in ("arch", "surrogate_arch") and colon:
        return text
    if text.startswith(("http://", "https://", "timm:")) or (name.endswith("data") and text.split(":")[0] == "digits"):
        return text
    for root in dict.fromkeys(roots):
        if (root / text).exists():
            return str(root / text)
    return text if colon else None


@contextmanager
def importable(plan: Plan, folder: RunFolder) -> Generator[None, None, None]:
    """Modules of the folder in which the run was begun, for a plan that may run code."""
    start = folder.about().get("start")
    if start is None or not plan.trust or not Path(start).is_dir():
        yield
        return
    sys.path.append(start)
    try:
        yield
    finally:
        sys.path.remove(start)
