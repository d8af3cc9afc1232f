"""Neuron splitting: against exact optima, its bounds on the way, its proofs, its limits."""

import itertools
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from holdfast.certifiers.branch_and_bound.ascent import Climb, ascend
from holdfast.certifiers.branch_and_bound.choice import Choice
from holdfast.certifiers.branch_and_bound.domains import DomainBatch
from holdfast.certifiers.branch_and_bound.passes import evaluate
from holdfast.certifiers.branch_and_bound.pool import OldestFirst, Pool
from holdfast.certifiers.branch_and_bound.reduced import Cuts, NeuronState
from holdfast.certifiers.branch_and_bound.reduction import reduce
from holdfast.certifiers.branch_and_bound.refine import Refinement
from holdfast.certifiers.branch_and_bound.sound import sound_bounds, sound_units
from holdfast.certifiers.complete.neuron_splitting import NeuronSplitting
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision, SearchLimit
from holdfast.certifiers.verification.tree import Leaf, Split, Tree
from holdfast.certifiers.verification.verifier import broken
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace
from holdfast.graph.model import Graph


def dense(*sizes: int, seed: int = 0, act: type[nn.Module] = nn.ReLU, scale: float = 1.5) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(a, b)] + ([act()] if i < len(sizes) - 2 else [])
        layers[2 * i].weight.data *= scale
    return nn.Sequential(*layers)


def graph_of(net: nn.Module, inputs: int) -> Graph:
    return trace(net, torch.zeros(1, inputs))


def box_query(graph: Graph, shift: float = 0.0, rows: int = 1, seed: int = 0, half: float = 1.0) -> Query:
    """Rows in groups of two (the last may have one), over the box [-half, half]."""
    outputs = graph.output_shape[0]
    c = torch.randn(rows, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    size = torch.full(graph.input_shape, half)
    groups = torch.arange(rows) // 2
    return Query.of_box(-size, size, c, torch.full((rows,), shift, dtype=torch.float64), groups)


def exact(net: nn.Sequential, query: Query) -> float:
    """The least over the box of `Query.score`, by HiGHS with big-M constraints from intervals."""
    low, high = query.lower.double(), query.upper.double()
    count = low.numel()
    values = [np.eye(count)]  # each a matrix over all variables, padded at the end
    shifts = [np.zeros(count)]
    lower, upper = list(low.numpy()), list(high.numpy())
    integer, constraints = [0] * count, []
    for layer in net:
        if isinstance(layer, nn.Linear):
            w, b = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
            values.append(w @ values[-1])
            shifts.append(w @ shifts[-1] + b)
            centre, radius = (low + high) / 2, (high - low) / 2
            middle, reach = w @ centre.numpy() + b, np.abs(w) @ radius.numpy()
            low, high = torch.from_numpy(middle - reach), torch.from_numpy(middle + reach)
            continue
        z, c = values[-1], shifts[-1]
        n, old = len(z), len(lower)
        lower += [0.0] * (2 * n)
        upper += [max(float(h), 0.0) for h in high] + [1.0] * n
        integer += [0] * n + [1] * n
        for i in range(n):
            row = np.zeros(old + 2 * n)
            row[: z.shape[1]] = -z[i]
            row[old + i] = 1.0
            constraints.append((row.copy(), c[i], np.inf))  # r >= z
            on = row.copy()
            on[old + n + i] = -float(low[i])
            constraints.append((on, -np.inf, c[i] - float(low[i])))  # r <= z - l (1 - d)
            off = np.zeros(old + 2 * n)
            off[old + i], off[old + n + i] = 1.0, -float(high[i])
            constraints.append((off, -np.inf, 0.0))  # r <= u d
        values.append(np.hstack([np.zeros((n, old)), np.eye(n), np.zeros((n, n))]))
        shifts.append(np.zeros(n))
        low, high = low.clamp(min=0), high.clamp(min=0)
    total, best = len(lower) + 1, np.inf
    for g in range(int(query.groups[-1]) + 1):
        own = query.select(g)
        rows = own.c.numpy() @ values[-1]
        offsets = own.c.numpy() @ shifts[-1] + own.d.numpy()
        cons = [LinearConstraint(np.pad(r, (0, total - len(r))), a, b) for r, a, b in constraints]
        for r, o in zip(rows, offsets, strict=True):
            wide = np.pad(r, (0, total - len(r)))
            wide[-1] = -1.0
            cons.append(LinearConstraint(wide, -np.inf, -o))
        cost = np.zeros(total)
        cost[-1] = 1.0
        bounds = Bounds(np.array([*lower, -np.inf]), np.array([*upper, np.inf]))
        found = milp(cost, constraints=cons, integrality=np.array([*integer, 0]), bounds=bounds)
        assert found.status == 0
        best = min(best, found.fun)
    return float(best)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(s, marks=pytest.mark.slow) for s in range(6, 30))])
