"""(a) Strength and cost of the suites against AutoAttack's own figures on real networks.

python benchmarks/strength.py --suite fast --seeds 0 1 2 [--models NAME ...]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def main() -> None:
    """Runs the suites and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="fast")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--samples", type=int, default=200)
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"the real models of {SHARED} are not here")
    sys.path.insert(0, str(SHARED))
    from zoo import images, load

    from holdfast.audits.plan import Plan
    from holdfast.audits.run import audit

    reference = json.loads((SHARED / "evasion" / "autoattack_reference.json").read_text())
    torch.set_num_threads(1)
    print(
        f"{'model':34} {'seed':>4} {'robust':>7} {'AA':>4} {'f':>9} {'AA f/f':>7} {'b':>8} {'AA b/b':>7} {'s':>7}  not found"
    )
    for name in arguments.models or reference:
        r = reference[name]
        x, y = images(r["dataset"], "test", arguments.samples)
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            np.savez(data, x=x.numpy(), y=y.numpy())
            for seed in arguments.seeds:
                plan = Plan.of(
                    data=str(data), norm="linf", eps=str(r["eps"]), suite=arguments.suite, certify="none", seed=seed
                )
                start = time.process_time()
                d = audit(plan, Path(folder) / f"run{seed}", model=load(name))
                seconds = time.process_time() - start
                robust = {s.id for s in d.samples if s.status not in ("BROKEN", "MISCLASSIFIED")}
                f, b = d.cost.forwards, d.cost.backwards
                print(
                    f"{name:34} {seed:4} {len(robust):7} {r['robust']:4} {f:9} {r['forwards'] / f:7.1f} {b:8} "
                    f"{r['backwards'] / max(1, b):7.1f} {seconds:7.1f}  {sorted(robust - set(r['robust_ids']))}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
