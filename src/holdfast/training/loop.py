"""The one training loop. A defence that trains is a loss for a batch, a way to score a batch, and hooks.

Shuffles, draws and PyTorch's global generator are keyed by (seed, epoch), and a checkpoint holds all else that the next
epoch needs, so that a run that was killed and resumed ends with the same weights as one that was not (bit for bit on a
CPU with the same thread count). The learning rate is a function of the step, so there is no scheduler to save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, cos, isfinite, pi
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from holdfast.core.draws import Draws
from holdfast.core.errors import ModelError, UsageError, did_you_mean
from holdfast.data.dataset import Dataset
from holdfast.training.checkpoint import Checkpoint
from holdfast.training.draws import BatchDraws

__all__ = ["SCHEDULES", "Batch", "BatchLoss", "BatchScore", "Epoch", "Fit", "Hook", "Settings", "fit", "split"]


@dataclass(frozen=True)
class Batch:
    """What a loss gets to see beside the model.

    Attributes:
        x: (n, \\*features) inputs on the device.
        y: (n,) int64 labels.
        ids: (n,) int64 on the host: rows in the data set.
        draws: keyed draws of this batch.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    draws: BatchDraws


class BatchLoss(Protocol):
    """The loss that is minimised."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar that is differentiable in the parameters; the model is in training mode before and after."""
        ...


class BatchScore(Protocol):
    """What the best epoch is chosen by."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """(n,) bool: the model, in evaluation mode, does right by the sample."""
        ...


def _cosine(t: float) -> float:
    return 0.5 * (1 + cos(pi * t))


def _one_cycle(t: float, rise: float = 0.3) -> float:
    """From 1/25 up to 1 and down to 0, both along a cosine (Smith 2018; the shares of torch's OneCycleLR)."""
    if t < rise:
        return 1 - (1 - 1 / 25) * _cosine(t / rise)
    return _cosine((t - rise) / (1 - rise))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}
"""Name -> share of the largest learning rate at a point t of the training, from 0 to 1."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast; a checkpoint is resumed only under the same settings.

    Attributes:
        epochs: passes over the training part.
        batch: samples in a batch; the last one of an epoch may be smaller, or larger by one.
        optimiser: ``adam`` or ``sgd`` (with Nesterov momentum 0.9).
        rate: largest learning rate.
        weight_decay: decoupled for adam (AdamW).
        schedule: ``cosine``, ``one-cycle`` or ``constant``.
        validation: share of the data that is held out to choose the best epoch; 0 keeps the last one.
        seed: keys the split, shuffles and draws.
    """

    epochs: int = 30
    batch: int = 128
    optimiser: str = "adam"
    rate: float = 5e-3
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise UsageError(f"training needs at least 1 epoch and batches of 1, got {self.epochs} and {self.batch}")
        if not 0 <= self.validation < 1:
            raise UsageError(f"the validation share must be at least 0 and below 1, got {self.validation}")
        if not self.rate > 0 or self.weight_decay < 0:
            raise UsageError(f"rate {self.rate} must be above 0 and weight decay {self.weight_decay} not negative")
        for word, known in ((self.optimiser, ("adam", "sgd")), (self.schedule, SCHEDULES)):
            if word not in known:
                raise UsageError(f"no '{word}' for training. {did_you_mean(word, known)}")


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        number: from 1.
        loss: mean training loss.
        score: share of validation samples that the model does right by; None without validation.
        best: the best epoch so far.
    """

    number: int
    loss: float
    score: float | None
    best: bool


@dataclass(frozen=True)
class Fit:
    """A finished training; the model holds the weights of the best epoch.

    Attributes:
        history: every epoch, those before a resumption included.
        best: the epoch whose weights were kept.
        held_out: (m,) int64 rows of the data set that chose it and were not trained on.
    """

    history: tuple[Epoch, ...]
    best: Epoch
    held_out: Tensor


Hook = Callable[[nn.Module, Epoch], None]
"""Called after each epoch, with the model in evaluation mode."""


def split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, keyed by the seed.

    Example:
        >>> train, held_out = split(10, 0.2, seed=0)
        >>> len(train), len(held_out), sorted(torch.cat([train, held_out]).tolist()) == list(range(10))
        (8, 2, True)
    """
    held = ceil(share * n)
    if held >= n:
        raise UsageError(f"{n} samples cannot spare {held} for validation; give more data or a smaller share")
    order = torch.randperm(n, generator=Draws(seed, "training").generator("split"))
    return order[held:].sort().values, order[:held].sort().values


