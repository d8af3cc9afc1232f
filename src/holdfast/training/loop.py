"""The one training loop. A defence that trains is a loss for a batch, a way to score a batch, and hooks.

Shuffles, draws and PyTorch's global generator are keyed by (seed, epoch), and a checkpoint holds all else that the next
epoch needs, so that a run that was killed and resumed ends with the same weights as one that was not (bit for bit on a
CPU with the same thread count). The learning rate is a function of the step, so there is no scheduler to save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from holdfast.core.cost import Cost
from holdfast.core.draws import Draws, seeded
from holdfast.core.errors import ModelError, UsageError
from holdfast.data.dataset import Dataset
from holdfast.numerics.counting import counting
from holdfast.training.batch import Batch, BatchLoss, BatchScore
from holdfast.training.checkpoint import Checkpoint
from holdfast.training.draws import BatchDraws
from holdfast.training.hooks import Epoch, Hooks
from holdfast.training.settings import SCHEDULES, TrainingSettings

__all__ = ["Fit", "fit", "split"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A finished training; the model holds the weights of the best epoch.

    Attributes:
        history: every epoch, those before a resumption included.
        best: the epoch whose weights were kept.
        held_out: (m,) int64 rows of the data set that chose it and were not trained on.
        cost: what went through the model in this call: not the epochs before a resumption.
    """

    history: tuple[Epoch, ...]
    best: Epoch
    held_out: Tensor
    cost: Cost


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
    settings: TrainingSettings | None = None,
    hooks: Sequence[Hooks] = (),
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
        hooks: called in this order after each step and each epoch.
        checkpoint: written after each epoch, whole or not at all.
        resume: continue from the checkpoint if there is one.
        progress: told how many batches of all are done.
        device: where to train.

    Raises:
        UsageError: the data are too few for the validation share.
        JournalError: the checkpoint is of other settings, data, hooks or another model.
        ModelError: the loss became infinite or not a number.
    """
    s = settings or TrainingSettings()
    train, held_out = split(len(data), s.validation, s.seed)
    model.to(device)
    optimiser = _optimiser(model, s)
    state = Checkpoint(model, optimiser, {**asdict(s), "data": data.sha256}, hooks)
    epochs = _Epochs(
        model=model,
        data=data,
        settings=s,
        loss=loss,
        judge=score or _clean,
        hooks=hooks,
        optimiser=optimiser,
        progress=progress,
        device=device,
    )
    history: list[Epoch] = []
    if resume and checkpoint is not None and checkpoint.is_file():
        history = state.load(checkpoint)
    # Dropout and the like read the global generators: keyed for each epoch, and put back afterwards.
    with seeded(s.seed), counting(model) as passes:
        for number in range(len(history) + 1, s.epochs + 1):
            mean = epochs.train(train, number)
            scored = epochs.score(held_out)
            is_best = scored is None or scored >= max((e.score or 0.0 for e in history if e.best), default=0.0)
            history.append(Epoch(number=number, loss=mean, score=scored, best=is_best))
            if is_best:
                state.keep()
            for hook in hooks:
                hook.after_epoch(model, history[-1])
            if checkpoint is not None:
                state.save(checkpoint, history)
    state.restore_best()
    model.eval()
    best = next(e for e in reversed(history) if e.best)
    return Fit(history=tuple(history), best=best, held_out=held_out, cost=passes.cost)


@dataclass(frozen=True, kw_only=True)
class _Epochs:
    """What every epoch of one training shares."""

    model: nn.Module
    data: Dataset
    settings: TrainingSettings
    loss: BatchLoss
    judge: BatchScore
    hooks: Sequence[Hooks]
    optimiser: torch.optim.Optimizer
    progress: Callable[[int, int], None] | None
    device: torch.device | str

    def train(self, rows: Tensor, number: int) -> float:
        """The mean loss of an epoch over the rows; the model is in training mode afterwards."""
        s, batches = self.settings, len(_parts(rows, self.settings.batch))
        key = Draws(s.seed, "training").generator("global", number).initial_seed()
        torch.manual_seed(key)  # pyright: ignore[reportUnknownMemberType]
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for k, batch in enumerate(self._batches(_shuffled(rows, s, number), number)):
            done = (number - 1) * batches + k
            total += self._step(batch, s.rate * SCHEDULES[s.schedule](done / (s.epochs * batches)))
            if self.progress is not None:
                self.progress(done + 1, s.epochs * batches)
        mean = float(total) / len(rows)
        if not isfinite(mean):
            raise ModelError(f"the training loss became {mean} in epoch {number}; lower the learning rate")
        return mean

    def _step(self, batch: Batch, rate: float) -> Tensor:
        """The batch's loss summed over its samples, float64, after one update at that learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        value = self.loss(self.model, batch)
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        self.optimiser.step()
        for hook in self.hooks:
            hook.after_step(self.model, batch)
        return value.detach().double() * len(batch.x)

    def score(self, rows: Tensor) -> float | None:
        """Share of the rows that the model does right by, in evaluation mode; None without rows.

        The draws are the same in every epoch, so that epochs compare.
        """
        self.model.eval()
        if not len(rows):
            return None
        return sum(int(self.judge(self.model, batch).sum()) for batch in self._batches(rows, 0)) / len(rows)

    def _batches(self, rows: Tensor, epoch: int) -> Iterator[Batch]:
        draws = Draws(self.settings.seed, "training", self.device)
        for k, ids in enumerate(_parts(rows, self.settings.batch)):
            x, y = self.data.x[ids].to(self.device), self.data.y[ids].to(self.device)
            yield Batch(x=x, y=y, ids=ids, draws=BatchDraws.of(draws, ids.numpy(), epoch=epoch, batch=k))


def _optimiser(model: nn.Module, s: TrainingSettings) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("the model has no parameters that can be trained")
    if s.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=s.rate, momentum=0.9, nesterov=True, weight_decay=s.weight_decay)
    return torch.optim.AdamW(parameters, lr=s.rate, weight_decay=s.weight_decay)


def _clean(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch.x).argmax(1) == batch.y


def _shuffled(rows: Tensor, s: TrainingSettings, epoch: int) -> Tensor:
    return rows[torch.randperm(len(rows), generator=Draws(s.seed, "training").generator("shuffle", epoch))]


def _parts(rows: Tensor, size: int) -> list[Tensor]:
    """Rows of each batch; a last row alone joins the batch before, since batch norm cannot train on one."""
    parts = list(torch.split(rows, size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
