"""The pre-flight: what is wrong with a model and its data, in words, before an audit. Nothing is fixed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import torch
from scipy.special import bdtr  # pyright: ignore[reportMissingTypeStubs]  # SciPy comes without types
from torch import Tensor, nn

from holdfast.core.arrays import dense, distinct, outside_inference_mode
from holdfast.core.criterion import usable
from holdfast.core.errors import BudgetError, DataError, ModelError, UsageError
from holdfast.core.findings import Finding, Severity
from holdfast.core.threat import ThreatModel
from holdfast.core.words import counted, numbered
from holdfast.data.checks import check_data
from holdfast.data.dataset import Dataset
from holdfast.models.misconfiguration import Misconfiguration, likely_misconfiguration, working_layouts
from holdfast.models.queries_only import QueriesOnly, answers_gradients
from holdfast.models.wrap import FromHF
from holdfast.numerics.stats import clopper_pearson

__all__ = ["admitted", "preflight"]

Model = Callable[[Tensor], Tensor]

_BATCH = 64
_REPEATS = 5
_FEW = 8
_RANDOM = 1e-4
_BATCH_NOISE = 1e-3
_CHANCE = "model.chance"
_NAMED = 8
_ENOUGH = 20  # rows on which doing worse than guessing is no accident
_ALPHA = 0.01  # of both one-sided binomial tests


def preflight(
    model: Model, data: Dataset, threat: ThreatModel, *, samples: int = 200, device: torch.device | str = "cpu"
) -> list[Finding]:
    """Look at a model and its data together.

    A module is asked in eval mode and put back as it was; the global random state is left alone. What is no module (an
    API) is asked once about each row and nothing more.

    Args:
        model: (n, \\*features) -> (n, K) logits or log-probabilities.
        data: what the audit will use.
        threat: says what range a feature has.
        samples: rows to ask about, from the top.
        device: where the model is.

    Returns:
        findings ``data.*``, ``labels.*`` and ``model.*``; an audit should not start on one of severity ERROR.

    Example:
        >>> from holdfast.core.threat import Norm, parse_eps
        >>> data = Dataset.of(torch.rand(4, 3), torch.tensor([0, 1, 2, 4]))
        >>> [f.code for f in preflight(nn.Identity(), data, ThreatModel.of("linf", "0.1"))]
        ['labels.range']
    """
    rows = data.x[:samples].flatten(1).isfinite().all(1)
    x, y = data.x[:samples][rows].to(device), data.y[:samples][rows].to(device)
    found = [*_mode(model), *_kind(model, data)]
    if not len(x):
        return [*found, *check_data(data, threat)]
    with _asking(model), torch.no_grad():
        try:
            out = _answers(model, x)
        except (BudgetError, UsageError):
            raise  # about the command, not about the model and its data
        except Exception as fault:  # a user's model may raise anything
            served = _served(model, x) if isinstance(model, nn.Module) and not isinstance(fault, ModelError) else []
            if not 0 < len(served) < len(x):
                return [*found, *check_data(data, threat), _failed(model, x, fault)]
            found.append(_raises_on_some(len(x), len(served), fault))
            x, y = x[served], y[served]
            out = _answers(model, x)
        wrong = _shape(out, x)
        if wrong is not None or not isinstance(out, Tensor):
            return [*found, *check_data(data, threat), *([wrong] if wrong else [])]
        about_data = check_data(data, threat, out.shape[1])
        found += [*about_data, *_outputs(out, answers_gradients(model))]
        if not any(f.code == "model.nan" for f in found):
            if isinstance(model, nn.Module):
                found += _steadiness(model, x)
            if not any(f.severity is Severity.ERROR for f in about_data):  # else accuracy would only echo that
                found += _accuracy(model, x, y, out, data.classes)
    return found


def admitted(found: list[Finding], *, anyway: bool = False) -> list[Finding]:
    """What a verb that spends something makes of the findings: it starts, or it refuses.

    Args:
        found: what `preflight` gave.
        anyway: a model that does worse than guessing is no hindrance but a warning: it may be wanted so.

    Returns:
        The findings, none of severity ERROR.

    Raises:
        DataError: with each error and its remedy.
    """
    if anyway:
        found = [replace(f, severity=Severity.WARNING) if f.code == _CHANCE else f for f in found]
    errors = [f for f in found if f.severity is Severity.ERROR]
    if errors:
        way = "; --anyway goes on all the same" if all(f.code == _CHANCE for f in errors) else ""
        lines = "\n".join(f"  {f.title}: {f.message}{f' -> {f.remedy}' if f.remedy else ''}{way}" for f in errors)
        raise DataError(f"the pre-flight found {len(errors)} error(s):\n{lines}")
    return found


@contextmanager
def _asking(model: Model) -> Generator[None, None, None]:
    """Eval mode and private randomness for the time of the questions, outside of inference mode."""
    modules = [m for m in _parts(model) if hasattr(m, "training")]  # which a frozen ScriptModule has not
    modes = [m.training for m in modules]
    with outside_inference_mode(), cast(Any, torch.random).fork_rng():
        try:
            for m in modules[:1]:
                with suppress(NotImplementedError):  # a module of torch.export: its mode was fixed then
                    m.eval()
            yield
        finally:
            for m, mode in zip(modules, modes, strict=True):
                m.training = mode


def _answers(model: Model, x: Tensor) -> object:
    # a copy, for some models write into their input; and what a user's model answers may be anything
    parts: list[Any] = [model(part.clone()) for part in torch.split(x, _BATCH)]
    return torch.cat(parts) if all(isinstance(p, Tensor) for p in parts) else parts[0]


def _mode(model: Model) -> list[Finding]:
    if not isinstance(model, nn.Module):
        return []
    # PyTorch names the bases of all dropouts and batch norms in private only
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
    named = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    live = [name or type(m).__name__ for name, m in named if isinstance(m, kinds) and m.training]
    if not live:
        return []
    return [
        Finding(
            code="model.train_mode",
            severity=Severity.WARNING,
            title="the model is in training mode",
            message=f"{len(live)} layers behave differently there: {', '.join(live[:5])}.",
            remedy="Call model.eval(); the audit asks it in eval mode either way.",
            data={"layers": len(live)},
        )
    ]


def _failed(model: Model, x: Tensor, fault: Exception) -> Finding:
    if isinstance(fault, ModelError):  # says in words what it is
        return Finding(
            code="model.call",
            severity=Severity.ERROR,
            title="the model fails on the data",
            message=str(fault)[:800],
            remedy="",
        )
    layouts = working_layouts(model, x[:2]) if isinstance(model, nn.Module) else []
    hint = f"It runs {' or '.join(layouts)}." if layouts else "Check the shape and type that it expects."
    return Finding(
        code="model.call",
        severity=Severity.ERROR,
        title="the model fails on the data",
        message=f"Inputs of shape {tuple(x.shape)} raise {type(fault).__name__}: {str(fault)[:300]}",
        remedy=hint,
    )


def _served(model: Model, x: Tensor) -> list[int]:
    """The rows that the model answers one by one."""
    rows: list[int] = []
    for k in range(len(x)):
        with suppress(Exception):  # a user's model may raise anything
            model(x[k : k + 1].clone())
            rows.append(k)
    return rows


def _raises_on_some(rows: int, served: int, fault: Exception) -> Finding:
    return Finding(
        code="model.raises",
        severity=Severity.WARNING,
        title="the model fails on some samples",
        message=f"It raises on {rows - served} of {counted(rows, 'row')}, first {type(fault).__name__}: {str(fault)[:300]}",
        remedy="Such samples count as errors, never as robust.",
        data={"samples": rows - served},
    )


def _kind(model: Model, data: Dataset) -> list[Finding]:
    """What the model says of itself: the kind of its decision, and what it calls its classes."""
    said = [m for m in _parts(model) if isinstance(m, FromHF)]
    found: list[Finding] = []
    if any(m.multi_label for m in said):
        found.append(
            Finding(
                code="model.multi_label",
                severity=Severity.ERROR,
                title="a multi-label classifier",
                message="The model decides each label by itself (problem_type: multi_label_classification); the "
                "largest logit, which an audit asks for, is not its decision.",
                remedy="Audit one label at a time: wrap the model so that it gives the two logits (0, logit of the label).",
            )
        )
    told = [m.classes for m in said]
    told += [m.names for m in _parts(model) if isinstance(m, QueriesOnly) and all(isinstance(n, str) for n in m.names)]
    for own in told:
        given = data.classes
        if own and given and own != given and set(own) >= set(given):
            found.append(
                Finding(
                    code="labels.order",
                    severity=Severity.ERROR,
                    title="classes in another order than the model's",
                    message=f"The model numbers its classes {numbered(own, _NAMED)}; the data {numbered(given, _NAMED)}.",
                    remedy="Number them as the model does: add the flag below to the command.",
                    data={"flags": shlex.join(("--class-names", ",".join(own)))},
                )
            )
    return found


def _parts(model: Model) -> list[nn.Module]:
    return list(model.modules()) if isinstance(model, nn.Module) else []


def _shape(out: object, x: Tensor) -> Finding | None:
    if not isinstance(out, Tensor):
        return Finding(
            code="model.output",
            severity=Severity.ERROR,
            title="the model does not answer with a tensor",
            message=f"It answers with {type(out).__name__}.",
            remedy="Wrap it so that it returns logits; for a Hugging Face classifier: holdfast.models.FromHF(model).",
        )
    if out.ndim == 1 or (out.ndim == 2 and out.shape[1] == 1):
        return Finding(
            code="model.one_logit",
            severity=Severity.ERROR,
            title="the model has a single output",
            message=f"Its answer to {counted(len(x), 'row')} has the shape {tuple(out.shape)}; a decision needs two "
            "classes or more.",
            remedy="If it is the logit, or the probability, of class 1 of 2, add --binary logit or --binary "
            "probability; in Python wrap it: holdfast.models.OneLogit(model).",
        )
    if out.ndim != 2 or len(out) != len(x):
        return Finding(
            code="model.output",
            severity=Severity.ERROR,
            title="the model is no classifier",
            message=f"Its answer to {len(x)} rows has the shape {tuple(out.shape)}; wanted ({len(x)}, classes). "
            "Detection and segmentation are not supported.",
            remedy="Give a model with one row of logits for each input.",
        )
    if out.is_complex() or dense(out) is not out:
        kind, form = str(out.dtype).removeprefix("torch."), str(out.layout).removeprefix("torch.")
        return Finding(
            code="model.output",
            severity=Severity.ERROR,
            title="the model does not answer with ordinary numbers",
            message=f"Its answer is a {form} tensor of {kind}, among whose numbers PyTorch does not look for the largest.",
            remedy="Wrap it so that it returns real scores in a dense floating-point tensor: .abs(), .to_dense(), "
            ".dequantize() or .float().",
        )
    return None


def _outputs(out: Tensor, own: bool) -> list[Finding]:
    """What is wrong with the answers; ``own``: the model's layers are there to be changed."""
    broken = ~usable(out)
    if bool(broken.any()):
        return [
            Finding(
                code="model.nan",
                severity=Severity.ERROR,
                title="NaN or infinite outputs",
                message=f"{int(broken.sum())} of {len(out)} rows get NaN, +infinity, or -infinity for every class.",
                remedy="Check the weights and the inputs' scale; such samples count as errors, never as robust.",
                data={"samples": int(broken.sum())},
            )
        ]
    found: list[Finding] = []
    if not out.is_floating_point() or out.dtype in (torch.float16, torch.bfloat16):
        found.append(
            Finding(
                code="model.dtype",
                severity=Severity.WARNING,
                title="outputs of low precision",
                message=f"The model answers in {str(out.dtype).removeprefix('torch.')}.",
                remedy="Run it in float32: rounding hides gradients and blurs who is broken.",
            )
        )
    values = out.double()
    if bool((values >= 0).all()) and _near_one(values.sum(1)):
        found.append(
            Finding(
                code="model.probabilities",
                severity=Severity.WARNING,
                title="probabilities instead of logits",
                message="All outputs are at least 0 and each row adds up to 1: a softmax seems to be the last layer.",
                remedy="Leave the softmax out: it flattens the loss, and attacks would look weaker than they are.",
            )
            if own
            else _asked_for_shares(out)
        )
    elif bool((values <= 0).all()) and _near_one(values.exp().sum(1)):
        said = "The outputs are" if own else "Its answers are read as"
        found.append(
            Finding(
                code="model.log_probabilities",
                severity=Severity.NOTE,
                title="log-probabilities",
                message=f"{said} log-probabilities. Their margins equal those of logits.",
            )
        )
    return found


