"""``holdfast.audit``, ``resume`` and ``recheck``: both sides of every sample, in a folder that anyone can recheck."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.keywords import OF_THE_THREAT, threat_model
from holdfast.api.report import Report
from holdfast.api.results import Block, Result
from holdfast.api.voice import Progress, Voice
from holdfast.core.errors import JournalError, UsageError, did_you_mean
from holdfast.core.threat import Access, Phase, ThreatModel, size_text

if TYPE_CHECKING:
    from torch import nn

    from holdfast.audits.places import Places
    from holdfast.audits.plan import Plan
    from holdfast.audits.recheck import Recheck
    from holdfast.core.cost import Cost
    from holdfast.data.dataset import Dataset
    from holdfast.session.spec import DataLike, ModelLike

__all__ = ["RecheckResult", "audit", "recheck", "recheck_run", "resume", "resume_run", "run_plan"]


def audit(
    model: ModelLike | None = None,
    data: DataLike | None = None,
    threat: ThreatModel | None = None,
    *,
    out: str | Path,
    plan: Plan | str | Path | None = None,
    suite: str | None = None,
    certify: str | None = None,
    samples: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    workers: int = 1,
    progress: Progress = True,
    anyway: bool = False,
    **more: Any,
) -> Report:
    """Attacks and certifies a model, sample by sample; the folder says all that is needed to check it anew.

    Args:
        model: a module, a loaded model, a path or the URL of a prediction API.
        data: what `holdfast.load_data` reads, a `Dataset`, or (x, y); the last two are kept in the run's folder.
        threat: norm, eps, goal, access and range.
        out: the run's folder; a run of the same plan is continued.
        plan: a `Plan`, or a file of one; what is given beside it stands in its place.
        suite: which attacks: ``fast``, ``standard``, ``minimal`` or ``black-box``.
        certify: which certificate: ``crown``, ``alpha-crown``, ``ibp``, ``smoothing`` or ``none``.
        samples: the first so many rows; None is all.
        seed: keys all draws.
        device: where the model runs.
        workers: processes; more than one needs a model that is a file.
        progress: show how far it is, or who is told (stage, done, of how many).
        anyway: start although the model does worse than guessing.
        more: the other fields of a `Plan`: ``arch``, ``eps_grid``, ``radius_max``, ``queries``, ``surrogate``, ...

    Raises:
        UsageError: something about the plan or the folder; the message names the fix.
        DataError: the pre-flight found an error in the data or the model.
        JournalError: the folder belongs to something else.
    """
    from holdfast.audits.folder import DATA

    voice, folder = Voice(progress), Path(out)
    named, module = _model(model)
    kept = None if data is None or isinstance(data, str | Path) else _arrays(data)
    own = {
        "model": named,
        "data": str(folder / DATA) if kept is not None else None if data is None else str(data),
        "samples": samples,
        "seed": seed,
        "device": _device(device, module),
        "suite": suite,
        "certify": certify,
    }
    if threat is not None:
        for name in more.keys() & OF_THE_THREAT:
            said = threat_model(threat).describe()
            raise UsageError(f"{name} is said by the threat, {said}; leave out {name}=, or change the threat")
    given = _threat(threat, alone=plan is None) | more | {k: v for k, v in own.items() if v is not None}
    made = _plan(plan, {k: v for k, v in given.items() if v is not None})
    if module is None and made.model is None:
        raise UsageError("what model? give a module, a path, or a plan that names one")
    if data is None and "data" not in made.model_fields_set:
        raise UsageError(
            "what data? give (x, y), a Dataset, a file, or a plan that names one; digits:test is there to try"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a run needs a folder: choose another out")
    with nullcontext() if kept is None else _kept(kept, folder):
        report = run_plan(made, folder, voice, model=module, workers=workers, anyway=anyway)
    report.write(voice)
    return report


def run_plan(
    plan: Plan,
    out: Path,
    voice: Voice,
    *,
    model: nn.Module | None = None,
    workers: int = 1,
    command: str = "",
    anyway: bool = False,
    interrupted: str = "",
) -> Report:
    """Runs a plan; the report's files are not written yet, but for ``report.json``.

    Args:
        plan: what to do.
        out: the run's folder.
        voice: is told how far it is.
        model: the module, where the plan names no file.
        workers: processes.
        command: the command line that repeats the run.
        anyway: start although the model does worse than guessing.
        interrupted: what to say when a person stops the work.

    Raises:
        UsageError: certificates would be searched for below eps alone.
    """
    from holdfast.audits.run import audit as run
    from holdfast.session.opening import check_radius_max
    from holdfast.session.spec import at_least

    at_least(1, workers=workers)
    if plan.certify != "none":
        check_radius_max(plan.largest_radius, plan.eps)

    with voice.progress(interrupted) as tell:
        document = run(plan, out, model=model, workers=workers, command=command, progress=tell, anyway=anyway)
    return Report(document=document, folder=out, at=plan)


def resume(
    run: str | Path,
    *,
    model: ModelLike | None = None,
    workers: int = 1,
    progress: Progress = True,
    **moved: Any,
) -> Report:
    """Continues an interrupted audit; gives what an uninterrupted one gives.

    Args:
        run: the run's folder.
        model: the module, where the plan names no file; or where the file is now.
        workers: processes.
        progress: show how far it is, or who is told (stage, done, of how many).
        moved: where other files are now, and consent: ``arch``, ``data``, ``train_data``, ``surrogate``, ``trust``,
            ``may_ask``, ``max_queries``.

    Raises:
        UsageError: there is no run in the folder.
        UnsafeFileError: the plan names code to run, and nobody said that it may.
        JournalError: the model or the data are not those of the run.
    """
    named, module = _model(model)
    report = resume_run(_folder(run), _places(named, moved), Voice(progress), model=module, workers=workers)
    report.write(Voice(progress))
    return report


def resume_run(
    run: Path, places: Places, voice: Voice, *, model: nn.Module | None = None, workers: int = 1, interrupted: str = ""
) -> Report:
    """As `run_plan`, for a run that was begun before."""
    from holdfast.audits.folder import RunFolder
    from holdfast.audits.run import resume as again
    from holdfast.session.spec import at_least

    at_least(1, workers=workers)
    at = places.located(RunFolder(run).plan(), RunFolder(run))
    with voice.progress(interrupted) as tell:
        document = again(run, model=model, places=places, workers=workers, progress=tell)
    return Report(document=document, folder=run, at=at)


def recheck(
    run: str | Path, *, model: ModelLike | None = None, progress: Progress = True, **moved: Any
) -> RecheckResult:
    """Judges every witness and certificate of a run anew; nothing in the folder is changed.

    Args:
        run: the run's folder.
        model: the module, where the plan names no file; or where the file is now.
        progress: show how far it is, or who is told (stage, done, of how many).
        moved: where other files are now, and consent; see `resume`.

    Raises:
        JournalError: the run is unfinished.
        UnsafeFileError: the plan names code to run, and nobody said that it may.
    """
    named, module = _model(model)
    return recheck_run(_folder(run), _places(named, moved), Voice(progress), model=module)


def recheck_run(run: Path, places: Places, voice: Voice, *, model: nn.Module | None = None) -> RecheckResult:
    """As `recheck`, with what was said of the files' places."""
    from holdfast.audits.recheck import recheck as again
    from holdfast.report.audits.derive import compared

    with voice.progress("nothing was changed; the same command begins again") as tell:
        return RecheckResult(found=again(run, model=model, places=places, progress=tell, beside=compared))