def test_the_verdict_is_that_of_exact_optimisation(seed: int) -> None:
    """Groups of one and of two rows; the level is moved just beyond the optimum to either side."""
    net = dense(3, 6, 5, 4, seed=seed)
    graph = graph_of(net, 3)
    query = box_query(graph, rows=1 + seed % 4, seed=seed)
    least = exact(net, query)
    for side, decision in ((0.02, Decision.HOLDS), (-0.02, Decision.BROKEN)):
        asked = replace(query, d=query.d - least + side)
        answer = NeuronSplitting().solve(graph, asked, SearchLimit.seconds(300))
        assert answer.decision is decision, (answer, least)
        assert answer.bound <= side + 1e-4
        if decision is Decision.BROKEN:
            assert answer.witness is not None
            assert broken(graph, asked, answer.witness)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", [Norm.L2, Norm.L1])
def test_balls_other_than_boxes(norm: Norm, seed: int) -> None:
    net = dense(3, 8, 6, 3, seed=seed)
    graph = graph_of(net, 3)
    ball = LpBall.uniform(norm, 1.0, 1, -2.0, 2.0)
    c = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    query = Query(
        x=torch.zeros(1, 3, dtype=torch.float64),
        ball=ball,
        c=c,
        d=torch.zeros(1),
        groups=torch.zeros(1, dtype=torch.int64),
    )
    directions = torch.randn(200000, 3, dtype=torch.float64)
    p = 2 if norm is Norm.L2 else 1
    radius = torch.rand(len(directions), 1, dtype=torch.float64) ** (1 / 3)
    points = directions / directions.norm(p, dim=1, keepdim=True) * radius
    with torch.no_grad():
        least = float((graph.to(torch.float64).as_module()(points) @ c.T).min())
    answer = NeuronSplitting().solve(graph, replace(query, d=query.d - least + 0.1), SearchLimit.seconds(300))
    assert answer.decision is Decision.HOLDS
    answer = NeuronSplitting().solve(graph, replace(query, d=query.d - least - 0.02), SearchLimit.seconds(300))
    assert answer.decision is Decision.BROKEN


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh])
def test_smooth_activations_are_split_too(act: type[nn.Module]) -> None:
    net = dense(2, 4, 4, 2, act=act, scale=1.5)
    graph = graph_of(net, 2)
    query = box_query(graph, half=2.0)
    grid = torch.cartesian_prod(*(torch.linspace(-2, 2, 400, dtype=torch.float64),) * 2)
    with torch.no_grad():
        least = float(query.score(graph.to(torch.float64).as_module()(grid) @ query.c.T).min())
    asked = replace(query, d=query.d - least + 0.1)
    answer = NeuronSplitting().solve(graph, asked, SearchLimit.seconds(300))
    assert answer.decision is Decision.HOLDS
    assert answer.domains >= (2 if act is nn.Tanh else 1)