def _asked_for_shares(out: Tensor) -> Finding:
    """Probabilities of what can only be asked: nothing can be left out there, and what matters is whether they move."""
    different = len(distinct(out, dim=0))
    said = "All scores are at least 0 and each row adds up to 1."
    remedy = "Nothing has to be changed: queries compare them class by class (--suite black-box --certify none)."
    if different <= len(out) / 2:
        said += (
            f" {counted(len(out), 'row')} got {counted(different, 'different answer')}: such ties, as trees give, hide from a "
            "search of scores whether it comes nearer."
        )
        remedy += " The suite's attacks on labels go on where scores tie; --answers labels runs them alone."
    else:
        remedy += " If it can answer with logits too, those tell more: near 1 probabilities look alike."
    measured: dict[str, float | int | str] = {"rows": len(out), "different": different}
    return Finding(
        code="model.probabilities",
        severity=Severity.NOTE,
        title="probabilities",
        message=said,
        remedy=remedy,
        data=measured,
    )


def _near_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < 1e-3).all())


def _steadiness(model: nn.Module, x: Tensor) -> list[Finding]:
    """Whether an answer depends on anything but its own row: chance, or the rows beside it."""
    few = x[:_FEW]
    first = model(few.clone())
    again = [model(few.clone()) for _ in range(_REPEATS - 1)]
    if any(a.shape != first.shape for a in again):
        return [_columns(few, first, next(a for a in again if a.shape != first.shape))]
    spread = max(float((a - first).abs().nan_to_num(0).max()) for a in again)
    if spread > _RANDOM:
        return [
            Finding(
                code="model.randomised",
                severity=Severity.WARNING,
                title="the model is randomised",
                message=f"The same rows asked {_REPEATS} times in eval mode gave outputs that differ by up to {spread:.3g}.",
                remedy="Attack it through holdfast.models.Eot, and read figures as majorities of fresh draws.",
                data={"change": spread},
            )
        ]
    try:
        alone = torch.cat([model(few[i : i + 1].clone()) for i in range(len(few))])
    except Exception as fault:  # a user's model may raise anything
        return [
            Finding(
                code="model.batch_dependent",
                severity=Severity.ERROR,
                title="the model fails on a single row",
                message=f"It answers {len(few)} rows together and raises {type(fault).__name__} on one: {str(fault)[:200]}",
                remedy="Look for batch statistics used in eval mode (batch norm without running averages).",
            )
        ]
    if alone.shape != first.shape:
        return [_columns(few, first, alone)]
    change = float((alone - first).abs().nan_to_num(0).max())
    flips = int((alone.argmax(1) != first.argmax(1)).sum())
    if change > _BATCH_NOISE * max(1.0, float(first.abs().nan_to_num(0, 0, 0).max())):
        return [
            Finding(
                code="model.batch_dependent",
                severity=Severity.WARNING,
                title="answers depend on the batch",
                message=f"Asked one by one, outputs differ by up to {change:.3g} and {flips} of {len(few)} labels change.",
                remedy="Look for batch statistics used in eval mode (batch norm without running averages).",
                data={"change": change, "flips": flips},
            )
        ]
    return []


