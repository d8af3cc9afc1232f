"""Reads what a caller names: a module, a file or a prediction API; a data set, a file or arrays; the attacker's own models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from holdfast.attacks.common.ensemble import Ensemble
from holdfast.core.errors import UsageError
from holdfast.core.verdict import Subject
from holdfast.data.dataset import Dataset
from holdfast.data.load import load_data
from holdfast.data.npz import refuse_channels_last
from holdfast.data.table import Table
from holdfast.judge.asking import Model
from holdfast.models.fingerprint import fingerprint
from holdfast.models.http import HttpModel
from holdfast.models.load import LoadedModel, load_model
from holdfast.models.opening import open_model
from holdfast.models.paid import PaidAnswers
from holdfast.models.queries_only import QueriesOnly
from holdfast.models.wrap import Normalised, Ranged, with_two_classes
from holdfast.session.spec import DataLike, ModelSpec, Surrogates, described, model_name

__all__ = ["OpenedModel", "as_device", "device_of", "open_data", "open_spec", "open_surrogates"]

_TOKEN = "HOLDFAST_API_TOKEN"


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model ready to be asked.

    Attributes:
        base: x (m, \\*features) -> scores (m, K).
        subject: what verdicts on it are about.
        source: where it came from, for people.
        notes: what was noticed on opening.
    """

    base: Model
    subject: Subject
    source: str
    notes: tuple[str, ...] = ()


def as_device(name: str | torch.device) -> torch.device:
    """A device by its name.

    Raises:
        UsageError: this machine has none of that name.

    Example:
        >>> as_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as fault:
        why = str(fault).splitlines()[0]
        raise UsageError(f"the device {name} cannot be used here, take cpu: {why}") from None
    return device


def open_data(data: DataLike, *, class_names: tuple[str, ...] | None = None, table: Table | None = None) -> Dataset:
    """A data set from what a caller names; columns of a table in units of their ranges.

    Raises:
        UsageError: neither of these, or not a pair.
        DataError: nothing there, or no samples with labels.

    Example:
        >>> len(open_data("digits:test")), len(open_data((torch.zeros(2, 3), [0, 1])))
        (500, 2)
    """
    if isinstance(data, Dataset):
        found = data
    elif isinstance(data, tuple):
        if len(data) != 2:
            raise UsageError(f"data are (x, y), got {len(data)} of them; or give a Dataset, a file or digits:test")
        refuse_channels_last(getattr(data[0], "shape", ()), "the data")
        found = Dataset.of(*data, classes=class_names)
    elif isinstance(data, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]  # people give anything
        found = load_data(data, classes=class_names)
    else:
        raise UsageError(
            "data are (x, y) as tensors or arrays, a Dataset, or the name of a file, a folder or digits:test; got "
            f"{described(data)}. The order is model, data, method, threat"
        )
    return found if table is None else table.to_units(found)


def open_spec(
    spec: ModelSpec, device: torch.device, *, low: float = 0.0, high: float = 1.0, paid: PaidAnswers | None = None
) -> OpenedModel:
    """The model that a spec says, on a device.

    Args:
        spec: the model, and how it is to be read.
        device: where it goes; what is only asked stays where it is.
        low: least value of an input feature.
        high: largest value of an input feature.
        paid: answers that a prediction API was paid for before.

    Raises:
        UsageError: no model is named.
        ModelError: it cannot be read.
        UnsafeFileError: its opening would run code, and it is not trusted.
    """
    model = spec.model
    if model is None:
        raise UsageError("no model: give --model FILE --arch MODULE:FUNCTION, or from Python the module itself")
    if isinstance(model, HttpModel):
        _check_rows_sent(model, spec)
        return OpenedModel(base=model, subject=model.subject, source=model.url)
    if isinstance(model, LoadedModel):
        return _opened(model, spec, device)
    if isinstance(model, nn.Module):
        return _module(model, spec, device)
    name = model_name(model)
    names: int | tuple[str, ...] | None = spec.class_names or spec.classes
    if spec.remote:
        before = _fitted(spec, nn.Identity() if spec.normalise is None else Normalised(nn.Identity(), spec.normalise))
        api = HttpModel(
            name, classes=names or 0, max_queries=spec.max_queries, access=spec.answers, top_k=spec.top_k,
            scores=spec.scores, request=spec.request, answer=spec.answer, before=before, paid=paid,
            token_env=_TOKEN if _TOKEN in os.environ and spec.token else None,
        )  # fmt: skip
        return OpenedModel(base=api, subject=api.subject, source=name)
    loaded = open_model(
        name,
        arch=spec.arch,
        trust=spec.trust,
        normalise=spec.normalise,
        binary=spec.binary,
        device=device,
        output=spec.output,
        classes=names,
        pixel=255 / high if low == 0 else 255.0,
    )
    return _in_columns(loaded, spec, device)


def open_surrogates(surrogates: Surrogates, device: torch.device) -> nn.Module:
    """The attacker's own model: one, or the ensemble of several."""
    archs = surrogates.archs or (None,)
    archs = archs * len(surrogates.models) if len(archs) == 1 else archs
    members = [
        _own(model, arch, surrogates.trust, device) for model, arch in zip(surrogates.models, archs, strict=True)
    ]
    return members[0] if len(members) == 1 else Ensemble(members)


