"""The generated pages say what the cards say."""

from __future__ import annotations

from pathlib import Path

from holdfast.cli.docs import build, pages
from holdfast.core.registry import names

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_in_the_repository_are_current() -> None:
    stale = [
        name for name, text in pages(DOCS).items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text
    ]
    gone = {f.stem for f in (DOCS / "methods").glob("*.md")} - {"index", *names()}
    assert not stale, f"run `make docs`: {stale}"
    assert not gone, f"run `make docs`: {gone}"


def test_pages_of_methods_that_are_gone_are_removed(tmp_path: Path) -> None:
    for name in ("coverage.csv", "status.yaml"):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "gone.md").write_text("")
    build(tmp_path)
    assert {f.stem for f in (tmp_path / "methods").glob("*.md")} == {"index", *names()}


def test_every_row_of_the_table_is_told_once() -> None:
    text = pages(DOCS)["coverage.md"]
    rows = [line.split(",")[0] for line in (DOCS / "coverage.csv").read_text(encoding="utf-8").splitlines()[1:]]
    told = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert told == rows
    assert "| D08 | PGD adversarial training | works | [`pgd_training`](methods/pgd_training.md) |" in text
