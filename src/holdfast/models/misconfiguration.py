"""Why a model does badly on its data: usual mistakes are tried and the one that helps is named. Nothing is fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, cast

import torch
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]  # SciPy comes without types
from torch import Tensor

from holdfast.core.arrays import listed, tensor_of

__all__ = ["Misconfiguration", "likely_misconfiguration", "working_layouts"]

Model = Callable[[Tensor], Tensor]

_KNOWN = {
    3: {
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "the usual 0.5": ((0.5,) * 3, (0.5,) * 3),
    },
    1: {"MNIST's": ((0.1307,), (0.3081,)), "the usual 0.5": ((0.5,), (0.5,))},
}


@dataclass(frozen=True, kw_only=True)
class Misconfiguration:
    """A change of the inputs or labels under which the model does better.

    Attributes:
        name: short and stable.
        cause: what then seems to be wrong.
        remedy: what to do about it.
        accuracy: what the model reaches with the change.
        rivals: names of other changes that do as well, to within 3 points.
        flags: what to add to the command line, where flags can do it.
        order: the label of the data for each class of the model, where the classes are in another order.
    """

    name: str
    cause: str
    remedy: str
    accuracy: float = 0.0
    rivals: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    order: tuple[int, ...] = ()


def likely_misconfiguration(
    model: Model, x: Tensor, y: Tensor, predicted: Tensor, at_least: float
) -> Misconfiguration | None:
    """The change that helps most, if it helps by 3 points and by more than chance would (McNemar's test at 3 sigma).

    Args:
        model: in eval mode.
        x: (n, \\*features) inputs in [0, 1].
        y: (n,) labels.
        predicted: (n,) the model's answers to ``x``.
        at_least: accuracy that a change must reach; a model that still fails then has another trouble.
    """
    right = predicted == y
    helping: list[Misconfiguration] = []
    for change, answer in (*_renumbered(predicted, y), *_changed(model, x)):
        now = answer == y
        mended, spoilt = int((now & ~right).sum()), int((right & ~now).sum())
        if mended - spoilt > max(0.03 * len(y), 3 * sqrt(mended + spoilt)):
            helping.append(replace(change, accuracy=float(now.double().mean())))
    helping = [mistake for mistake in helping if mistake.accuracy >= at_least]
    if not helping:
        return None
    best = max(helping, key=lambda mistake: mistake.accuracy)
    return replace(best, rivals=tuple(s.name for s in helping if s is not best and s.accuracy >= best.accuracy - 0.03))


def working_layouts(model: Model, x: Tensor) -> list[str]:
    """Changes of layout, in words, under which a model runs that fails on ``x`` as it is."""
    layouts: list[tuple[str, Callable[[Tensor], Tensor]]] = [("flattened to (n, features)", lambda t: t.flatten(1))]
    if x.ndim == 3:
        layouts.append(("with a channel axis: x[:, None]", lambda t: t[:, None]))
    if x.ndim == 4:
        layouts.append(("with channels first: x.transpose(0, 3, 1, 2)", lambda t: t.permute(0, 3, 1, 2)))
        layouts.append(("with channels last: x.transpose(0, 2, 3, 1)", lambda t: t.permute(0, 2, 3, 1)))
        if x.shape[1] == 1:
            layouts.append(("without the channel axis: x[:, 0]", lambda t: t[:, 0]))
            layouts.append(("with the one channel repeated: x.repeat(3, axis=1)", lambda t: t.repeat(1, 3, 1, 1)))
    return [words for words, change in layouts if _runs(model, change(x))]


def _renumbered(predicted: Tensor, y: Tensor) -> Iterator[tuple[Misconfiguration, Tensor]]:
    """The usual ways in which labels and model count the same classes differently."""
    yield (
        Misconfiguration(
            name="labels+1",
            cause="The labels seem to count one higher than the model.",
            remedy="Subtract 1 from the labels.",
        ),
        predicted + 1,
    )
    yield (
        Misconfiguration(
            name="labels-1", cause="The labels seem to count one lower than the model.", remedy="Add 1 to the labels."
        ),
        predicted - 1,
    )
    order = _order(predicted, y)
    if order is None:
        return
    moved = [f"{k} of the model is {v} of the data" for k, v in enumerate(listed(order)) if k != v]
    mistake = Misconfiguration(
        name="labels-order",
        cause=f"The data seem to number the classes in another order than the model: {', '.join(moved[:6])}.",
        remedy="Give the names in the model's order, --class-names NAME,NAME,..., or renumber the labels.",
        order=tuple(listed(order)),
    )
    yield mistake, order[predicted]


def _order(predicted: Tensor, y: Tensor) -> Tensor | None:
    """(K,) the label of the data for each class of the model that fits best, or None where too few rows would tell.

    With five rows for each class or fewer, some order fits well by chance.
    """
    k = 1 + int(torch.maximum(predicted.max(), y.max()))
    if len(y) < 5 * k:
        return None
    counts = torch.zeros(k, k, dtype=torch.int64).index_put_(
        (predicted.cpu(), y.cpu()), torch.tensor(1), accumulate=True
    )
    order = tensor_of(cast(Any, optimize).linear_sum_assignment(counts.numpy(), maximize=True)[1])
    return None if torch.equal(order, torch.arange(k)) else order.to(y.device)


def _changed(model: Model, x: Tensor) -> Iterator[tuple[Misconfiguration, Tensor]]:
    for mistake, change in _changes(x):
        try:
            answer = model(change(x)).argmax(1)
        except Exception:  # a model may refuse such inputs; then this was not the mistake
            continue
        yield mistake, answer


def _changes(x: Tensor) -> Iterator[tuple[Misconfiguration, Callable[[Tensor], Tensor]]]:
    if x.ndim == 2:
        return  # a table: brightness, channels and pictures' scales mean nothing there
    yield _normalisation("scale-255", "0..255", "0/1/255"), lambda t: t * 255
    yield (
        Misconfiguration(name="inverted", cause="The model seems to expect inverted brightness.", remedy="Save 1 - x."),
        lambda t: 1 - t,
    )
    channels = x.shape[1] if x.ndim == 4 else 0
    for whose, (mean, std) in _KNOWN.get(channels, {}).items():
        numbers = f"{','.join(map(str, mean))}/{','.join(map(str, std))}"
        yield (
            _normalisation(f"normalisation-{whose}", f"{whose} normalisation", numbers),
            _standardise(x, mean, std),
        )
    if channels == 3:
        yield (
            Misconfiguration(
                name="channel-order",
                cause="The channels seem to be in the other order (RGB and BGR).",
                remedy="Save x[:, ::-1].",
            ),
            lambda t: t.flip(1),
        )
    if x.ndim == 4 and x.shape[2] == x.shape[3]:
        yield (
            Misconfiguration(
                name="transposed", cause="Height and width seem to be swapped.", remedy="Save x.transpose(0, 1, 3, 2)."
            ),
            lambda t: t.transpose(2, 3),
        )


def _normalisation(name: str, what: str, numbers: str) -> Misconfiguration:
    flags = ("--normalise", numbers)
    return Misconfiguration(
        name=name,
        cause=f"The model seems to expect {what}.",
        remedy=f"Add {' '.join(flags)} to the command.",
        flags=flags,
    )


def _standardise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    m, s = (x.new_tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    return lambda t: (t - m) / s


def _runs(model: Model, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            out = cast(object, model(x))
    except Exception:  # a user's model may raise anything; here only whether it does counts
        return False
    return isinstance(out, Tensor) and out.ndim == 2 and len(out) == len(x)
