"""How verifiers scale: time, memory, radius and gap against depth, width and input size, on networks trained alike."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from time import process_time
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.fmn import FMN
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import seeded
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import create, method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.data.digits import load_digits
from holdfast.graph import trace
from holdfast.graph.model import Graph
from holdfast.session.session import Session
from holdfast.studies.study import StageProgress, Study, StudyResult

__all__ = ["BASE", "Scalability", "ScalabilityResult", "ScalabilityRow", "network"]

BASE = {"depth": 3, "width": 64, "side": 8}
_STEPS, _BATCH, _RATE = 250, 128, 2e-3
_NEVER = 1e9  # stands for the distance of a sample that the attack does not break
_PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class ScalabilityRow:
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


@dataclass(frozen=True, kw_only=True)
class ScalabilityResult(StudyResult):
    """All of them.

    Attributes:
        rows: one for each verifier and network.
        left_out: (method, axis, size, why).
        norm: of the radii.
        samples: of each network.
        accuracy: of each network, by axis and size.
    """

    rows: tuple[ScalabilityRow, ...]
    left_out: tuple[tuple[str, str, int, str], ...]
    norm: str
    samples: int
    accuracy: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Scalability(Study[ScalabilityResult]):
    """Every verifier on networks of growing depth, width and input size, trained alike on the digits; it needs no session."""

    card: ClassVar[Card] = Card(
        title="Scalability of verification",
        rows=("V16",),
        paper="Chen & Liu, Holistic Adversarial Robustness of Deep Learning Models, section 3.3",
        section="3.3",
        summary="Trains networks of growing depth, width and input size on the digits, and measures what time, memory and "
        "radius each verifier makes of them, and its gap to an attack.",
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        failure_modes=(
            "A network that learnt little has radii that say little about verifiers.",
            "Memory is what the process grew by, looked at every 5 ms, and unknown off Linux.",
        ),
        checked_by="IBP beside CROWN: looser on every network, and cheaper",
    )
    methods: tuple[str, ...] = parameter(
        ("ibp", "fast_lin", "crown", "alpha_crown"), "graph certifiers", "survey, section 3.3: from the cheapest on"
    )
    depth: tuple[int, ...] = parameter((1, 2, 4, 8), "hidden layers to try", "ours: doubled each time")
    width: tuple[int, ...] = parameter((32, 64, 128, 256), "neurons of a layer to try", "ours: doubled each time")
    side: tuple[int, ...] = parameter((8, 16, 32), "pixels a side to try", "ours: the digits, enlarged")
    norm: Norm = parameter(Norm.LINF, "of the radii", "survey, section 3.3")
    samples: int = parameter(4, "samples of each network", "ours: a mean that a few seconds pay for")
    limit: float = parameter(
        60.0, "CPU seconds; a method that took longer for one network is not tried on larger ones of that axis", "ours"
    )
    seed: int = parameter(0, "of the networks and the attack", "ours")

    @override
    def run(self, session: Session | None = None, *, progress: StageProgress | None = None) -> ScalabilityResult:
        if wrong := [name for name in self.methods if not issubclass(method(name), GraphCertifier)]:
            raise UsageError(f"{', '.join(wrong)}: graph certifiers only; holdfast methods NAME says what each is")
        tools = {name: create(name, GraphCertifier) for name in self.methods}
        axes = {"depth": self.depth, "width": self.width, "side": self.side}
        rows: list[ScalabilityRow] = []
        left_out: list[tuple[str, str, int, str]] = []
        accuracy: dict[str, float] = {}
        for axis, sizes in axes.items():
            over_limit = set[str]()
            for k, size in enumerate(sorted(sizes)):
                trained = _trained(axis, size, self.norm, self.samples, self.seed)
                accuracy[f"{axis} {size}"] = trained.accuracy
                for name, tool in tools.items():
                    if name in over_limit:
                        left_out.append((name, axis, size, f"took more than {self.limit:g} s at the size before"))
                        continue
                    try:
                        row, seconds = _measured(name, tool, trained)
                    except UnsupportedError as refusal:
                        left_out.append((name, axis, size, str(refusal)))
                        continue
                    rows.append(row)
                    if seconds > self.limit:
                        over_limit.add(name)
                if progress is not None:
                    progress(axis, k + 1, len(sizes))
        return ScalabilityResult(
            rows=tuple(rows), left_out=tuple(left_out), norm=str(self.norm), samples=self.samples, accuracy=accuracy
        )


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A trained network with the samples that verifiers are asked about.

    Attributes:
        axis: what was varied.
        size: its value.
        neurons: hidden neurons.
        graph: of the network.
        x: (n, 1, side, side) test images that it gets right.
        y: (n,) labels.
        ball: sets without a bound.
        broken: (n,) distances at which FMN breaks them: the upper bounds that gaps are measured from.
        top: the largest radius that is searched for.
        accuracy: on all test images.
    """

    axis: str
    size: int
    neurons: int
    graph: Graph
    x: Tensor
    y: Tensor
    ball: LpBall
    broken: Tensor
    top: float
    accuracy: float


