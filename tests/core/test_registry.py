"""Methods by name: what kind each is, whatever folder or plug-in it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import holdfast
from holdfast.attacks.attack import Attack
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.core import registry
from holdfast.core.cards import Card, refuse
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Goal, Norm
from holdfast.numerics import steps


class OwnAttack(PGD):
    """A plug-in's attack."""


class OwnBound(CROWN):
    """A plug-in's bound."""


class NoContract:
    """Has a card and nothing else."""

    card = PGD.card


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    places = {
        "own_attack": f"{__name__}:OwnAttack", "own_bound": f"{__name__}:OwnBound",
        "broken": "holdfast_no_such_package:X", "cardless": "math:pi",
    }  # fmt: skip
    points = [EntryPoint(name, value, "holdfast.methods") for name, value in places.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry.forget()
    yield
    monkeypatch.undo()
    registry.forget()


def test_a_name_is_its_file_s_and_its_kind_its_contract_s() -> None:
    for name in registry.names():
        cls = registry.method(name)
        assert registry.name_of(cls) == name
        assert issubclass(cls, registry.contract(registry.kind(name)))


def test_the_kinds_part_the_methods_among_them() -> None:
    found = [name for kind in registry.KINDS for name in registry.names(kind)]
    assert sorted(found) == registry.names()


def test_every_class_with_a_card_is_found() -> None:
    root = Path(holdfast.__file__).parent
    known = {registry.method(name) for name in registry.names()}
    for room in ("attacks", "certifiers", "defences", "applications"):
        for file in (root / room).rglob("*.py"):
            if file.parent.name == "families":  # a loop may bring the card of those that have none of their own
                continue
            place = ".".join(["holdfast", *file.relative_to(root).with_suffix("").parts])
            own = [v for v in vars(import_module(place)).values() if getattr(v, "__module__", None) == place]
            carded = [v for v in own if isinstance(v, type) and isinstance(getattr(v, "card", None), Card)]
            assert not carded or known & set(carded), f"{place} declares a method in a folder that nobody walks"


def test_what_is_asked_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="crown is no attack"):
        registry.method("crown", Attack)
    with pytest.raises(UsageError, match=r"no method 'pdg'. Did you mean .*pgd"):
        registry.method("pdg")
    with pytest.raises(UsageError, match=r"no kind of method 'attak'. Did you mean .*attack"):
        registry.names("attak")
    assert registry.create("pgd", Attack, steps=3).iterations == 3


@pytest.mark.usefixtures("plugged")
def test_plug_ins_are_of_every_kind_and_called_by_their_entry_point() -> None:
    assert registry.method("own-attack") is OwnAttack
    assert registry.kind("own_attack") == "attack"
    assert registry.kind("own_bound") == "certifier"
    assert registry.name_of(OwnAttack()) == "own_attack"
    assert registry.card("own_bound") is CROWN.card


@pytest.mark.usefixtures("plugged")
def test_a_plug_in_that_cannot_be_loaded_is_named() -> None:
    assert "broken" in registry.names()
    with pytest.raises(UsageError, match=r"the plug-in 'broken' .holdfast_no_such_package:X. cannot be loaded"):
        registry.method("broken")
    with pytest.raises(UsageError, match=r"'cardless' .* is no class with a card"):
        registry.method("cardless")


def test_a_class_without_a_contract_is_of_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("lone", f"{__name__}:NoContract", "holdfast.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry.forget()
    try:
        with pytest.raises(UsageError, match="'lone' fulfils no contract"):
            registry.kind("lone")
    finally:
        monkeypatch.undo()
        registry.forget()


def test_a_norm_or_a_goal_that_the_card_lacks_is_refused_once_and_for_all() -> None:
    card = Card(title="Toy", rows=(), paper="", section="", summary="", norms=(Norm.L1,), goals=(Goal.TARGETED,))
    refuse(card, Norm.L1, Goal.TARGETED)
    refuse(card)
    with pytest.raises(UnsupportedError, match="Toy has no l2 form; it serves l1"):
        refuse(card, Norm.L2)
    with pytest.raises(UnsupportedError, match="Toy has no untargeted form; use one of targeted"):
        refuse(card, Norm.L1, Goal.UNTARGETED)


def test_a_module_that_is_no_method_is_none() -> None:
    with pytest.raises(UsageError, match="no method 'steps'"):
        registry.method(steps.__name__.rpartition(".")[2])