def _columns(x: Tensor, first: Tensor, other: Tensor) -> Finding:
    return Finding(
        code="model.output",
        severity=Severity.ERROR,
        title="the number of classes changes from call to call",
        message=f"For the same {len(x)} rows it answered in the shape {tuple(first.shape)}, and then, or one by one, in "
        f"{tuple(other.shape)}.",
        remedy="Give a model with one row of logits, always of the same classes, for each input.",
    )


def _flags(mistake: Misconfiguration, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """What to add to the command line; classes in another order can be named where the data have names."""
    if names is not None and mistake.order and max(mistake.order) < len(names):
        return ("--class-names", ",".join(names[k] for k in mistake.order))
    return mistake.flags


def _accuracy(model: Model, x: Tensor, y: Tensor, out: Tensor, names: tuple[str, ...] | None = None) -> list[Finding]:
    predicted, n, k = out.argmax(1), len(x), out.shape[1]
    accuracy = float((predicted == y).double().mean())
    measured: dict[str, float | int | str] = {"accuracy": accuracy, "samples": n}
    cause, remedy, mistake = "", "Check that weights, data and labels belong together.", None
    if isinstance(model, nn.Module):  # asking a module again costs only time; an API counts
        mistake = likely_misconfiguration(
            lambda t: torch.cat([model(part.clone()) for part in torch.split(t, _BATCH)]), x, y, predicted, 1 / k + 0.2
        )
        cause = " No usual slip explains it."
    if mistake is not None:
        measured |= {
            "slip": mistake.name,
            "accuracy_then": mistake.accuracy,
            "flags": shlex.join(_flags(mistake, names)),
        }
        cause, remedy = f" {mistake.cause} With that changed: {mistake.accuracy:.1%}.", mistake.remedy
        if mistake.rivals:
            cause += f" As good, to within 3 points: {', '.join(mistake.rivals)}."
            remedy += " What counts is how the model was trained, not which change scores best."
    hits = round(accuracy * n)
    constant = float(torch.bincount(y, minlength=k).max()) / n  # the best that one answer for all rows would do
    worse = n >= _ENOUGH and float(bdtr(hits, n, constant)) < _ALPHA
    told = 1 - float(bdtr(hits - 1, n, 1 / k)) <= _ALPHA if hits else False  # from guessing
    most = float(clopper_pearson(hits, n, 0.1)[1])  # few rows show neither that it guesses nor that it does not
    if worse or not hits or (not told and most < (1 + 1 / k) / 2):
        if n > 1 and len(distinct(predicted)) == 1:
            cause = f" It gives every row the same label.{cause}"
        title, than = "no better than guessing", f"guessing gives {1 / k:.1%}"
        if worse:
            title, than = "worse than guessing", f"the same answer to all would reach {constant:.1%}"
        return [
            Finding(
                code=_CHANCE,
                severity=Severity.ERROR if worse else Severity.WARNING,
                title=title,
                message=f"Clean accuracy is {accuracy:.1%} on {counted(n, 'row')}, and {than}.{cause}",
                remedy=remedy,
                data=measured,
            )
        ]
    if mistake is not None:
        return [
            Finding(
                code="model.preprocessing",
                severity=Severity.WARNING,
                title="the preprocessing seems to be off",
                message=f"Clean accuracy is {accuracy:.1%} on {counted(n, 'row')}.{cause}",
                remedy=remedy,
                data=measured,
            )
        ]
    return []
