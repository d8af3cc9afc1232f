"""An operation that a plug-in adds: what it computes, its bounds, its rounding and how it is read, each by one call."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.graph_certifier import margin_rows
from holdfast.certifiers.propagation import table
from holdfast.certifiers.propagation.function_errors import LOSSES
from holdfast.certifiers.propagation.operations.smooth import Curve
from holdfast.certifiers.sets.weight_perturbation import WeightPerturbation
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision
from holdfast.certifiers.verification.verifier import broken, verify
from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, Node, trace
from holdfast.graph.aten import define_call
from holdfast.graph.operations import OPERATIONS, Definition, Rounding, define

pytestmark = pytest.mark.usefixtures("own_operations")

F64 = torch.float64
# what a bound may lie below the least margin of points
SLACK = {(CROWN, None): 0.01, (CROWN, torch.float32): 0.01, (CROWN, torch.bfloat16): 0.6}
SLACK |= {(IBP, None): 0.3, (IBP, torch.float32): 0.3, (IBP, torch.bfloat16): 1.3}
SQUASH = Definition(compute=lambda x, t, a: F.softsign(x[0]), rounding=Rounding.ULPS, monotone=True)


class Squash(Curve):
    """``z / (1 + |z|)``: convex below 0, concave above."""

    def value(self, node: Node, z: Tensor) -> Tensor:
        return F.softsign(z)

    def derivative(self, node: Node, z: Tensor) -> Tensor:
        return 1 / (1 + z.abs()).square()

    def bends(self, node: Node) -> tuple[bool, tuple[float, ...]]:
        return True, (0.0,)


def _graph(dtype: torch.dtype) -> Graph:
    generator = torch.Generator().manual_seed(5)
    shapes = ((8, 4), (8, 8), (3, 8))
    weights = [torch.randn(s, generator=generator, dtype=F64).to(dtype) * 0.7 for s in shapes]
    nodes = [Node(op="input", inputs=(), shape=(4,))]
    for i, weight in enumerate(weights):
        nodes.append(Node(op="linear", inputs=(len(nodes) - 1,), shape=(len(weight),), tensors={"weight": weight}))
        if i < 2:
            nodes.append(Node(op="squash", inputs=(len(nodes) - 1,), shape=(len(weight),)))
    return Graph(tuple(nodes), dtype)


def _sampled(graph: Graph, ball: LpBall, x: Tensor, y: Tensor) -> Tensor:
    """The least margins of a network, as it runs, over points of the set."""
    points = torch.rand((20000, *x.shape), generator=torch.Generator().manual_seed(1), dtype=F64) * 2 - 1
    points = (x + points.round() * ball.eps.view(-1, 1)).clamp(0, 1)
    scores = graph.as_module()(points.flatten(0, 1).to(graph.dtype)).detach().double().view(20000, len(x), 3)
    own = scores.gather(2, y.expand(20000, -1).unsqueeze(2))
    return (own - scores).masked_fill(torch.eye(3, dtype=torch.bool)[y], torch.inf).amin((0, 2))


@pytest.mark.parametrize(("method", "kind"), SLACK)
def test_an_operation_from_outside_is_certified_as_it_is_written_and_as_it_runs(method, kind):
    define("squash", SQUASH)
    table.define_bounds("squash", Squash())
    graph = _graph(kind or F64)
    x = torch.rand((4, 4), generator=torch.Generator().manual_seed(2), dtype=F64).to(graph.dtype).double()
    y = graph.as_module()(x.to(graph.dtype)).argmax(1)
    ball = LpBall.uniform(Norm.LINF, 0.02, 4, dtype=F64)
    bounds = method().margins(replace(graph, deployed=kind), x, y, ball).amin(1)
    least = _sampled(graph, ball, x, y)
    assert (bounds <= least).all()
    assert (least - bounds < SLACK[method, kind]).all()
    if kind is not None:
        assert (bounds < method().margins(graph.to(F64), x, y, ball).amin(1)).all()


def test_an_operation_without_bounds_is_refused_by_name():
    define("squash", SQUASH)
    graph, ball = _graph(F64), LpBall.uniform(Norm.LINF, 0.1, 1, dtype=F64)
    assert table.covered(graph) == {"linear": True, "squash": False}
    with pytest.raises(UnsupportedError, match="no bound is known for 'squash'"):
        CROWN().margins(graph, torch.zeros(1, 4, dtype=F64), torch.zeros(1, dtype=torch.int64), ball)


def test_an_operation_of_which_no_rounding_is_known_is_refused_as_it_runs():
    define("squash", replace(SQUASH, rounding=Rounding.UNKNOWN))
    table.define_bounds("squash", Squash())
    graph, ball = _graph(torch.float32), LpBall.uniform(Norm.LINF, 0.1, 1, dtype=F64)
    x, y = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    CROWN().margins(graph, x, y, ball)
    with pytest.raises(UnsupportedError, match="not known how 'squash' rounds when it runs in float32"):
        CROWN().margins(replace(graph, deployed=torch.float32), x, y, ball)


def test_a_sum_of_products_of_neither_two_values_nor_a_named_factor_is_refused_as_it_runs():
    define("squash", replace(SQUASH, rounding=Rounding.SUM_OF_PRODUCTS))
    table.define_bounds("squash", Squash())
    graph, ball = replace(_graph(torch.float32), deployed=torch.float32), LpBall.uniform(Norm.LINF, 0.1, 1, dtype=F64)
    with pytest.raises(
        UnsupportedError, match="'squash' rounds when it runs in float32: sums of products are those of two"
    ):
        CROWN().margins(graph, torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), ball)


def test_weights_of_a_plug_in_that_no_bound_moves_are_refused_and_not_left_out():
    weight = torch.ones(4, dtype=F64)
    define("squash", replace(SQUASH, compute=lambda x, t, a: F.softsign(x[0] * t["weight"])))
    table.define_bounds("squash", Squash())
    nodes = (
        Node(op="input", inputs=(), shape=(4,)),
        Node(op="squash", inputs=(0,), shape=(4,), tensors={"weight": weight}),
    )
    with pytest.raises(UnsupportedError, match="'squash' has no weights that could have a tolerance"):
        WeightPerturbation().certify(Graph(nodes, F64), torch.eye(4)[:1], torch.zeros(1, dtype=torch.int64))


@torch.library.custom_op("ours::squash", mutates_args=())
def squash(x: Tensor, scale: float = 1.0) -> Tensor:
    """An operation that PyTorch does not have."""
    return F.softsign(x) * scale


@squash.register_fake
def _(x: Tensor, scale: float = 1.0) -> Tensor:
    return torch.empty_like(x)


class _Squashing(nn.Module):
    """Layers around the operation, one of them with an argument of its own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(squash(second(squash(first(x), 2.0))))


