"""The AutoAttack composition against AutoAttack's own figures, on the real models of ``../shared/data``.

    python benchmarks/standard_vs_autoattack.py --model mnist_lenet5_advtrained --seeds 0 1 2

One line for each stage: samples still robust, and what all samples together cost so far. AutoAttack's figures are those
of the authors' code (``autoattack_reference.json``), on the same samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.core.problem import Problem
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STAGES = ("apgd_ce", "apgd_t", "fab_t", "square")


def attacks(names: list[str], queries: int) -> list[tuple[str, Attack]]:
    return [(name, method(name)(queries=queries) if name == "square" else method(name)()) for name in names]


def standard(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int, stages: list[tuple[str, Attack]], slots: int
) -> list[int]:
    """Runs the stages one after the other on what survives; the ids that are robust in the end."""
    began, forwards, backwards = time.process_time(), len(x), 0
    with torch.no_grad():
        clean = torch.cat([model(part) for part in x.split(256)])
    left = (clean.argmax(1) == y).nonzero().squeeze(1)
    print(f"  seed {seed}  clean     {len(left):4d}")
    for name, attack in stages:
        part = LpBall.uniform(Norm.LINF, eps, len(left))
        problem = Problem.of(x[left], y[left], part, ids=left.numpy())
        found = run(attack, problem, model, seed=seed, clean=clean[left], settings=Settings(slots=slots))
        forwards += int(found.ledger.forwards.sum())
        backwards += int(found.ledger.backwards.sum())
        left = left[~found.found]
        seconds = time.process_time() - began
        print(
            f"  seed {seed}  {name:9s} {len(left):4d}  f {forwards:9,d}  b {backwards:8,d}  cpu {seconds:7.1f} s",
            flush=True,
        )
    return left.tolist()


def main() -> None:
    reference = json.loads((DATA / "evasion" / "autoattack_reference.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=sorted(reference), choices=sorted(reference))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sys.path.insert(0, str(DATA))
    from zoo import images, load

    for name in given.model:
        theirs = reference[name]
        x, y = (t[: given.samples] for t in images(theirs["dataset"], "test"))
        robust = {i for i in theirs["robust_ids"] if i < given.samples}
        cost = f"f {theirs['forwards']:,d}  b {theirs['backwards']:,d}  cpu {theirs['cpu_s']:.1f} s"
        print(f"{name}  eps {theirs['eps']:g}")
        print(f"  AutoAttack: robust {len(robust)} of {len(x)};  on {theirs['n']} samples {cost}")
        for seed in given.seeds:
            left = standard(
                load(name).eval(), x, y, theirs["eps"], seed, attacks(given.stages, given.queries), given.slots
            )
            print(
                f"  seed {seed}  only robust here {sorted(set(left) - robust)}, only there {sorted(robust - set(left))}"
            )


if __name__ == "__main__":
    main()
