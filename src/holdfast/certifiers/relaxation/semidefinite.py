"""The Lagrangian of a ReLU network's quadratic program: any multipliers give a bound, paid for down to the rounding.

With all variables scaled to w in [-1, 1] and y = (1, w), the constraints on each kink a with argument z are, for
multipliers p, q, t >= 0 and any r,

    a >= lower line (p)      a >= the other lower line (q)      a <= chord (t)      (a - z)(a - flat z) = 0 (r)

and the least of ``c y`` is at least that of the Lagrangian ``y' M y``, which is linear in the multipliers. For any
diagonal D = diag(delta, -kappa) with kappa >= 0, and since ``w_i^2 <= 1`` and ``|y|^2 <= n``,

    y' M y  >=  delta - sum kappa + n min(least eigenvalue of M - D, 0).

kappa are the multipliers of ``(v - l)(v - u) <= 0``. The least eigenvalue is bounded by a residual: for any matrix B,
``M - D = mu + B B' + E`` has none below ``mu - |E|``. Nothing is assumed of the eigensolver that proposes mu and B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from holdfast.certifiers.propagation.propagation import Propagation, propagated
from holdfast.certifiers.propagation.region import gamma
from holdfast.certifiers.propagation.specification import best_specification, specification
from holdfast.certifiers.proved import numbers
from holdfast.certifiers.relaxation.relaxation import Relaxation, TooLargeError, lower_max_pools
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph

__all__ = ["SemidefiniteDual", "SemidefiniteMultipliers", "semidefinite_bounds"]


def _eigh(m: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; values that are not numbers where the solver does not converge."""
    try:
        return cast(Any, torch.linalg).eigh(m)
    except RuntimeError:  # what torch raises then is a kind of it
        eye = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
        return torch.full_like(m[..., 0], torch.nan), eye.expand_as(m).clone()


class SemidefiniteMultipliers(NamedTuple):
    """Of the constraints; see the module.

    Attributes:
        p: (rows, k) at least 0.
        q: (rows, k) at least 0.
        t: (rows, k) at least 0.
        r: (rows, k).
        kappa: (rows, v) at least 0.
        delta: (rows,).
    """

    p: Tensor
    q: Tensor
    t: Tensor
    r: Tensor
    kappa: Tensor
    delta: Tensor

    def feasible(self) -> SemidefiniteMultipliers:
        """With those that must be at least 0 at least 0."""
        p, q, t, kappa = (m.clamp(min=0) for m in (self.p, self.q, self.t, self.kappa))
        return SemidefiniteMultipliers(p, q, t, self.r, kappa, self.delta)