def hard(seed: int = 3) -> tuple[Graph, Query, float]:
    net = dense(6, 16, 16, 16, 2, seed=seed)
    graph = graph_of(net, 6)
    query = box_query(graph, seed=seed)
    points = torch.rand(200000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return graph, query, float(query.score(graph.to(torch.float64).as_module()(points) @ query.c.T).min())


def test_the_bound_grows_with_domains_and_stays_below_every_sample() -> None:
    graph, query, least = hard()
    query = replace(query, d=query.d - least - 1.0)  # negative somewhere: the search must go on
    method = replace(NeuronSplitting(box_share=0.0, batch=16))
    found: list[float] = []
    for domains in (1, 50, 400, 2000):
        budget = replace(SearchLimit.seconds(300), domains=domains)
        answer = method.solve(graph, replace(query, d=query.d + 1.02), budget)
        found.append(answer.bound)
    assert found == sorted(found)
    assert found[-1] > found[0]
    assert found[-1] <= 0.02


def test_the_deadline_is_kept() -> None:
    net = dense(20, 60, 60, 60, 2, seed=1)
    graph = graph_of(net, 20)
    query = box_query(graph)
    points = torch.rand(100000, 20, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        least = float(query.score(graph.to(torch.float64).as_module()(points) @ query.c.T).min())
    start = monotonic()
    answer = NeuronSplitting().solve(graph, replace(query, d=query.d - 2 * least), SearchLimit.seconds(2.0))
    assert monotonic() - start < 3.5
    assert answer.decision in (Decision.TIMEOUT, Decision.BROKEN)


@torch.no_grad()
def test_a_part_is_bounded_no_worse_than_the_whole_and_multipliers_help() -> None:
    graph, query, _ = hard()
    found = Propagation(graph.to(torch.float64), Region(query.ball, query.x))
    found.run(refine=lambda _: True)
    reduced = reduce(found, query, 1 << 26)
    units = torch.arange(0, reduced.units, 3)
    n = 2 * len(units)
    start = reduced.state(n)
    side = torch.tensor([-1.0, 1.0]).repeat(len(units)).unsqueeze(1)
    zero = torch.zeros(n, 1)
    cuts = Cuts(units.repeat_interleave(2).unsqueeze(1), side, zero, zero)
    low, high = (t.float() for t in reduced.cut(cuts))
    state = NeuronState(low, high, start.slope, start.alphas, cuts)
    c, d = query.c.expand(n, 1, -1), query.d.expand(n, 1)
    whole = specification(found, query.c.unsqueeze(0), query.d.unsqueeze(0))
    plain = sound_bounds(found, reduced, query, c, d, state)
    rows = reduced.rows[torch.zeros(n, dtype=torch.int64)]
    assert torch.allclose(evaluate(reduced, rows, state).bound.double(), plain[:, 0], atol=1e-3, rtol=1e-4)
    bound, better = ascend(reduced, rows, state, Climb(iterations=20, step=0.1, decay=0.97))
    tight = sound_bounds(found, reduced, query, c, d, better)
    assert (tight >= whole - 1e-3).all()
    assert (tight >= plain - 1e-4).all()
    assert (tight > plain + 1e-3).any()
    assert torch.allclose(bound.double(), tight[:, 0], atol=1e-3, rtol=1e-4)
    # every sampled point of a part has a value above its bound
    model = graph.to(torch.float64).as_module()
    points = torch.rand(20000, 6, dtype=torch.float64) * 2 - 1
    values = (model(points) @ query.c.T + query.d)[:, 0]
    pre = model_values(graph, points)
    for i in range(n):
        z = pre[int(reduced.source[cuts.unit[i, 0]])][:, int(reduced.entry[cuts.unit[i, 0]])]
        inside = (z * side[i, 0] >= 0) if len(z) else z
        if inside.any():
            assert float(values[inside].min()) >= float(tight[i, 0])


def model_values(graph: Graph, x: torch.Tensor) -> dict[int, torch.Tensor]:
    values = {0: x}
    for i in range(1, len(graph.nodes)):
        values[i] = replace(graph, nodes=graph.nodes[: i + 1]).to(torch.float64).as_module()(x)
    return values


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.Tanh])
@torch.no_grad()
def test_a_new_split_starts_no_worse_than_what_it_splits(act: type[nn.Module]) -> None:
    """Of other activations than ReLU the lines change with the box: no worse than without a multiplier, then."""
    graph = graph_of(dense(4, 8, 8, 2, seed=1, act=act, scale=2.0), 4)
    query = box_query(graph)
    found = Propagation(graph.to(torch.float64), Region(query.ball, query.x))
    found.run(refine=lambda _: True)
    reduced = reduce(found, query, 1 << 26)
    choice = Choice(reduced, lambda rows: rows.amax(1), count=1, batch=64)
    at = torch.arange(reduced.units).unsqueeze(1)
    rows = reduced.rows[torch.zeros(reduced.units, dtype=torch.int64)]
    whole = reduced.state(reduced.units)
    parent, point = evaluate(reduced, rows, whole), choice.points(whole, at)
    a, slope = parent.a.gather(1, at), whole.slope.gather(1, at)
    for side in (-1, 1):
        cuts = Cuts(at, torch.full_like(point, side), point, choice.multiplier(a, slope, at, side))
        low, high = (t.float() for t in reduced.cut(cuts))
        child = NeuronState(low, high, whole.slope, whole.alphas, cuts)
        plain = child._replace(cuts=cuts._replace(multiplier=torch.zeros_like(point)))
        reference = parent if act is nn.ReLU else evaluate(reduced, rows, plain)
        assert (evaluate(reduced, rows, child).bound >= reference.bound - 1e-4).all()


