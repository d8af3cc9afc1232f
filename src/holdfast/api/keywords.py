"""The keywords of a verb: a method's parameters, checked against its card, and how the model is to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from holdfast.core.errors import UsageError, did_you_mean
from holdfast.core.kinds import is_list_or_tuple
from holdfast.core.threat import ThreatModel

if TYPE_CHECKING:
    from holdfast.models.wrap import Normalisation
    from holdfast.session.spec import ModelLike, ModelSpec

__all__ = [
    "OF_THE_THREAT",
    "THREAT",
    "beside",
    "kind_of",
    "method_and_spec",
    "normalisation",
    "parameter_values",
    "split_spec",
    "threat_model",
    "tool_of",
]

THREAT = 'ThreatModel.of("linf", "8/255")'
"""How a threat is written, for messages."""
_NEAR = 0.7
OF_THE_THREAT = frozenset({"norm", "eps", "goal", "access", "low", "high", "grid"})
"""What a threat model says, so that nothing beside it does."""


def method_and_spec(
    method: str | object, model: ModelLike | ModelSpec | None, keywords: Mapping[str, Any], verb: Callable[..., object]
) -> tuple[Any, ModelSpec]:
    """The method with its parameters, and the model with what is said of its reading.

    A keyword is a parameter of the method if the method has one of that name, else one of `ModelSpec`.

    Args:
        method: a name, a class or an object; only a name and a class take parameters.
        model: the model.
        keywords: what the caller gave beside the verb's own.
        verb: whose call it is; its own keywords are near words too.

    Raises:
        UsageError: no such method or parameter, or a value of another type.
    """
    own, spec = split_spec(kind_of(method), model, keywords)
    return tool_of(method, own, beside=beside(verb)), spec


def beside(verb: Callable[..., object]) -> set[str]:
    """The keywords of a verb that are no method's: its own, and those that say how a model is read."""
    return _reading() | set(signature(verb).parameters)


def split_spec(
    kind: type, model: ModelLike | ModelSpec | None, keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], ModelSpec]:
    """The keywords that are the method's, and the model with those that say how it is read.

    Raises:
        UsageError: the model is a `ModelSpec`, which says it already.
    """
    from holdfast.session.spec import ModelSpec

    of_method = set(_parameters(kind))
    about = {k: v for k, v in keywords.items() if k in _reading() and k not in of_method}
    own = {k: v for k, v in keywords.items() if k not in about}
    if not isinstance(model, ModelSpec):
        return own, ModelSpec(model=model, **_spec_values(about))
    if about:
        raise UsageError(f"a ModelSpec says how the model is read; put {', '.join(about)} into it")
    return own, model


def _reading() -> set[str]:
    from holdfast.session.spec import ModelSpec

    return {f.name for f in fields(ModelSpec)} - {"model"}


def tool_of(method: str | object, given: Mapping[str, Any], beside: Iterable[str] = ()) -> Any:
    """A method with its parameters.

    Args:
        method: a name, a class or an object.
        given: parameters by name.
        beside: keywords of the verb that are none of the method's, for hints.

    Raises:
        UsageError: no such method or parameter, a value of another type, or parameters for an object, which has its own.
    """
    kind = kind_of(method)
    if not isinstance(method, str | type):
        if given:
            raise UsageError(
                f"{kind.__name__} was given as an object, which has its parameters; leave out {', '.join(given)}"
            )
        return method
    return kind(**parameter_values(kind, given, beside))


