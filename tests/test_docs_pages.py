"""Every block of the pages about methods of one's own runs, and ends in the suite that ours are held to."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "write-an-attack": "check_attack",
    "write-a-bound": "check_certifier",
    "write-a-defence": "check_training_defence",
}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.usefixtures("own_operations")
@pytest.mark.parametrize(("page", "suite"), PAGES.items())
def test_the_method_of_a_page_works_and_keeps_its_contract(
    page: str, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"page_{suite}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look for their own names
    code = blocks(page)
    assert f"{suite}(" in code[-1]
    for block in code:
        exec(compile(block, f"{page}.md", "exec"), vars(module))


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_a_page_names_only_what_is_there(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / target).exists(), target
    for name in sorted(set(re.findall(r"`(holdfast(?:\.[a-z_]+)+(?:\.[A-Za-z_]+)?)`", text))):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            assert hasattr(importlib.import_module(module), attribute), name
