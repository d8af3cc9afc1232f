"""Bounds of a random graph against what it computes: sampled, climbed to and, where it is small, known exactly."""

import itertools
import random
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from fuzz_graphs import F64, Case, draw
from scipy.optimize import linprog

from holdfast.certifiers.complete.milp import exact_minimum
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.relaxation.relaxation import Relaxation, lower_max_pools, piecewise_linear
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision, SearchLimit, Solver
from holdfast.core.errors import UnsupportedError
from holdfast.core.registry import method, names
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.operations import compute
from holdfast.numerics.project import project

_FAST = {
    "alpha_crown": {"iterations": 4, "deep_iterations": 2},
    "dvijotham": {"iterations": 8},
    "sdp_first_order": {"iterations": 20},
}
EXACT = 1e-6  # HiGHS' tolerance


def bounded_by() -> dict[str, GraphCertifier]:
    """Every certifier of graphs that gives a bound without a search."""
    kinds = {name: method(name) for name in names("certifier")}
    return {
        name: kind(**_FAST.get(name, {}))
        for name, kind in kinds.items()
        if issubclass(kind, GraphCertifier) and not issubclass(kind, Solver)
    }


METHODS = bounded_by()
SLOW = {"sdp", "sdp_first_order"}


@dataclass
class Report:
    """What was tried, and everything that was outside."""

    graphs: int = 0
    bounds: int = 0
    finite: int = 0
    exact: int = 0
    refused: int = 0
    verdicts: int = 0
    wrong: list[str] = None  # type: ignore[assignment]

    def __post_init__(self):
        self.wrong = self.wrong or []

    def __str__(self):
        return (
            f"{self.graphs} graphs, {self.bounds} bounds ({self.finite} finite), {self.exact} against exact optima, "
            f"{self.verdicts} verdicts of complete methods, {self.refused} refusals, {len(self.wrong)} wrong"
        )


def region(r: random.Random, case: Case) -> tuple[torch.Tensor, LpBall]:
    """Two samples and a set of any norm and size around them."""
    shape = case.graph.input_shape
    g = torch.Generator().manual_seed(r.getrandbits(60))
    norm = r.choice((Norm.LINF, Norm.LINF, Norm.L2, Norm.L1, Norm.L0))
    low, high = r.choice(((0.0, 1.0), (-1.0, 1.0), (-5.0, 5.0), (0.0, 0.0), (-1e3, 1e3)))
    if case.whole:
        low, high = 0.0, case.whole - 1.0
    elif case.kind == "pieces":
        low, high, norm = -1.0, 1.0, Norm.LINF
    reach = min(high, 2.0) - max(low, -2.0)
    x = max(low, -2.0) + reach * torch.rand(2, *shape, generator=g, dtype=F64)
    if r.random() < 0.1:
        x = x.round().clamp(low, high)  # kinks and zeros themselves
    eps = float(r.randint(0, 3)) if norm is Norm.L0 else r.choice((0.0, 1e-9, 0.01, 0.1, 0.5, 2.0, 10.0, 1e3))
    if case.kind == "pieces":
        eps = r.choice((0.05, 0.3, 1.0, 2.0))
    ball = LpBall.uniform(norm, eps, 2, dtype=F64)
    # a box of one point is refused to those who type it, and is a set for the bounds all the same
    ball = replace(ball, lower=torch.tensor(low, dtype=F64), upper=torch.tensor(high, dtype=F64))
    if r.random() < 0.15:
        ball = replace(ball, mask=torch.rand(2, *shape, generator=g) < 0.6)
    return x, ball


def points(r: random.Random, case: Case, x: torch.Tensor, ball: LpBall, c: torch.Tensor) -> torch.Tensor:
    """Members of the set (many, n, \\*features): the sample, corners, random ones, and those that gradients lead to."""
    g = torch.Generator().manual_seed(r.getrandbits(60))
    low, high = Region(ball, x).box
    wide = (high - low).clamp(max=1e6)
    share = torch.rand(60, *x.shape, generator=g, dtype=F64)
    tried = torch.cat([x[None], low + share * wide, low + share[:30].round() * wide, low[None], high[None]])
    if r.random() < 0.5:
        tried = torch.cat([tried, x + (tried - x) * 1e-3])

    def member(t):
        flat = t.flatten(0, 1)
        each = len(t)
        index = torch.arange(len(x)).repeat(each)
        return project(ball.select(index), flat, x[index]).view_as(t)

    tried = member(tried)
    model = case.model or case.graph.as_module()
    best = tried
    for rate in (0.5, 0.2, 0.05):
        at = best[:8].clone().requires_grad_()
        value = model(at.flatten(0, 1)).view(8, len(x), -1)
        total = torch.einsum("snk,rk->", value, c[:1])
        if not total.requires_grad:
            break
        (slope,) = torch.autograd.grad(total, at, allow_unused=True, materialize_grads=True)
        best = member((at - rate * wide * slope.nan_to_num(0.0).sign()).detach())
        tried = torch.cat([tried, best])
    inside = ((tried >= low) & (tried <= high)).flatten(2).all(2).all(1)
    return tried[inside]