class SemidefiniteDual:
    """The Lagrangian of some rows over one sample's relaxation.

    Args:
        relaxation: the graph over the box.
        c: (rows, outputs).
        d: (rows,).

    Attributes:
        bends: (k,) which kinks are of (leaky) ReLUs: the others have lines only, and no r.
    """

    def __init__(self, relaxation: Relaxation, c: Tensor, d: Tensor) -> None:
        self.kinks, box = relaxation.kinks, relaxation.box
        self.bends = ~self.kinks.flat.isnan()
        self._flat = torch.where(self.bends, self.kinks.flat, 0.0)
        self._inputs = len(relaxation.inputs)
        far = torch.full((), torch.inf, dtype=torch.float64, device=c.device)
        self._centre = (box.lower + box.upper) / 2
        # one unit up: every value of the box is centre + radius w with |w| <= 1
        radius = torch.maximum(box.upper - self._centre, self._centre - box.lower)
        self._radius = torch.nextafter(radius, far)
        self._rows, self._row_error = relaxation.objective(c, d)
        self.row = self._scaled(self._rows)
        self._z = self._scaled(self.kinks.z)
        own = torch.arange(len(self.kinks.node), device=c.device)
        a = torch.zeros_like(self.kinks.z)
        a[own, 1 + self._inputs + own] = 1.0
        self._a = self._scaled(a)
        most = torch.cat([torch.ones_like(far)[None], box.magnitude])
        self._a_size, self._z_size = box.magnitude[self._inputs :], self.kinks.z.abs() @ most + self.kinks.error
        self._row_size = self._rows.abs() @ most

    def _scaled(self, expression: Tensor) -> Tensor:
        constant = expression[:, :1] + expression[:, 1:] @ self._centre.unsqueeze(1)
        return torch.cat([constant, expression[:, 1:] * self._radius], 1)

    def matrix(self, row: Tensor, given: SemidefiniteMultipliers) -> Tensor:
        """M for linear objectives ``row`` (rows, n): (rows, n, n), linear in row and multipliers together."""
        p, q, t, r = given[:4]
        (low0, at0), (low1, at1), (high, at) = (*self.kinks.below.permute(1, 2, 0), self.kinks.above.T)
        linear = row - (p + q - t) @ self._a + (p * low0 + q * low1 - t * high) @ self._z
        constant = p @ at0 + q @ at1 - t @ at
        linear = torch.cat([(linear[:, 0] + constant).unsqueeze(1), linear[:, 1:]], 1)
        one, other = self._a - self._z, self._a - self._flat.unsqueeze(1) * self._z
        m = torch.einsum("sk,ki,kj->sij", r * self.bends, one, other)
        m = m + torch.nn.functional.pad(linear.unsqueeze(1), (0, 0, 0, m.shape[1] - 1))
        return (m + m.transpose(1, 2)) / 2

    def shifted(self, given: SemidefiniteMultipliers) -> Tensor:
        """``M - D``."""
        return self.matrix(self.row, given) - torch.diag_embed(torch.cat([given.delta[:, None], -given.kappa], 1))

    def start(self) -> SemidefiniteMultipliers:
        """CROWN's multipliers at its default slopes, where the bound is CROWN's."""
        kinks, rest = self.kinks, self._rows.clone()
        p, q, t = (rest.new_zeros(len(rest), len(kinks.node)) for _ in range(3))
        steep = self.bends & (kinks.high > -kinks.low)
        line = torch.where(steep.unsqueeze(1), kinks.below[:, 1], kinks.below[:, 0])
        for node in sorted({int(k) for k in kinks.node}, reverse=True):
            mine = (kinks.node == node).nonzero().squeeze(1)
            coefficient = rest[:, 1 + self._inputs + mine]
            up, down = coefficient.clamp(min=0), coefficient.clamp(max=0)
            p[:, mine], q[:, mine], t[:, mine] = up * ~steep[mine], up * steep[mine], -down
            rest[:, 0] += up @ line[mine, 1] + down @ kinks.above[mine, 1]
            rest += (up * line[mine, 0] + down * kinks.above[mine, 0]) @ kinks.z[mine]
            rest[:, 1 + self._inputs + mine] = 0.0
        rest = self._scaled(rest)
        kappa = rest[:, 1:].abs() / 2
        return SemidefiniteMultipliers(p, q, t, torch.zeros_like(p), kappa, rest[:, 0] - kappa.sum(1))

    def quick(self, given: SemidefiniteMultipliers, basis: Tensor | None, size: int = 3) -> tuple[Tensor, Tensor]:
        """The bound's value and gradient, for a search: no rounding is paid for.

        Args:
            given: multipliers, in their ranges.
            basis: (rows, n, size) what the last call returned: the eigenvalue is then estimated, from above, in the
                space of the basis and its products with the matrix; None: it is computed.
            size: of the basis.

        Returns:
            (rows,), and vectors near those of the least eigenvalues.
        """
        m = self.shifted(given)
        with torch.no_grad():
            if basis is None:
                vectors = _eigh(m)[1][:, :, :size]
            else:
                once = m @ basis
                space = cast(Any, torch.linalg).qr(torch.cat([basis, once, m @ once], 2))[0]
                vectors = space @ _eigh(space.transpose(1, 2) @ m @ space)[1][:, :, :size]
        least = torch.einsum("si,sij,sj->s", vectors[:, :, 0], m, vectors[:, :, 0])
        return given.delta - given.kappa.sum(1) + self.row.shape[1] * least.clamp(max=0), vectors

    def bound(self, given: SemidefiniteMultipliers) -> Tensor:
        """A sound lower bound of each row, (rows,), whatever the multipliers are; -inf where it is not a number."""
        with torch.no_grad():
            given = given.feasible()
            given = given._replace(r=given.r * self.bends)
            least, size = self._least_eigenvalue(self.shifted(given)), self._size(given)
            n, k = self.row.shape[1], len(self.kinks.node)
            total = given.delta - given.kappa.sum(1) + n * least.clamp(max=0) - self._unknown(given)
            total = total - gamma(2 * k + 4 * n + 64) * (
                size + given.delta.abs() + given.kappa.sum(1) + n * least.abs()
            )
            return numbers(total)

    def _unknown(self, given: SemidefiniteMultipliers) -> Tensor:
        """What the errors of the expressions may cost: of the rows and, by the multipliers, of each argument."""
        p, q, t, r = given[:4]
        slopes = torch.cat([self.kinks.below[:, :, 0].T, self.kinks.above[None, :, 0]]).abs()
        error = self.kinks.error
        linear = p * slopes[0] + q * slopes[1] + t * slopes[2]
        # lines hold up to a few units of rounding of their ends
        line = gamma(64) * (p + q + t) @ (self._z_size + self._a_size)
        return self._row_error + line + (linear + 2 * r.abs() * (self._a_size + self._z_size + error)) @ error

    def _size(self, given: SemidefiniteMultipliers) -> Tensor:
        """At least the sum of the magnitudes of all terms that M was added up from, with y in its box."""
        p, q, t, r = given[:4]
        reach = 2 * (self._a_size + self._z_size)
        intercepts = torch.cat([self.kinks.below[:, :, 1].T, self.kinks.above[None, :, 1]]).abs().amax(0)
        return 4 * (self._row_size + (p + q + t) @ (reach + intercepts) + r.abs() @ reach.square())

    def _least_eigenvalue(self, m: Tensor) -> Tensor:
        """A lower bound of the least eigenvalue of symmetric matrices (rows, n, n): (rows,)."""
        finite = m.flatten(1).isfinite().all(1)
        values, vectors = _eigh(torch.where(finite[:, None, None], m, 0.0))
        mu = values[:, :1]
        root = vectors * (values - mu).clamp(min=0).sqrt().unsqueeze(1)
        eye = torch.eye(m.shape[1], dtype=m.dtype, device=m.device)
        rest = m - mu.unsqueeze(2) * eye - root @ root.transpose(1, 2)
        n = m.shape[1]
        # the product rounds by gamma_n |B| |B|', of Frobenius norm at most |B|^2; the rest by a few units of what it is of
        size = root.square().sum((1, 2)) + m.square().sum((1, 2)).sqrt() + n * mu[:, 0].abs()
        norm = (1 + gamma(n * n)) * rest.square().sum((1, 2)).sqrt() + gamma(n + 8) * size
        return torch.where(finite, mu[:, 0] - norm, -torch.inf)


