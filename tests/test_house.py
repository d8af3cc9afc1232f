"""What holds for the whole house: `__all__`, cards, coverage rows, and a command line that starts without torch."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import grimp
import pytest

import holdfast
from holdfast.core.registry import card, kind, method, names

ROOT = Path(holdfast.__file__).parent
REPOSITORY = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "scipy", "yaml", "PIL", "sklearn", "jinja2"}
MODULES = sorted(
    ".".join(["holdfast", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for file in ROOT.rglob("*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_true(name: str) -> None:
    module = import_module(name)
    told = getattr(module, "__all__", None)
    if told is None:
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == name and not n.startswith("_")]
        assert not own, f"{name} has public names and no __all__: {own}"
        return
    order = sorted(
        told, key=lambda n: (n.upper() != n, not n[0].isupper(), n)
    )  # as ruff sorts: constants, classes, rest
    assert list(told) == order
    assert all(hasattr(module, n) for n in told)


@pytest.mark.parametrize("name", names())
def test_a_method_has_a_whole_card(name: str) -> None:
    c = card(name)
    assert c.title
    assert c.rows or kind(name) == "aggregator"  # defences of federated training are beyond the survey's rows
    assert c.paper
    assert c.section
    assert c.summary.endswith(".")
    assert c.checked_by
    assert c.norms or kind(name) not in ("attack", "certifier", "set certifier", "training defence")
    assert method(name).__doc__


def test_every_row_that_a_card_names_exists() -> None:
    with (REPOSITORY / "docs" / "coverage.csv").open(encoding="utf-8") as file:
        rows = {r["id"] for r in csv.DictReader(file)}
    named = {row: name for name in names() for row in card(name).rows}
    assert not named.keys() - rows, {named[row]: row for row in named.keys() - rows}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["audit", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from holdfast.cli.main import main\n"
        f"sys.argv = ['holdfast', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sage: holdfast" in done.stdout or "holdfast 0" in done.stdout


def test_no_function_is_longer_than_sixty_lines_beside_its_docstring() -> None:
    long = list[str]()
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                said = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
                if node.end_lineno - node.lineno + 1 - said > 60:
                    long.append(f"{file.relative_to(ROOT)}: {node.name}")
    assert not long


def test_no_package_registry_is_named() -> None:
    hosts = ("pypi" + ".org", "python" + "hosted", "download.pytorch" + ".org")
    files = [*REPOSITORY.glob("*"), *(REPOSITORY / ".ci").glob("*"), *(REPOSITORY / "docs").rglob("*.md")]
    for file in files:
        if file.is_file():
            assert not any(host in file.read_text(errors="ignore") for host in hosts), file


def test_nobody_is_told_to_install_a_strangers_package() -> None:
    # `holdfast` on the package index is not ours, with or without extras
    strange = re.compile(r"(?:install|add)\s[^\n]*?['\"]?\bholdfast(?!-robustness|\.|/|:)\b(?:\[|['\"]|\s|$)")
    assert strange.search("pip install holdfast")
    assert strange.search("pip install 'holdfast[onnx]'")
    files = [REPOSITORY / "README.md", REPOSITORY / "Makefile", *(REPOSITORY / "docs").rglob("*.md")]
    files += [*ROOT.rglob("*.py"), *(REPOSITORY / "examples").glob("*.py")]
    told = {str(file): found[0] for file in files if (found := strange.search(file.read_text(encoding="utf-8")))}
    assert not told


def test_the_distribution_has_its_own_name_and_whole_metadata() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "holdfast-robustness"
    assert project["authors"] == [{"name": "the Holdfast developers"}]
    assert "Typing :: Typed" in project["classifiers"]
    assert "urls" not in project
    assert (ROOT / "py.typed").exists()


def _circles() -> list[tuple[str, ...]]:
    """Groups of modules that import each other, at their top or inside a function; what only types need does not count."""
    graph = grimp.build_graph("holdfast", exclude_type_checking_imports=True, cache_dir=None)
    arrows = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    while loose := [m for m, to in arrows.items() if not to]:  # what imports nothing that is left is in no circle
        for m in loose:
            del arrows[m]
        arrows = {m: to - set(loose) for m, to in arrows.items()}
    reach = {m: _reached(arrows, m) for m in arrows}
    return sorted({tuple(sorted(n for n in reach[m] if m in reach[n])) for m in arrows if m in reach[m]})


def _reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = arrows[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not _circles()


def test_no_public_class_name_stands_for_two_things() -> None:
    places = dict[str, list[str]]()
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert not {name: where for name, where in places.items() if len(where) > 1}
