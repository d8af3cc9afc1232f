"""The order of the methods where it is a theorem, on random small networks against their exact optima.

What is not a theorem is not here: CROWN-IBP may be above CROWN, intervals above CROWN-IBP, and slopes of 0 above the
adaptive ones (see the order facts of the literature in `research/verification.md`).
"""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from random_nets import C, net, relaxation, together, triangle

from holdfast.certifiers.bounds.alpha_crown import AlphaCROWN
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.bounds.sdp import SDP
from holdfast.certifiers.branch_and_bound.linear_program import Program
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision, SearchLimit, Solver
from holdfast.core.registry import method, names
from holdfast.core.threat import Norm

SOLVER = 1e-6  # HiGHS' and Clarabel's tolerance
ROUNDING = 1e-9
FEW, ALL = range(48), range(1000)


def _graph_certifiers():
    found = {name: method(name) for name in names("certifier")}
    return {n: m for n, m in found.items() if issubclass(m, GraphCertifier) and Norm.LINF in m.card.norms}


METHODS = _graph_certifiers()
SOLVERS = sorted(n for n, m in METHODS.items() if issubclass(m, Solver))
# methods that take on few variables only see one network at a time
SMALL = sorted(n for n, m in METHODS.items() if n not in SOLVERS and "variables" in {f.name for f in fields(m)})
BATCHED = sorted(set(METHODS) - set(SOLVERS) - set(SMALL))

sizes = pytest.mark.parametrize("seeds", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])


def _bounds(certifier, seeds, chunk=48):
    """Bounds (nets, 2) of the networks, side by side, and their exact minima."""
    low, exact = [], []
    for start in range(0, len(seeds), chunk):
        graph, ball, x, c, best = together([net(s) for s in seeds[start : start + chunk]])
        low.append(certifier.bounds(graph, ball, x, c).detach()[0])
        exact.append(best)
    return torch.cat(low).view(-1, 2).numpy(), torch.cat(exact).view(-1, 2).numpy()


@sizes
@pytest.mark.parametrize("name", BATCHED)
def test_no_bound_is_above_the_exact_optimum(name, seeds):
    low, exact = _bounds(METHODS[name](), seeds)
    assert (low <= exact + SOLVER).all()
    assert (low > exact - 1e-3).any()  # and it is about these networks


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seeds", [range(0, 48, 6), pytest.param(range(0, 1000, 10), marks=pytest.mark.slow)])
def test_no_bound_of_one_network_at_a_time_is_above_the_exact_optimum(name, seeds):
    for given in map(net, seeds):
        low = METHODS[name]().bounds(given.graph, given.ball, given.x, C)[0]
        assert (low <= given.exact + SOLVER).all()


@sizes
def test_optimised_bounds_are_not_below_their_start(seeds):
    start = _bounds(CROWN(), seeds)[0]
    assert (_bounds(AlphaCROWN(), seeds)[0] >= start - ROUNDING).all()
    if "dvijotham" in METHODS:
        assert (_bounds(METHODS["dvijotham"](), seeds)[0] >= start - ROUNDING).all()


@sizes
def test_no_line_bound_is_above_the_triangle_program_at_the_same_boxes(seeds):
    """CROWN's boxes; alpha-CROWN and the dual only choose within it, and come near it where it proves nothing.

    Rows that are proved are settled, and not worked on any further.
    """
    program = np.array([[triangle(relaxation(net(s)), row) for row in C] for s in seeds])
    exact = np.stack([net(s).exact.numpy() for s in seeds])
    assert (program <= exact + SOLVER).all()
    certifiers = {"crown": CROWN(), "alpha": AlphaCROWN(iterations=40, deep_iterations=0)}
    if "dvijotham" in METHODS:
        certifiers["dual"] = METHODS["dvijotham"]()
    gap, open_ = {}, program <= 0
    for key, certifier in certifiers.items():
        low = _bounds(certifier, seeds)[0]
        assert (low <= program + SOLVER).all(), key
        gap[key] = (program - np.asarray(low))[open_].mean()
    assert gap["alpha"] <= 0.05 * gap["crown"]
    assert gap.get("dual", 0.0) <= 0.05 * gap["crown"]


@pytest.mark.parametrize("seeds", [range(0, 48, 6), pytest.param(range(0, 1000, 10), marks=pytest.mark.slow)])
def test_the_semidefinite_bound_lies_between_the_triangle_program_and_the_optimum(seeds):
    better = 0
    for given in map(net, seeds):
        low = SDP().bounds(given.graph, given.ball, given.x, C)[0]
        program = torch.tensor([triangle(relaxation(given), row) for row in C], dtype=torch.float64)
        assert (low >= program - SOLVER).all()
        assert (low <= given.exact + SOLVER).all()
        better += int((low > program + 1e-3).sum())
    assert better


@sizes
def test_the_linear_program_of_a_part_is_not_below_that_of_the_whole(seeds):
    for given in map(net, seeds):
        found = relaxation(given)
        row = found.objective(C[:1], torch.zeros(1).double())[0].numpy()
        program, splits = Program(found, row), np.zeros(len(found.kinks.node), np.int8)
        whole = program.relaxed(splits, 10.0)
        assert whole.value == pytest.approx(triangle(found, C[0]), abs=1e-5)
        if not len(splits):
            continue
        chosen = int(whole.gain.argmax())
        for side in (-1, 1):
            splits[chosen] = side
            assert program.relaxed(splits, 10.0).value >= whole.value - SOLVER


@sizes
def test_intervals_of_a_part_of_the_box_are_not_below_those_of_the_whole(seeds):
    graph, ball, x, c, _ = together([net(s) for s in seeds[:48]])
    whole = IBP().bounds(graph, ball, x, c)
    middle = (ball.lower + ball.upper) / 2
    for half in ({"lower": middle}, {"upper": middle}):
        part = replace(ball, **half)
        assert (IBP().bounds(graph, part, middle[None], c) >= whole - ROUNDING).all()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", [range(8), pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("name", SOLVERS)
def test_complete_methods_give_the_verdict_of_the_integer_program(name, seeds):
    """Each network is asked with thresholds just below and just above its exact optimum."""
    solver, groups = METHODS[name](), torch.zeros(1, dtype=torch.int64)
    for seed in seeds:
        given = net(seed)
        row = seed % 2
        for margin, decision in ((1e-3, Decision.HOLDS), (-1e-3, Decision.BROKEN)):
            d = margin - given.exact[row : row + 1]
            query = Query(x=given.x, ball=given.ball, c=C[row : row + 1], d=d, groups=groups)
            answer = solver.solve(given.graph, query, SearchLimit.seconds(300))
            assert answer.decision is decision, (seed, margin, answer)
            assert answer.bound <= margin + SOLVER
