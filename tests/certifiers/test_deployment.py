"""Bounds on a network as it runs: they contain what it computes, in any order of summation and in narrow types."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.core.errors import UnsupportedError
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace
from holdfast.graph.model import Graph, Node


def _nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "dense": (nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3)), (40,)),
        "conv": (
            nn.Sequential(
                nn.Conv2d(2, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
            ),
            (2, 8, 8),
        ),
    }  # fmt: skip


def _as_run(graph: Graph, dtype: torch.dtype) -> Graph:
    return replace(graph, deployed=dtype)


def _ends(graph: Graph, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    ball = LpBall.uniform(Norm.LINF, eps, len(x), low=-9.0, high=9.0)
    found = CROWN().bounds(graph, ball, x, rows)
    return found[:, :3], -found[:, 3:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dense", "conv"])
def test_a_point_s_bounds_contain_what_the_network_computes_there(name: str, dtype: torch.dtype) -> None:
    net, shape = _nets()[name]
    net = net.eval().to(dtype)
    x = torch.randn(50, *shape).to(dtype)
    exact = trace(net.float(), torch.zeros(1, *shape))  # the narrow weights, as they are stored
    with torch.no_grad():
        ran = net.to(dtype)(x).double()
        alone = torch.cat([net(row[None]) for row in x]).double()
    lower, upper = _ends(_as_run(exact, dtype), x.float(), 0.0)
    assert ((lower <= ran) & (ran <= upper)).all()
    assert ((lower <= alone) & (alone <= upper)).all()
    plain_lower, plain_upper = _ends(exact, x.float(), 0.0)
    assert not ((plain_lower <= ran) & (ran <= plain_upper)).all()  # bounds in real numbers do not contain it


def test_every_order_of_summation_is_contained() -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(1, 200) * 10 ** torch.linspace(-3, 3, 200), torch.randn(1, 200)
    net = nn.Linear(200, 3)
    with torch.no_grad():
        net.weight.copy_(weight.expand(3, -1))
        net.bias.zero_()
    lower, upper = _ends(_as_run(trace(net, x), torch.float32), x, 0.0)
    seen = set[float]()
    for seed in range(200):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        total = torch.zeros(())
        for term in (weight * x)[0, order]:
            total = total + term
        seen.add(float(total))
        assert lower[0, 0] <= total.double() <= upper[0, 0]
    assert len(seen) > 10  # the order mattered


def test_a_margin_that_only_float32_loses_is_proved_in_real_numbers_alone() -> None:
    """x_0 - 0.1 on [0.25, 0.75], computed as ``(x_0 + 2^30) - 2^30 - 0.1``: float32 gives -0.1."""

    def linear(weight: list[list[float]], bias: list[float], i: int) -> Node:
        return Node(
            op="linear",
            inputs=(i,),
            shape=(2,),
            tensors={"weight": torch.tensor(weight).double(), "bias": torch.tensor(bias).double()},
        )

    nodes = (
        Node(op="input", inputs=(), shape=(2,)),
        linear([[1.0, 0.0], [0.0, 0.0]], [2.0**30, 0.0], 0),
        Node(op="relu", inputs=(1,), shape=(2,)),
        linear([[1.0, 0.0], [0.0, 0.0]], [-(2.0**30), 0.0], 2),
        linear([[1.0, 0.0], [0.0, 0.0]], [-0.1, 0.0], 3),
    )
    graph = Graph(nodes)
    x, y = torch.tensor([[0.5, 0.5]]), torch.zeros(1, dtype=torch.int64)
    assert graph.as_module()(x)[0, 0] < 0
    ball = LpBall.uniform(Norm.LINF, 0.25, 1)
    for tool in (CROWN(), IBP(), method("alpha_crown")()):
        assert tool.certify(graph, x, y, ball).all()
        assert not tool.certify(_as_run(graph, torch.float32), x, y, ball).any()


def test_a_robust_network_is_certified_as_it_runs() -> None:
    net, shape = _nets()["dense"]
    x = torch.randn(8, *shape)
    graph = trace(net.eval(), x)
    ball = LpBall.uniform(Norm.LINF, 1e-3, 8, low=-9.0, high=9.0)
    y = net(x).argmax(1)
    real = CROWN().margins(graph, x, y, ball)
    ran = CROWN().margins(_as_run(graph, torch.float32), x, y, ball)
    assert (ran <= real).all()
    assert torch.allclose(ran, real, atol=1e-4)
    tool, narrow = CROWN(), _as_run(graph, torch.float32)
    held = [c for c in tool.certificates(narrow, x, y, ball, 0.01) if c is not None]
    assert held
    assert all("as it runs in float32" in c.arithmetic for c in held)


def test_what_cannot_count_rounding_refuses() -> None:
    graph = Graph(
        (
            Node(op="input", inputs=(), shape=(3,)),
            Node(op="softmax", inputs=(0,), shape=(3,), attributes={"dim": 0}),
        ),
        deployed=torch.float32,
    )
    middle = replace(graph, nodes=(*graph.nodes, Node(op="relu", inputs=(1,), shape=(3,))))
    x = torch.rand(1, 3)
    with pytest.raises(UnsupportedError):
        CROWN().bounds(middle, LpBall.uniform(Norm.LINF, 0.1, 1), x, torch.eye(3).double())
