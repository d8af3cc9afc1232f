"""Opens what the flags name, for commands that run one method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cli.console import note
from holdfast.cli.options import several
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from holdfast.audit.context import Context
    from holdfast.audit.plan import Plan

__all__ = ["device_named", "given", "opened", "opened_models"]


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


def opened(out: Path, **values: Any) -> Context:
    """Model, data and threat of a command, opened as an audit opens them."""
    from holdfast.audit.context import Context
    from holdfast.audit.folder import RunFolder
    from holdfast.audit.plan import Plan

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
    return context


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
