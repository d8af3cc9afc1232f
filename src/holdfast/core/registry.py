"""Methods by name. A method's name is its file's name; its card stands in its class; nothing is listed twice.

A name is resolved by walking the folders of methods (files are only imported when they are asked for), then the entry
points ``holdfast.methods`` of installed plug-ins. What kind of method it is, its class says: by the contract it fulfils.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from re import sub
from typing import Any, ClassVar, Protocol, TypeVar, overload

from holdfast.core.cards import Card
from holdfast.core.errors import UsageError, did_you_mean

__all__ = [
    "KINDS",
    "RegisteredMethod",
    "card",
    "cards",
    "contract",
    "create",
    "forget",
    "kind",
    "method",
    "name_of",
    "names",
]

# Every module of these is a method, but for the contracts.
_FOLDERS = (
    "attacks/evasion/white",
    "attacks/evasion/soft",
    "attacks/evasion/hard",
    "attacks/evasion/transfer",
    "attacks/evasion/universal",
    "attacks/evasion/semantic",
    "attacks/evasion/physical",
    "attacks/poisoning",
    "attacks/backdoors",
    "attacks/federated",
    "certifiers/bounds",
    "certifiers/complete",
    "certifiers/smoothing",
    "certifiers/estimates",
    "certifiers/sets",
    "certifiers/data",
    "defences/adversarial_training",
    "defences/certified_training",
    "defences/detection",
    "defences/sanitisation",
    "defences/trojans",
    "defences/aggregation",
    "applications",
    "studies",
)

# Kind and contract, the particular before the general.
_CONTRACTS = (
    ("shared attack", "attacks.shared", "SharedAttack"),
    ("semantic attack", "attacks.semantic", "SemanticAttack"),
    ("attack", "attacks.attack", "Attack"),
    ("backdoor", "attacks.backdoor", "Backdoor"),
    ("poisoner", "attacks.poisoner", "Poisoner"),
    ("adversary", "attacks.adversary", "Adversary"),
    ("set certifier", "certifiers.set_certifier", "SetCertifier"),
    ("certifier", "certifiers.graph_certifier", "GraphCertifier"),
    ("certifier", "certifiers.oracle_certifier", "OracleCertifier"),
    ("learner certifier", "certifiers.learner_certifier", "LearnerCertifier"),
    ("training defence", "defences.training_defence", "TrainingDefence"),
    ("detector", "defences.detector", "Detector"),
    ("sanitiser", "defences.sanitiser", "Sanitiser"),
    ("inspector", "defences.inspector", "Inspector"),
    ("repair", "defences.repair", "Repair"),
    ("aggregator", "defences.aggregator", "Aggregator"),
    ("application", "applications.application", "Application"),
    ("study", "studies.study", "Study"),
)

KINDS = tuple(dict.fromkeys(kind for kind, _, _ in _CONTRACTS))
"""What a method can be."""


class RegisteredMethod(Protocol):
    """What every method is: a class with a card, made of the parameters that it declares."""

    card: ClassVar[Card]

    def __init__(self, **parameters: Any) -> None:
        """Each parameter has a default."""


M = TypeVar("M")


@cache
def _places() -> dict[str, str | EntryPoint]:
    """Name -> module or entry point."""
    root = Path(__file__).parent.parent
    contracts = {f"holdfast.{module}" for _, module, _ in _CONTRACTS}
    places: dict[str, str | EntryPoint] = {}
    for folder in _FOLDERS:
        for file in sorted((root / folder).glob("*.py")):
            module = ".".join(["holdfast", *folder.split("/"), file.stem])
            if file.stem != "__init__" and module not in contracts:
                places.setdefault(file.stem, module)
    for point in entry_points(group="holdfast.methods"):
        places.setdefault(point.name, point)
    return places


def names(kind: str | None = None, pattern: str = "*") -> list[str]:
    """Names of the methods of a kind that match a glob pattern; of all kinds without importing one.

    Args:
        kind: one of `KINDS`; its methods stand in the room of its contract, whose files are imported.
        pattern: of names.

    Raises:
        UsageError: no such kind.

    Example:
        >>> "pgd" in names("attack"), names("certifier", "crown*")
        (True, ['crown', 'crown_ibp'])
    """
    matching = sorted(name for name in _places() if fnmatch(name, pattern))
    if kind is None:
        return matching
    if kind not in KINDS:
        raise UsageError(f"there is no kind of method '{kind}'. {did_you_mean(kind, KINDS)}")
    rooms = tuple(f"holdfast.{module.partition('.')[0]}." for of, module, _ in _CONTRACTS if of == kind)
    return [n for n in matching if _may_stand_in(_places()[n], rooms) and _kind_of(method(n)) == kind]


def _may_stand_in(place: str | EntryPoint, rooms: tuple[str, ...]) -> bool:
    return isinstance(place, EntryPoint) or place.startswith(rooms)


def kind(given: str | type) -> str:
    """What a method is, one of `KINDS`: the most particular contract that its class fulfils.

    Args:
        given: a name or a class.

    Raises:
        UsageError: there is no such method, or it fulfils no contract.

    Example:
        >>> kind("uap"), kind("crown")
        ('shared attack', 'certifier')
    """
    of = _kind_of(method(given) if isinstance(given, str) else given)
    if of is None:
        name = given if isinstance(given, str) else given.__name__
        raise UsageError(f"'{name}' fulfils no contract of a method; derive its class from one, such as Attack")
    return of


def _kind_of(cls: type) -> str | None:
    return next((of for of, module, name in _CONTRACTS if issubclass(cls, _contract(module, name))), None)


@cache
def _contract(module: str, name: str) -> type:
    return getattr(import_module(f"holdfast.{module}"), name)


def contract(kind: str) -> tuple[type, ...]:
    """The classes that a method of a kind may derive from.

    Example:
        >>> [c.__name__ for c in contract("certifier")]
        ['GraphCertifier', 'OracleCertifier']
    """
    return tuple(_contract(module, name) for of, module, name in _CONTRACTS if of == kind)


@overload
def method(name: str) -> type[RegisteredMethod]: ...
@overload
def method(name: str, of: type[M]) -> type[M]: ...
def method(name: str, of: type[Any] | None = None) -> type[Any]:
    """The class of a method.

    Args:
        name: hyphens may stand for underscores.
        of: the contract that it must fulfil; any by default.

    Raises:
        UsageError: there is no such method, and the message names the near ones; or it is of another kind.

    Example:
        >>> method("pgd").card.title
        'PGD'
    """
    key = name.replace("-", "_").lower()
    if key not in _places():
        raise UsageError(f"there is no method '{name}'. {did_you_mean(key, _places())}")
    cls = _loaded(key)
    if of is not None and not issubclass(cls, of):
        raise UsageError(f"{key} is no {_word(of)}; 'holdfast methods {key}' says what it is")
    return cls


def _word(of: type) -> str:
    """The kind, where the contract is its only one; the contract's name otherwise."""
    return next((kind for kind in KINDS if contract(kind) == (of,)), of.__name__)


