"""Models and data from files, as the verbs take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from holdfast.models.load import LoadedModel
    from holdfast.models.wrap import Normalisation

__all__ = ["load_model"]


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    normalise: Normalisation | str | tuple[Sequence[float], Sequence[float]] | None = None,
    binary: Literal["logit", "probability"] | None = None,
    trust: bool = False,
    device: torch.device | str = "cpu",
    output: str | None = None,
    classes: int | Sequence[str] | None = None,
) -> LoadedModel:
    """A model from a file, safe by default: nothing that could run code is opened without trust.

    Args:
        path: a state dict (needs ``arch``), an ONNX file, a Hugging Face folder, a pickled estimator or
            ``predict.py:function``.
        arch: ``package.module:function``, ``file.py:function`` or ``timm:NAME``: what builds the module.
        normalise: normalisation that the deployment applies: (means, deviations) by channel, or ``MEAN,.../STD,...``.
        binary: the model has one output: the logit, or the probability, of class 1 of 2.
        trust: open files whose opening can run code.
        device: where the model goes.
        output: the output of an ONNX file that is meant, where it has several.
        classes: how many classes, or their names, where the model answers labels and does not say it.

    Returns:
        The model: ``module`` with what verdicts on it are about, where it came from and what was noticed.

    Raises:
        UsageError: something that is missing or does not belong; a prediction API, which is given to the verbs by its URL.
        ModelError: the file cannot be read.
        UnsafeFileError: it would run code, and it is not trusted.
    """
    from torch import nn

    from holdfast.api.keywords import normalisation
    from holdfast.models.load import LoadedModel
    from holdfast.models.opening import open_model
    from holdfast.session.spec import described, is_url, model_name

    if isinstance(path, nn.Module | LoadedModel):
        raise UsageError(
            f"load_model reads files, and {described(path)} is a model already: give it to the verb as it is"
        )
    if is_url(path):
        raise UsageError(
            f"{path} is a prediction API, not a file; give its URL to the verb, with classes=... and max_queries=..."
        )
    return open_model(
        model_name(path),
        arch=arch,
        normalise=normalisation(normalise),
        binary=binary,
        trust=trust,
        device=device,
        output=output,
        classes=classes,
    )