@dataclass(frozen=True, kw_only=True, repr=False)
class RecheckResult(Result):
    """Whether a run still holds.

    Attributes:
        found: what was judged anew, and what does not hold.
    """

    found: Recheck

    @property
    def ok(self) -> bool:
        """Everything that can be derived holds."""
        return self.found.ok

    @property
    def problems(self) -> list[str]:
        """What does not hold; empty if the run stands."""
        return self.found.problems

    @property
    @override
    def cost(self) -> Cost:
        """What the referee asked of every witness, and smoothing to draw its certificates again.

        The cheap stages that are done again beside them (pre-flight, clean pass, diagnostics) are not in it.
        """
        return self.found.cost

    @property
    def verdict(self) -> str:
        """What it comes to, in one line."""
        held = "all hold" if self.ok else f"{len(self.problems)} fail"
        return f"{self.found.witnesses} witnesses and {self.found.certificates} certificates judged anew: {held}"

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.verdict}>"

    @override
    def blocks(self) -> list[Block]:
        found = self.found
        return [
            *(f"FAILS: {problem}" for problem in found.problems),
            *(f"marginal: the witness of sample {sample} flips within its rounding" for sample in found.marginal),
            *(f"not re-derived: {what}" for what in dict.fromkeys(found.not_rederived)),
            self.verdict,
        ]

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """One row a problem."""
        return {"problem": self.found.problems}

    @override
    def to_dict(self) -> dict[str, Any]:
        names = ("ok", "witnesses", "certificates", "marginal", "problems", "not_rederived")
        return {name: getattr(self.found, name) for name in names}