def _defined(**how: bool) -> None:
    define("squash", SQUASH)
    table.define_bounds("squash", Squash())
    define_call("ours::squash", lambda c: c.b.affine(c.b.unary("squash", c.x), scale=c.number("scale")), **how)


@pytest.mark.parametrize(("method", "above"), [("auto", 0.01), ("input_splitting", 0.01), ("neuron_splitting", 0.05)])
def test_a_model_with_an_operation_from_outside_is_read_and_decided_on_both_sides_of_its_least_margin(method, above):
    _defined()
    graph = trace(_Squashing(), torch.zeros(1, 4))
    assert [n.op for n in graph.nodes] == ["input", "linear", "squash", "affine", "linear", "squash", "linear"]
    x = torch.full((1, 4), 0.5, dtype=F64)
    y, ball = graph.to(F64).as_module()(x).argmax(1), LpBall.uniform(Norm.LINF, 0.3, 1, dtype=F64)
    least, rows = _sampled(graph.to(F64), ball, x, y), margin_rows(y, 3)[0]
    for moved, decision in ((above, Decision.HOLDS), (-0.02, Decision.BROKEN)):
        d = (moved - least).expand(len(rows))
        query = Query(x=x, ball=ball, c=rows, d=d, groups=torch.arange(len(rows)))
        answer = verify(graph, [query], timeout=60, method=method)
        assert answer.decision is decision
        assert answer.bound <= moved
        if decision is Decision.HOLDS:
            assert answer.method != "crown", "one pass does it: nothing else of the method is tried"
        else:
            assert broken(graph, query, answer.witness)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_model_with_an_operation_from_outside_is_bounded_as_it_runs_if_it_runs_as_its_nodes_say(kind):
    _defined(stepwise=True)
    model = _Squashing().to(kind)
    graph = trace(model, torch.zeros(1, 4, dtype=kind))
    x = torch.rand((4, 4), generator=torch.Generator().manual_seed(2), dtype=F64).to(kind).double()
    y, ball = model(x.to(kind)).argmax(1), LpBall.uniform(Norm.LINF, 0.02, 4, dtype=F64)
    bounds = CROWN().margins(replace(graph, deployed=kind), x, y, ball).amin(1)
    assert (bounds <= _sampled(graph, ball, x, y)).all()
    assert (bounds < CROWN().margins(graph.to(F64), x, y, ball).amin(1)).all()


