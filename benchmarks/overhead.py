"""(f) What each attack costs beside the model: CPU seconds of a run against a bare loop of the same passes.

Each registered attack on single samples runs on a real network with a small budget, so small a radius (attacks inside a
budget) or without one (the others) that the batch stays full. The ledger tells how many forwards and backwards that was;
the bare loop makes as many, in batches of as many samples, and does nothing else: no judging, no witnesses, no step of an
attack. CPU seconds, least of the interleaved rounds. Beside it, from the same runs, the share of the attack's time that is
spent outside the model and its gradient: it does not depend on who else uses the machine.

    python benchmarks/overhead.py [PATTERN ...] [--models NAME ...] [--norms all] [--rounds 3] [--passes 60] [--queries 100]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from fnmatch import fnmatch
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from _common import SHARED, mark, parse, parser, report, table, zoo
from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import run
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.registry import method, names
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Formulation, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.outcome import Outcome

TARGET = 1.15
MODELS = {"mnist_lenet5_clean": ("mnist", 64, 1), "cifar10_resnet20": ("cifar10", 32, 2)}
"""Data set, samples, and by how much the budgets are divided, so that both networks take about as long."""
EPS = {Norm.L0: 1.0, Norm.L1: 0.05, Norm.L2: 0.005, Norm.LINF: 0.0005}
"""So small that next to nothing breaks."""


def samples(model: nn.Module, dataset: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images that the model has right."""
    from zoo import images  # pyright: ignore[reportMissingImports]  # `zoo` of _common has put it on the path

    x, y = images(dataset, "test", 4 * n)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()[:n]
    return x[right].contiguous(), y[right]


class Watch(nn.Module):
    """A model that adds up the CPU seconds spent in it and in gradients, or keeps what it was asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seconds = model.eval(), 0.0
        self.asked: list[tuple[Tensor, list[int]]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.asked is not None:
            self.asked.append((x.detach().clone(), [0]))
        return self._timed(self.model, x)

    def _timed(self, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **more)
        finally:
            self.seconds += time.process_time() - start

    def run(self, job: Callable[[nn.Module], Outcome]) -> tuple[Outcome, float, float]:
        """The outcome of a job that is given this model, its CPU seconds, and those inside the model."""
        self.seconds = 0.0
        grad = torch.autograd.grad

        def counted(*args: Any, **more: Any) -> Any:
            if self.asked:
                self.asked[-1][1][0] += 1
            return self._timed(grad, *args, **more)

        with patch.object(torch.autograd, "grad", counted):
            start = time.process_time()
            out = job(self)
            return out, time.process_time() - start, self.seconds


def bare(model: nn.Module, asked: list[tuple[Tensor, list[int]]]) -> None:
    """The same batches once more, each with as many gradients as it had."""
    for x, (gradients,) in asked:
        if not gradients:
            with torch.no_grad():
                model(x)
            continue
        z = x.detach().requires_grad_()
        value = model(z).amax(1).sum()
        for left in reversed(range(gradients)):
            torch.autograd.grad(value, z, retain_graph=left > 0)


def fitted(name: str, passes: int, queries: int) -> Attack[Any, Any]:
    """The attack with a small budget: so many queries of a black-box one, so many passes of the others."""
    attack: Any = method(name)()
    soft = Access.TRANSFER < attack.card.access < Access.WHITE_BOX
    try:
        return attack.within(queries if soft or "queries" in {f.name for f in fields(attack)} else passes)
    except UnsupportedError:
        return attack  # a single step


def measured(
    name: str, norm: Norm, model: nn.Module, x: Tensor, y: Tensor, passes: int, queries: int, rounds: int
) -> list[object]:
    """One row of the table."""
    attack = fitted(name, passes, queries)
    card = attack.card
    free = card.formulation is not Formulation.BUDGET
    problem = Problem.of(x, y, LpBall.uniform(norm, float("inf") if free else EPS[norm], len(x)))

    def job(asked: nn.Module) -> Outcome:
        # A surrogate that is the model itself: the judge is another object.
        judge = (lambda rows: asked(rows)) if card.access is Access.TRANSFER else None
        return run(attack, problem, asked, judge=judge, keep=Keep.NEAREST)

    watch = Watch(model)
    watch.asked = []
    out, *_ = watch.run(job)
    asked, watch.asked = watch.asked, None
    f, b = (float(t.sum()) / len(x) for t in (out.ledger.forwards, out.ledger.backwards))
    least, plain, outside = float("inf"), float("inf"), float("inf")
    for _ in range(rounds):
        _, whole, within = watch.run(job)
        least, outside = min(least, whole), min(outside, (whole - within) / whole)
        start = time.process_time()
        bare(model, asked)
        plain = min(plain, time.process_time() - start)
    ratio = least / plain
    own = 1e3 * outside * least / (f + b)
    return [
        name, str(norm), f"{f:.0f}", f"{b:.0f}", f"{1e3 * least / (f + b):.2f}", f"{ratio:.3f}",
        f"{100 * outside:.1f}", f"{own:.3f}",
        mark(ratio, TARGET),
    ]  # fmt: skip


def main() -> None:
    made = parser(__doc__)
    made.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="of attacks")
    made.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    made.add_argument("--norms", choices=("first", "all"), default="first", help="of each attack's card")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--passes", type=int, default=60, help="of a white-box or transfer attack, for a sample")
    made.add_argument("--queries", type=int, default=100, help="of a black-box attack, for a sample")
    arguments = parse(made)
    if not SHARED.is_dir():
        print(f"the real models of {SHARED} are not here")
        return
    chosen = [n for n in names("attack") if any(fnmatch(n, p) for p in arguments.patterns)]
    head = ["attack", "norm", "forwards", "backwards", "ms a batch pass", "of the bare loop", "outside the model, %",
            "outside, ms a batch pass", "target"]  # fmt: skip
    parts: list[str] = []
    for which in arguments.models:
        dataset, n, share = MODELS[which]
        model = zoo(which)
        if model is None:
            continue
        x, y = samples(model, dataset, n)
        rows: list[list[object]] = []
        for name in chosen:
            norms: tuple[Norm, ...] = method(name).card.norms
            for norm in norms if arguments.norms == "all" else norms[-1:]:
                row = measured(
                    name, norm, model, x, y, arguments.passes // share, arguments.queries // share, arguments.rounds
                )
                print(*row, sep="  ", flush=True)
                rows.append(row)
        rows.sort(key=lambda row: -float(str(row[5])))
        missed = sum(float(str(row[5])) > TARGET for row in rows)
        parts += [
            f"## `{which}`, {len(x)} samples",
            f"{missed} of {len(rows)} miss the target of {TARGET} of the bare loop.",
            table(head, rows),
        ]
    report("overhead", "What attacks cost beside the model", parts, arguments)


if __name__ == "__main__":
    main()