def slack(value: torch.Tensor, rough: torch.Tensor) -> torch.Tensor:
    """How far a float64 value may be from the real one: what float32 makes of it, scaled, and a little."""
    return 1e-9 * (1 + value.abs()) + 1e-5 * (rough - value).abs()


def judge(seed: int, number: int, report: Report) -> None:
    """Tries one graph; what is wrong goes into the report."""
    r = random.Random(f"{seed}/{number}/judge")
    try:
        case = draw(seed, number)
    except UnsupportedError:
        report.refused += 1
        return
    report.graphs += 1
    x, ball = region(r, case)
    rows, outputs = r.randint(1, 3), case.graph.output_shape[0]
    g = torch.Generator().manual_seed(r.getrandbits(60))
    c = torch.randn(rows, outputs, generator=g, dtype=F64)
    if r.random() < 0.3:
        c = c.round()
    d = torch.randn(rows, generator=g, dtype=F64) if r.random() < 0.5 else None

    def wrong(what: str) -> None:
        report.wrong.append(
            f"--seed {seed} --only {number}: {what} [{' '.join(case.words)}; {ball.norm} {float(ball.eps[0]):g}]"
        )

    with torch.no_grad():
        with torch.enable_grad():
            tried = points(r, case, x, ball, c)
        flat = tried.flatten(0, 1)
        model = case.model or case.graph.as_module()
        out = model(flat).view(len(tried), 2, -1)
        rough = case.graph.to(torch.float32).as_module()(flat.float()).double().view_as(out)
        value, near = (torch.einsum("snk,rk->snr", t, c) + (0 if d is None else d) for t in (out, rough))
        if case.model is not None:
            mine = case.graph.as_module()(flat).view_as(out)
            if not torch.allclose(mine, out, rtol=1e-9, atol=1e-9, equal_nan=True):
                wrong(f"the captured graph differs from its module by {float((mine - out).abs().max()):g}")
        undefined = out.isnan().any(2).any(0)  # of a sample, at a member of its set
        best = value.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0)
        room = (
            slack(value, near).nan_to_num(torch.inf).gather(0, value.nan_to_num(torch.inf).argmin(0, keepdim=True))[0]
        )
        _inside_boxes(case, x, ball, tried, wrong)
    for name, certifier in METHODS.items():
        if ball.norm not in certifier.card.norms or (name in SLOW and case.kind != "pieces"):
            continue
        try:
            lower = certifier.bounds(case.graph, ball, x, c, d).detach()
        except UnsupportedError:
            report.refused += 1
            continue
        except Exception as error:
            wrong(f"{name} raises {type(error).__name__}: {error}")
            continue
        report.bounds += lower.numel()
        report.finite += int(lower.isfinite().sum())
        if bool((lower.isnan() | (lower == torch.inf)).any()):
            wrong(f"{name} gives {lower.tolist()}")
        if bool((lower > best + room).any()):
            wrong(f"{name}: {lower.tolist()} above {best.tolist()}")
        if bool((lower > -torch.inf)[undefined].any()):
            wrong(f"{name}: a bound {lower.tolist()} of what is not defined")
    if case.kind == "pieces":
        _against_exact(r, case, x, ball, c, d, report, wrong)


def _inside_boxes(case, x, ball, tried, wrong) -> None:
    """Every value of every node lies in its box."""
    found = Propagation(case.graph, Region(ball, x))
    crown = Propagation(case.graph, Region(ball, x))
    found.run(refine=lambda _: False)
    crown.run(refine=lambda _: True)
    exact, rough = ({0: tried.flatten(0, 1).to(t)} for t in (F64, torch.float32))
    graph = found.graph
    for values, g in ((exact, graph), (rough, graph.to(torch.float32))):
        for i, node in enumerate(g.nodes[1:], 1):
            values[i] = compute(node.op, [values[j] for j in node.inputs], node.tensors, node.attributes)
    for i, node in enumerate(graph.nodes):
        own, near = (v[i].double().view(len(tried), *found.boxes[i].lower.shape) for v in (exact, rough))
        room = slack(own, near).nan_to_num(torch.inf)
        for name, p in (("intervals", found), ("crown", crown)):
            low, high = p.boxes[i]
            if bool(low.isnan().any() | high.isnan().any()):
                wrong(f"{name}: NaN in the box of node {i} ({node.op})")
            out = (own < low - room) | (own > high + room)
            if bool(out.any()):
                k = int(out.flatten().nonzero()[0])
                at = (t.expand_as(own).flatten()[k].item() for t in (own, low, high))
                wrong(
                    "{}: node {} ({} {}) takes {} outside [{}, {}]".format(name, i, node.op, dict(node.attributes), *at)
                )


