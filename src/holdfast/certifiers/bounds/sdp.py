"""SDP: the semidefinite relaxation of a ReLU network, solved by an interior-point method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse as scipy_sparse  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.relaxation.semidefinite import (
    SemidefiniteDual,
    SemidefiniteMultipliers,
    semidefinite_bounds,
)
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["SDP"]


@dataclass(frozen=True)
class SDP(GraphCertifier):
    """The semidefinite relaxation of Raghunathan et al. (2018), which sees how activations move together.

    Its dual is solved by Clarabel. Nothing that the solver says is believed: its multipliers are put into the Lagrangian,
    whose bound pays for a negative eigenvalue and for rounding, so the result is sound however far the solver came.
    Only inputs and activations that bend are variables. The paper's constraints on a hidden activation are its
    quadratic form and its interval; ``chords`` adds the line above it (Batten et al. 2021), without which the relaxation
    is not comparable with linear programming, and with which it is never below it at the same boxes.
    """

    card: ClassVar[Card] = Card(
        title="SDP",
        rows=("V04",),
        paper="Raghunathan et al. 2018, Semidefinite Relaxations for Certifying Robustness to Adversarial Examples, "
        "arXiv 1811.01057; chords: Batten et al. 2021, Efficient Neural Network Verification via Layer-based "
        "Semidefinite Relaxations and Linear Cuts, IJCAI",
        section="3.3",
        summary="A semidefinite program over all activations at once, for networks with up to about a hundred of them "
        "open.",
        norms=(Norm.LINF,),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "time and memory grow with the fourth power of inputs and open activations and more; beyond `variables` of "
            "them a sample keeps CROWN's bounds",
            "smooth activations are held by their two lines only",
        ),
        checked_by="the paper's own primal program in cvxpy, linear programs below it and exact optima above it",
    )

    variables: int = parameter(
        60, "samples with more inputs and open activations keep CROWN's bounds, at least 1", "ours: a second a row"
    )
    chords: bool = parameter(True, "also use the line above each activation", "Batten et al. 2021; without: the paper")
    iterations: int = parameter(100, "of the interior-point method, at least 1", "Clarabel: 200; it needs about 20")
    memory: int | None = parameter(
        None, "bytes for the coefficients of one backward pass", "ours: 16 MB on a CPU (its cache), 1 GB elsewhere"
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`; without gradient, and never below CROWN's."""
        return semidefinite_bounds(
            graph, region, x, c, d, solve=self._solve, variables=self.variables, memory=self.memory
        )

    def _solve(self, dual: SemidefiniteDual) -> SemidefiniteMultipliers:
        """The multipliers that Clarabel finds for each row; those of CROWN where it finds none."""
        try:
            import clarabel  # pyright: ignore[reportMissingTypeStubs]
        except ImportError:
            raise UsageError("the SDP bound needs the clarabel package: pip install clarabel") from None
        solver: Any = clarabel
        given, n = dual.start(), dual.row.shape[1]
        signed, bends = len(dual.bends), dual.bends.nonzero().squeeze(1)
        # unknowns: p, q, t and kappa, which have a sign, then r and delta
        places = {
            "p": signed,
            "q": signed,
            "t": signed if self.chords else 0,
            "kappa": n - 1,
            "r": len(bends),
            "delta": 1,
        }
        ends = np.cumsum([0, *places.values()])
        at = {k: slice(int(a), int(b)) for k, a, b in zip(places, ends, ends[1:], strict=False)}
        count, nonnegative = int(ends[-1]), int(ends[4])
        unit = torch.eye(count, dtype=torch.float64)
        r, t = unit.new_zeros(count, signed), unit.new_zeros(count, signed)
        r[:, bends] = unit[:, at["r"]]
        if self.chords:
            t = unit[:, at["t"]]
        basis = SemidefiniteMultipliers(
            unit[:, at["p"]], unit[:, at["q"]], t, r, unit[:, at["kappa"]], unit[:, at["delta"]][:, 0]
        )
        columns = dual.matrix(unit.new_zeros(count, n), basis)
        columns = columns - torch.diag_embed(torch.cat([basis.delta[:, None], -basis.kappa], 1))
        nothing = SemidefiniteMultipliers(*(m[:1] * 0 for m in basis))
        sparse: Any = scipy_sparse
        cone = np.concatenate([-np.eye(count)[:nonnegative], -_packed(columns).T])
        cost = np.zeros(count)
        cost[at["kappa"]], cost[at["delta"]] = 1.0, -1.0
        settings = solver.DefaultSettings()
        settings.verbose, settings.max_iter, settings.max_threads = False, self.iterations, 1
        for k in range(len(dual.row)):
            scale = float(dual.row[k].abs().max()) or 1.0
            right = np.concatenate(
                [np.zeros(nonnegative), _packed(dual.matrix(dual.row[k : k + 1] / scale, nothing))[0]]
            )
            if not (np.isfinite(right).all() and np.isfinite(cone).all()):
                continue
            cones = [solver.NonnegativeConeT(nonnegative), solver.PSDTriangleConeT(n)]
            program = solver.DefaultSolver(
                sparse.csc_array((count, count)), cost, sparse.csc_array(cone), right, cones, settings
            )
            x = torch.as_tensor(np.array(program.solve().x)) * scale
            if not x.isfinite().all():
                continue
            for name in ("p", "q", "kappa", *(("t",) if self.chords else ())):
                getattr(given, name)[k] = x[at[name]]
            if not self.chords:
                given.t[k] = 0.0
            given.r[k, bends], given.delta[k] = x[at["r"]], x[at["delta"]][0]
        return given


def _packed(m: Tensor) -> NDArray[np.float64]:
    """The upper triangles of symmetric matrices (b, n, n), column by column, so that dot products stay: (b, n (n+1)/2)."""
    n = m.shape[1]
    column, row = np.tril_indices(n)
    weight = np.where(row == column, 1.0, np.sqrt(2.0))
    return m.numpy()[:, row, column] * weight