def device_of(model: object) -> torch.device:
    """Where a module is; the CPU for what is none, or has no weights."""
    module = model.module if isinstance(model, LoadedModel) else model
    tensors = (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ()
    return next((t.device for t in tensors), torch.device("cpu"))


def _check_rows_sent(api: HttpModel, spec: ModelSpec) -> None:
    """Nothing can be put before an API that is open: it would get shares of ranges for the columns' own values."""
    said = "a table" if spec.table is not None else "a normalisation" if spec.normalise is not None else ""
    if said and not api.changes_rows:
        raise UsageError(
            f"{api.url} was opened with nothing done to its rows, and {said} changes what it is to be sent; name its URL "
            "instead, or open it with HttpModel(..., before=what turns inputs into rows)"
        )


def _own(model: nn.Module | LoadedModel | str | Path, arch: str | None, trust: bool, device: torch.device) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, LoadedModel):
        return model.module
    try:
        return load_model(model, arch=arch, trust=trust, device=device).module
    except UsageError as fault:
        raise UsageError(
            f"the surrogate: {fault}. Of a surrogate it is said by --surrogate-arch; from Python give it loaded: "
            "surrogate=hf.load_model(FILE, arch=...)"
        ) from None


def _module(model: nn.Module, spec: ModelSpec, device: torch.device) -> OpenedModel:
    if isinstance(model, QueriesOnly) and spec.normalise is spec.binary is spec.table is None:
        return OpenedModel(base=model, subject=model.subject, source=model.what, notes=model.notes)
    module = _fitted(
        spec, with_two_classes(model if spec.normalise is None else Normalised(model, spec.normalise), spec.binary)
    )
    subject = Subject("model", fingerprint(module))
    return OpenedModel(base=module.to(device), subject=subject, source=type(model).__name__)


def _opened(loaded: LoadedModel, spec: ModelSpec, device: torch.device) -> OpenedModel:
    """A model that was loaded before: what is said of its reading was said then."""
    if spec.normalise is None and spec.binary is None:
        return _in_columns(loaded, spec, device)
    found = _module(loaded.module, spec, device)
    return OpenedModel(base=found.base, subject=found.subject, source=loaded.source, notes=loaded.notes)


def _in_columns(loaded: LoadedModel, spec: ModelSpec, device: torch.device) -> OpenedModel:
    if spec.table is None:
        return OpenedModel(base=loaded.module, subject=loaded.subject, source=loaded.source, notes=loaded.notes)
    module = _fitted(spec, loaded.module).to(device)
    return OpenedModel(
        base=module, subject=Subject("model", fingerprint(module)), source=loaded.source, notes=loaded.notes
    )


def _fitted(spec: ModelSpec, module: nn.Module) -> nn.Module:
    """The module as the data need it: columns get their own values back."""
    return module if spec.table is None else Ranged.of(module, spec.table)
