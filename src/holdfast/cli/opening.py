"""Opens what the flags name, for commands that run one method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cli.console import Spoken, note
from holdfast.cli.options import AskedOptions, ModelOptions, RunOptions, several
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from holdfast.core.threat import ThreatModel
    from holdfast.data.dataset import Dataset
    from holdfast.session.session import Session
    from holdfast.session.spec import Surrogates

__all__ = ["look_at_models", "open_models", "opened"]


def opened(
    model: ModelOptions, threat: ThreatModel, run: RunOptions, *, asked: AskedOptions | None = None, output: str | None = None,
    top_k: int | None = None, queries: int | None = None, surrogates: Surrogates | None = None, radius_max: str | None = None,
    looks: bool = True, trained: bool = True,
) -> Session:  # fmt: skip
    """Model, data and threat of a command, opened and looked at as an audit does.

    Args:
        model: the model and the data.
        threat: what may be changed.
        run: seed and device.
        asked: what is said of a model that can only be asked.
        output: the output of an ONNX file that is meant, for commands without ``asked``.
        top_k: how many classes the deployment shows.
        queries: the most that an attack may ask for one sample.
        surrogates: the attacker's own models.
        radius_max: the largest radius that is searched for.
        looks: the pre-flight of an audit looks at both, and refuses what an audit would refuse.
        trained: its accuracy says something; not where a column is a detector's.
    """
    from holdfast.api.attack import open_with
    from holdfast.session.opening import open_session

    _, data = model.named()
    place = run.place()
    session = open_session(
        model.spec(asked, output=output, top_k=top_k),
        data,
        threat,
        samples=model.samples,
        queries=queries,
        surrogates=surrogates,
        radius_max=radius_max,
        seed=run.seed or 0,
        device=place or "cpu",
    )
    open_with(session, Spoken(), anyway=model.anyway, trained=trained, looks=looks)
    return session


def look_at_models(
    models: Mapping[str, nn.Module], data: Dataset, threat: ThreatModel, *, anyway: bool = False
) -> None:
    """The pre-flight of several models on the same data, its warnings on the terminal."""
    from holdfast.session.look import look_at_all

    for line in look_at_all(models, data, threat, anyway=anyway):
        note(line)


def open_models(
    models: list[str] | None, archs: list[str] | None, *, trust: bool | None, device: str | None
) -> dict[str, nn.Module]:
    """Several models by name: what was written before ``=``, else the file's own.

    Raises:
        UsageError: the numbers of models and architectures do not fit, or two models have one name.
    """
    from holdfast.models.load import load_model

    files: tuple[Any, ...] = several(models) or ()
    built: tuple[Any, ...] = several(archs) or (None,)
    if len(built) not in (1, len(files)):
        raise UsageError(f"{len(files)} models with {len(built)} architectures; give one for all, or one for each")
    named: dict[str, nn.Module] = {}
    for file, arch in zip(files, built * len(files) if len(built) == 1 else built, strict=True):
        name, equals, path = file.partition("=")
        name, path = (name, path) if equals else (Path(file).stem, file)
        if name in named:
            raise UsageError(f"two models are called {name}; write NAME=FILE")
        named[name] = load_model(path, arch=arch, trust=bool(trust), device=device or "cpu").module
    return named
