"""The verification competition's instances of ../shared/data: what is solved, and whether any verdict is wrong.

Journalled under runs/: a run that was stopped goes on with the same command. An hour or more for all of them.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median

from _common import SHARED, parse, parser, report, table
from holdfast.verification.decide import Effort, rerun
from holdfast.verification.run import run_instances
from holdfast.verification.summary import disagreements

FOLDER = SHARED / "verification"
TARGETS = {
    **dict.fromkeys(
        ("acasxu", "mnist_fc", "rl", "safenlp", "reach_prob_density", "verivital_pool", "collins_rul_cnn"), 0.95
    ),
    **dict.fromkeys(("cifar10_resnet", "eran_relu", "eran_sigmoid"), 0.85),
    **dict.fromkeys(("oval21", "vit"), 0.30),
}
"""Share of the instances that any tool solved, at 60 s each."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--timeout", type=float, default=60.0, help="seconds for each instance")
    made.add_argument("--benchmark", nargs="+", default=[], help="only these")
    made.add_argument("--workers", type=int, default=2, help="processes")
    made.add_argument("--set", default="dev", help="the folder of instances.csv")
    made.add_argument("--out", type=Path, help="the journal's folder; default: runs/verify-SET-SECONDS")
    arguments = parse(made)
    listed = FOLDER / arguments.set / "instances.csv"
    if not listed.is_file():
        print(f"{listed} is not here: nothing to verify")
        return
    out = arguments.out or Path("runs") / f"verify-{arguments.set}-{arguments.timeout:g}"
    results = run_instances(
        listed, out, Effort(timeout=arguments.timeout), timeout=arguments.timeout, only=arguments.benchmark,
        workers=arguments.workers,
        progress=lambda i, r, done, n: print(
            f"[{done}/{n}] {i.benchmark} {i.name}: {r.verdict} (known: {i.verdict}), {r.seconds:.1f} s {r.reason}",
            flush=True,
        ),
    )  # fmt: skip
    rows: list[list[object]] = []
    failed: list[str] = []
    for name in dict.fromkeys(r.instance.benchmark for r in results):
        part = [r for r in results if r.instance.benchmark == name]
        solved = [r for r in part if r.record.is_decided]
        known = sum(r.instance.is_known for r in part)
        both = sum(r.instance.is_known for r in solved)
        wrong = sum(r.contradicts and not r.instance.is_weak for r in solved)
        for i, text in ((r.instance, r.record.counterexample) for r in solved):
            if text is not None and (not_in := rerun(i.net, i.prop, text)):
                failed.append(f"- {i.benchmark} {i.name}: the witness does not hold in {', '.join(not_in)}")
        target = TARGETS.get(name)
        share = both / known if known else 0.0
        goal = "" if target is None else f"{target:.0%}: {'met' if share >= target else 'MISSED'}"
        count = [sum(r.record.verdict == v for r in part) for v in ("unsat", "sat", "unknown", "timeout", "error")]
        time = f"{median(r.record.seconds for r in solved):.2f}" if solved else "-"
        rows.append(
            [name, len(part), f"{both} / {known}", f"{share:.0%}", goal, len(solved) - both, *count, wrong, time]
        )
    head = [
        "benchmark", "instances", "solved / any tool", "share", "target", "solved beyond", "unsat", "sat", "unknown", "timeout",
        "error", "wrong", "median s",
    ]  # fmt: skip
    against = [
        f"- {d.instance.benchmark} {d.instance.name}: {d.found}, the list says {d.instance.verdict} "
        f"({d.instance.confidence}); {d.evidence}"
        for d in disagreements(results)
    ]
    machine = f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), {arguments.workers} workers"
    parts = [
        f"Set `{arguments.set}`, {arguments.timeout:g} s an instance, {machine}.",
        table(head, rows),
        "\n".join(["Verdicts against the list's:", "", *(against or ["none."])]),
        "\n".join(["Counterexamples that did not hold when run again (float32, float64, onnxruntime), without tolerance:", "",
                   *(failed or ["none."])]),
    ]  # fmt: skip
    report("verify", "Verification", parts, arguments)


if __name__ == "__main__":
    main()
