"""A slice of the fuzz with a seed of its own each day; `make fuzz` runs all of it."""

import os
import warnings
from datetime import UTC, datetime

import pytest
import torch
from fuzz_judge import run

TODAY = int(os.environ.get("HOLDFAST_FUZZ_SEED") or datetime.now(UTC).strftime("%Y%m%d"))


def _judged(numbers) -> None:
    print(f"fuzz: HOLDFAST_FUZZ_SEED={TODAY}; repeat with python tests/fuzz/run.py --seed {TODAY} --only NUMBER")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = run(TODAY, numbers)
    finally:
        torch.set_num_threads(threads)
    print(report)
    assert not report.wrong, "\n".join(report.wrong)
    assert report.bounds > 10 * report.graphs
    assert report.finite > report.bounds / 2


def test_nothing_is_outside_the_bounds_of_the_graphs_of_the_day():
    _judged([1, *range(4, 8)])


@pytest.mark.slow
def test_nothing_is_outside_the_bounds_of_many_graphs_of_the_day():
    _judged(range(400))
