"""Bounds as deployed against the thing itself: every number of the narrow types, and networks that run in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.propagation.deployment import tie
from holdfast.certifiers.propagation.function_errors import function_error
from holdfast.certifiers.propagation.region import Box
from holdfast.certifiers.propagation.table import operation
from holdfast.core.errors import UnsupportedError
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace
from holdfast.graph.model import Graph, Node

NARROW = [torch.float16, torch.bfloat16]
TYPES = [*NARROW, torch.float32]

FUNCTIONS: dict[str, tuple[str, dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "sigmoid": ("sigmoid", {}, torch.sigmoid),
    "tanh": ("tanh", {}, torch.tanh),
    "silu": ("silu", {}, F.silu),
    "erf": ("erf", {}, torch.erf),
    "exp": ("exp", {}, torch.exp),
    "log": ("log", {}, torch.log),
    "sin": ("sin", {}, torch.sin),
    "cos": ("cos", {}, torch.cos),
    "sqrt": ("sqrt", {}, torch.sqrt),
    "reciprocal": ("reciprocal", {}, torch.reciprocal),
    "softplus": ("softplus", {}, F.softplus),
    "elu": ("elu", {"alpha": 1.0}, F.elu),
    "elu of 3": ("elu", {"alpha": 3.0}, lambda z: F.elu(z, 3.0)),
    "gelu": ("gelu", {"approximate": "none"}, F.gelu),
    "gelu by tanh": ("gelu", {"approximate": "tanh"}, lambda z: F.gelu(z, approximate="tanh")),
    "leaky relu": ("leaky_relu", {"slope": 0.01}, F.leaky_relu),
    "sign": ("sign", {}, torch.sign),
    **{
        f"power {p}": ("power", {"exponent": p}, lambda z, p=p: torch.pow(z, p))
        for p in (2.0, 3.0, 7.0, 0.7, 1.5, 2.3, -0.5, -2.0, -1.3)
    },
}


@contextmanager
def _flushing(on: bool) -> Iterator[None]:
    torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _numbers(dtype: torch.dtype) -> Tensor:
    """Every finite number of a narrow type; of float32 a sample of all bits, and what is dense where functions are used."""
    if dtype is not torch.float32:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        g = torch.Generator().manual_seed(0)
        bits = torch.randint(-(2**31), 2**31, (40_000,), generator=g).to(torch.int32).view(dtype)
        x = torch.cat([bits, torch.linspace(-30, 30, 20_001), 1 + 1e-3 * torch.randn(10_000, generator=g)])
    return x[x.isfinite()]


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_number_of_the_type_leaves_a_function_s_error(name: str, dtype: torch.dtype, flush: bool) -> None:
    op, attributes, f = FUNCTIONS[name]
    x = _numbers(dtype)
    node, wide = Node(op=op, inputs=(0,), shape=(len(x),), attributes=attributes), x.double()[None]
    with _flushing(flush):
        ran = f(x).double()
        some = torch.arange(0, len(x), max(len(x) // 200, 1))
        ran[some] = torch.cat([f(x[i : i + 1]) for i in some]).double()  # the kernel's path for single numbers
    box = Box(wide, wide)
    exact = operation(op).interval(node, [box])
    error = function_error(node, box, exact, dtype)[0]
    value = exact.lower[0]
    error = torch.where(1.01 * value.abs() + error <= torch.finfo(dtype).max, error, torch.inf)  # as `run_error` has it
    served = error.isfinite() & value.isfinite()
    assert float(served.double().mean()) > 0.3
    assert ((ran - value).abs() <= error)[served].all()
    if name in ("gelu", "power 0.7") and dtype is torch.float32:  # 8 units in the last place would not do
        assert ((ran - value).abs() > 16 * 2.0**-24 * value.abs() + 2e-38)[served].any()


def _net(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A small random network of one of many kinds."""
    torch.manual_seed(seed)
    kinds = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, lambda: nn.GELU("tanh"), nn.SELU,
             lambda: nn.LeakyReLU(0.2), nn.Hardtanh, nn.ReLU6)  # fmt: skip
    act = kinds[seed % len(kinds)]
    scale = 10.0 ** ((seed * 7) % 9 - 4)  # from 1e-4 to 1e4: underflow and overflow
    if seed % 3 == 0:
        norm = nn.BatchNorm2d(3)
        pool = [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)][seed // 3 % 3]
        net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), norm, act(), pool, nn.Flatten(), nn.Linear(12, 3))
        with torch.no_grad():
            norm.running_var.copy_(10.0 ** -torch.tensor([0.0, 4.0, float(seed % 10)]))
            norm.running_mean.normal_()
            norm.weight.normal_()
            norm.bias.normal_()
        shape = (1, 4, 4)
    elif seed % 3 == 1:
        norm = nn.BatchNorm1d(6)
        with torch.no_grad():
            norm.running_var.uniform_(0.01, 2)
            norm.running_mean.normal_()
        net, shape = nn.Sequential(nn.Linear(4, 6), norm, act(), nn.Linear(6, 5), act(), nn.Linear(5, 3)), (4,)
    else:
        net, shape = nn.Sequential(nn.Linear(4, 8), act(), nn.Linear(8, 3)), (4,)
    with torch.no_grad():
        first = net[0]
        first.weight *= scale
        net[-1].weight /= min(scale, 1e4)
    return nn.Sequential(_Normalise(), net).eval(), shape


