"""The wheel holds the whole house and runs outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.slow  # a build, and the demo in a process of its own


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(REPOSITORY), "--no-deps", "-q", "-w", str(made)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("a wheel is built by hatchling, which cannot be had here")
    assert built.returncode == 0, built.stderr
    (file,) = made.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """The folder of programs of an environment that has the wheel, borrows its dependencies, and knows no checkout."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    site = next(home.glob("lib/python*/site-packages"))
    borrowed = Path(torch.__file__).parents[1]  # its own .pth files, the editable checkout's among them, are not read
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    install = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    return home / "bin"


def run(program: Path, *arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(program), *arguments],
        cwd=at,
        env=kept | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    source = REPOSITORY / "src" / "holdfast"
    kinds = (".py", ".html", ".js", ".css", ".typed")
    ours = {str(f.relative_to(source.parent)) for f in source.rglob("*") if f.is_file() and f.name.endswith(kinds)}
    with zipfile.ZipFile(wheel) as packed:
        theirs = {name for name in packed.namelist() if ".dist-info/" not in name}
    assert {"holdfast/py.typed", "holdfast/report/templates/page.js", "holdfast/report/templates/style.css"} <= ours
    assert theirs == ours


def test_every_name_of_the_facade_is_there_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    program = "import holdfast as hf; [getattr(hf, name) for name in hf.__all__]; print(hf.__file__)"
    done = run(installed / "python", "-c", program, at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_the_demo_runs_to_the_end_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "holdfast", "demo", "--samples", "6", at=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "runs" / "demo"
    pages = [made / "compare.html", *(made / run / "report.html" for run in ("before", "after"))]
    assert all("<style>" in page.read_text(encoding="utf-8") for page in pages)


def test_every_block_of_the_page_about_python_runs_with_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    for name in ("docs/python.md", "tests/api/test_docs_python.py"):  # the page and its test, away from the checkout
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    done = run(installed / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
