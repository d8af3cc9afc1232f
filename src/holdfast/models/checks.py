"""The pre-flight: what is wrong with a model and its data, in words, before an audit. Nothing is fixed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from holdfast.core.arrays import outside_inference_mode
from holdfast.core.errors import BudgetError, DataError, ModelError, UsageError
from holdfast.core.findings import Finding, Severity
from holdfast.core.threat import ThreatModel
from holdfast.core.words import counted, numbered
from holdfast.data.checks import check_data
from holdfast.data.dataset import Dataset
from holdfast.models.check_accuracy import CHANCE, check_accuracy
from holdfast.models.check_answers import answers, check_form, check_numbers, check_steadiness
from holdfast.models.misconfiguration import working_layouts
from holdfast.models.queries_only import QueriesOnly, answers_gradients
from holdfast.models.wrap import FromHF

__all__ = ["admitted", "preflight"]

Model = Callable[[Tensor], Tensor]

_NAMED = 8


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
            out = answers(model, x)
        except (BudgetError, UsageError):
            raise  # about the command, not about the model and its data
        except Exception as fault:  # a user's model may raise anything
            served = _served(model, x) if isinstance(model, nn.Module) and not isinstance(fault, ModelError) else []
            if not 0 < len(served) < len(x):
                return [*found, *check_data(data, threat), _failed(model, x, fault)]
            found.append(_raises_on_some(len(x), len(served), fault))
            x, y = x[served], y[served]
            out = answers(model, x)
        wrong = check_form(out, x)
        if wrong is not None or not isinstance(out, Tensor):
            return [*found, *check_data(data, threat), *([wrong] if wrong else [])]
        about_data = check_data(data, threat, out.shape[1])
        found += [*about_data, *check_numbers(out, answers_gradients(model))]
        if not any(f.code == "model.nan" for f in found):
            if isinstance(model, nn.Module):
                found += check_steadiness(model, x)
            if not any(f.severity is Severity.ERROR for f in about_data):  # else accuracy would only echo that
                found += check_accuracy(model, x, y, out, data.classes)
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
        found = [replace(f, severity=Severity.WARNING) if f.code == CHANCE else f for f in found]
    errors = [f for f in found if f.severity is Severity.ERROR]
    if errors:
        way = "; --anyway goes on all the same" if all(f.code == CHANCE for f in errors) else ""
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
