"""Opens what the flags name, for commands that run one method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cli.console import note
from holdfast.cli.options import several
from holdfast.core.errors import DataError, UsageError
from holdfast.core.words import sentences

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from holdfast.audits.context import Context
    from holdfast.audits.plan import Plan
    from holdfast.core.threat import ThreatModel
    from holdfast.data.dataset import Dataset
    from holdfast.judge.desk import Model

__all__ = ["device_named", "given", "look", "look_at_all", "opened", "opened_models"]


def given(**values: Any) -> dict[str, Any]:
    """The values that were given; the plan has the defaults of the others."""
    return {k: v for k, v in values.items() if v is not None}


def device_named(name: str | None) -> str | None:
    """The device, if this machine has it.

    Raises:
        UsageError: it has not, or there is no such kind.
    """
    if name is None:
        return None
    import torch

    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as fault:
        raise UsageError(f"--device {name} cannot be used here, take cpu: {str(fault).splitlines()[0]}") from None
    return name


def opened(out: Path, *, looks: bool = True, anyway: bool = False, trained: bool = True, **values: Any) -> Context:
    """Model, data and threat of a command, opened and looked at as an audit does.

    Args:
        out: the command's folder.
        looks: the pre-flight of an audit looks at both, and refuses what an audit would refuse.
        anyway: a model that does worse than guessing is none of it.
        trained: its accuracy says something; not where a column is a detector's.
        values: fields of a plan; those that are None were not given.
    """
    from holdfast.audits.context import Context
    from holdfast.audits.folder import RunFolder
    from holdfast.audits.plan import Plan

    named = given(**values)
    for flag in ("model", "data"):
        if flag not in named:
            raise UsageError(f"what {flag}? give --{flag}")
    device_named(named.get("device"))
    if str(named["model"]).startswith(("http://", "https://")):
        named["suite"] = "black-box"
    context = Context.open(Plan.of(certify="none", **named), RunFolder(out))
    for line in context.notes:
        note(f"note: {line}")
    if looks:
        look(
            context.base,
            context.data,
            context.plan.threat,
            anyway=anyway,
            trained=trained,
            classes=context.plan.classes,
        )
    return context


def look(
    model: Model, data: Dataset, threat: ThreatModel, *, anyway: bool = False, trained: bool = True,
    classes: int | None = None,
) -> None:  # fmt: skip
    """The pre-flight, its warnings on the terminal. An API, whose rows count, is not asked for it: its data are looked at.

    Args:
        model: where it runs.
        data: what the command works on.
        threat: says what range a feature has.
        anyway: a model that does worse than guessing goes on.
        trained: its accuracy says something.
        classes: K, where the model is not asked.

    Raises:
        DataError: what an audit would refuse.
    """
    from torch import nn

    from holdfast.core.findings import Severity
    from holdfast.data.checks import check_data
    from holdfast.models.checks import admitted, preflight

    if isinstance(model, nn.Module):
        first = next((t for t in (*model.parameters(), *model.buffers())), None)
        found = preflight(model, data, threat, device="cpu" if first is None else first.device)
    else:
        found = check_data(data, threat, classes)
    if not trained:
        found = [f for f in found if f.code not in ("model.chance", "model.preprocessing", "model.train_mode")]
    for f in admitted(found, anyway=anyway):
        if f.severity is Severity.WARNING:
            note(f"warning: {f.title}. {sentences(f.message, f.remedy)}")


def look_at_all(models: Mapping[str, nn.Module], data: Dataset, threat: ThreatModel, *, anyway: bool = False) -> None:
    """The pre-flight of several models on the same data; what is wrong is said with the model's name.

    Raises:
        DataError: what an audit would refuse.
    """
    for name, model in models.items():
        try:
            look(model, data, threat, anyway=anyway)
        except DataError as fault:
            raise DataError(f"{name}: {fault}") from None


def opened_models(models: list[str] | None, archs: list[str] | None, plan: Plan) -> dict[str, nn.Module]:
    """Several models by name: what was written before ``=``, else the file's own.

    Raises:
        UsageError: the numbers of models and architectures do not fit, or two models have one name.
    """
    from holdfast.models.load import load_model

    files, built = several(models) or (), several(archs) or (None,)
    if len(built) not in (1, len(files)):
        raise UsageError(f"{len(files)} models with {len(built)} architectures; give one for all, or one for each")
    found: dict[str, nn.Module] = {}
    for file, arch in zip(files, built * len(files) if len(built) == 1 else built, strict=True):
        name, equals, path = file.partition("=")
        name, path = (name, path) if equals else (Path(file).stem, file)
        if name in found:
            raise UsageError(f"two models are called {name}; write NAME=FILE")
        found[name] = load_model(path, arch=arch, trust=plan.trust, device=plan.device).module
    return found