@torch.no_grad()
def test_boxes_refined_by_splits_contain_every_sample() -> None:
    graph, query, _ = hard()
    found = Propagation(graph.to(torch.float64), Region(query.ball, query.x))
    found.run(refine=lambda _: True)
    reduced = reduce(found, query, 1 << 26)
    choice = Choice(reduced, lambda rows: rows.amax(1), count=1, batch=64)
    layer = reduced.layers[2]
    values = model_values(graph, torch.rand(50000, 6, dtype=torch.float64) * 2 - 1)[layer.source]
    previous = found.boxes[layer.source]
    for splits in (0, 4, 16):
        box: Box = Refinement(
            propagation=found,
            reduced=reduced,
            query=query,
            choice=choice,
            depth=2,
            step=0.1,
            decay=0.97,
            until=monotonic() + 30,
            iterations=20,
            splits=splits,
            split_iterations=12,
            batch=64,
        ).run()
        assert (values >= box.lower).all()
        assert (values <= box.upper).all()
        assert (box.upper - box.lower).sum() < (previous.upper - previous.lower).sum()
        previous = box


@torch.no_grad()
def test_sound_units_agree_with_the_propagation() -> None:
    graph, query, _ = hard()
    found = Propagation(graph.to(torch.float64), Region(query.ball, query.x))
    found.run(refine=lambda _: False)
    reduced = reduce(found, query, 1 << 26)
    index = torch.arange(4)
    a = torch.zeros(4, 1, 16, dtype=torch.float64)
    a[index, 0, index] = -1.0
    source = reduced.layers[1].source
    mine = sound_units(found, reduced, query, source, index, -torch.ones(4, dtype=torch.float64), reduced.state(4))
    assert torch.allclose(mine, found.minimum(source, a).squeeze(1), atol=1e-12)


def test_a_planted_counterexample_is_never_proved() -> None:
    """A bump on a small part of the box; beside it the margin is 0.01."""
    bump = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        bump[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) * 100)
        bump[0].bias.copy_(torch.tensor([-30.1, 30.1, -70.3, 70.3]))
        bump[2].weight.fill_(-1.0)
        bump[2].bias.fill_(1.0)
        bump[4].weight.fill_(-0.011)
        bump[4].bias.fill_(0.01)
    graph = graph_of(bump, 2)
    one = torch.ones(2)
    query = Query.of_box(0 * one, one, torch.ones(1, 1), torch.zeros(1))
    answer = NeuronSplitting().solve(graph, query, SearchLimit.seconds(300))
    assert answer.decision is Decision.BROKEN
    assert answer.witness is not None
    assert float(bump(answer.witness.float()).detach()) <= 0
    away = Query.of_box(0 * one, one * 0.6, torch.ones(1, 1), torch.zeros(1))
    assert NeuronSplitting().solve(graph, away, SearchLimit.seconds(300)).decision is Decision.HOLDS