def test_a_model_with_a_call_of_which_it_is_not_said_how_it_runs_is_bounded_in_real_numbers_alone():
    _defined()
    graph, ball = trace(_Squashing(), torch.zeros(1, 4)), LpBall.uniform(Norm.LINF, 0.02, 1, dtype=F64)
    x, y = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    CROWN().margins(graph, x, y, ball)
    with pytest.raises(UnsupportedError, match="not known how 'ours::squash' rounds when it runs in float32; leave"):
        CROWN().margins(replace(graph, deployed=torch.float32), x, y, ball)


def test_a_call_that_nobody_defined_is_refused_by_its_full_name_and_what_a_reader_overlooks_by_its_argument():
    with pytest.raises(UnsupportedError, match=r"uses 'ours::squash' \(line .*which the graph does not know"):
        trace(_Squashing(), torch.zeros(1, 4))
    define("squash", SQUASH)
    define_call("ours::squash", lambda c: c.b.unary("squash", c.x))
    with pytest.raises(UnsupportedError, match=r"'ours::squash' with scale=2\.0"):
        trace(_Squashing(), torch.zeros(1, 4))


def test_a_call_that_is_read_as_another_function_is_refused():
    define_call("ours::squash", lambda c: c.b.affine(c.b.unary("tanh", c.x), scale=c.number("scale")))
    with pytest.raises(ModelError, match="ours::squash"):
        trace(_Squashing(), torch.zeros(1, 4))


def test_bounds_without_a_definition_and_names_that_are_taken_are_refused():
    with pytest.raises(UsageError, match="the graph has no operation 'squash'"):
        table.define_bounds("squash", Squash())
    define("squash", SQUASH)
    table.define_bounds("squash", Squash())
    with pytest.raises(UsageError, match="has an operation 'squash'"):
        define("squash", SQUASH)
    with pytest.raises(UsageError, match="bounds of 'squash' are known"):
        table.define_bounds("squash", Squash())
    for name in ("relu", "getitem"):
        with pytest.raises(UsageError, match=f"the call '{name}' is read already"):
            define_call(name, lambda c: c.b.unary("squash", c.x))


ROUNDS = {
    Rounding.EXACT: "abs concat max_pool pad permute relu reshape select",
    Rounding.STEP: "sign",
    Rounding.LOOK_UP: "embedding",
    Rounding.SUM_OF_PRODUCTS: "add affine conv conv_transpose leaky_relu linear matmul mean mul sub",
    Rounding.ULPS: "cos elu erf exp gelu log power reciprocal sigmoid silu sin softplus sqrt tanh",
    Rounding.UNKNOWN: "softmax",
}


def test_each_operation_rounds_as_it_was_worked_out_for_it_and_a_new_one_must_be_added_here():
    """A class that is too kind would be a bound that is not one, and nothing else says which is right."""
    by_class = {kind: {n for n, d in OPERATIONS.items() if d.rounding is kind} for kind in Rounding}
    assert by_class == {kind: set(names.split()) for kind, names in ROUNDS.items()}
    assert set(LOSSES) == by_class[Rounding.ULPS] - {"exp"} | {"sign", "leaky_relu"}
    monotone = "elu erf exp log reciprocal sigmoid sign softplus sqrt tanh"
    assert {n for n, d in OPERATIONS.items() if d.monotone} == set(monotone.split())
    assert {n for n, d in OPERATIONS.items() if not d.total} == {"log", "power", "reciprocal", "sqrt"}
    assert {n: d.factor for n, d in OPERATIONS.items() if d.factor} == {
        "linear": "weight", "conv": "weight", "conv_transpose": "weight", "affine": "scale",
    }  # fmt: skip
    assert [n for n, d in OPERATIONS.items() if d.sums_in_type] == ["conv_transpose"]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_has_bounds_or_is_written_out(name):
    assert table.covered(Graph((Node(op="input", inputs=(), shape=(2,)), Node(op=name, inputs=(0,), shape=(2,)))))[name]
    assert OPERATIONS[name].rounding is not Rounding.UNKNOWN or name == "softmax"
    if name in table.TABLE:
        assert OPERATIONS[name].linear == table.TABLE[name].linear
