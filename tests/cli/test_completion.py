"""Completion in a shell, help that waits for nothing, and output that nobody reads on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def _run(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", *words], capture_output=True, text=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("line", "at", "due"),
    [("holdfast at", "1", {"attack"}), ("holdfast audit --sur", "2", {"--surrogate", "--surrogate-arch"})],
)
def test_commands_and_options_are_completed(line: str, at: str, due: set[str]) -> None:
    assert set(_run(COMP_WORDS=line, COMP_CWORD=at, _HOLDFAST_COMPLETE="complete_bash").split()) == due


def test_completion_is_shown_and_installed(tmp_path: Path) -> None:
    assert "complete -o default -F _holdfast_completion holdfast" in _run("--show-completion", "bash")
    _run("--install-completion", "bash", HOME=str(tmp_path))
    assert "_holdfast_completion" in (tmp_path / ".bash_completions" / "holdfast.sh").read_text()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json\nsys.argv = ['holdfast', '--help']\nfrom holdfast.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(json.dumps(sorted(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "pydantic", "scipy", "yaml", "jinja2"} & set(json.loads(said.splitlines()[-1]))


@pytest.mark.parametrize("words", [("methods", "pgd"), ("methods",)])
def test_a_reader_who_has_enough_is_told_nothing(words: tuple[str, ...]) -> None:
    end, start = os.pipe()
    os.close(end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", *words], stdout=start, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(start)
    assert (done.returncode, done.stderr) == (1, "")
