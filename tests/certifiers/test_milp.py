"""The integer program as a reference, and the solver, which must be right even where HiGHS is not."""

import numpy as np
import pytest
import torch
from random_nets import C, net
from small_nets import inside, make

from holdfast.certifiers.branch_and_bound.linear_program import Optimum, Program
from holdfast.certifiers.complete.milp import MILP, exact_minimum
from holdfast.certifiers.relaxation.relaxation import lower_max_pools
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision, SearchLimit
from holdfast.certifiers.verification.verifier import broken
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, Node, trace

ONE = torch.zeros(1, dtype=torch.int64)


def _case(name, eps=0.04):
    module, shape = make(name, 4)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(4))
    return trace(module, x).to(torch.float64), x.double(), LpBall.uniform(Norm.LINF, eps, 1)


@pytest.mark.parametrize("name", ["dense", "conv", "conv1d", "max_pool", "residual"])
def test_the_integer_program_is_attained_and_below_all_samples(name):
    graph, x, ball = _case(name)
    value, at = exact_minimum(graph, ball, x, C)
    with torch.no_grad():
        run = graph.as_module()
        attained = (run(at) @ C.T).diagonal()
        sampled = (run(inside(ball, x, 2000, 1)[:, 0]) @ C.T).amin(0)
    torch.testing.assert_close(attained, value, rtol=0, atol=1e-6)
    assert ((at - x).abs() <= 0.04 + 1e-7).all()
    assert (value <= sampled + 1e-6).all()


