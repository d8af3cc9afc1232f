"""A graph is only believed where it computes what the model does, to within rounding."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import ModelError
from holdfast.graph.compare import Trace, compare
from holdfast.graph.model import Graph, Node


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def _box(low, high, n=4):
    return torch.full((n,), float(low)), torch.full((n,), float(high))


NETS = {
    "dense": _net(),
    "deep": nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(8, 8), nn.Tanh())], nn.Linear(8, 2)),
    "norms": nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Mish(), nn.Linear(16, 4), nn.LogSoftmax(1)),
    "softmax": nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4), nn.Softmax(1)),
}


@pytest.mark.parametrize("box", [(0, 1), (-1, 1), (0, 255), (-1e4, 1e4), (0.5, 0.5), (-float("inf"), float("inf"))])
@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_model_is_its_own_graph_whatever_it_rounds(name, box, dtype):
    if dtype == torch.float16 and max(map(abs, box)) > 1:
        pytest.skip("overflows")
    net = NETS[name].eval() if name != "deep" else nn.Sequential(nn.Linear(4, 8), *NETS[name]).eval()
    graph = replace(Graph.from_module(net, torch.zeros(1, 4)), dtype=dtype)
    low, high = _box(*box)
    compare(graph, net.to(dtype), low, high)
    net.to(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", ["scale", "shift", "nan", "infinity"])
def test_a_model_that_is_another_function_by_a_thousandth_is_found(part, dtype):
    net = _net()
    graph = replace(Graph.from_module(net, torch.zeros(1, 4)), dtype=dtype)
    net = net.to(dtype)
    change = {
        "scale": lambda y: y * 1.001,
        "shift": lambda y: y + 0.001,
        "nan": lambda y: y + float("nan"),
        "infinity": lambda y: y + float("inf"),
    }[part]
    with pytest.raises(ModelError, match="not the model"):
        compare(graph, lambda x: change(net(x)), *_box(-1, 1))


def test_double_precision_shows_what_single_precision_hides():
    net = _net()
    graph = replace(Graph.from_module(net, torch.zeros(1, 4)), dtype=torch.float64)
    net = net.double()
    with pytest.raises(ModelError, match="not the model"):
        compare(graph, lambda x: net(x) * (1 + 1e-11), *_box(-1, 1))


def test_a_difference_deep_inside_that_few_inputs_reach_is_found():
    class Net(nn.Module):
        def forward(self, x):
            return F.softplus((x * 4).sum(1, keepdim=True), threshold=3.0)

    class Believed(nn.Module):
        def forward(self, x):
            return F.softplus((x * 4).sum(1, keepdim=True))

    graph = Graph.from_module(Believed(), torch.zeros(1, 4))
    with pytest.raises(ModelError, match="not the model"):
        compare(graph, Net(), *_box(-1, 1))


def test_outputs_of_another_shape_are_found():
    net = _net()
    with pytest.raises(ModelError, match="shape"):
        compare(Graph.from_module(net, torch.zeros(1, 4)), lambda x: net(x)[:, :2], *_box(0, 1))


def test_the_first_operation_that_differs_is_named():
    f64 = {"weight": torch.eye(4, dtype=torch.float64)}
    nodes = (
        Node("input", (), (4,)),
        Node("linear", (0,), (4,), f64),
        Node("tanh", (1,), (4,)),
        Node("exp", (2,), (4,)),
    )
    graph = Graph(nodes)

    def steps(x):
        a = torch.sigmoid(x)
        return [("Linear", 1, x), ("Tanh", 2, a), ("Exp", 3, a.exp())]

    with pytest.raises(ModelError, match="first operation that differs is Tanh"):
        compare(graph, lambda x: torch.sigmoid(x).exp(), *_box(0, 1), trace=lambda: Trace(graph, steps))


def test_whole_inputs_are_whole_at_every_point():
    table = torch.arange(12.0).view(6, 2)
    nodes = (Node("input", (), (3,)), Node("embedding", (0,), (3, 2), {"weight": table}))
    asked = []

    def truth(x):
        asked.append(x)
        return table[x]

    compare(Graph(nodes), truth, torch.full((3,), 0.5), torch.full((3,), 5.0), whole=True)
    assert all(x.dtype == torch.int64 and int(x.min()) >= 1 and int(x.max()) <= 5 for x in asked)
    with pytest.raises(ModelError, match="not the model"):
        compare(
            Graph(nodes), lambda x: table[x] + (x == 5)[..., None], torch.zeros(3), torch.full((3,), 5.0), whole=True
        )


def test_the_points_are_the_same_at_every_call():
    net, seen = _net(), [[], []]
    graph = Graph.from_module(net, torch.zeros(1, 4))
    for found in seen:
        compare(graph, lambda x, found=found: (found.append(x), net(x))[1], *_box(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
