"""Fuzzes the bounds: ``python tests/fuzz/run.py --graphs 3000 [--seed N] [--only K]``; exits 1 where anything is outside."""

import argparse
import sys
import warnings
from datetime import UTC, datetime

import torch
from fuzz_judge import Report, run


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=int(datetime.now(UTC).strftime("%Y%m%d")), help="default: the day")
    options.add_argument("--graphs", type=int, default=3000)
    options.add_argument("--only", type=int, help="one graph, to repeat it")
    options.add_argument("--part", default="0/1", help="K/N: every N-th graph from K on, for several processes")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first, step = map(int, given.part.split("/"))
    numbers = [given.only] if given.only is not None else range(first, given.graphs, step)
    print(f"seed {given.seed}", flush=True)
    report = Report()
    for done, number in enumerate(numbers, 1):
        run(given.seed, [number], report, tell=lambda line: print("WRONG", line, flush=True))
        if done % 100 == 0:
            print(report, flush=True)
    print(report)
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
