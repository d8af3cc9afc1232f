"""How verifiers scale: time, memory, radius and gap against depth, width and input size, on networks trained alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import run
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import create, method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.data.digits import load_digits
from holdfast.graph import trace

__all__ = ["BASE", "Measured", "Scalability", "network", "scalability"]

BASE = {"depth": 3, "width": 64, "side": 8}
_STEPS, _BATCH, _RATE = 250, 128, 2e-3
_ATTACK = "fmn"  # its distances are the upper bounds that gaps are measured from
_PAGE = 4096


@dataclass(frozen=True)
class Measured:
    """One verifier on one network.

    Attributes:
        axis: what was varied: ``depth``, ``width`` or ``side``.
        size: its value.
        method: the verifier.
        neurons: hidden neurons of the network.
        seconds: CPU seconds a sample, for its largest radius.
        megabytes: by how much the process's memory rose; None where the system does not say.
        radius: mean certified radius.
        gap: mean of ``1 - radius / distance`` to the attack's distance: 0 is exact, 1 says nothing.
    """

    axis: str
    size: int
    method: str
    neurons: int
    seconds: float
    megabytes: float | None
    radius: float
    gap: float


@dataclass(frozen=True)
class Scalability:
    """All of them.

    Attributes:
        rows: one for each verifier and network.
        left_out: (method, axis, size, why).
        norm: of the radii.
        samples: of each network.
        accuracy: of each network, by axis and size.
    """

    rows: tuple[Measured, ...]
    left_out: tuple[tuple[str, str, int, str], ...]
    norm: str
    samples: int
    accuracy: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """In plain values."""
        return asdict(self)


def network(depth: int, width: int, side: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, float]:
    """A dense ReLU network trained on the digits, enlarged to ``side`` by interpolation.

    Args:
        depth: hidden layers, at least 1.
        width: neurons of each.
        side: pixels a side.
        seed: of weights and batches.

    Returns:
        The network in eval mode, the test images with labels, and the accuracy on them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [side * side, *[width] * depth]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))
        x, y = _images("train", side)
        adam = torch.optim.Adam(net.parameters(), _RATE)
        for _ in range(_STEPS):
            rows = torch.randint(0, len(x), (_BATCH,))
            adam.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()  # pyright: ignore[reportUnknownMemberType]
    net.eval().requires_grad_(False)
    x, y = _images("test", side)
    return net, x, y, float((net(x).argmax(1) == y).float().mean())


def _images(split: str, side: int) -> tuple[Tensor, Tensor]:
    data = load_digits(split)
    x = torch.as_tensor(np.asarray(data.x))
    if side != x.shape[-1]:
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return x, torch.as_tensor(np.asarray(data.y))


def scalability(
    methods: Sequence[str],
    axes: Mapping[str, Sequence[int]],
    *,
    norm: Norm = Norm.LINF,
    samples: int = 4,
    limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scalability:
    """Runs every method on every network.

    Args:
        methods: names of graph certifiers.
        axes: for ``depth``, ``width``, ``side``: the sizes to try, ascending; the other two stay at `BASE`.
        norm: of the radii.
        samples: of each network.
        limit: CPU seconds; a method that took longer for one network is not tried on larger ones of that axis.
        seed: of the networks and the attack.
        progress: told the axis, networks done and networks in all.

    Raises:
        UsageError: a method is no graph certifier, or an axis is unknown.
    """
    wrong = [name for name in methods if not issubclass(method(name), GraphCertifier)]
    if wrong or set(axes) - set(BASE):
        raise UsageError(
            f"{', '.join(wrong) or sorted(set(axes) - set(BASE))}: graph certifiers and depth, width, side only"
        )
    tools = {name: create(name, GraphCertifier) for name in methods}
    rows: list[Measured] = []
    left_out: list[tuple[str, str, int, str]] = []
    accuracy: dict[str, float] = {}
    tired = set[tuple[str, str]]()
    todo = [(axis, size) for axis, sizes in axes.items() for size in sorted(sizes)]
    for done, (axis, size) in enumerate(todo):
        shape = {**BASE, axis: size}
        net, x, y, accuracy[f"{axis} {size}"] = network(**shape, seed=seed)
        right = (net(x).argmax(1) == y).nonzero().flatten()[:samples]
        x, y = x[right], y[right]
        graph = trace(net, x)
        ball = LpBall.uniform(norm, float("inf"), len(x))
        broken = run(create(_ATTACK, Attack), Problem.of(x, y, ball), net, seed=seed).distance.double().clamp(max=1e9)
        top = float(broken[broken < 1e9].max()) if bool((broken < 1e9).any()) else 1.0
        for name, tool in tools.items():
            if (name, axis) in tired:
                left_out.append((name, axis, size, f"took more than {limit:g} s at the size before"))
                continue
            start = process_time()
            try:
                with _memory() as rise:
                    radius = tool.radius(graph, x, y, ball.with_eps(top / 4), top, tolerance=0.02)
            except UnsupportedError as refusal:
                left_out.append((name, axis, size, str(refusal)))
                continue
            seconds = process_time() - start
            proved = radius.nan_to_num(nan=0.0).clamp(max=broken)
            rows.append(
                Measured(
                    axis, size, name, shape["depth"] * shape["width"], seconds / max(len(x), 1), rise[0] if rise else None,
                    float(proved.mean()), float((1 - proved / broken).mean()),
                )
            )  # fmt: skip
            if seconds > limit:
                tired.add((name, axis))
        if progress:
            progress(axis, done + 1, len(todo))
    return Scalability(tuple(rows), tuple(left_out), str(norm), samples, accuracy)


@contextmanager
def _memory():
    """By how many megabytes the process's resident memory rises at most, looked at every 5 ms; empty where unknown."""
    file, found, stop = Path("/proc/self/statm"), list[float](), Event()

    def resident() -> float:
        return int(file.read_text().split()[1]) * _PAGE / 2**20

    if not file.exists():
        yield found
        return
    start = resident()
    found.append(0.0)

    def watch() -> None:
        while not stop.wait(0.005):
            found[0] = max(found[0], resident() - start)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
