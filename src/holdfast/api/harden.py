"""``holdfast.harden``: a model trained against an adversary."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.keywords import THREAT, beside, kind_of, method_and_spec, split_spec, threat_model, tool_of
from holdfast.api.results import Block, Result, Rows, Saved, figure
from holdfast.api.voice import Progress, Voice
from holdfast.core.errors import UsageError, did_you_mean
from holdfast.core.registry import name_of, names

if TYPE_CHECKING:
    from torch import nn

    from holdfast.core.cost import Cost
    from holdfast.core.threat import ThreatModel
    from holdfast.data.dataset import Dataset
    from holdfast.defences.training_defence import TrainingDefence
    from holdfast.session.spec import DataLike, ModelLike, ModelSpec
    from holdfast.training.batch import BatchLoss, BatchScore
    from holdfast.training.hooks import Hooks
    from holdfast.training.loop import Fit
    from holdfast.training.settings import TrainingSettings

__all__ = ["HardenResult", "HardenedEpoch", "checkpoint_of", "defence_of", "harden", "run_defence", "train"]

_WEIGHTS = "hardened.safetensors"
_SHOWN = 15
_OF_A_BALL = frozenset({"norm", "eps", "low", "high"})  # what a defence takes of a threat


@dataclass(frozen=True, kw_only=True)
class HardenedEpoch:
    """An epoch of a training.

    Attributes:
        epoch: from 1.
        loss: mean training loss.
        robust: share of the held-out samples that the model does right by under the defence's adversary; None without any.
    """

    epoch: int
    loss: float
    robust: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class HardenResult(Result):
    """A hardened model.

    Attributes:
        method: name of the defence.
        title: as its paper writes it.
        model: with the weights of the best epoch.
        history: every epoch.
        best: the one whose weights were kept.
        held_out: how many samples chose it.
        weights: the file that they are in; None where none was asked for.
        seed: keyed all draws.
        spent: see `cost`.
        seconds: of the training.
        notes: what a reader of the figures must know.
    """

    method: str
    title: str
    model: nn.Module
    history: tuple[HardenedEpoch, ...]
    best: HardenedEpoch
    held_out: int
    weights: Path | None
    seed: int
    spent: Cost
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    @override
    def cost(self) -> Cost:
        """Rows through the model that is trained, those of the adversary and of validation with them.

        None is a query, for the model is the trainer's own. The epochs before a resumption are not in it.
        """
        return self.spent

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """One row an epoch."""
        return {name: [getattr(e, name) for e in self.history] for name in ("epoch", "loss", "robust")}

    @override
    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "best": self.best.epoch,
            "robust": self.best.robust,
            "held_out": self.held_out,
            "weights": None if self.weights is None else str(self.weights),
            "seed": self.seed,
            "forwards": self.cost.forwards,
            "backwards": self.cost.backwards,
            "seconds": self.seconds,
            "history": [{"epoch": e.epoch, "loss": e.loss, "robust": e.robust} for e in self.history],
        }

    @override
    def blocks(self) -> list[Block]:
        robust = (
            "" if self.best.robust is None else f", {self.best.robust:.1%} robust on {self.held_out} held-out samples"
        )
        rows = [(e.epoch, f"{e.loss:.4g}", "" if e.robust is None else f"{e.robust:.1%}") for e in self.history]
        return [
            f"{self.title}: epoch {self.best.epoch} of {len(self.history)}{robust}",
            figure("forwards", self.cost.forwards),
            figure("backwards", self.cost.backwards),
            figure("seconds", self.seconds),
            *([] if self.weights is None else [figure("weights", self.weights)]),
            Rows(("epoch", "loss", "robust"), tuple(rows[-_SHOWN:])),
        ]

    @override
    def save(self, path: str | Path) -> Saved:
        """Writes the weights as safetensors, or what `to_dict` gives where the name ends in ``.json``."""
        if Path(path).suffix == ".json":
            return super().save(path)
        _save_weights(self.model, Path(path))
        return Saved(files=(Path(path),))


def harden(
    model: ModelLike | ModelSpec,
    data: DataLike,
    method: str | TrainingDefence = "pgd_training",
    threat: ThreatModel | None = None,
    *,
    out: str | Path | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    rate: float | None = None,
    optimiser: str | None = None,
    schedule: str | None = None,
    weight_decay: float | None = None,
    validation: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = True,
    anyway: bool = False,
    **parameters: Any,
) -> HardenResult:
    """Trains a model against an adversary and keeps the epoch that was most robust on held-out data.

    The model that is given stays as it is.

    Args:
        model: a module, a loaded model or a path; its weights are where the training starts.
        data: what to train on: a `Dataset`, what `holdfast.load_data` reads, or (x, y).
        method: the defence's name, or the defence.
        threat: norm, eps and range of the adversary; None for a defence that is given as an object.
        out: a ``.safetensors`` file for the weights, or a folder for it; a checkpoint stands beside it meanwhile.
        epochs: passes over the data.
        batch: samples in a batch.
        rate: largest learning rate.
        optimiser: ``adam`` or ``sgd``.
        schedule: ``one-cycle``, ``cosine`` or ``constant``.
        weight_decay: weight decay.
        validation: share that is held out to choose the best epoch.
        samples: the first so many rows; None is all.
        seed: keys all draws.
        device: where it trains; None: where a module is, else the CPU.
        resume: go on from the checkpoint beside ``out``.
        force: write over ``out``.
        progress: show how far it is, or who is told (stage, done, of how many).
        anyway: start although the data look wrong for the model.
        parameters: the defence's parameters, and how the model is to be read.

    Raises:
        UsageError: no such defence or parameter, or a file at ``out``.
        DataError: what an audit would refuse.
    """
    import torch

    from holdfast.session.look import look_at
    from holdfast.session.reading import as_device, device_of, open_data, open_spec
    from holdfast.training.settings import TrainingSettings

    voice = Voice(progress)
    weights = None if out is None else _weights_at(Path(out))
    if weights is not None:
        check_weights(weights, resume=resume, force=force)
    tool, spec = defence_of(method, threat, model, parameters)
    given = {"epochs": epochs, "batch": batch, "rate": rate, "optimiser": optimiser, "schedule": schedule,
             "weight_decay": weight_decay, "validation": validation}  # fmt: skip
    settings = TrainingSettings(seed=seed, **{k: v for k, v in given.items() if v is not None})  # pyright: ignore[reportArgumentType]  # each has its own type above
    found = open_data(data, class_names=spec.class_names, table=spec.table)
    found = found if samples is None else found.head(samples)
    place = device_of(spec.model) if device is None else as_device(device)
    module = open_spec(spec, device_of(spec.model)).base
    if not isinstance(module, torch.nn.Module):
        raise UsageError("a model that can only be asked cannot be trained; give the module, or its file")
    module = copy.deepcopy(module)
    if threat is not None:
        for line in look_at(module, found, threat, anyway=anyway, trained=False):
            voice.note(line)
    return run_defence(module, found, tool, settings, weights, voice, resume=resume, device=str(place))


def _weights_at(out: Path) -> Path:
    return out if out.suffix == ".safetensors" else out / _WEIGHTS


def defence_of(
    method: str | object, threat: ThreatModel | None, model: ModelLike | ModelSpec | None, parameters: Mapping[str, Any]
) -> tuple[TrainingDefence, ModelSpec]:
    """A defence that trains, with the threat that it is against and its parameters.

    Raises:
        UsageError: it is none, or the threat is missing.
    """
    from holdfast.defences.training_defence import TrainingDefence

    if isinstance(method, str) and method.replace("-", "_").lower() not in names():
        raise UsageError(f"there is no defence '{method}'. {did_you_mean(method, names('training defence'))}")
    kind: type[Any] = kind_of(method)
    if not issubclass(kind, TrainingDefence):
        name = name_of(kind)
        raise UsageError(
            f"{name} is no defence that trains; 'holdfast methods {name}' says what it is. These train: "
            f"{', '.join(names('training defence'))}"
        )
    against = {f.name for f in fields(kind)} & _OF_A_BALL  # pyright: ignore[reportArgumentType]  # every method is a dataclass
    if not isinstance(method, str | type):
        if threat is not None:
            _check_same(method, threat_model(threat), against)
        return method_and_spec(method, model, parameters, harden)
    if threat is None and "eps" in against:
        raise UsageError(f"{kind.card.title} trains against a threat; give {THREAT}")
    threat = None if threat is None else threat_model(threat)
    own, spec = split_spec(kind, model, parameters)
    for name in own.keys() & {"norm", "eps"}:
        raise UsageError(f"{name} is said by the threat: {THREAT}; leave it out of the parameters of {name_of(kind)}")
    said = {} if threat is None else {name: getattr(threat, name) for name in against}
    return tool_of(kind, said | own, beside=beside(harden)), spec


def _check_same(tool: object, threat: ThreatModel, names: set[str]) -> None:
    """Refuses a threat beside a defence that was made against another one.

    Raises:
        UsageError: it is another one.
    """
    for name in sorted(names):
        own, said = getattr(tool, name), getattr(threat, name)
        if own != said and (isinstance(own, str) or float(own) != float(said)):
            raise UsageError(
                f"{name_of(tool)} was given as an object, which trains against {name} {own}, and the threat says {said}; make it "
                "with the threat's, or leave the threat out"
            )


def run_defence(
    module: nn.Module, data: Dataset, tool: TrainingDefence, settings: TrainingSettings, out: Path | None, voice: Voice,
    *, resume: bool = False, device: str = "cpu",
) -> HardenResult:  # fmt: skip
    """Trains a module with a defence; it is changed in place.

    Args:
        module: what is trained.
        data: on what.
        tool: the defence.
        settings: how long and how fast.
        out: where the weights go; None: nowhere.
        voice: is told how far it is.
        resume: go on from the checkpoint beside ``out``.
        device: where.
    """
    name, start = name_of(tool), perf_counter()
    done = train(
        module, data, tool.loss, tool.score, settings, out, name, voice, hooks=[tool.hooks()], resume=resume, device=device
    )  # fmt: skip
    history = tuple(HardenedEpoch(epoch=e.number, loss=e.loss, robust=e.score) for e in done.history)
    best = HardenedEpoch(epoch=done.best.number, loss=done.best.loss, robust=done.best.score)
    return HardenResult(
        method=name, title=tool.card.title, model=module.eval(), history=history, best=best, held_out=len(done.held_out),
        weights=out, seed=settings.seed, spent=done.cost, seconds=round(perf_counter() - start, 3), notes=tuple(voice.notes),
    )  # fmt: skip


def train(
    module: nn.Module, data: Dataset, loss: BatchLoss, score: BatchScore | None, settings: TrainingSettings,
    out: Path | None, title: str, voice: Voice, *, hooks: Sequence[Hooks] = (), resume: bool = False, device: str = "cpu",
) -> Fit:  # fmt: skip
    """Trains with progress and a checkpoint beside ``out``; in the end the weights stand there, and it is gone."""
    from holdfast.training.loop import fit

    with TemporaryDirectory() as apart:
        checkpoint = Path(apart) / "checkpoint" if out is None else checkpoint_of(out)
        if checkpoint.exists() and not resume:
            voice.note(f"starting anew; --resume would have continued from {checkpoint}")
        with voice.progress("the same command with --resume goes on") as tell:
            done = fit(
                module,
                data,
                loss,
                score=score,
                settings=settings,
                hooks=hooks,
                checkpoint=checkpoint,
                resume=resume,
                device=device,
                progress=lambda batches, total: tell(title, batches, total),
            )
        if out is not None:
            _save_weights(module, out)
        checkpoint.unlink()
    return done


def _save_weights(module: nn.Module, out: Path) -> None:
    """The model's own weights, without what stands in front of it."""
    from holdfast.models.wrap import Normalised
    from holdfast.training.checkpoint import save_weights

    save_weights(module.module if isinstance(module, Normalised) else module, out)


def check_weights(out: Path, *, resume: bool, force: bool) -> None:
    """Refuses to write over weights that nobody gave up.

    Raises:
        UsageError: a file is there.
    """
    if out.exists() and not force and not (resume and checkpoint_of(out).exists()):
        raise UsageError(f"{out} is there already; --force writes over it, or choose another --out")


def checkpoint_of(out: Path) -> Path:
    """Where a training keeps what it has so far."""
    return out.with_name(f"{out.name}.checkpoint")