@lru_cache
def _read(seed: int) -> tuple[nn.Module, tuple[int, ...], Graph]:
    net, shape = _net(seed)
    return net, shape, trace(net, torch.zeros(1, *shape))


class _Normalise(nn.Module):
    """As data sets are normalised: two steps, which the graph folds into the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4914))
        self.register_buffer("std", torch.tensor(0.2023))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _outputs(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        run = copy.deepcopy(net).to(dtype)
        return torch.cat([run(x.to(dtype)), run(x[:5].to(dtype)), *(run(x[i : i + 1].to(dtype)) for i in range(3))])


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(k, marks=pytest.mark.slow) for k in range(6, 60))])
def test_what_a_network_computes_lies_within_its_bounds_as_deployed(seed: int, dtype: torch.dtype, flush: bool) -> None:
    net, shape, read = _read(seed)
    graph = replace(read, deployed=dtype)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    for eps in (0.0, 0.05):
        ball = LpBall.uniform(Norm.LINF, eps, 2)
        for tool in (CROWN(), IBP()):
            found = tool.bounds(graph, ball, x, rows)
            for i in range(2):
                around = (x[i] + eps * (2 * torch.rand(40, *shape) - 1).sign()).clamp(0, 1)
                around = torch.cat([around, (x[i] + eps * (2 * torch.rand(40, *shape) - 1)).clamp(0, 1), x[i : i + 1]])
                with _flushing(flush):
                    ran = _outputs(net, around, dtype).double()
                low, high = found[i, :3], -found[i, 3:]
                bounded = low.isfinite() & high.isfinite()
                inside = (low <= ran) & (ran <= high)
                assert inside[:, bounded].all()


def test_most_of_those_bounds_are_numbers_and_some_overflow() -> None:
    """Otherwise the test above would hold of nothing."""
    told = {dtype: [] for dtype in TYPES}
    for seed in range(12):
        _, shape, read = _read(seed)
        x = torch.rand(2, *shape)
        for dtype in TYPES:
            graph = replace(read, deployed=dtype)
            found = CROWN().bounds(graph, LpBall.uniform(Norm.LINF, 0.0, 2), x, torch.eye(3).double())
            told[dtype].append(bool(found.isfinite().all()))
    assert sum(told[torch.float32]) >= 11
    assert 5 <= sum(told[torch.float16]) < 12
    assert sum(told[torch.bfloat16]) >= 10


@pytest.mark.parametrize("dtype", NARROW)
def test_every_order_of_summation_is_contained_of_float16_in_the_type_itself(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    net = nn.Linear(64, 3, bias=False)
    x = torch.randn(1, 64)
    graph = replace(trace(net, x), deployed=dtype)
    rows = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    found = CROWN().bounds(graph, LpBall.uniform(Norm.LINF, 0.0, 1, -9, 9), x, rows)[0]
    weight, given, seen = net.weight.detach().to(dtype), x.to(dtype), set[float]()
    for seed in range(60):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        kind = torch.float32 if dtype is torch.bfloat16 else dtype
        total = torch.zeros(3, dtype=kind)
        for k in order:
            total = total + weight[:, k].to(kind) * given[0, k].to(kind)
        total = total.to(dtype)
        assert ((found[:3] <= total.double()) & (total.double() <= -found[3:])).all()
        seen.add(float(total[0]))
    assert len(seen) > 5 or dtype is torch.bfloat16  # the order matters


class _Two(nn.Module):
    """Margin of class 0: k f(x) + c."""

    def __init__(self, f: Callable[[Tensor], Tensor], k: float, c: float) -> None:
        super().__init__()
        self.f, self.last = f, nn.Linear(1, 2)
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[k], [0.0]]))
            self.last.bias.copy_(torch.tensor([c, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(x))


def _written_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x * 0.7071067811865476))


@pytest.mark.parametrize(
    ("f", "k", "c", "x", "dtype"),
    [
        (F.gelu, -1e7, -0.4, -5.55, torch.float32),
        (_written_gelu, 1e7, 1.2, -5.55, torch.float32),
        (_written_gelu, 100.0, 0.1, -3.109375, torch.bfloat16),
        (lambda z: torch.log(1 + torch.exp(z)), 1e6, -0.05, -16.6, torch.float32),  # softplus written out
        (lambda z: torch.exp(z) - 1, 1e7, -0.5, 1e-7, torch.float32),
        (lambda z: (z + 2048.0) - 2048.0, 1.0, -0.3, 0.9, torch.bfloat16),  # two affine steps, which the graph merges
        (lambda z: z * 1e-6 * 1e6, 1.0, -0.9, 0.05, torch.float16),
        (lambda z: z * 1e4 * 1e-4, -1.0, 20.0, 9.0, torch.float16),
    ],
)
def test_a_step_that_was_folded_counts(
    f: Callable[[Tensor], Tensor], k: float, c: float, x: float, dtype: torch.dtype
) -> None:
    net, given = _Two(f, k, c).eval(), torch.tensor([[x]])
    with torch.no_grad():
        ran = copy.deepcopy(net).to(dtype)(given.to(dtype))
    label = ran.argmax(1)
    ball = LpBall.uniform(Norm.LINF, 0.0, 1, -1e4, 1e4)
    for tool in ("crown", "ibp", "alpha_crown", "fast_lin", "crown_ibp"):
        for y in (1 - label, label) if not ran.isfinite().all() else (1 - label,):
            try:
                graph = replace(trace(net, given), deployed=dtype)
                assert not method(tool)().certify(graph, given, y, ball).any(), tool
            except UnsupportedError:
                continue


def test_the_input_is_rounded_first() -> None:
    """1 - 2^-13 becomes 1 in float16: the margin 1 - x is positive in the set and 0 as it runs."""
    net = nn.Linear(1, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0], [0.0]]))
        net.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[1 - 2.0**-13]])
    with torch.no_grad():
        ran = copy.deepcopy(net).half()(x.half())
    assert ran[0, 0] == ran[0, 1]
    graph, ball, y = trace(net, x), LpBall.uniform(Norm.LINF, 0.0, 1), torch.tensor([0])
    assert CROWN().certify(graph, x, y, ball).all()
    assert not CROWN().certify(replace(graph, deployed=torch.float16), x, y, ball).any()
    assert CROWN().certify(replace(graph, deployed=torch.float32), x, y, ball).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_softmax_may_tie_where_logits_do_not(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Softmax(1)).eval()
    u = torch.finfo(dtype).eps / 2
    for gap, proved in ((0.4 * u, False), (1000 * u, True)):
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[0.0], [gap]]))
        x = torch.ones(1, 1)
        ran = copy.deepcopy(net).to(dtype)(x.to(dtype))
        graph = replace(trace(net, x), deployed=dtype)
        ball, y = LpBall.uniform(Norm.LINF, 0.0, 1), torch.tensor([1])
        assert bool(ran[0, 0] == ran[0, 1]) is not proved
        assert bool(CROWN().certify(graph, x, y, ball)) is proved


@pytest.mark.parametrize("dtype", TYPES)
def test_probabilities_are_told_apart_where_the_logits_differ_by_the_tie(dtype: torch.dtype) -> None:
    for classes in (2, 10, 1000):
        nodes = (
            Node(op="input", inputs=(), shape=(classes,)),
            Node(op="softmax", inputs=(0,), shape=(classes,), attributes={"dim": 0}),
        )
        gap = tie(Graph(nodes, deployed=dtype))
        g = torch.Generator().manual_seed(classes)
        logits = (torch.randn(500, classes, generator=g) * 3).to(dtype)
        top = logits.amax(1, keepdim=True)
        logits[:, 1:] = torch.minimum(logits, (top.double() - 1.01 * gap).to(dtype) - top.abs() * 2 * u_of(dtype))[
            :, 1:
        ]
        logits[:, :1] = top
        clear = (logits[:, :1].double() - logits[:, 1:].double()).amin(1) > gap
        assert clear.any()
        for f in (torch.softmax, lambda z, d: torch.softmax(z.float(), d).to(dtype)):
            p = f(logits, 1)
            assert (p[clear, :1] > p[clear, 1:]).all()


def u_of(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def test_a_softmax_over_so_many_classes_that_all_underflow_proves_nothing() -> None:
    nodes = (
        Node(op="input", inputs=(), shape=(20_000,)),
        Node(op="softmax", inputs=(0,), shape=(20_000,), attributes={"dim": 0}),
    )
    assert tie(Graph(nodes, deployed=torch.float16)) == torch.inf
    assert tie(Graph(nodes, deployed=torch.float32)) < 1e-5


class _Computed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.norm(), self.bias)


class _Scores(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(x, 1)


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)), "layer_norm"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 3)), "softmax"),
        (nn.Sequential(nn.Linear(4, 3), _Scores()), "log_softmax"),
        (nn.Sequential(nn.Linear(4, 4), nn.Hardswish(), nn.Linear(4, 3)), "hardswish"),
        (nn.Sequential(nn.Linear(4, 4), nn.Mish(), nn.Linear(4, 3)), "mish"),
        (_Computed(4, 3), "constants of its own"),
    ],
)
def test_what_is_not_known_to_round_is_refused_by_name(net: nn.Module, named: str) -> None:
    x = torch.rand(1, 4)
    graph = trace(net.eval(), x)
    ball, y = LpBall.uniform(Norm.LINF, 0.01, 1), torch.tensor([0])
    CROWN().margins(graph, x, y, ball)  # in real numbers it is served
    for dtype in TYPES:
        with pytest.raises(UnsupportedError, match=named):
            CROWN().margins(replace(graph, deployed=dtype), x, y, ball)


def test_a_folded_graph_whose_steps_are_lost_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    x = torch.rand(1, 4)
    graph = trace(net, x)
    other = replace(graph, written=None)
    with pytest.raises(UnsupportedError, match="chain of operations"):
        CROWN().margins(replace(other, deployed=torch.float16), x, torch.tensor([0]), LpBall.uniform(Norm.LINF, 0.0, 1))


@pytest.mark.parametrize("dtype", NARROW)
def test_certificates_of_a_model_in_a_narrow_type_are_about_the_model_as_it_runs(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval().to(dtype)
    x = torch.rand(6, 4).to(dtype)
    graph, y = trace(net, x), net(x).argmax(1)
    ball = LpBall.uniform(Norm.LINF, 0.01, 6, dtype=dtype)
    tool = CROWN()
    as_run = tool.margins(replace(graph, deployed=dtype), x, y, ball)
    assert torch.equal(tool.margins(graph, x, y, ball), as_run)
    kind = str(dtype).removeprefix("torch.")
    assert f"as it runs in {kind}" in tool.arithmetic(graph)
    assert "real numbers" in tool.arithmetic(replace(graph, dtype=torch.float32))


def test_attacks_find_nothing_inside_certificates_as_deployed() -> None:
    """Gradient steps and corners in float16, on networks that are certified."""
    held = 0
    for seed in range(8):
        net, shape, read = _read(seed)
        x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(seed))
        half = copy.deepcopy(net).half()
        y = half(x.half()).argmax(1)
        eps = 0.02
        graph, ball = replace(read, deployed=torch.float16), LpBall.uniform(Norm.LINF, eps, 4)
        proved = CROWN().certify(graph, x, y, ball)
        held += int(proved.sum())
        for i in proved.nonzero().flatten().tolist():
            z = x[i : i + 1].repeat(50, *(1,) * len(shape)) + eps * (2 * torch.rand(50, *shape) - 1).sign()
            z = z.clamp(0, 1)
            for _ in range(5):
                z = z.detach().requires_grad_()
                scores = net(z)
                loss = scores.gather(1, y[i].expand(50, 1)) - scores.topk(2, 1).values.sum(1, keepdim=True)
                (g,) = torch.autograd.grad(loss.sum(), z)
                z = torch.minimum(torch.maximum(z - 0.01 * g.sign(), x[i] - eps), x[i] + eps).clamp(0, 1)
                assert (half(z.detach().half()).argmax(1) == y[i]).all()
    assert held >= 5
