"""A graph is only believed where it computes what the model does, to within rounding."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import ModelError
from holdfast.graph import trace
from holdfast.graph.compare import Recording, compare
from holdfast.graph.model import Graph, Node
from holdfast.graph.probes import Probes


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


class _Signed(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.sign(self.net(x))


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
    graph = replace(trace(net, torch.zeros(1, 4)), dtype=dtype)
    low, high = _box(*box)
    compare(graph, net.to(dtype), low, high)
    net.to(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", ["scale", "shift", "nan", "infinity"])
def test_a_model_that_is_another_function_by_a_thousandth_is_found(part, dtype):
    net = _net()
    graph = replace(trace(net, torch.zeros(1, 4)), dtype=dtype)
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
    graph = replace(trace(net, torch.zeros(1, 4)), dtype=torch.float64)
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

    graph = trace(Believed(), torch.zeros(1, 4))
    with pytest.raises(ModelError, match="not the model"):
        compare(graph, Net(), *_box(-1, 1))


@pytest.mark.parametrize(
    ("beta", "threshold"), [(1, 20), (1e-3, 20), (-2, 20), (1, 3), (0.3, 5), (1, 0), (2, -4), (1, 60)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_softplus_falls_at_its_threshold_as_pytorchs_does(beta, threshold, dtype):
    net = nn.Sequential(nn.Linear(4, 8), nn.Softplus(beta, threshold), nn.Linear(8, 3)).eval()
    graph = replace(trace(net, torch.zeros(1, 4)), dtype=dtype)
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(8)[:, :4])
        net[0].bias.fill_(threshold / beta)
    graph = replace(trace(net, torch.zeros(1, 4)), dtype=dtype)
    for width in (0.0, 1e-9, 1e-7, 1e-3, 1.0, 300.0):  # at the threshold to within rounding, and on both sides of it
        compare(graph, net.to(dtype), *_box(-width, width))


def test_a_threshold_that_was_read_as_another_is_found(monkeypatch):
    graph = trace(nn.Sequential(nn.Linear(4, 8), nn.Softplus(1, 5), nn.Linear(8, 3)), torch.zeros(1, 4))
    nodes = [replace(n, attributes={"threshold": 4.9}) if n.op == "softplus" else n for n in graph.nodes]
    wrong = replace(graph, nodes=tuple(nodes))
    with pytest.raises(ModelError, match="not the model"):
        compare(wrong, graph.as_module(), *_box(-300, 300))
    monkeypatch.setattr(Probes, "bends", lambda self, x: None)
    compare(wrong, graph.as_module(), *_box(-300, 300))  # else this shows nothing


class _Bumped(nn.Module):
    """A model that is another function in one corner of the box, by a tail that is less than rounding at most points."""

    def __init__(self, net, size):
        super().__init__()
        self.net = net
        self.way = torch.randint(0, 2, (size,)).float() / 4 - 0.125

    def forward(self, x):
        return self.net(x) + torch.exp(x @ self.way - 16)[:, None]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_difference_in_a_corner_that_draws_miss_is_climbed_to(seed, monkeypatch):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(32, 16), nn.SiLU(), nn.Linear(16, 3)).eval()
    graph, bumped = trace(net, torch.zeros(1, 32)), _Bumped(net, 32)
    with pytest.raises(ModelError, match="not the model"):
        compare(graph, bumped, *_box(-1, 1, 32))
    monkeypatch.setattr(Probes, "uphill", lambda self, best, truth: None)
    compare(graph, bumped, *_box(-1, 1, 32))  # else this shows nothing


@pytest.mark.parametrize("part", ["sum above", "sum between"])
def test_a_difference_in_a_slice_of_the_box_is_found(part):
    class Net(nn.Module):
        def forward(self, x):
            s = x.sum(1, keepdim=True)
            inside = s > 0.95 * 64 if part == "sum above" else (s > 0.6 * 64) & (s < 0.7 * 64)
            return torch.where(inside, s + 0.1, s)

    graph = Graph(
        (
            Node(op="input", inputs=(), shape=(64,)),
            Node(op="linear", inputs=(0,), shape=(1,), tensors={"weight": torch.ones(1, 64)}),
        )
    )
    with pytest.raises(ModelError, match="not the model"):
        compare(graph, Net(), *_box(-1, 1, 64))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda y, n: y + float(torch.rand(())), "random or keeps a state"),
        (lambda y, n: y * n.__next__(), "random or keeps a state"),
        (lambda y, n: y * len(y), "depends on the others in the batch"),
        (lambda y, n: y + 1, "not the model"),
    ],
    ids=["draws", "a counter", "the batch", "another function"],
)
def test_a_refusal_says_whether_it_is_the_model_or_the_reading(change, word):
    net, counter = _net(), itertools.count(1)
    graph = trace(net, torch.zeros(1, 4))
    with pytest.raises(ModelError, match=word):
        compare(graph, lambda x: change(net(x), counter), *_box(0, 1))


def test_a_sign_that_rounding_may_turn_is_no_difference():
    net = nn.Sequential(_net(), nn.Linear(3, 50))
    x = torch.randn(4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        net[1].bias.sub_(net(x[None])[0])  # every score is 0 to within rounding
    signed = _Signed(net).eval()
    compare(trace(signed, torch.zeros(1, 4)), signed, x, x)


def test_outputs_of_another_shape_are_found():
    net = _net()
    with pytest.raises(ModelError, match="shape"):
        compare(trace(net, torch.zeros(1, 4)), lambda x: net(x)[:, :2], *_box(0, 1))


def test_the_first_operation_that_differs_is_named():
    f64 = {"weight": torch.eye(4, dtype=torch.float64)}
    nodes = (
        Node(op="input", inputs=(), shape=(4,)),
        Node(op="linear", inputs=(0,), shape=(4,), tensors=f64),
        Node(op="tanh", inputs=(1,), shape=(4,)),
        Node(op="exp", inputs=(2,), shape=(4,)),
    )
    graph = Graph(nodes)

    def steps(x):
        a = torch.sigmoid(x)
        return [("Linear", 1, x), ("Tanh", 2, a), ("Exp", 3, a.exp())]

    with pytest.raises(ModelError, match="first operation that differs is Tanh"):
        compare(graph, lambda x: torch.sigmoid(x).exp(), *_box(0, 1), recording=lambda: Recording(graph, steps))


def test_whole_inputs_are_whole_at_every_point():
    table = torch.arange(12.0).view(6, 2)
    nodes = (
        Node(op="input", inputs=(), shape=(3,)),
        Node(op="embedding", inputs=(0,), shape=(3, 2), tensors={"weight": table}),
    )
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
    graph = trace(net, torch.zeros(1, 4))
    for found in seen:
        compare(graph, lambda x, found=found: (found.append(x), net(x))[1], *_box(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