def semidefinite_bounds(
    graph: Graph,
    region: LpBall,
    x: Tensor,
    c: Tensor,
    d: Tensor | None,
    *,
    solve: Callable[[SemidefiniteDual], SemidefiniteMultipliers],
    variables: int,
    memory: int | None,
) -> Tensor:
    """The better of CROWN's bounds and those of the relaxation, sample by sample and without gradient.

    Args:
        graph: the model.
        region: linf balls.
        x: their centres (n, \\*features).
        c: (n, rows, classes) or (rows, classes).
        d: (rows,) or (n, rows), 0 if missing.
        solve: finds multipliers, of which nothing is believed.
        variables: samples with more inputs and open activations keep CROWN's bounds.
        memory: see `Propagation`.

    Returns:
        (n, rows).

    Raises:
        UnsupportedError: another norm.
    """
    if region.norm is not Norm.LINF:
        raise UnsupportedError(f"a semidefinite bound serves linf, not {region.norm}; use crown or alpha_crown")
    with torch.no_grad():
        c = c.double().expand(len(x), *c.shape[-2:])
        propagation, best = _crown(graph, region, x, c, d, memory)
        shift = c.new_zeros(c.shape[:2]) if d is None else d.to(c).expand(c.shape[:2])
        for i in range(len(x)):
            try:
                relaxation = Relaxation(propagation, i, variables)
            except TooLargeError:
                continue
            dual = SemidefiniteDual(relaxation, c[i], shift[i])
            best[i] = torch.maximum(best[i], dual.bound(solve(dual)))
    return best


def _crown(
    graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None, memory: int | None
) -> tuple[Propagation, Tensor]:
    """Boxes from CROWN, with max pools as ReLUs, and CROWN's bounds of the rows (n, rows)."""
    plain = propagated(graph, region, x, memory=memory)
    best = best_specification(plain, c, d)
    lowered = lower_max_pools(plain.graph)
    if lowered is plain.graph:
        return plain, best
    found = Propagation(lowered, plain.region, memory=memory)
    found.run(refine=lambda _: True)
    return found, torch.maximum(best, specification(found, c, d))
