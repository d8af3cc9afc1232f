"""Input splitting: verdicts against exact optima, recorded trees, and ends that are not proofs."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from random_nets import C, net
from torch import nn

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.complete.input_splitting import InputSplitting
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision, SearchLimit
from holdfast.certifiers.verification.tree import Leaf, Split, Tree
from holdfast.certifiers.verification.verifier import broken
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace
from holdfast.graph.model import Graph, Node


def _chain(*sizes, seed):
    stream = torch.Generator().manual_seed(seed)
    nodes = [Node(op="input", inputs=(), shape=(sizes[0],))]
    for k, (n, m) in enumerate(pairwise(sizes)):
        weight = torch.randn(m, n, generator=stream, dtype=torch.float64) * (2 / n) ** 0.5
        bias = torch.randn(m, generator=stream, dtype=torch.float64) / 3
        nodes.append(Node(op="linear", inputs=(len(nodes) - 1,), shape=(m,), tensors={"weight": weight, "bias": bias}))
        if k + 2 < len(sizes):
            nodes.append(Node(op="relu", inputs=(len(nodes) - 1,), shape=(m,)))
    return Graph(tuple(nodes), torch.float64)


def _query(c, d, groups=None, low=-1.0, high=1.0, n=2):
    box = torch.full((n,), low), torch.full((n,), high)
    return Query.of_box(*box, torch.as_tensor(c, dtype=torch.float64), torch.as_tensor(d, dtype=torch.float64), groups)


def _tent(offset):
    """relu(x) + relu(-x) = |x| on [-1, 1], least at 0; the property is |x| + offset > 0."""
    weight, bias = torch.tensor([[1.0], [-1.0]]).double(), torch.zeros(2).double()
    nodes = (
        Node(op="input", inputs=(), shape=(1,)),
        Node(op="linear", inputs=(0,), shape=(2,), tensors={"weight": weight, "bias": bias}),
        Node(op="relu", inputs=(1,), shape=(2,)),
        Node(
            op="linear",
            inputs=(2,),
            shape=(1,),
            tensors={"weight": torch.ones(1, 2).double(), "bias": torch.zeros(1).double()},
        ),
    )
    return Graph(nodes, torch.float64), _query([[1.0]], [offset], n=1)


@pytest.mark.parametrize("offset", [1e-6, 0.1])
def test_a_kink_is_found_to_hold(offset):
    graph, query = _tent(offset)
    query = Query.of_box(torch.tensor([-0.7]).double(), torch.ones(1).double(), query.c, query.d)
    answer = InputSplitting().solve(graph, query, SearchLimit.seconds(300))
    assert answer.decision is Decision.HOLDS
    assert 0 < answer.bound <= offset


def test_a_kink_is_found_to_break():
    graph, query = _tent(-1e-3)
    answer = InputSplitting().solve(graph, query, SearchLimit.seconds(300))
    assert answer.decision is Decision.BROKEN
    assert broken(graph, query, answer.witness)


def test_boxes_as_small_as_floats_allow_end_without_proof():
    """|3 x - 1| + 1e-17 is positive, but not by more than rounding, and no float is 1/3."""
    graph, query = _tent(1e-17)
    first = graph.nodes[1].tensors
    first["weight"].copy_(torch.tensor([[3.0], [-3.0]]))
    first["bias"].copy_(torch.tensor([-1.0, 1.0]))
    answer = InputSplitting(descent=0).solve(graph, query, SearchLimit.seconds(300))
    assert answer.decision is Decision.UNKNOWN
    assert "small" in answer.reason
    assert not answer.bound > 0


def test_inputs_that_do_not_vary():
    graph = _chain(3, 8, 2, seed=0)
    x = torch.tensor([0.3, -0.2, 0.5]).double()
    y = graph.as_module()(x.unsqueeze(0))[0].detach()
    for sign, decision in ((1, Decision.HOLDS), (-1, Decision.BROKEN)):
        query = Query.of_box(x, x, torch.tensor([[1.0, 0.0]]).double(), -y[:1] + sign * 1e-6)
        assert InputSplitting().solve(graph, query, SearchLimit.seconds(300)).decision is decision
    wide = Query.of_box(x - torch.tensor([0, 1.0, 0]), x, torch.eye(2).double(), torch.full((2,), 50.0))
    assert InputSplitting().solve(graph, wide, SearchLimit.seconds(300)).decision is Decision.HOLDS


@pytest.mark.parametrize("seed", range(8))
def test_verdicts_agree_with_a_grid_and_groups_of_rows(seed):
    """Unsafe where both rows of a group are at most 0; the threshold lies just beyond what a fine grid reaches."""
    graph = _chain(2, 10, 10, 3, seed=seed)
    c = torch.tensor([[1.0, -1.0, 0], [0, 1.0, -1.0], [-1.0, 0, 1.0]])
    groups = torch.tensor([0, 0, 1])
    axis = torch.linspace(-1, 1, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    rows = graph.as_module()(points).detach() @ c.double().T
    least = float(_query(c, torch.zeros(3), groups).score(rows).min())
    spread = float(rows.amax() - rows.amin())
    for shift, decision in ((0.02 * spread, Decision.HOLDS), (-1e-3 * spread, Decision.BROKEN)):
        query = _query(c, torch.full((3,), -least + shift), groups)
        answer = InputSplitting().solve(graph, query, SearchLimit.seconds(300))
        assert answer.decision is decision
        if decision is Decision.HOLDS:
            assert 0 < answer.bound <= shift + 1e-9
            assert bool((answer.rows <= (rows + query.d).amin(0) + 1e-9).all())
        else:
            assert broken(graph, query, answer.witness)


def test_bounds_at_any_time_are_sound_and_grow():
    graph = _chain(3, 16, 16, 2, seed=3)
    query = _query([[1.0, -1.0]], [0.0], n=3)
    points = torch.rand(20000, 3, dtype=torch.float64) * 2 - 1
    least = float((graph.as_module()(points).detach() @ query.c.T).min())
    query = _query([[1.0, -1.0]], [-least + 1e-4], n=3)
    found = [
        InputSplitting(descent=0, boxes=8, chunk=8).solve(graph, query, SearchLimit(torch.inf, domains=k)).bound
        for k in (1, 20, 60)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1] <= 1e-4
    root = CROWN().bounds(graph, query.ball, query.x, query.c, query.d)
    assert found[0] >= float(root) - 1e-9


def _leaves(tree, vertex, low, high):
    at = tree.vertices[vertex]
    if isinstance(at, Leaf):
        yield at, low, high
        return
    assert isinstance(at, Split)
    assert at.node == 0
    left, right = high.clone(), low.clone()
    left[at.index], right[at.index] = at.point, at.point
    yield from _leaves(tree, at.children[0], low, left)
    yield from _leaves(tree, at.children[1], right, high)


def test_a_tree_can_be_checked_leaf_by_leaf():
    graph = _chain(2, 10, 10, 3, seed=1)
    c, groups = torch.tensor([[1.0, -1.0, 0], [0, 1.0, -1.0], [-1.0, 0, 1.0]]), torch.tensor([0, 0, 1])
    axis = torch.linspace(-1, 1, 201, dtype=torch.float64)
    rows = graph.as_module()(torch.cartesian_prod(axis, axis)).detach() @ c.double().T
    least = float(_query(c, torch.zeros(3), groups).score(rows).min())
    query, tree = _query(c, torch.full((3,), -least + 0.3), groups), Tree()
    answer = InputSplitting().solve(graph, query, SearchLimit.seconds(300), tree=tree)
    assert answer.decision is Decision.HOLDS
    assert tree.complete
    volume = 0.0
    for leaf, low, high in _leaves(tree, 0, query.lower, query.upper):
        part = Query.of_box(low, high, query.c, query.d, groups)
        bounds = CROWN().bounds(graph, part.ball, part.x, part.c, part.d)[0]
        assert sorted(int(groups[i]) for i in leaf.rows) == [0, 1]
        assert all(bounds[i] > 0 for i in leaf.rows)
        volume += float((high - low).prod())
    assert volume == pytest.approx(4.0)


def test_smooth_activations_are_served():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 1)).double()
    graph = trace(net, torch.zeros(1, 2).double())
    axis = torch.linspace(-1, 1, 201, dtype=torch.float64)
    least = float(net(torch.cartesian_prod(axis, axis)).detach().min())
    holds = InputSplitting().solve(graph, _query([[1.0]], [0.01 - least]), SearchLimit.seconds(300))
    assert holds.decision is Decision.HOLDS
    breaks = InputSplitting().solve(graph, _query([[1.0]], [-1e-4 - least]), SearchLimit.seconds(300))
    assert breaks.decision is Decision.BROKEN


def test_balls_that_are_no_boxes_are_refused():
    graph = _chain(2, 4, 2, seed=0)
    x = torch.zeros(1, 2).double()
    query = Query(
        x=x,
        ball=LpBall.uniform(Norm.L2, 0.1, 1),
        c=torch.eye(2).double(),
        d=torch.zeros(2).double(),
        groups=torch.arange(2),
    )
    with pytest.raises(UnsupportedError, match="neuron_splitting"):
        InputSplitting().solve(graph, query, SearchLimit.seconds(1))


def test_no_time_is_a_timeout():
    graph, query = _chain(2, 10, 10, 2, seed=0), _query([[1.0, -1.0]], [0.0])
    answer = InputSplitting(descent=0).solve(graph, query, SearchLimit(0.0))
    assert answer.decision in (Decision.TIMEOUT, Decision.BROKEN)
    assert answer.domains == 1


def test_a_box_is_not_cut_to_slivers_while_a_wide_input_waits():
    """A cut along the second input makes the bound worse, and two prove the box: one cut ahead, it is never chosen."""
    given = net(50)
    query = Query(
        x=given.x, ball=given.ball, c=C[:1], d=0.01 - given.exact[:1], groups=torch.zeros(1, dtype=torch.int64)
    )
    answer = InputSplitting().solve(given.graph, query, replace(SearchLimit.seconds(300), domains=5000))
    assert answer.decision is Decision.HOLDS
