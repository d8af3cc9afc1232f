"""The attack that a verifier is given: it finds what is there, returns witnesses that hold, and heeds the time."""

from itertools import pairwise
from time import monotonic

import pytest
import torch
from torch import nn

from holdfast.attacks.falsification import falsifier
from holdfast.certifiers.verification.query import Query
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph, Node


def _net(*sizes, seed=0):
    torch.manual_seed(seed)
    nodes = [Node(op="input", inputs=(), shape=sizes[:1])]
    for a, b in pairwise(sizes):
        weight, bias = torch.randn(b, a) / a**0.5, torch.randn(b) / 2
        nodes.append(Node(op="linear", inputs=(len(nodes) - 1,), shape=(b,), tensors={"weight": weight, "bias": bias}))
        nodes.append(Node(op="relu", inputs=(len(nodes) - 1,), shape=(b,)))
    return Graph(tuple(nodes[:-1]))


def _rows(graph, query, x, dtype):
    with torch.no_grad():
        y = graph.to(dtype).as_module()(x.to(dtype)).flatten(1).double()
    return query.score(y @ query.c.T + query.d)


def _holds(graph, query, x):
    """A witness as the contract has it: in the box, of the model's numbers, broken in both types."""
    inside = bool(((query.lower <= x[0]) & (x[0] <= query.upper)).all())
    held = torch.equal(x, x.float().double())
    return inside and held and all(_rows(graph, query, x, t).item() <= 0 for t in (torch.float32, torch.float64))


@pytest.mark.parametrize("sizes", [(3, 16, 16, 4), (200, 32, 32, 4)])
def test_it_comes_within_a_little_of_the_least_score(sizes):
    """Thresholds just above the least value that random search and gradients of another method found are reached."""
    for seed in range(4):
        graph = _net(*sizes, seed=seed)
        model, box = graph.as_module(), (torch.zeros(sizes[0]), torch.ones(sizes[0]))
        x = torch.rand(256, sizes[0])
        for _ in range(300):  # projected gradient descent with a shrinking step, from many points
            x.requires_grad_(True)
            y = model(x)[:, 0]
            (grad,) = torch.autograd.grad(y.sum(), x)
            x = (x.detach() - 0.02 * grad / grad.abs().amax(1, keepdim=True).clamp_min(1e-9)).clamp(0, 1)
        least = float(y.detach().min())
        query = Query.of_box(*box, torch.eye(sizes[-1])[:1], torch.tensor([-least - 1e-2]))
        found = falsifier(graph)(query, 20.0)
        assert found is not None
        assert _holds(graph, query, found)


def test_groups_are_conjunctions_and_any_of_them_will_do():
    graph = _net(2, 16, 3, seed=3)
    with torch.no_grad():
        y = graph.as_module()(torch.tensor([[0.3, 0.6]])).double()[0]
    eye = torch.eye(3, dtype=torch.float64)
    c = torch.cat([eye[:1], eye, -eye])
    d = torch.cat([torch.tensor([1e3], dtype=torch.float64), -y - 0.01, y - 0.01])
    query = Query.of_box(torch.zeros(2), torch.ones(2), c, d, torch.tensor([0, 1, 1, 1, 1, 1, 1]))
    found = falsifier(graph)(query, 20.0)  # a small neighbourhood of one output vector
    assert found is not None
    assert _holds(graph, query, found)


def test_a_flat_network_is_crossed_by_leaking_relus():
    """One hidden unit, dead in nearly all of the box, is what breaks the property."""
    n = 60 * 2
    weight = torch.full((1, n), 1 / n)
    nodes = (
        Node(op="input", inputs=(), shape=(n,)),
        Node(op="linear", inputs=(0,), shape=(1,), tensors={"weight": weight, "bias": torch.tensor([-0.98])}),
        Node(op="relu", inputs=(1,), shape=(1,)),
        Node(op="linear", inputs=(2,), shape=(1,), tensors={"weight": torch.tensor([[-100.0]])}),
    )
    graph = Graph(nodes)
    # the corner of ones is a first candidate: turn half of the inputs round so that it is not
    turn = torch.ones(n)
    turn[::2] = -1
    weight.mul_(turn)
    query = Query.of_box(
        torch.where(turn > 0, 0.0, -1.0), torch.where(turn > 0, 1.0, 0.0), torch.ones(1, 1), torch.tensor([1.0])
    )
    found = falsifier(graph)(query, 20.0)
    assert found is not None
    assert _holds(graph, query, found)


