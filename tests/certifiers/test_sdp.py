"""The semidefinite relaxations: against the paper's own program, closed forms, and with multipliers that are nonsense."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from random_nets import C, chain, net, relaxation, triangle
from small_nets import inside, make

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.sdp import SDP
from holdfast.certifiers.bounds.sdp_first_order import SDPFirstOrder
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.relaxation.relaxation import Relaxation, lower_max_pools
from holdfast.certifiers.relaxation.semidefinite import SemidefiniteDual, SemidefiniteMultipliers
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace

ZERO = torch.zeros(len(C), dtype=torch.float64)
OPEN = [s for s in range(40) if len(relaxation(net(s)).kinks.node) >= 4][:6]  # nets in which something is relaxed


def _primal(given, row, chords):
    """Raghunathan et al. 2018, section 4, written down in cvxpy: its value, and the matrix P."""
    import cvxpy as cp  # slow to import

    kinks, n, first = given.kinks, len(given.box.lower), len(given.inputs)
    expression = given.objective(row[None], torch.zeros(1).double())[0][0].numpy()
    p = cp.Variable((n + 1, n + 1), PSD=True)
    held = [p[0, 0] == 1]
    for i in range(n):
        low, high = float(given.box.lower[i]), float(given.box.upper[i])
        held.append(p[1 + i, 1 + i] <= (low + high) * p[0, 1 + i] - low * high)
    for k in range(len(kinks.node)):
        z, a = kinks.z[k].numpy(), np.eye(n + 1)[1 + first + k]
        held += [p[0] @ a >= 0, p[0] @ a >= p[0] @ z, a @ p @ a == a @ p @ z]
        if chords:
            low, high = float(kinks.low[k]), float(kinks.high[k])
            held.append((high - low) * (p[0] @ a) <= high * (p[0] @ z - low))
    program = cp.Problem(cp.Minimize(p[0] @ expression), held)
    program.solve(solver=cp.CLARABEL)
    return program.value, p.value


@pytest.mark.parametrize("chords", [True, False])
def test_the_bound_is_the_papers_program_up_to_the_solver(chords):
    for seed in OPEN[:4]:
        given = net(seed)
        low = SDP(chords=chords).bounds(given.graph, given.ball, given.x, C)[0]
        crown = CROWN().bounds(given.graph, given.ball, given.x, C)[0]
        for k, row in enumerate(C):
            value, p = _primal(relaxation(given), row, chords)
            assert low[k] == pytest.approx(max(value, float(crown[k])), abs=2e-5)
            eigenvalues = np.linalg.eigvalsh(p)
            if chords and eigenvalues[-2] < 1e-7 * eigenvalues[-1]:  # of rank 1: a real input
                assert low[k] == pytest.approx(float(given.exact[k]), abs=1e-4)


def _diamonds():
    """-|x_1 + x_2| - |x_1 - x_2|, each absolute value as two ReLUs."""
    signs = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    return chain([(signs, zero), (-torch.ones(1, 4, dtype=torch.float64), zero[:1])])


def test_a_closed_form_between_the_linear_program_and_the_truth():
    """On [-1, 1]^2 the truth is -2, linear programming says -4, and |a|^2 + |b|^2 = 2 |x|^2 <= 4 gives -2 sqrt(2)."""
    graph, x, c = _diamonds(), torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    edge = torch.ones(1, 2, dtype=torch.float64)
    ball = LpBall(norm=Norm.LINF, eps=torch.ones(1, dtype=torch.float64), lower=-edge, upper=edge)
    found = Propagation(graph, Region(ball, x))
    found.run(refine=lambda _: True)
    assert triangle(Relaxation(found), c[0]) == pytest.approx(-4)
    assert float(SDP().bounds(graph, ball, x, c)) == pytest.approx(-(8**0.5), abs=1e-6)
    first_order = float(SDPFirstOrder(iterations=1000).bounds(graph, ball, x, c))
    assert -(8**0.5) - 0.03 < first_order <= -(8**0.5)


def test_first_order_starts_at_crown_and_climbs_towards_the_program():
    gaps = []
    for seed in OPEN:
        given = net(seed)
        found = Propagation(given.graph, Region(given.ball, given.x))
        with torch.no_grad():
            found.run(refine=lambda _: True)
            start = specification(found, C)[0]
            dual = SemidefiniteDual(Relaxation(found), C, ZERO)
            torch.testing.assert_close(dual.bound(dual.start()), start, rtol=0, atol=1e-9)
        crown, top = (m.bounds(given.graph, given.ball, given.x, C)[0] for m in (CROWN(), SDP()))
        low = SDPFirstOrder().bounds(given.graph, given.ball, given.x, C)[0]
        assert (low >= crown).all()
        assert (low <= top + 1e-6).all()
        gaps.append([float((top - crown).sum()), float((top - low).sum())])
    before, after = np.array(gaps).sum(0)
    assert after < 0.15 * before


def test_estimated_eigenvectors_serve_as_well(monkeypatch):
    """Large matrices are never decomposed but for the last word."""
    monkeypatch.setattr("holdfast.certifiers.bounds.sdp_first_order._EXACT", 4)
    for seed in OPEN[:3]:
        given = net(seed)
        crown = CROWN().bounds(given.graph, given.ball, given.x, C)[0]
        top = SDP().bounds(given.graph, given.ball, given.x, C)[0]
        low = SDPFirstOrder().bounds(given.graph, given.ball, given.x, C)[0]
        assert (low <= top + 1e-6).all()
        assert float((top - low).sum()) <= 0.3 * float((top - crown).sum()) + 1e-6


@pytest.mark.parametrize("name", ["dense", "conv", "conv1d", "max_pool", "residual", "smooth", "branches"])
def test_any_multipliers_are_sound(name):
    module, shape = make(name, 3)
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(1, *shape, generator=stream)
    ball, graph = LpBall.uniform(Norm.LINF, 0.05, 1), trace(module, x).to(torch.float64)
    c = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    with torch.no_grad():
        values = module.double()(inside(ball, x, 300, 0)[:, 0])
        found = Propagation(lower_max_pools(graph), Region(ball, x))
        found.run(refine=lambda _: True)
        dual = SemidefiniteDual(Relaxation(found), c, torch.zeros(6).double())
        least = (values @ c.T).amin(0)
        start = dual.start()
        assert (dual.bound(start) <= least).all()
        for size in (1e-3, 0.1, 10.0):
            noisy = SemidefiniteMultipliers(
                *(m + size * torch.randn(m.shape, generator=stream).double() for m in start)
            )
            assert (dual.bound(noisy) <= least).all()
        assert (dual.bound(SemidefiniteMultipliers(*(m * torch.nan for m in start))) == -torch.inf).all()


def test_the_least_eigenvalue_is_bounded_in_exact_arithmetic():
    """Matrices of whole numbers whose least eigenvalue is 0: v v' and the Laplacian of a path."""
    given = net(OPEN[0])
    with torch.no_grad():
        dual = SemidefiniteDual(relaxation(given), C, ZERO)
        for n in (3, 20, 60):
            v = torch.arange(1, n + 1, dtype=torch.float64) - n // 3
            side = torch.ones(n - 1, dtype=torch.float64)
            path = torch.diag(torch.cat([side, 0 * side[:1]]) + torch.cat([0 * side[:1], side]))
            path = path - torch.diag(side, 1) - torch.diag(side, -1)
            for m in (torch.outer(v, v), path):
                low = dual._least_eigenvalue(m[None] * 1e6)[0]
                assert Fraction(float(low)) <= 0
                assert low > -1e-9 * float(m.abs().max() * 1e6) * n


def test_large_samples_keep_crown_and_smooth_activations_their_lines():
    for name in ("smooth", "residual"):
        module, shape = make(name, 1)
        x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
        graph, ball = trace(module, x[:1]), LpBall.uniform(Norm.LINF, 0.1, 2)
        crown = CROWN().bounds(graph, ball, x, torch.eye(3))
        for certifier in (SDP(), SDPFirstOrder(iterations=20)):
            assert (certifier.bounds(graph, ball, x, torch.eye(3)) >= crown).all()
    for small in (SDP(variables=3), SDPFirstOrder(variables=3)):
        assert torch.equal(small.bounds(graph, ball, x, torch.eye(3)), crown)


def test_refusals_name_the_fix(monkeypatch):
    given = net(OPEN[0])
    ball = LpBall.uniform(Norm.L2, 0.1, 1, dtype=torch.float64)
    for certifier in (SDP(), SDPFirstOrder()):
        with pytest.raises(UnsupportedError, match="crown"):
            certifier.bounds(given.graph, ball, given.x, C)
    monkeypatch.setitem(sys.modules, "clarabel", None)
    with pytest.raises(UsageError, match="pip install clarabel"):
        SDP().bounds(given.graph, given.ball, given.x, C)