def test_max_pools_become_relus_of_the_same_function():
    for stride, padding, dilation, ceil in ((1, 0, 1, False), (2, 1, 1, True), (1, 1, 2, False), (3, 1, 1, True)):
        module = torch.nn.MaxPool2d(3, stride, padding, dilation, ceil_mode=ceil)
        x = torch.randn(5, 2, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        graph = lower_max_pools(trace(module, x))
        assert all(node.op != "max_pool" for node in graph.nodes)
        torch.testing.assert_close(graph.as_module()(x), module(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["conv", "conv1d", "max_pool", "residual"])
def test_thresholds_beside_the_optimum_are_decided(name):
    graph, x, ball = _case(name)
    exact = exact_minimum(graph, ball, x, C[:1])[0]
    for margin, decision in ((1e-3, Decision.HOLDS), (-1e-3, Decision.BROKEN)):
        query = Query(x=x, ball=ball, c=C[:1], d=margin - exact, groups=ONE)
        answer = MILP().solve(graph, query, SearchLimit.seconds(300))
        assert answer.decision is decision
        assert answer.bound <= margin
        assert (answer.witness is not None) == (decision is Decision.BROKEN)
        assert answer.witness is None or broken(graph, query, answer.witness)


def test_margins_far_below_the_solvers_tolerance_are_proved():
    for seed in range(6):
        given = net(seed)
        query = Query(x=given.x, ball=given.ball, c=C[:1], d=1e-9 - given.exact[:1], groups=ONE)
        assert MILP().solve(given.graph, query, SearchLimit.seconds(300)).decision is Decision.HOLDS


def test_a_group_of_rows_is_proved_where_no_row_is_positive_throughout():
    """The least over the box of the larger of two rows, from a network that computes it."""
    decided = 0
    for seed in range(10):
        given = net(seed)
        most = _larger_of(given.graph)
        exact = exact_minimum(most, given.ball, given.x, torch.ones(1, 1))[0]
        for margin, decision in ((1e-4, Decision.HOLDS), (-1e-4, Decision.BROKEN)):
            d = (margin - exact).expand(2)
            query = Query(x=given.x, ball=given.ball, c=C, d=d, groups=torch.zeros(2, dtype=torch.int64))
            answer = MILP().solve(given.graph, query, SearchLimit.seconds(300))
            assert answer.decision is decision, (seed, answer)
            decided += int(decision is Decision.HOLDS and not (given.exact + d > 0).any())
    assert decided


def _larger_of(graph: Graph) -> Graph:
    """max(f_0 - f_1, f_0 - f_2), as ``y + relu(x - y)``."""
    last = len(graph.nodes) - 1
    rows = torch.stack([C[0] - C[1], C[1]])
    return Graph(
        (
            *graph.nodes,
            Node(op="linear", inputs=(last,), shape=(2,), tensors={"weight": rows}),
            Node(
                op="select", inputs=(last + 1,), shape=(1,), tensors={"index": torch.tensor([0])}, attributes={"dim": 0}
            ),
            Node(
                op="select", inputs=(last + 1,), shape=(1,), tensors={"index": torch.tensor([1])}, attributes={"dim": 0}
            ),
            Node(op="relu", inputs=(last + 2,), shape=(1,)),
            Node(op="add", inputs=(last + 3, last + 4), shape=(1,)),
        ),
        torch.float64,
    )


def test_groups_are_all_needed():
    given = net(3)
    for d, decision in (
        ([1e-3, 1e-3], Decision.HOLDS),
        ([1e-3, -1e-3], Decision.BROKEN),
        ([-1e-3, 1.0], Decision.BROKEN),
    ):
        query = Query(x=given.x, ball=given.ball, c=C, d=torch.tensor(d) - given.exact, groups=torch.arange(2))
        answer = MILP().solve(given.graph, query, SearchLimit.seconds(300))
        assert answer.decision is decision
        assert (answer.rows <= torch.tensor(d) + 1e-9).all()


@pytest.mark.parametrize("garbage", ["random", "nan", "none", "proud"])
def test_what_highs_says_is_never_believed(monkeypatch, garbage):
    """Whatever comes back from it, nothing that is broken is proved, and witnesses are still run."""
    stream = np.random.default_rng(0)

    def answer(self, splits, seconds):
        if garbage == "none":
            return None
        k, v, r = len(self.z), self.width - 2, len(self.rows)
        draw = stream.normal if garbage != "nan" else lambda size: np.full(size, np.nan)
        value = 1e9 if garbage == "proud" else 0.0
        weights, multipliers, gain = np.abs(draw(size=r)), 10 * np.abs(draw(size=k)), np.abs(draw(size=k))
        return Optimum(
            value=value,
            variables=draw(size=v),
            weights=weights,
            slopes=draw(size=k),
            multipliers=multipliers,
            gain=gain,
        )

    monkeypatch.setattr(Program, "relaxed", answer)
    for seed in range(8):
        given = net(seed)
        for margin in (-1e-6, 1e-2):
            query = Query(x=given.x, ball=given.ball, c=C[:1], d=margin - given.exact[:1], groups=ONE)
            found = MILP(share=0.0).solve(given.graph, query, SearchLimit.seconds(5.0))
            assert found.decision is not Decision.HOLDS or margin > 0
            assert found.decision is not Decision.BROKEN or margin < 0
            assert found.bound <= margin


def test_smooth_activations_are_never_guessed():
    for name in ("smooth", "branches"):
        graph, x, ball = _case(name, 0.1)
        with torch.no_grad():
            least = (graph.as_module()(inside(ball, x, 4000, 2)[:, 0]) @ C[0]).amin()
        decisions = []
        for margin in (-1e-3, 0.05, 3.0):
            query = Query(x=x, ball=ball, c=C[:1], d=(margin - least).view(1), groups=ONE)
            answer = MILP().solve(graph, query, SearchLimit.seconds(300))
            decisions.append(answer.decision)
            assert (answer.decision is Decision.UNKNOWN) == bool(answer.reason)
        assert decisions[0] is not Decision.HOLDS
        assert decisions[2] is Decision.HOLDS


def test_time_and_domains_end_with_a_sound_bound():
    graph, x, ball = _case("conv1d", 0.2)
    exact = exact_minimum(graph, ball, x, C[:1])[0]
    query = Query(x=x, ball=ball, c=C[:1], d=1e-3 - exact, groups=ONE)
    late = MILP().solve(graph, query, SearchLimit.seconds(0.0))
    assert late.decision is Decision.TIMEOUT
    few = MILP(share=0.0).solve(graph, query, SearchLimit(SearchLimit.seconds(300).deadline, domains=20))
    assert few.decision in (Decision.UNKNOWN, Decision.HOLDS)
    assert late.bound <= few.bound <= 1e-3 + 1e-6


def test_refusals_are_in_words():
    graph, x, _ = _case("smooth")
    ball = LpBall.uniform(Norm.L2, 0.1, 1)
    with pytest.raises(UnsupportedError, match="sigmoid"):
        exact_minimum(graph, LpBall.uniform(Norm.LINF, 0.1, 1), x, C)
    with pytest.raises(UnsupportedError, match="splitting"):
        MILP().solve(
            graph,
            Query(x=x, ball=ball, c=C, d=torch.zeros(2).double(), groups=torch.arange(2)),
            SearchLimit.seconds(1.0),
        )
    query = Query(
        x=x, ball=LpBall.uniform(Norm.LINF, 0.1, 1), c=C, d=torch.full((2,), -9.0).double(), groups=torch.arange(2)
    )
    with pytest.raises(UnsupportedError, match="more than 3"):
        MILP(variables=3).solve(graph, query, SearchLimit.seconds(1.0))
