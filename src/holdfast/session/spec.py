"""What a caller says of the model, of the attacker's own models and of the data, before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from holdfast.core.errors import UsageError
from holdfast.data.dataset import Dataset
from holdfast.data.table import Table
from holdfast.models.http import HttpModel
from holdfast.models.load import LoadedModel
from holdfast.models.template import AnswerPath, RequestTemplate
from holdfast.models.wrap import Normalisation

__all__ = ["DataLike", "ModelLike", "ModelSpec", "Surrogates", "described", "is_url", "model_name"]

ModelLike: TypeAlias = nn.Module | LoadedModel | HttpModel | str | Path
"""A module, a model that was loaded, a prediction API, or the path or URL of one."""
DataLike: TypeAlias = Dataset | str | Path | tuple[Any, Any]
"""A data set, what `holdfast.data.load_data` reads, or (x, y) as tensors or arrays."""


def is_url(name: object) -> bool:
    """Whether a model's name is that of a prediction API.

    Example:
        >>> is_url("https://here.example/predict"), is_url("model.onnx")
        (True, False)
    """
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def described(thing: object) -> str:
    """What a caller gave, for a message that refuses it.

    Example:
        >>> described("8/255"), described([1, 2]), described(None)
        ("'8/255'", 'a list', 'None')
    """
    if thing is None or isinstance(thing, str | int | float):
        return repr(thing)[:60]
    return f"a {type(thing).__name__}"


def model_name(model: object) -> str:
    """The path or the URL of a model that is no module.

    Raises:
        UsageError: it is no name; the message says how such a thing is asked.

    Example:
        >>> model_name(Path("model.onnx"))
        'model.onnx'
    """
    if isinstance(model, str | Path):
        return str(model)
    if hasattr(model, "predict"):
        raise UsageError(
            f"{described(model)} is no module; if it is an estimator of scikit-learn's kind, wrap it: "
            "holdfast.models.FromSklearn(estimator)"
        )
    if isinstance(model, Mapping):
        raise UsageError(
            "these are weights alone; load them into their module with load_state_dict, and give the module"
        )
    if isinstance(model, type):
        raise UsageError(f"{model.__name__} is a class; make the model with it, {model.__name__}(...), and give that")
    if callable(model):
        raise UsageError(
            "a function is no module; if PyTorch can differentiate it, call it in the forward of an nn.Module; otherwise "
            "derive from holdfast.models.QueriesOnly, or write predict.py:function with trust=True"
        )
    raise UsageError(
        f"a model is a module, a loaded model, a path or the URL of a prediction API; got {described(model)}. The order is "
        "model, data, method, threat"
    )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model and how it is to be read; what cannot be had together is refused at once.

    Attributes:
        model: the module, a file, ``predict.py:function``, or the URL of a prediction API; None: none was named.
        arch: builds the architecture of a state dict.
        trust: open files whose opening can run code.
        normalise: normalisation that the deployment applies before the model.
        output: the output of an ONNX file that is meant, where it has several.
        binary: the model has one output: the logit, or the probability, of class 1 of 2.
        class_names: names of the classes in the model's order.
        classes: how many classes a model has that does not say it.
        table: range, type and immutability of the columns, where the data are a table of their own values.
        answers: what a model that can only be asked answers: scores, or labels alone.
        top_k: how many classes the deployment shows; None is all.
        scores: what the scores of a prediction API are.
        request: the JSON that a prediction API wants, with placeholders.
        answer: the path of the rows in its answer.
        max_queries: the most rows that may ever be sent to a prediction API: the consent to ask it.
        token: a prediction API may be sent the token of the environment: the caller named its host himself.
    """

    model: ModelLike | None = None
    arch: str | None = None
    trust: bool = False
    normalise: Normalisation | None = None
    output: str | None = None
    binary: Literal["logit", "probability"] | None = None
    class_names: tuple[str, ...] | None = None
    classes: int | None = None
    table: Table | None = None
    answers: Literal["scores", "labels"] = "scores"
    top_k: int | None = None
    scores: Literal["probabilities", "logits"] = "probabilities"
    request: str | None = None
    answer: str | None = None
    max_queries: int | None = None
    token: bool = True

    def __post_init__(self) -> None:
        at_least(1, top_k=self.top_k, max_queries=self.max_queries)
        at_least(2, classes=self.classes)
        if is_url(self.model):
            self._check_api()
        elif self.request is not None or self.answer is not None:
            flag = "request" if self.request is not None else "answer"
            raise UsageError(f"--{flag} is about the JSON of a prediction API, and the model is none; leave it out")
        if self.classes is not None and self.class_names is not None and self.classes != len(self.class_names):
            raise UsageError(f"{len(self.class_names)} class names with --classes {self.classes}; they must be as many")
        if self.answers == "labels" and self.top_k is not None:
            raise UsageError("labels alone have no top-k; leave out --top-k or answer with scores")

    def _check_api(self) -> None:
        if self.classes is None and self.class_names is None:
            raise UsageError("a prediction API does not say how many classes it has; give --classes or --class-names")
        if self.binary is not None:
            raise UsageError(
                "an API with one score a row has --classes 2 and --scores logits or probabilities; leave out --binary"
            )
        if self.request is not None:
            RequestTemplate.parse(self.request)
        if self.answer is not None:
            AnswerPath.parse(self.answer)

    @property
    def remote(self) -> bool:
        """The model is a prediction API."""
        return is_url(self.model) or isinstance(self.model, HttpModel)


@dataclass(frozen=True, kw_only=True)
class Surrogates:
    """The attacker's own models, for transfer; several make an ensemble.

    Attributes:
        models: modules or files.
        archs: what builds the files' architectures: one for all, or one for each.
        trust: open files whose opening can run code.
    """

    models: tuple[nn.Module | LoadedModel | str | Path, ...]
    archs: tuple[str, ...] = ()
    trust: bool = False

    def __post_init__(self) -> None:
        if len(self.archs) not in (0, 1, len(self.models)):
            raise UsageError(
                f"{len(self.models)} surrogates with {len(self.archs)} architectures; give one for all, or one for each"
            )

    @classmethod
    def of(cls, given: Surrogates | nn.Module | LoadedModel | str | Path | Sequence[Any]) -> Surrogates:
        """One model or several, as a caller names them."""
        if isinstance(given, Surrogates):
            return given
        one = isinstance(given, nn.Module | LoadedModel | str | Path)
        return cls(models=(given,) if one else tuple(given))


def at_least(least: int, **values: int | None) -> None:
    """Refuses a number that is too small or not whole; None was not given.

    Raises:
        UsageError: it names the number, by its flag.
    """
    for name, value in values.items():
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if not isinstance(value, Integral):
            raise UsageError(f"{flag} is a whole number, got {value!r}")
        if value < least:
            raise UsageError(f"{flag} starts at {least}, got {value}")