@pytest.mark.parametrize(("rows", "act"), [(1, nn.ReLU), (3, nn.ReLU), (1, nn.Tanh)])
def test_the_tree_is_complete_and_each_leaf_proves_its_part(rows: int, act: type[nn.Module]) -> None:
    net = dense(3, 6, 6, 3, seed=5, act=act, scale=2.0)
    graph = graph_of(net, 3)
    query = box_query(graph, rows=rows, seed=2)
    query = replace(query, groups=torch.arange(rows))
    grid = torch.cartesian_prod(*(torch.linspace(-1, 1, 41, dtype=torch.float64),) * 3)
    model = graph.to(torch.float64).as_module()
    with torch.no_grad():
        least = float(query.score(model(grid) @ query.c.T + query.d).min())
    query = replace(query, d=query.d - least + 0.15)
    tree = Tree()
    answer = NeuronSplitting().solve(graph, query, SearchLimit.seconds(300), tree=tree)
    assert answer.decision is Decision.HOLDS
    assert tree.complete
    assert any(isinstance(v, Split) for v in tree.vertices)
    found = Propagation(graph.to(torch.float64), Region(query.ball, query.x))
    found.run(refine=lambda _: True)
    stack: list[tuple[int, list[tuple[int, int, float, int]]]] = [(0, [])]
    while stack:
        vertex, path = stack.pop()
        at = tree.vertices[vertex]
        if isinstance(at, Split):
            for child, side in zip(at.children, (-1, 1), strict=True):
                stack.append((child, [*path, (at.node, at.index, at.point, side)]))
            continue
        assert isinstance(at, Leaf)
        assert len(at.rows) == int(query.groups[-1]) + 1
        assert [int(query.groups[r]) for r in at.rows] == list(range(len(at.rows)))
        boxes = {i: [t.clone() for t in found.boxes[i]] for i, *_ in path}
        extra = {i: torch.zeros(len(at.rows), *found.boxes[i].lower.shape, dtype=torch.float64) for i, *_ in path}
        constant = torch.zeros(len(at.rows), dtype=torch.float64)
        multipliers = torch.from_numpy(at.multipliers).double()
        assert multipliers.shape[1] in (0, len(path))
        assert (multipliers >= 0).all()
        for k, (i, j, point, side) in enumerate(path):
            end = boxes[i][0 if side > 0 else 1].flatten()
            end[j] = max(float(end[j]), point) if side > 0 else min(float(end[j]), point)
            if multipliers.shape[1]:
                extra[i].view(len(at.rows), -1)[:, j] -= side * multipliers[:, k]
                constant += side * point * multipliers[:, k]
        cut = found.parts(found.region, {i: Box(*t) for i, t in boxes.items()})
        slopes = {k: torch.from_numpy(s).double().unsqueeze(1) for k, s in at.slopes.items()}
        chosen = list(at.rows)
        lower = specification(cut, query.c[chosen].unsqueeze(0), query.d[chosen].unsqueeze(0), slopes, extra=extra)
        assert (lower[0] + constant > 0).all()