def _trained(axis: str, size: int, norm: Norm, samples: int, seed: int) -> _Trained:
    shape = {**BASE, axis: size}
    net, x, y, accuracy = network(**shape, seed=seed)
    right = (net(x).argmax(1) == y).nonzero().flatten()[:samples]
    x, y = x[right], y[right]
    ball = LpBall.uniform(norm, float("inf"), len(x))
    broken = run(FMN(), Problem.of(x, y, ball), net, seed=seed).distance.double().clamp(max=_NEVER)
    return _Trained(
        axis=axis,
        size=size,
        neurons=shape["depth"] * shape["width"],
        graph=trace(net, x),
        x=x,
        y=y,
        ball=ball,
        broken=broken,
        top=float(broken[broken < _NEVER].max()) if bool((broken < _NEVER).any()) else 1.0,
        accuracy=accuracy,
    )


def _measured(name: str, verifier: GraphCertifier, net: _Trained) -> tuple[ScalabilityRow, float]:
    """What a verifier makes of a network, and the CPU seconds of all samples."""
    start = process_time()
    with _memory() as rise:
        radius = verifier.radius(net.graph, net.x, net.y, net.ball.with_eps(net.top / 4), net.top, tolerance=0.02)
    seconds = process_time() - start
    proved = radius.nan_to_num(nan=0.0).clamp(max=net.broken)
    row = ScalabilityRow(
        axis=net.axis,
        size=net.size,
        method=name,
        neurons=net.neurons,
        seconds=seconds / max(len(net.x), 1),
        megabytes=rise[0] if rise else None,
        radius=float(proved.mean()),
        gap=float((1 - proved / net.broken).mean()),
    )
    return row, seconds


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
    with seeded(seed, gpus=()):
        sizes = [side * side, *[width] * depth]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))
        x, y = _images("train", side)
        adam = torch.optim.Adam(net.parameters(), _RATE)
        for _ in range(_STEPS):
            rows = torch.randint(0, len(x), (_BATCH,))
            adam.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()  # pyright: ignore[reportUnknownMemberType]
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


@contextmanager
def _memory() -> Generator[list[float], None, None]:
    """By how many megabytes the process's resident memory rises at most, looked at every 5 ms; empty where unknown."""
    file, rise, stop = Path("/proc/self/statm"), list[float](), Event()

    def resident() -> float:
        return int(file.read_text().split()[1]) * _PAGE / 2**20

    if not file.exists():
        yield rise
        return
    start = resident()
    rise.append(0.0)

    def watch() -> None:
        while not stop.wait(0.005):
            rise[0] = max(rise[0], resident() - start)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield rise
    finally:
        stop.set()
        thread.join()
