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
from holdfast.verification.instances import contradictions, run_instances

FOLDER = SHARED / "verification"
TARGETS = {
    **dict.fromkeys(
        ("acasxu", "mnist_fc", "rl", "safenlp", "reach_prob_density", "verivital_pool", "collins_rul_cnn"), 0.95
    ),
    **dict.fromkeys(("cifar10_resnet", "eran_relu", "eran_sigmoid"), 0.85),
    **dict.fromkeys(("oval21", "vit"), 0.30),
}
"""Share of the instances that any tool solved, at 60 s each."""
KNOWN = ("sat", "unsat")


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
        listed, out, Effort(arguments.timeout), timeout=arguments.timeout, only=arguments.benchmark,
        workers=arguments.workers,
        told=lambda i, p, done, n: print(
            f"[{done}/{n}] {i.benchmark} {i.name}: {p['verdict']} (known: {i.verdict}), {p['seconds']:.1f} s {p['reason']}",
            flush=True,
        ),
    )  # fmt: skip
    rows: list[list[object]] = []
    failed: list[str] = []
    for name in dict.fromkeys(i.benchmark for i, _ in results):
        part = [(i, p) for i, p in results if i.benchmark == name]
        solved = [(i, p) for i, p in part if p["verdict"] in KNOWN]
        known = sum(i.verdict in KNOWN for i, _ in part)
        both = sum(i.verdict in KNOWN for i, _ in solved)
        wrong = sum({p["verdict"], i.verdict} == set(KNOWN) and i.confidence != "one-tool" for i, p in solved)
        for i, p in solved:
            if p["verdict"] == "sat" and (not_in := rerun(i.net, i.prop, p["counterexample"])):
                failed.append(f"- {i.benchmark} {i.name}: the witness does not hold in {', '.join(not_in)}")
        target = TARGETS.get(name)
        share = both / known if known else 0.0
        goal = "" if target is None else f"{target:.0%}: {'met' if share >= target else 'MISSED'}"
        count = [sum(p["verdict"] == v for _, p in part) for v in ("unsat", "sat", "unknown", "timeout", "error")]
        time = f"{median(p['seconds'] for _, p in solved):.2f}" if solved else "-"
        rows.append(
            [name, len(part), f"{both} / {known}", f"{share:.0%}", goal, len(solved) - both, *count, wrong, time]
        )
    head = [
        "benchmark", "instances", "solved / any tool", "share", "target", "solved beyond", "unsat", "sat", "unknown", "timeout",
        "error", "wrong", "median s",
    ]  # fmt: skip
    against = [
        f"- {c.instance.benchmark} {c.instance.name}: {c.found}, the list says {c.instance.verdict} "
        f"({c.instance.confidence}); {c.evidence}"
        for c in contradictions(results)
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
