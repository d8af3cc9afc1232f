"""What ``import holdfast`` gives: few names, typed, lazy."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import holdfast as hf

NAMES = {
    "attack", "audit", "certify", "harden", "recheck", "resume", "verify", "method", "methods", "load_model", "load_data",
    "ThreatModel", "Norm", "Goal", "Access", "Guarantee", "Status", "Plan", "Report", "Dataset", "HoldfastError", "__version__",
}  # fmt: skip


def test_all_names_are_there_and_no_others() -> None:
    assert set(hf.__all__) == NAMES
    assert dir(hf) == sorted(NAMES)
    for name in NAMES:
        assert getattr(hf, name) is not None
        assert getattr(hf, name) is getattr(hf, name)  # not the function first and a module of its name afterwards
        assert type(getattr(hf, name)).__name__ != "module"


def test_every_name_is_declared_for_type_checkers() -> None:
    text = Path(hf.__file__).read_text(encoding="utf-8")
    for name in NAMES:
        assert f" import {name} as {name}\n" in text, name
    assert "if not TYPE_CHECKING:" in text


def test_a_misspelt_name_is_no_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'atack'"):
        _ = hf.atack  # type: ignore[attr-defined]


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, json, holdfast as hf; hf.ThreatModel.of('linf', '8/255'), hf.Norm.L2, hf.HoldfastError, dir(hf); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert not {"torch", "numpy", "pydantic", "scipy", "rich", "typer"} & set(loaded)


@pytest.mark.parametrize(
    ("room", "names"),
    [
        ("attacks", ["Attack", "State", "SharedAttack"]),
        ("certifiers", ["GraphCertifier", "OracleCertifier", "SetCertifier"]),
        ("defences", ["TrainingDefence"]),
        ("cards", ["Card", "parameter"]),
        ("testing", ["check_attack", "check_certifier"]),
        ("session", ["Session", "ModelSpec", "open_session"]),
    ],
)
def test_those_who_extend_find_the_contracts_in_their_rooms(room: str, names: list[str]) -> None:
    module = import_module(f"holdfast.{room}")
    for name in names:
        assert name in module.__all__
        assert isinstance(getattr(module, name), object)


@pytest.mark.parametrize("room", ["certifiers", "defences", "cards"])
def test_a_room_s_contracts_are_imported_when_they_are_asked_for(room: str) -> None:
    code = f"import sys, holdfast.{room}; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
