"""An attack of someone new needs few imports and few concepts, and keeps the contract."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

from newcomer import Newcomer

from holdfast import attacks
from holdfast.testing import check_attack

_FILE = Path(__file__).with_name("newcomer.py")


def test_a_newcomers_attack_keeps_the_contract() -> None:
    check_attack(Newcomer)


def test_it_needs_at_most_five_imports_and_twelve_concepts() -> None:
    tree = ast.parse(_FILE.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = [i for i in imports if isinstance(i, ast.ImportFrom) and (i.module or "").startswith("holdfast")]
    named = {alias.name for node in ours for alias in node.names}
    # what is read of what an attack is handed: an ask, its problem, an answer, a state
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id in {*named, "self"})
    }
    written = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert len(imports) <= 5, [ast.unparse(node) for node in imports]
    assert written == {"start", "step"}  # the two methods of `Attack`
    assert read <= {"problem", "gradient", "grad", "x", "ball", "flat", "set", "eps", "to"}
    assert len(named) + len({"problem", "gradient"}) <= 12, named  # what is imported, and what is asked of the ask


def test_what_an_attack_file_needs_is_exported_by_its_room() -> None:
    assert all(hasattr(attacks, name) for name in attacks.__all__)
    assert attacks.__all__ == sorted(attacks.__all__)
    homes = {name: getattr(attacks, name).__module__ for name in attacks.__all__}
    assert all(getattr(import_module(home), name) is getattr(attacks, name) for name, home in homes.items())