def test_max_pools_are_split_as_relus_of_differences() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    for layer in (net[0], net[4], net[6]):
        layer.weight.data *= 1.5
    graph = trace(net, torch.zeros(1, 1, 5, 5))
    size = torch.full((1, 5, 5), 0.3)
    query = Query.of_box(-size, size, torch.tensor([[1.0, -1.0]]), torch.zeros(1))
    points = (torch.rand(100000, 1, 5, 5, dtype=torch.float64) * 2 - 1).sign() * 0.3
    with torch.no_grad():
        least = float((graph.to(torch.float64).as_module()(points) @ query.c.T).min())
    near = replace(query, d=query.d - least + 0.05)
    answer = NeuronSplitting().solve(graph, near, SearchLimit.seconds(300))
    assert answer.decision is Decision.HOLDS
    assert answer.domains > 1
    assert answer.bound <= 0.05
    refused = NeuronSplitting().solve(graph, near, SearchLimit.seconds(300), tree=Tree())
    assert refused.decision is Decision.UNKNOWN
    assert "max pools" in refused.reason
    below = replace(query, d=query.d - least - 0.01)
    answer = NeuronSplitting().solve(graph, below, SearchLimit.seconds(300))
    assert answer.decision is Decision.BROKEN
    assert answer.witness is not None
    assert broken(graph, below, answer.witness)


def test_proofs_about_the_network_as_it_runs_know_what_it_loses() -> None:
    """In bfloat16 this network is somewhere below its least value in real numbers, which alone is proved positive."""
    net = dense(3, 8, 8, 2, seed=8).bfloat16()
    grid = torch.linspace(-1, 1, 33).bfloat16()
    points = torch.cartesian_prod(grid, grid, grid)
    with torch.no_grad():
        ran = net(points).double()
    net = net.float()
    graph = graph_of(net, 3)
    query = box_query(graph)
    least, worst = exact(net, query), float(query.score(ran @ query.c.T).min())
    assert worst < least
    between = replace(query, d=query.d - (worst + least) / 2)
    narrow = replace(graph, deployed=torch.bfloat16)
    assert NeuronSplitting().solve(graph, between, SearchLimit.seconds(300)).decision is Decision.HOLDS
    assert NeuronSplitting().solve(narrow, between, SearchLimit.seconds(1)).decision is not Decision.HOLDS
    answer = NeuronSplitting().solve(narrow, replace(query, d=query.d - worst + 0.5), SearchLimit.seconds(300))
    assert answer.decision is Decision.HOLDS
    assert answer.domains > 1
    assert answer.bound <= 0.5
    assert "bfloat16" in answer.arithmetic


@dataclass(frozen=True, eq=False, kw_only=True)
class CutDomains(DomainBatch):
    cut: torch.Tensor
    row: torch.Tensor


def cut_domains(bound: torch.Tensor, depth: int, cut: float) -> CutDomains:
    n = len(bound)
    vertex = torch.zeros(n, dtype=torch.int64)
    return CutDomains(bound=bound, vertex=vertex, cut=torch.full((n, depth), cut), row=torch.ones(n, 2, depth))


def test_what_waits_comes_worst_first_and_grows() -> None:
    pool = Pool[CutDomains]()
    for depth in (1, 3, 2):
        pool.add(cut_domains(torch.arange(5.0) + depth, depth, float(depth)))
    assert len(pool) == 15
    assert pool.worst == 1.0
    first = pool.take(4)
    assert first.bound.tolist() == [1.0, 2.0, 2.0, 3.0]
    for bound, cut in zip(first.bound, first.cut, strict=True):
        assert cut.tolist() in ([1, 0, 0], [2, 2, 0], [3, 3, 3]), bound
    pool.add(cut_domains(torch.zeros(2), 1, 9.0))
    assert len(pool) == 13
    assert pool.take(2).cut.tolist() == [[9.0, 0.0, 0.0]] * 2
    assert pool.take(1, best=True).bound.tolist() == [7.0]


def test_of_equal_bounds_the_oldest_come_first_where_that_is_asked() -> None:
    pool = OldestFirst[CutDomains]()
    for name in range(40):
        pool.add(cut_domains(torch.tensor([0.0, 1.0]), 1, float(name)))
        if name % 3 == 2:  # places of what is taken are used again
            assert pool.take(1).cut.tolist() == [[float(name // 3)]]
    assert pool.take(27).cut.flatten().tolist() == [float(name) for name in range(13, 40)]
    assert pool.take(2).bound.tolist() == [1.0, 1.0]