def _folder(run: object) -> Path:
    """The folder of a run, as people name it.

    Raises:
        UsageError: it is no path.
    """
    from holdfast.session.spec import described

    if not isinstance(run, str | Path):
        raise UsageError(f"a run is the path of its folder, of a report .folder; got {described(run)}")
    return Path(run)


def _model(model: ModelLike | None) -> tuple[str | None, nn.Module | None]:
    """A model as the name of a file or an API, or as a module."""
    from torch import nn

    from holdfast.models.http import HttpModel
    from holdfast.models.load import LoadedModel
    from holdfast.session.spec import model_name

    if isinstance(model, HttpModel):
        raise UsageError("an audit keeps the answers that were paid for, and asks an API by its URL; give that")
    if isinstance(model, LoadedModel):
        return None, model.module
    if model is None or isinstance(model, nn.Module):
        return None, model
    return model_name(model), None


def _device(device: str | None, module: nn.Module | None) -> str | None:
    from holdfast.session.reading import device_of

    return str(device_of(module)) if device is None and module is not None else device


def _arrays(data: Any) -> Dataset:
    from holdfast.session.reading import open_data

    found = open_data(data)
    if found.features is not None:
        raise UsageError("a table with named columns is audited from its file, which says them; give its path")
    return found


@contextmanager
def _kept(data: Dataset, folder: Path) -> Generator[None, None, None]:
    """Keeps data in the run's folder, so that the run can be checked anew; a start that is refused leaves no trace.

    Raises:
        JournalError: the folder holds a run on other data.
    """
    import io

    import numpy as np

    from holdfast.audits.folder import DATA
    from holdfast.core.files import write_whole
    from holdfast.data.npz import load_npz

    file = folder / DATA
    if file.exists():
        if load_npz(file).sha256 != data.sha256:
            raise JournalError(f"{folder} holds a run on other data; choose another folder")
        yield
        return
    names: dict[str, Any] = {} if data.classes is None else {"classes": np.array(data.classes)}
    content, fresh = io.BytesIO(), not folder.exists()
    np.savez(content, x=data.x.numpy(), y=data.y.numpy(), **names)
    write_whole(file, content.getvalue())
    try:
        yield
    finally:
        if not (folder / "plan.yaml").exists():
            file.unlink()
            if fresh:
                folder.rmdir()


def _threat(threat: ThreatModel | None, *, alone: bool) -> dict[str, Any]:
    """The fields of a plan that a threat model says; without one, those of a plan that is given."""
    if threat is None:
        if alone:
            raise UsageError("what may an attacker change? give ThreatModel.of(norm, eps), or a plan")
        return {}
    threat = threat_model(threat)
    if threat.phase is Phase.TRAINING or threat.access is Access.TRANSFER:
        raise UsageError(
            "an audit attacks a deployed model that can be asked; for an attacker who cannot, give surrogate= and "
            "access='hard-label'"
        )
    if threat.known:
        raise UsageError("what the attacker knows is said by surrogate= and train_data=; leave known out")
    values: dict[str, Any] = {name: getattr(threat, name) for name in ("norm", "goal", "low", "high")}
    values |= {"eps": size_text(threat.eps), "grid": None if threat.grid is None else size_text(threat.grid)}
    if threat.access is not Access.WHITE_BOX:
        values |= {"suite": "black-box", "certify": "none"}
    if threat.access is Access.HARD_LABEL:
        values["answers"] = "labels"
    return values


def _plan(plan: Plan | str | Path | None, given: dict[str, Any]) -> Plan:
    from holdfast.audits.plan import Plan
    from holdfast.session.spec import is_url

    if isinstance(plan, str | Path):
        return Plan.read(Path(plan), **given)
    if plan is not None:
        return Plan.of(**{name: getattr(plan, name) for name in plan.model_fields_set} | given)
    if is_url(given.get("model")):
        given = {"suite": "black-box", "certify": "none"} | given  # all that can be had of an API
    return Plan.of(**given)


def _places(model: str | None, moved: Mapping[str, Any]) -> Places:
    from holdfast.audits.places import Places

    known = {f.name for f in fields(Places)}
    for name in moved:
        if name not in known:
            raise UsageError(f"nothing of a run is called '{name}'. {did_you_mean(name, known)}")
    return Places(model=model, **moved)