def test_nothing_is_returned_where_nothing_is_and_in_time():
    graph = _net(4, 16, 2)
    query = Query.of_box(torch.zeros(4), torch.ones(4), torch.eye(2), torch.full((2,), 1e3))
    begun = monotonic()
    assert falsifier(graph)(query, 0.5) is None
    assert monotonic() - begun < 5


def test_a_box_of_one_point_is_run_as_it_is():
    x = torch.tensor([0.1, 0.7], dtype=torch.float64)  # float32 has neither
    graph = _net(2, 8, 1)
    y = float(graph.to(torch.float64).as_module()(x.unsqueeze(0)).detach())
    query = Query.of_box(x, x, torch.ones(1, 1), torch.tensor([-y - 0.1]))
    found = falsifier(graph)(query, 5.0)
    assert found is not None
    assert torch.equal(found[0], x)
    assert falsifier(graph)(Query.of_box(x, x, torch.ones(1, 1), torch.tensor([-y + 0.1])), 5.0) is None


def test_not_a_number_is_no_witness():
    graph = Graph(
        (
            Node(op="input", inputs=(), shape=(2,)),
            Node(op="linear", inputs=(0,), shape=(2,), tensors={"weight": torch.full((2, 2), torch.nan)}),
        )
    )
    query = Query.of_box(torch.zeros(2), torch.ones(2), torch.eye(2), torch.zeros(2))
    assert falsifier(graph)(query, 0.3) is None


def test_a_module_will_do_and_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.9), nn.Linear(5, 1)).train()
    before = [p.clone() for p in model.parameters()]
    attack = falsifier(model)
    with torch.no_grad():
        value = float(model.eval()(torch.full((1, 3), 0.5)))
    model.train()
    query = Query.of_box(torch.zeros(3), torch.ones(3), torch.ones(1, 1), torch.tensor([-value - 1e-3]))
    assert attack(query, 5.0) is not None
    assert all(p.requires_grad and torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert model.training


def test_sets_that_are_no_boxes_are_left_to_others():
    ball = LpBall.uniform(Norm.L2, 1.0, 1)
    query = Query(
        x=torch.zeros(1, 2, dtype=torch.float64),
        ball=ball,
        c=torch.eye(2).double(),
        d=torch.zeros(2).double(),
        groups=torch.tensor([0, 1]),
    )
    assert falsifier(nn.Identity())(query, 5.0) is None


def test_same_seed_same_witness():
    graph = _net(5, 16, 16, 2)
    query = Query.of_box(torch.zeros(5), torch.ones(5), torch.eye(2)[:1], torch.tensor([0.0]))
    first, second = (falsifier(graph, seed=7)(query, 5.0) for _ in range(2))
    assert (first is None) == (second is None)
    assert first is None or second is None or torch.equal(first, second)


@pytest.mark.shared
def test_competition_instances_that_are_sat(shared_data):
    """Two benchmarks with their known verdicts; `benchmarks/verify.py` has them all."""
    import csv

    pytest.importorskip("onnx")
    from holdfast.certifiers.verification.vnnlib import read_property
    from holdfast.graph.onnx import read_onnx

    folder = shared_data / "verification" / "dev"
    rows = [r for r in csv.DictReader((folder / "instances.csv").open()) if r["verdict"] == "sat"][::3]
    for benchmark, most in (("rl", 4), ("verivital_pool", 2), ("acasxu", 3)):
        for row in [r for r in rows if r["benchmark"] == benchmark][:most]:
            graph, said = read_onnx(folder / row["onnx"]), read_property(folder / row["vnnlib"])
            attack = falsifier(graph)
            found = next((x for q in said.queries(graph) if (x := attack(q, 20.0)) is not None), None)
            assert found is not None, row
            assert said.confirm(graph, found) is not None