def _against_exact(r, case, x, ball, c, d, report, wrong) -> None:
    """The exact optimum by an integer program, and now and then by linear programs over all patterns of activations."""
    graph = case.graph
    if piecewise_linear(graph) is not None:
        return
    one = ball.select(torch.tensor([0]))
    least = exact_minimum(graph, one, x[:1], c, d, seconds=20.0)[0]
    if bool(least.isnan().any()):
        return
    if report.exact % 16 == 0 and one.mask is None:
        other = enumerated(graph, one, x[:1], c, d)
        if other is not None and not torch.allclose(least, other, atol=1e-5, rtol=1e-5):
            wrong(f"the integer program has {least.tolist()}, the patterns of activations {other.tolist()}")
    for name, certifier in METHODS.items():
        if ball.norm in certifier.card.norms:
            lower = certifier.bounds(graph, one, x[:1], c, d).detach()[0]
            report.exact += 1
            if bool((lower > least + EXACT * (1 + least.abs())).any()):
                wrong(f"{name}: {lower.tolist()} above the optimum {least.tolist()}")
    row, shift = c[:1], torch.zeros(1, dtype=F64) if d is None else d[:1]
    margin = 1e-3 * (1 + float(least[0].abs()))
    for name in ("neuron_splitting", "input_splitting", "milp"):
        for sign, decision in ((1, Decision.HOLDS), (-1, Decision.BROKEN)):
            query = Query(
                x=x[:1], ball=one, c=row, d=shift + sign * margin - least[:1], groups=torch.zeros(1, dtype=torch.int64)
            )
            try:
                answer = method(name)().solve(graph, query, SearchLimit.seconds(10.0))
            except Exception as error:
                wrong(f"{name} raises {type(error).__name__}: {error}")
                continue
            report.verdicts += 1
            against = {Decision.HOLDS: Decision.BROKEN, Decision.BROKEN: Decision.HOLDS}[decision]
            if answer.decision is against or answer.decision is Decision.UNKNOWN:
                wrong(f"{name}: {answer.decision} ({answer.reason}) where the optimum is {sign * margin:g}")


def enumerated(graph, ball, x, c, d, most: int = 9):
    """The least of each row by a linear program for each pattern of the neurons that bend: (rows,), or None."""
    found = Propagation(lower_max_pools(graph), Region(ball, x))
    with torch.no_grad():
        found.run(refine=lambda _: True)
        relaxation = Relaxation(found)
        given = relaxation.objective(c, torch.zeros(len(c), dtype=F64) if d is None else d)[0].numpy()
    kinks, inputs = relaxation.kinks, len(relaxation.inputs)
    z, flat = kinks.z.numpy(), kinks.flat.numpy()
    if len(z) > most:
        return None
    low, high = (t.numpy()[:inputs] for t in relaxation.box)
    best = np.full(len(c), np.inf)
    for signs in itertools.product((1, -1), repeat=len(z)):
        own = np.zeros((len(z), 1 + inputs))  # each kink's value as a function of the inputs, under the pattern
        limits = []
        for k, sign in enumerate(signs):
            argument = z[k, : 1 + inputs] + z[k, 1 + inputs : 1 + inputs + k] @ own[:k]
            own[k] = argument * (1.0 if sign > 0 else flat[k])
            limits.append(-sign * argument)
        limits = np.array(limits).reshape(-1, 1 + inputs)
        for row in range(len(c)):
            whole = given[row, : 1 + inputs] + given[row, 1 + inputs :] @ own
            solved = linprog(whole[1:], A_ub=limits[:, 1:], b_ub=-limits[:, 0] + 1e-9, bounds=np.stack([low, high], 1))
            if solved.status == 0:
                best[row] = min(best[row], solved.fun + whole[0])
    return torch.tensor(best)


def run(seed: int, numbers, report: Report | None = None, tell=None) -> Report:
    """Judges the graphs of these numbers."""
    report = report or Report()
    for number in numbers:
        torch.manual_seed(zlib.crc32(f"{seed}/{number}".encode()))
        before = len(report.wrong)
        try:
            judge(seed, number, report)
        except Exception as error:
            report.wrong.append(f"--seed {seed} --only {number}: {type(error).__name__}: {error}")
        if tell:
            for line in report.wrong[before:]:
                tell(line)
    return report
