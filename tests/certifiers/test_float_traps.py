"""Networks that fool verifiers which trust floating point: none of ours may prove any of them.

Each trap has an input that breaks it in real numbers; most hide it from sampling, from float32 or from float64.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from holdfast.certifiers.bounds.sdp import SDP
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision, SearchLimit, Solver
from holdfast.core.errors import UnsupportedError
from holdfast.core.registry import method, names
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph, Node

METHODS = [n for n in names("certifier") if issubclass(method(n), GraphCertifier)]


def _chain(*layers: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float64) -> Graph:
    """Linear layers with ReLUs between them."""
    nodes = [Node(op="input", inputs=(), shape=(layers[0][0].shape[1],))]
    for k, (weight, bias) in enumerate(layers):
        nodes.append(
            Node(
                op="linear",
                inputs=(len(nodes) - 1,),
                shape=(len(bias),),
                tensors={"weight": weight.double(), "bias": bias.double()},
            )
        )
        if k < len(layers) - 1:
            nodes.append(Node(op="relu", inputs=(len(nodes) - 1,), shape=(len(bias),)))
    return Graph(tuple(nodes), dtype)


def _t(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _spike(width: float) -> Graph:
    """Margin 1 - 3 relu(1 - |x_0 - p| / width): negative only within a hair of p, where no sample looks."""
    p = 0.3141592653589793
    first = (_t([1.0, 0.0], [-1.0, 0.0]), torch.tensor([-p, p], dtype=torch.float64))
    second = (_t([-1 / width, -1 / width]), torch.ones(1, dtype=torch.float64))
    return _chain(first, second, (_t([-3.0], [0.0]), torch.tensor([1.0, 0.0], dtype=torch.float64)))


def _absorbed(huge: float) -> Graph:
    """Margin 0.5 - x_0, computed as 0.5 - ((x_0 + huge) - huge)."""
    one = _t([1.0, 0.0])
    return _chain(
        (one, torch.tensor([huge])), (_t([1.0]), torch.tensor([-huge])), (_t([-1.0], [0.0]), torch.tensor([0.5, 0.0]))
    )


def _amplified(huge: float) -> Graph:
    """Margin 1 - min(1, relu(huge (x_0 - 0.7))) 2: a switch with a weight that overflows float32 at 1e39."""
    return _chain(
        (
            _t([huge, 0.0], [huge, 0.0]),
            torch.tensor([-0.7, -0.7], dtype=torch.float64) * huge - torch.tensor([0.0, 1.0]),
        ),
        (_t([-2.0, 2.0], [0.0, 0.0]), torch.tensor([1.0, 0.0])),
    )


def _cancelling() -> Graph:
    """Margin sum of 200 terms of both signs up to 1e15 whose true sum is x_0 - 0.6: order decides in float64."""
    torch.manual_seed(0)
    up = 10.0 ** torch.linspace(0, 15, 100, dtype=torch.float64).round()
    weight = torch.zeros(201, 2, dtype=torch.float64)
    weight[200, 0] = 1.0
    bias = torch.cat([up, up, torch.zeros(1, dtype=torch.float64)])
    last = torch.cat([torch.ones(100), -torch.ones(100), torch.ones(1)]).double()
    return _chain((weight, bias), (torch.stack([last, torch.zeros(201).double()]), torch.tensor([-0.6, 0.0])))


TRAPS: dict[str, Callable[[], Graph]] = {
    "a spike of 1e-6": lambda: _spike(1e-6),
    "a spike of 1e-13": lambda: _spike(1e-13),
    "a bias of 2^30": lambda: _absorbed(2.0**30),
    "a bias of 2^60": lambda: _absorbed(2.0**60),
    "a switch of 1e12": lambda: _amplified(1e12),
    "a switch of 1e300": lambda: _amplified(1e300),
    "sums that cancel": _cancelling,
}


def _set() -> tuple[Tensor, Tensor, LpBall]:
    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    return x, torch.zeros(1, dtype=torch.int64), LpBall.uniform(Norm.LINF, 0.5, 1, dtype=torch.float64)


def _small(kind: type) -> GraphCertifier:
    return kind(seconds=60.0, domains=200) if issubclass(kind, Solver) else kind()


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", METHODS)
def test_no_trap_is_proved(name: str, trap: str) -> None:
    x, y, ball = _set()
    tool = _small(method(name))
    try:
        assert not tool.certify(TRAPS[trap](), x, y, ball).any()
    except UnsupportedError:
        return


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_no_number_proves_nothing(name: str, value: float) -> None:
    x, y, ball = _set()
    graph = _chain(
        (_t([value, 1.0], [value, -1.0]), torch.zeros(2)), (_t([1.0, -1.0], [0.0, 0.0]), torch.tensor([1.0, 0.0]))
    )
    try:
        assert not _small(method(name)).certify(graph, x, y, ball).any()
    except UnsupportedError:
        return


@pytest.mark.parametrize("name", [n for n in METHODS if issubclass(method(n), Solver)])
@pytest.mark.parametrize("seed", range(4))
def test_planted_counterexamples_are_never_proved(name: str, seed: int) -> None:
    """A random net with a margin of at least 0.2 everywhere but within 0.02 of a planted point."""
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    p = torch.rand(3, dtype=torch.float64)
    low = float(base(torch.rand(5000, 3).double()).min()) - 0.5
    last, first = base[2], base[0]
    weight = torch.cat([first.weight, torch.eye(3).double(), -torch.eye(3).double()]).detach()
    bias = torch.cat([first.bias, -p, p]).detach()
    size = 6
    # the second layer keeps the first six and makes 1 - |x - p|_1 / 0.02 of the rest
    middle = torch.zeros(size + 1, size + 6).double()
    middle[:size, :size] = torch.eye(size).double()
    middle[size, size:] = -1 / 0.02
    shift = torch.cat([torch.zeros(size), torch.ones(1)]).double()
    value = float(base(p)) - low
    out = torch.cat([last.weight.detach(), torch.full((1, 1), -2 * value - 1).double()], 1)
    head = (torch.cat([out, torch.zeros_like(out)]), torch.cat([last.bias.detach() - low, torch.zeros(1).double()]))
    graph = _chain((weight, bias), (middle, shift), head)
    assert float(graph.as_module()(p.unsqueeze(0))[0, 0]) < 0
    query = Query.of_box(torch.zeros(3), torch.ones(3), _t([1.0, -1.0]), torch.zeros(1))
    try:
        answer = _small(method(name)).solve(graph, query, SearchLimit.seconds(4.0))
    except UnsupportedError:
        return
    assert answer.decision is not Decision.HOLDS
    assert answer.bound <= 0 or answer.decision is Decision.BROKEN


def _leak(slope: float) -> Graph:
    """x / 2 - leaky(x), least at -1: there it is slope - 1/2."""
    nodes = (
        Node(op="input", inputs=(), shape=(1,)),
        Node(op="leaky_relu", inputs=(0,), shape=(1,), attributes={"slope": slope}),
        Node(op="affine", inputs=(0,), shape=(1,), tensors={"scale": torch.full((1,), 0.5, dtype=torch.float64)}),
        Node(op="sub", inputs=(2, 1), shape=(1,)),
    )
    return Graph(nodes, torch.float64)


@pytest.mark.parametrize("slope", [0.1, 0.2])  # float32 has both a little larger
@pytest.mark.parametrize("method_", [*(method(n)() for n in METHODS), SDP(chords=False)], ids=str)
def test_a_slope_is_the_one_that_was_given(method_: GraphCertifier, slope: float) -> None:
    centre = torch.tensor([[-0.25]], dtype=torch.float64)
    ball = LpBall.uniform(Norm.LINF, 0.75, 1, -2.0, 2.0)
    bound = method_.bounds(_leak(slope), ball, centre, torch.ones(1, 1, dtype=torch.float64))
    assert Fraction(float(bound)) <= Fraction(slope) - Fraction(1, 2)


def test_order_sensitive_networks_are_not_proved_as_they_run() -> None:
    """x_0 + 1e8 - 1e8 - 0.1 in one sum: in float32 some orders give x_0 - 0.1, others -0.1."""
    graph = _chain(
        (_t([1.0, 0.0], [0.0, 0.0], [0.0, 0.0]), torch.tensor([0.0, 1e8, 1e8])),
        (_t([1.0, 1.0, -1.0], [0.0, 0.0, 0.0]), torch.tensor([-0.1, 0.0])), dtype=torch.float32,
    )  # fmt: skip
    x = torch.tensor([[0.5, 0.5]])
    ball = LpBall.uniform(Norm.LINF, 0.2, 1)
    y = torch.zeros(1, dtype=torch.int64)
    for name in METHODS:
        tool = _small(method(name))
        if not tool.deployable:
            continue
        assert not tool.certify(replace(graph, deployed=torch.float32), x, y, ball).any(), name
    assert method("crown")().certify(graph, x, y, ball).all()  # in real numbers it holds
