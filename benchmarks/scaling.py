"""(e) How the cost of an audit grows with samples, eps and depth.

Audits of multilayer perceptrons on the embedded digits (hidden layers of 64, trained here), linf, suite ``fast``,
certificates by CROWN. One of the three is varied at a time. Forwards and backwards are those of the attack stages and the
clean pass; seconds are CPU seconds of the stages, and of the whole audit with pre-flight, report and journal.

    python benchmarks/scaling.py [--suite fast] [--certify crown]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from _common import parse, parser, report, table, trained
from holdfast.audits.plan import Plan
from holdfast.audits.run import audit


def perceptron(depth: int) -> nn.Sequential:
    """A perceptron with so many hidden layers of 64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--samples", type=int, nargs="+", default=[50, 100, 200, 400])
    made.add_argument("--eps", nargs="+", default=["1/100", "2/100", "4/100", "8/100"])
    made.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 6])
    made.add_argument("--suite", default="fast")
    made.add_argument("--certify", default="crown")
    arguments = parse(made)
    samples, eps, depth = 100, "4/100", 2
    models = {d: trained(perceptron(d)) for d in sorted({depth, *arguments.depths})}

    def row(n: int, size: str, hidden: int) -> list[object]:
        with tempfile.TemporaryDirectory() as folder:
            plan = Plan.of(
                data="digits:test", samples=n, norm="linf", eps=size, suite=arguments.suite, certify=arguments.certify
            )
            start = time.process_time()
            d = audit(plan, Path(folder) / "run", model=models[hidden])
            seconds = time.process_time() - start
        spent = {"attack": 0.0, "cert": 0.0}
        for stage, cost in d.cost.by_stage.items():
            for kind in spent:
                spent[kind] += cost.seconds if stage.startswith(kind) else 0.0
        h = d.headline
        shown = "-" if h.certified_robust_accuracy is None else f"{100 * h.certified_robust_accuracy:.0f} %"
        return [
            n, size, hidden, f"{d.cost.forwards:,}", f"{d.cost.backwards:,}", f"{d.cost.forwards / n:.0f}",
            f"{spent['attack']:.2f}", f"{spent['cert']:.2f}", f"{seconds:.2f}",
            f"{shown} .. {100 * h.empirical_robust_accuracy:.0f} %",
        ]  # fmt: skip

    head = [
        "samples", "eps", "hidden layers", "forwards", "backwards", "forwards a sample", "attacks, s", "certificates, s",
        "audit, CPU s", "robust accuracy",
    ]  # fmt: skip
    row(10, eps, depth)  # imports and first calls
    parts: list[str] = []
    for title, cases in (
        ("samples", [(n, eps, depth) for n in arguments.samples]),
        ("eps", [(samples, e, depth) for e in arguments.eps]),
        ("depth", [(samples, eps, d) for d in arguments.depths]),
    ):
        parts += [f"## {title.capitalize()}", table(head, [row(*case) for case in cases])]
    report("scaling", "How the cost of an audit grows", parts, arguments)


if __name__ == "__main__":
    main()
