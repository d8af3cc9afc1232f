"""What the benchmarks share: timing, tables, and real or small models to time. Not a benchmark itself."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has: --threads, and --no-write to leave the result file as it is."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    made.add_argument("--no-write", action="store_true", help="print only")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the options and sets the threads."""
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def interleaved(jobs: Mapping[str, Callable[[], object]], rounds: int = 9) -> dict[str, float]:
    """Least CPU seconds of each job over rounds in which all take turns; one untimed round comes first."""
    least = dict.fromkeys(jobs, float("inf"))
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            least[name] = min(least[name], time.process_time() - start)
    return least


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers are right-aligned by the first row."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    wide = [max(len(row[k]) for row in cells) for k in range(len(head))]
    words = [not rows or not str(rows[0][k])[:1].isdigit() for k in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return (
            "| " + " | ".join(c.ljust(w) if t else c.rjust(w) for c, w, t in zip(row, wide, words, strict=True)) + " |"
        )

    rule = "|" + "|".join("-" * (w + 1) + ("-" if t else ":") for w, t in zip(wide, words, strict=True)) + "|"
    return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])])


def report(name: str, title: str, parts: Sequence[str], arguments: argparse.Namespace) -> None:
    """Prints the tables and notes, and writes them to results/NAME.md."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    where = f"{today}, torch {torch.__version__}, threads: {torch.get_num_threads()}, `python benchmarks/{name}.py`"
    text = "\n\n".join([f"# {title}", where, *parts]) + "\n"
    print(text)
    if not arguments.no_write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text)


def mark(value: float, target: float) -> str:
    """A target and whether it was met."""
    return f"<= {target:g}: {'met' if value <= target else 'MISSED'}"


def zoo(name: str) -> nn.Module | None:
    """A real model of ../shared/data, or None where that folder is absent."""
    if not SHARED.is_dir():
        return None
    sys.path.insert(0, str(SHARED))
    from zoo import load

    return load(name)


def mnist(n: int) -> tuple[Tensor, Tensor]:
    """The first n MNIST test images of ../shared/data and their labels."""
    sys.path.insert(0, str(SHARED))
    from zoo import images

    return images("mnist", "test", n)


def digits(split: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """The first n embedded digits of a split and their labels."""
    from holdfast.data.digits import load_digits

    data = load_digits(split)
    return data.x[:n], data.y[:n]


def trained(model: nn.Module, epochs: int = 15) -> nn.Module:
    """The model, trained on the embedded digits; a second or two."""
    from holdfast.data.digits import load_digits
    from holdfast.training.loop import fit
    from holdfast.training.settings import TrainingSettings

    def loss(module: nn.Module, batch: object) -> Tensor:
        return F.cross_entropy(module(batch.x), batch.y)  # type: ignore[attr-defined]

    fit(model, load_digits("train"), loss, settings=TrainingSettings(epochs=epochs, validation=0.0))
    return model.eval()


def forward_seconds(model: nn.Module, x: Tensor) -> float:
    """Least CPU seconds of one forward without gradient."""

    def once() -> None:
        with torch.no_grad():
            model(x)

    return interleaved({"forward": once})["forward"]