def parameter_values(
    kind: type, given: Mapping[str, Any], beside: Iterable[str] = (), *, flag: str = ""
) -> dict[str, Any]:
    """Values of a method's parameters, of the types that it declares.

    Args:
        kind: the method.
        given: by name; texts are read as what they are meant for.
        beside: other names that a caller may have meant.
        flag: what stands before an assignment in a message.

    Raises:
        UsageError: no such parameter, or a value of another type.

    Example:
        >>> from holdfast.attacks.evasion.white.pgd import PGD
        >>> parameter_values(PGD, {"steps": "7"})
        {'steps': 7}
    """
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    known, hints = _parameters(kind), get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{kind.__name__} has no parameter '{name}'. {_meant(name, known, beside)}")
        try:
            found[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{flag}{name}={_written(value)}: {error.errors()[0]['msg'].lower()}") from None
        except PydanticSchemaGenerationError:
            if isinstance(value, str):
                made = f"{kind.__name__}({name}=...)"
                raise UsageError(
                    f"{flag}{name}={value}: '{name}' is an object, not a text; give it from Python: {made}"
                ) from None
            found[name] = value
    return found


def _meant(name: str, known: Iterable[str], beside: Iterable[str]) -> str:
    """The near words: the method's own, unless one of the verb's is much nearer."""
    if name in OF_THE_THREAT:
        return f"The threat says it: {THREAT}"
    near = get_close_matches(name, beside, n=1, cutoff=_NEAR)
    return did_you_mean(name, known if not near or get_close_matches(name, known, n=1, cutoff=_NEAR) else near)


def _written(value: object) -> str:
    return ",".join(map(str, value)) if is_list_or_tuple(value) else str(value)


def kind_of(method: str | object) -> type:
    """The class of a method that is given by name, as a class or as an object.

    Raises:
        UsageError: it is no method.
    """
    from holdfast.core.registry import method as registered

    if isinstance(method, str):
        return registered(method)
    kind = method if isinstance(method, type) else type(method)
    if not hasattr(kind, "card"):
        from holdfast.session.spec import described

        raise UsageError(
            f"a method is its name, its class or its object, and hf.methods() lists them; got {described(method)}. The order "
            "is model, data, method, threat"
        )
    return kind


def threat_model(threat: object) -> ThreatModel:
    """The threat that a verb cannot do without.

    Raises:
        UsageError: it is none.
    """
    if isinstance(threat, ThreatModel):
        return threat
    from holdfast.session.spec import described

    raise UsageError(f"what may an attacker change? give {THREAT}; got {described(threat)}")


def _parameters(kind: type) -> list[str]:
    from holdfast.core.cards import parameters_of

    return [p.name for p in parameters_of(kind)]


def normalisation(given: Any) -> Normalisation | None:
    """A declared normalisation as people write it: (means, deviations), or ``MEAN,.../STD,...``.

    Raises:
        UsageError: it is written otherwise.

    Example:
        >>> normalisation("0.5/0.25") == normalisation(([0.5], [0.25]))
        True
    """
    import numpy as np

    from holdfast.models.wrap import Normalisation

    match given:
        case None | Normalisation():
            return given
        case str():
            return Normalisation.parse(given)
        case (mean, std) if np.iterable(mean) and np.iterable(std):  # arrays are no sequences
            return Normalisation(tuple(map(float, mean)), tuple(map(float, std)))
        case _:
            raise UsageError("a normalisation is (means, deviations) by channel: ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])")


def _spec_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a `ModelSpec` as people write them.

    Raises:
        UsageError: a value that its field does not have.
    """
    from pathlib import Path

    from holdfast.data.table import Table
    from holdfast.session.spec import ModelSpec

    values = dict(given)
    if "normalise" in values:
        values["normalise"] = normalisation(values["normalise"])
    if isinstance(values.get("table"), str | Path):
        values["table"] = Table.read(Path(values["table"]))
    if isinstance(values.get("table"), Mapping):
        values["table"] = Table.of(values["table"])
    if values.get("class_names") is not None:
        names = values["class_names"]
        values["class_names"] = tuple(names.split(",") if isinstance(names, str) else names)
    for name, hint in get_type_hints(ModelSpec).items():
        choices = [str(c) for part in (hint, *get_args(hint)) if get_origin(part) is Literal for c in get_args(part)]
        if choices and values.get(name) not in (None, *choices):
            raise UsageError(f"{name} is no '{values[name]}'. {did_you_mean(str(values[name]), choices)}")
    return values
