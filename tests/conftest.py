"""Fixtures that every room's tests share."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from holdfast.certifiers.propagation.table import TABLE
from holdfast.graph.aten import CALLS
from holdfast.graph.operations import OPERATIONS
from holdfast.graph.stepwise import STEPWISE
from holdfast.testing.toys import net


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and models beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data and models of {folder} are not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are small: threads would only get in each other's way, and in that of xdist's workers."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_toy() -> Iterator[None]:
    """The toy network is one object for all tests: one that runs it in training mode shall not move it for the others."""
    model = net()
    kept, mode = {k: v.clone() for k, v in model.state_dict().items()}, model.training
    yield
    model.load_state_dict(kept)
    model.train(mode)
    for p in model.parameters():
        p.grad = None


@pytest.fixture
def own_operations() -> Iterator[None]:
    """Operations that a test defines are forgotten after it."""
    tables = OPERATIONS, TABLE, CALLS
    kept, stepwise = [dict(table) for table in tables], set(STEPWISE)
    yield
    for table, before in zip(tables, kept, strict=True):
        for name in table.keys() - before.keys():
            del table[name]
    STEPWISE.intersection_update(stepwise)