def fit(
    model: nn.Module,
    data: Dataset,
    loss: BatchLoss,
    *,
    score: BatchScore | None = None,
    settings: Settings | None = None,
    hooks: Sequence[Hook] = (),
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> Fit:
    """Trains a model in place and leaves it in evaluation mode with the weights of its best epoch.

    Args:
        model: returns logits (n, K).
        data: what to train on; the validation part is taken from it.
        loss: minimised on each batch.
        score: judges validation batches; None: the clean prediction is right.
        settings: how long and how fast.
        hooks: called after each epoch.
        checkpoint: written after each epoch, whole or not at all.
        resume: continue from the checkpoint if there is one.
        progress: told how many batches of all are done.
        device: where to train.

    Raises:
        UsageError: the data are too few for the validation share.
        JournalError: the checkpoint is of other settings, data or another model.
        ModelError: the loss became infinite or not a number.
    """
    s = settings or Settings()
    train, held_out = split(len(data), s.validation, s.seed)
    model.to(device)
    optimiser = _optimiser(model, s)
    state = Checkpoint(model, optimiser, {**asdict(s), "data": data.sha256})
    history: list[Epoch] = []
    if resume and checkpoint is not None and checkpoint.is_file():
        history = [Epoch(**e) for e in state.load(checkpoint)]
    batches = len(_parts(train, s.batch))
    # Dropout and the like read the global generators: keyed for each epoch, and put back afterwards.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for number in range(len(history) + 1, s.epochs + 1):
            torch.manual_seed(Draws(s.seed, "training").generator("global", number).initial_seed())
            model.train()
            total = torch.zeros((), dtype=torch.float64, device=device)
            for k, batch in enumerate(_batches(data, _shuffled(train, s, number), s, number, device)):
                done = (number - 1) * batches + k
                _step(optimiser, s.rate * SCHEDULES[s.schedule](done / (s.epochs * batches)), loss, model, batch, total)
                if progress is not None:
                    progress(done + 1, s.epochs * batches)
            mean = float(total) / len(train)
            if not isfinite(mean):
                raise ModelError(f"the training loss became {mean} in epoch {number}; lower the learning rate")
            model.eval()
            scored = _score(model, data, held_out, score or _clean, s, device) if len(held_out) else None
            best = scored is None or scored >= max((e.score or 0.0 for e in history if e.best), default=0.0)
            history.append(Epoch(number, mean, scored, best))
            if best:
                state.keep()
            if checkpoint is not None:
                state.save(checkpoint, [asdict(e) for e in history])
            for hook in hooks:
                hook(model, history[-1])
    state.restore_best()
    model.eval()
    return Fit(tuple(history), next(e for e in reversed(history) if e.best), held_out)


def _optimiser(model: nn.Module, s: Settings) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("the model has no parameters that can be trained")
    if s.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=s.rate, momentum=0.9, nesterov=True, weight_decay=s.weight_decay)
    return torch.optim.AdamW(parameters, lr=s.rate, weight_decay=s.weight_decay)


def _step(
    optimiser: torch.optim.Optimizer, rate: float, loss: BatchLoss, model: nn.Module, batch: Batch, total: Tensor
) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    value = loss(model, batch)
    value.backward()
    optimiser.step()
    total += value.detach().double() * len(batch.x)


def _score(
    model: nn.Module, data: Dataset, rows: Tensor, score: BatchScore, s: Settings, device: torch.device | str
) -> float:
    """Share of the rows that the model does right by; the same draws in every epoch, so that epochs compare."""
    right = sum(int(score(model, batch).sum()) for batch in _batches(data, rows, s, 0, device))
    return right / len(rows)


def _clean(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch.x).argmax(1) == batch.y


def _shuffled(rows: Tensor, s: Settings, epoch: int) -> Tensor:
    return rows[torch.randperm(len(rows), generator=Draws(s.seed, "training").generator("shuffle", epoch))]


def _parts(rows: Tensor, size: int) -> list[Tensor]:
    """Rows of each batch; a last row alone joins the batch before, since batch norm cannot train on one."""
    parts = list(rows.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _batches(data: Dataset, rows: Tensor, s: Settings, epoch: int, device: torch.device | str) -> Iterator[Batch]:
    draws = Draws(s.seed, "training", device)
    for k, ids in enumerate(_parts(rows, s.batch)):
        keyed = BatchDraws.of(draws, ids.numpy(), epoch=epoch, batch=k)
        yield Batch(data.x[ids].to(device), data.y[ids].to(device), ids, keyed)