@cache
def _loaded(name: str) -> type[RegisteredMethod]:
    place = _places()[name]
    if isinstance(place, EntryPoint):
        return _plugged(place)
    module = import_module(place)
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == place and isinstance(getattr(value, "card", None), Card):
            return value
    raise UsageError(f"{place} declares no method: no class with a card")


def _plugged(point: EntryPoint) -> type[RegisteredMethod]:
    try:
        cls: Any = point.load()
    except Exception as error:  # a plug-in may raise anything on import; the message says which one to mend or remove
        raise UsageError(f"the plug-in '{point.name}' ({point.value}) cannot be loaded: {error}") from error
    if not (isinstance(cls, type) and isinstance(getattr(cls, "card", None), Card)):
        raise UsageError(f"the plug-in '{point.name}' ({point.value}) is no class with a card")
    _PLUGGED[cls] = point.name
    return cls


_PLUGGED: dict[type, str] = {}


def create(name: str, of: type[M], **parameters: Any) -> M:
    """A method of a kind, with parameters other than its defaults.

    Args:
        name: of the method.
        of: the contract that it must fulfil.
        **parameters: by the names that its card declares.

    Raises:
        UsageError: as `method`.

    Example:
        >>> from holdfast.attacks.attack import Attack
        >>> create("pgd", Attack, steps=7).iterations
        7
    """
    make: Any = method(name, of)
    return make(**parameters)


def name_of(tool: object) -> str:
    """The name of a method, given its class or an instance: its file's, or its entry point's for a plug-in.

    A class that was written in a notebook or a script, which may hold several, goes by its own name.

    Example:
        >>> name_of(method("pgd")), name_of(method("pgd")(steps=3))
        ('pgd', 'pgd')
    """
    cls: type = tool if isinstance(tool, type) else type(tool)
    return _PLUGGED.get(cls) or (
        sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if cls.__module__ == "__main__"
        else cls.__module__.rsplit(".", 1)[-1]
    )


def forget() -> None:
    """Looks for methods anew at the next call: after a plug-in was installed while the process runs."""
    _places.cache_clear()
    _loaded.cache_clear()
    _PLUGGED.clear()


def card(name: str) -> Card:
    """The card of a method."""
    return method(name).card


def cards(kind: str | None = None, pattern: str = "*") -> Iterator[tuple[str, Card]]:
    """(name, card) of each method; imports them."""
    for name in names(kind, pattern):
        yield name, card(name)
