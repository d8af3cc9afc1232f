"""The contract of a defence that trains.

from holdfast.testing import check_training_defence
check_training_defence("pgd_training")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.draws import Draws, seeded
from holdfast.data.dataset import Dataset
from holdfast.defences.training_defence import TrainingDefence
from holdfast.testing._manners import leaving_alone, weights_of, whole_card
from holdfast.testing._training_case import accuracy, clean_digits, some
from holdfast.testing.contract import ContractSuite, reduced, require
from holdfast.training.batch import Batch
from holdfast.training.draws import BatchDraws
from holdfast.training.hooks import Epoch, Hooks
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

__all__ = ["TRAINING_DEFENCE_CHECKS", "TRAINING_DEFENCE_SUITE", "check_training_defence"]

_FEW = {"steps": 3}
_BATCH = 48
_LEARNT, _ABOUT = 0.6, 0.5  # dropout and random starts differ between two batches of the same samples


def _small(tool: TrainingDefence) -> TrainingDefence:
    return reduced(tool, _FEW)


def _net() -> nn.Module:
    """With batch norm and dropout, in training mode: a defence must cope."""
    with seeded(0):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 10)
        ).train()


def _batch(number: int = 0, epoch: int = 1) -> Batch:
    data, ids = clean_digits()[0], torch.arange(_BATCH) + number * _BATCH
    draws = BatchDraws.of(Draws(0, "training"), ids.numpy(), epoch=epoch, batch=number)
    return Batch(x=data.x[ids], y=data.y[ids], ids=ids, draws=draws)


def _keyed(call: Callable[[nn.Module], Tensor]) -> Tensor:
    """The global generator is the loop's business: dropout reads it."""
    with seeded(7):
        return call(_net())


def _loss(tool: TrainingDefence) -> None:
    model = _net()
    with torch.enable_grad():
        value = _small(tool).loss(model, _batch())
        require(value.shape == () and bool(value.isfinite()), "the loss is no finite scalar")
        require(value.requires_grad, "the loss is not differentiable in the parameters")
        given = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    grads: list[Tensor | None] = list(given)
    names = [name for name, _ in model.named_parameters()]
    missed = [
        n for n, g in zip(names, grads, strict=True) if g is None or not bool(g.isfinite().all()) or not bool(g.any())
    ]
    missed = [n for n in missed if n != "1.bias"]  # batch norm takes the offset before it away
    require(not missed, f"the loss does not reach {missed}, or its gradient there is not finite")


def _mean(tool: TrainingDefence) -> None:
    small, one = _small(tool), _batch()
    ids = torch.cat([one.ids, one.ids])
    draws = BatchDraws.of(Draws(0, "training"), ids.numpy(), epoch=1, batch=0)
    twice = Batch(x=one.x.repeat(2, 1, 1, 1), y=one.y.repeat(2), ids=ids, draws=draws)
    few, many = (float(_keyed(lambda model, b=batch: small.loss(model, b).detach())) for batch in (one, twice))
    require(
        abs(many - few) <= _ABOUT * abs(few),
        f"a batch has a loss of {few:.3g}, the same samples twice one of {many:.3g}: take the mean over the batch, so that "
        "the learning rate fits every size",
    )


def _mode(tool: TrainingDefence) -> None:
    model, batch = _net(), _batch()
    modes = [m.training for m in model.modules()]
    _small(tool).loss(model, batch)
    require([m.training for m in model.modules()] == modes, "the loss left the model in another mode")
    require(all(p.grad is None for p in model.parameters()), "gradients were left in the model: the loop asks for them")
    model.eval()
    before = weights_of(model)
    _small(tool).score(model, batch)
    require(not any(m.training for m in model.modules()), "the score left the model in training mode")
    require(weights_of(model) == before, "the score changed the model, its batch norm's statistics included")


def _draws(tool: TrainingDefence) -> None:
    small = _small(tool)

    def told(batch: Batch) -> Tensor:
        return _keyed(lambda model: small.loss(model, batch).detach())

    require(torch.equal(told(_batch()), told(_batch())), "the same batch has another loss: draw from `batch.draws`")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # which draws nothing itself
    batch = _batch()
    with leaving_alone(batch.x, batch.y):
        small.loss(plain, batch)
        small.score(plain, batch)


def _score(tool: TrainingDefence) -> None:
    right = _small(tool).score(_net().eval(), _batch())
    require(right.shape == (_BATCH,) and right.dtype == torch.bool, f"a score is (n,) bool, got {right.dtype}")
    require(not right.requires_grad, "a score has no gradient")


def _fresh_hooks(tool: TrainingDefence) -> None:
    one, two = tool.hooks(), tool.hooks()
    require(one is not two or type(one) is Hooks, "two trainings share their hooks, and what these remember")


class _Killed(Exception):
    pass


class _KillsAt(Hooks):
    """Dies in the second epoch, once the checkpoint of the first is there."""

    def __init__(self, epoch: int | None) -> None:
        self.epoch, self.done = epoch, 0

    @override
    def after_step(self, model: nn.Module, batch: Batch) -> None:
        if self.done == self.epoch:
            raise _Killed

    @override
    def after_epoch(self, model: nn.Module, epoch: Epoch) -> None:
        self.done = epoch.number


def _trained(
    tool: TrainingDefence, data: Dataset, settings: TrainingSettings, kill: int | None = None, file: Path | None = None
) -> nn.Module:
    model, small = _net(), _small(tool)
    fit(
        model,
        data,
        small.loss,
        score=small.score,
        settings=settings,
        hooks=[small.hooks(), _KillsAt(kill)],
        checkpoint=file,
        resume=file is not None,
    )
    return model


def _resumes(tool: TrainingDefence) -> None:
    data, settings = some(clean_digits()[0], 0, 160), TrainingSettings(epochs=3, batch=48)
    whole = _trained(tool, data, settings)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint"
        try:
            _trained(tool, data, settings, kill=1, file=file)
        except _Killed:
            torch.rand(3)
        again = _trained(tool, data, settings, file=file)
    require(
        weights_of(whole) == weights_of(again),
        "a training that was killed and resumed ends with other weights: what a hook remembers belongs into its `state`",
    )


def _learns(tool: TrainingDefence) -> None:
    train, test = clean_digits()
    model = _trained(tool, some(train, 0, 600), TrainingSettings(epochs=6, batch=48, rate=0.01, validation=0.0))
    reached = accuracy(model, test)
    require(reached >= _LEARNT, f"after six epochs on 600 digits the network has {reached:.0%} of others right")


CHECKS: dict[str, Callable[[TrainingDefence], None]] = {
    "card": whole_card,
    "loss": _loss,
    "mean": _mean,
    "mode": _mode,
    "draws": _draws,
    "score": _score,
    "fresh-hooks": _fresh_hooks,
    "resumes": _resumes,
    "learns": _learns,
}

TRAINING_DEFENCE_SUITE = ContractSuite("a defence that trains", TrainingDefence, CHECKS)

TRAINING_DEFENCE_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_training_defence(
    training_defence: str | type[TrainingDefence] | TrainingDefence, *, only: Iterable[str] | None = None
) -> None:
    """Runs the contract of a defence that trains; each check is made, and all that fail are told together.

    Args:
        training_defence: a registered name, a class that needs no arguments, or an instance.
        only: names of `TRAINING_DEFENCE_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_training_defence("pgd_training", only=["loss", "score"])
    """
    TRAINING_DEFENCE_SUITE(training_defence, only)
