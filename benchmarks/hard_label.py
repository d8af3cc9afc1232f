"""(f) Hard-label attacks on the network of the OPT and Sign-OPT papers, beside the authors' own logs.

python benchmarks/hard_label.py --samples 30 [--most 4000] [--norm l2] [--methods surfree geoda ...]

The distance at a number of queries is that of the nearest witness known then, however it was asked.
"""

import gzip
import re
import time

import torch
from torch import Tensor, nn

from _common import SHARED, mnist, parse, parser, report, table, zoo
from holdfast.attacks.engine import Run
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm

AT = (1000, 4000, 8000, 14_000)
METHODS = ("boundary", "opt", "sign_opt", "hopskipjump", "geoda", "surfree", "rays")
LOGS = {
    Norm.L2: {"boundary": "L2_boundary", "opt": "L2_random", "sign_opt": "L2_sign"},
    Norm.LINF: {"opt": "Linf_random", "sign_opt": "Linf_sign"},
}
_SAMPLE = re.compile(r"Attacking Source: .* Number (\d+)")
_POINT = re.compile(r"distortion\s+([\d.]+)\s+num_quer\w+\s+(\d+)")


class Watched(nn.Module):
    """Passes rows on; before each call it notes the distances known so far and the queries they took."""

    def __init__(self, model: nn.Module, n: int, marks: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.job: Run | None = None
        self.spent = torch.zeros(n, dtype=torch.int64)
        self.at = {count: torch.full((n,), torch.inf, dtype=torch.float64) for count in marks}

    def note(self) -> None:
        """Distances of those that had not spent more queries than a mark."""
        if self.job is None:
            return
        for count, known in self.at.items():
            known.copy_(torch.where(self.spent <= count, self.job.archive.distance, known))
        self.spent = self.job.search.ledger.queries.clone()

    def forward(self, x: Tensor) -> Tensor:
        """The model's scores."""
        self.note()
        return self.model(x)


def curves(
    name: str, norm: Norm, model: nn.Module, x: Tensor, y: Tensor, marks: tuple[int, ...]
) -> tuple[dict[int, Tensor], float]:
    """Distances at the marks, and CPU seconds; the attack has as many queries as the last mark."""
    watched = Watched(model, len(x), marks)
    problem = Problem.of(x, y, LpBall.uniform(norm, 1.0, len(x)).unbounded())
    attack = method(name)(queries=marks[-1])
    if norm not in attack.card.norms:
        raise UsageError(f"{name} has no {norm} form")
    start = time.process_time()
    job = Run(attack, problem, watched)
    watched.job = job
    job.advance()
    for _ in range(2):  # one call's queries are noted with what the next one finds known
        watched.note()
    return watched.at, time.process_time() - start


def logged(norm: Norm, name: str, n: int, marks: tuple[int, ...]) -> dict[int, list[float]]:
    """The logged distances of the first n images at the marks: the last line with no more queries."""
    found: dict[int, dict[int, float]] = {count: {} for count in marks}
    sample = -1
    with gzip.open(SHARED / "evasion" / "sign_opt" / f"{LOGS[norm][name]}.log.gz", "rt") as lines:
        for line in lines:
            if head := _SAMPLE.search(line):
                sample = int(head[1])
            elif (point := _POINT.search(line)) and sample < n:
                for count, known in found.items():
                    if int(point[2]) <= count:
                        known[sample] = min(float(point[1]), known.get(sample, float("inf")))
    return {count: list(known.values()) for count, known in found.items()}


def main() -> None:
    """Runs the methods that there are and prints their medians."""
    made = parser(__doc__)
    made.add_argument("--samples", type=int, default=30)
    made.add_argument("--norm", choices=[str(n) for n in LOGS], default=str(Norm.L2))
    made.add_argument("--most", type=int, default=AT[-1], help="queries of a sample; marks beyond are left out")
    made.add_argument("--methods", nargs="*", default=list(METHODS))
    arguments = parse(made)
    norm, model = Norm(arguments.norm), zoo("sign_opt_mnist_cnn")
    if model is None:
        raise SystemExit(f"the network and logs of {SHARED} are not here")
    marks = (*(count for count in AT if count < arguments.most), arguments.most)
    x, y = mnist(arguments.samples)
    rows: list[list[object]] = []
    for name in arguments.methods:
        try:
            at, seconds = curves(name, norm, model.eval(), x, y, marks)
        except UsageError as error:
            print(f"left out: {error}")
            continue
        medians = [f"{float(known.median()):.3f}" for known in at.values()]
        logs = logged(norm, name, arguments.samples, marks) if name in LOGS[norm] else {}
        theirs = [f"{float(torch.tensor(known).median()):.3f}" if known else "-" for known in logs.values()]
        rows.append([name, *medians, *(theirs or ["-"] * len(marks)), f"{seconds / len(x):.1f}"])
        print(*rows[-1], flush=True)
    head = ["method", *(f"{c}" for c in marks), *(f"logged {c}" for c in marks), "CPU s/sample"]
    note = (
        f"Median {norm} distance of the nearest witness after so many queries, first {arguments.samples} MNIST test "
        "digits, network of the OPT and Sign-OPT papers. Logged: the authors' logs, same digits."
    )
    report("hard_label", "Hard-label attacks", [note, table(head, rows)], arguments)


if __name__ == "__main__":
    main()
