"""Every entry of the table of bounds: its boxes and its lines hold whatever was chosen, and have gradients.

A new entry is tested as a function of one value without attributes, unless `_CASES` says what else it is.
"""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from holdfast.certifiers.bounds.alpha_crown import AlphaCROWN
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.propagation.lowering import lowered
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region, gamma
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.propagation.table import TABLE, covered
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, Node
from holdfast.graph.operations import compute

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """One operation with its constants; ``positive``: it is asked of positive numbers, of at most ``most``."""

    op: str
    shapes: tuple[tuple[int, ...], ...] = ((6,),)
    attributes: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)
    positive: bool = False
    most: float = 1e3

    @property
    def name(self):
        return "-".join([self.op, *(str(v) for v in self.attributes.values())])

    def node(self, inputs=None):
        zeros = [torch.zeros(1, *s, dtype=F64) for s in self.shapes]
        shape = tuple(compute(self.op, zeros, self.tensors, self.attributes).shape[1:])
        inputs = tuple(range(len(self.shapes))) if inputs is None else inputs
        return Node(op=self.op, inputs=inputs, shape=shape, tensors=self.tensors, attributes=self.attributes)


def _tensor(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=F64)


_POOL = {"kernel": (2, 2), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "ceil": False}
_STEPS = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
_CASES = {
    "linear": [Case("linear", ((2, 3),), tensors={"weight": _tensor(4, 3), "bias": _tensor(4)})],
    "conv": [Case("conv", ((2, 5, 5),), _STEPS, {"weight": _tensor(4, 1, 3, 2), "bias": _tensor(4)})],
    "conv_transpose": [
        Case(
            "conv_transpose",
            ((2, 3, 4),),
            _STEPS | {"output_padding": (1, 0)},
            {"weight": _tensor(2, 2, 3, 2), "bias": _tensor(4)},
        ),
        Case(  # output padding beyond the stride
            "conv_transpose",
            ((2, 4),),
            {"stride": (1,), "padding": (2,), "dilation": (3,), "groups": 1, "output_padding": (2,)},
            {"weight": _tensor(2, 3, 3)},
        ),
    ],
    "affine": [Case("affine", ((2, 3),), tensors={"scale": _tensor(1, 3), "shift": _tensor(2, 1)})],
    "leaky_relu": [Case("leaky_relu", attributes={"slope": 0.2})],
    "elu": [Case("elu", attributes={"alpha": a}) for a in (0.3, 1.0, 2.5)],
    "gelu": [Case("gelu", attributes={"approximate": a}) for a in ("none", "tanh")],
    "exp": [Case("exp", most=50)],
    "log": [Case("log", positive=True)],
    "sqrt": [Case("sqrt", positive=True)],
    "reciprocal": [Case("reciprocal", positive=True)],
    "power": [
        Case("power", attributes={"exponent": p}, positive=p < 0 or p % 1 > 0, most=50)
        for p in (-3.0, -2.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    ],
    "add": [Case("add", ((6,), (6,)))],
    "sub": [Case("sub", ((6,), (6,)))],
    "mul": [Case("mul", ((6,), (6,)))],
    "matmul": [Case("matmul", ((2, 3, 4), (2, 4, 3))), Case("matmul", ((1, 26, 25), (1, 25, 27)), most=10)],
    "reshape": [Case("reshape", ((2, 3),), {"shape": (3, 2)})],
    "permute": [Case("permute", ((2, 3, 2),), {"dims": (2, 0, 1)})],
    "select": [Case("select", ((2, 3),), {"dim": 1}, {"index": torch.tensor([2, 0, 0, 1])})],
    "pad": [Case("pad", ((2, 3),), {"pads": ((1, 0), (0, 2))})],
    "concat": [Case("concat", ((2, 3), (2, 1)), {"dim": 1})],
    "max_pool": [Case("max_pool", ((2, 3, 3),), _POOL)],
    "mean": [Case("mean", ((2, 3),), {"dims": (0,)})],
    "embedding": [Case("embedding", ((3,),), tensors={"weight": _tensor(9, 4)})],
}
CASES = [case for op in TABLE for case in _CASES.get(op, [Case(op)])]
CURVED = [case for case in CASES if not TABLE[case.op].linear and case.op != "embedding"]


def _boxes(case, n, seed):
    """Boxes of all sizes around points of all sizes: wide, narrow, points, and some with an end at 0."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape in case.shapes:
        if case.op == "embedding":
            ends = torch.randint(0, 9, (2, n, *shape), generator=generator).double().sort(0).values
        else:
            size = 10 ** (6 * torch.rand(n, *(1,) * len(shape), generator=generator, dtype=F64) - 3)
            ends = torch.randn(2, n, *shape, generator=generator, dtype=F64) * size
            narrow = torch.rand(n, *shape, generator=generator) < 0.2
            ends[1] = torch.where(narrow, ends[0] * (1 + 1e-9), ends[1])
            ends = (ends.abs() + 1e-4 if case.positive else ends).clamp(-case.most, case.most).sort(0).values
            ends[1][: n // 8] = ends[0][: n // 8]
            if not case.positive:
                ends[0][n // 8 : n // 4] = ends[0][n // 8 : n // 4].clamp(min=0)
                ends[1][n // 8 : n // 4] = ends[1][n // 8 : n // 4].clamp(min=0)
                ends[:, n // 4 : 3 * n // 8] = ends[:, n // 4 : 3 * n // 8].clamp(max=0)
        found.append(Box(*ends))
    return found


def _points(case, boxes, count, seed):
    """(count, n, \\*shape) for each input: uniform, and many on faces."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for low, high in boxes:
        part = torch.rand(count, *low.shape, generator=generator, dtype=F64)
        part = torch.where(torch.rand(part.shape, generator=generator) < 0.3, part.round(), part)
        z = torch.minimum(torch.maximum(low + part * (high - low), low), high)
        found.append(z.round() if case.op == "embedding" else z)
    return found


def _values(case, points):
    rows = [p.flatten(0, 1) for p in points]
    return compute(case.op, rows, case.tensors, case.attributes).unflatten(0, points[0].shape[:2])


def _terms(case, node):
    return 16 + math.prod(node.shape) + sum(math.prod(s) for s in case.shapes)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_boxes_and_lines_hold_whatever_is_chosen(case):
    op, node = TABLE[case.op], case.node()
    large = math.prod(node.shape) > 500
    n, count, rows = (8, 16, 2) if large else (64, 160, 6)
    boxes = _boxes(case, n, 1)
    points = _points(case, boxes, count, 2)
    values = _values(case, points)
    box, generator = op.interval(node, boxes), torch.Generator().manual_seed(3)
    size = op.size(node, boxes, box)
    size = torch.zeros_like(box.lower) if size is None else size
    slack = gamma(_terms(case, node))
    assert (values >= box.lower - slack * size).all()
    assert (values <= box.upper + slack * size).all()
    usual = op.prepare(node, boxes)
    default = op.alpha(usual)
    choices = [None]
    if default is not None:
        choices += [default.unsqueeze(0)]
        choices += [torch.rand(rows, *default.shape, generator=generator, dtype=F64)]
        choices += [torch.full((1, *default.shape), v, dtype=F64) for v in (0.0, 1.0, 1.2)]
    for choice in choices:
        a = torch.randn(rows, n, *node.shape, generator=generator, dtype=F64)
        a = torch.where(torch.rand(a.shape, generator=generator) < 0.3, 0.0, a)
        parts, constant = op.pull(node, a, usual if choice is None else op.prepare(node, boxes, choice))
        lower = torch.zeros(rows, n, dtype=F64) if constant is None else constant
        total = lower + sum(
            torch.einsum("rnd,cnd->crn", p.flatten(2), z.flatten(2)) for p, z in zip(parts, points, strict=True)
        )
        exact = torch.einsum("rnd,cnd->crn", a.flatten(2), values.flatten(2))
        # the sums of this test round as well
        error = 2 * slack * torch.einsum("rnd,nd->rn", a.abs().flatten(2), (size + box.magnitude).flatten(1))
        for p, b in zip(parts, boxes, strict=True):
            error = error + slack * torch.einsum("rnd,nd->rn", p.abs().flatten(2), b.magnitude.flatten(1))
        assert (total <= exact + error).all(), float(((total - exact) / (error + 1e-300)).max())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_point_is_bounded_by_its_value(case):
    op, node = TABLE[case.op], case.node()
    boxes = [Box(b.lower, b.lower) for b in _boxes(case, 32, 4)]
    value = _values(case, [b.lower.unsqueeze(0) for b in boxes])[0]
    box = op.interval(node, boxes)
    torch.testing.assert_close(box.lower, value, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(box.upper, value, rtol=1e-12, atol=1e-9)
    a = torch.randn(3, 32, *node.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    parts, constant = op.pull(node, a, op.prepare(node, boxes))
    total = torch.zeros(3, 32, dtype=F64) if constant is None else constant
    total = total + sum((p * b.lower).flatten(2).sum(2) for p, b in zip(parts, boxes, strict=True))
    size = op.size(node, boxes, box)
    scale = (box.magnitude if size is None else size).flatten(1).sum(1)
    assert ((total - (a * value).flatten(2).sum(2)).abs() <= 1e-10 * (scale + 1)).all()


def _chain(case, seed, width=4):
    """A network around one operation: linear maps of the input, the operation, and a linear map to 3 scores.

    Returns:
        The graph and its weights, which its nodes share. What the operation reads lies within [1, 3] if it must be
        positive, else within [-3, 3].
    """
    generator = torch.Generator().manual_seed(seed)
    weights, nodes = [], [Node(op="input", inputs=(), shape=(width,))]
    for shape in case.shapes:
        weight = torch.randn(math.prod(shape), width, generator=generator, dtype=F64)
        weight = (weight / weight.abs().sum(1, keepdim=True) * (1 if case.positive else 3)).requires_grad_()
        bias = torch.full((len(weight),), 2.0 if case.positive else 0.1, dtype=F64)
        weights.append(weight)
        nodes.append(Node(op="linear", inputs=(0,), shape=(len(weight),), tensors={"weight": weight, "bias": bias}))
        nodes.append(Node(op="reshape", inputs=(len(nodes) - 1,), shape=shape, attributes={"shape": shape}))
    nodes.append(case.node(tuple(2 + 2 * i for i in range(len(case.shapes)))))
    flat = math.prod(nodes[-1].shape)
    nodes.append(Node(op="reshape", inputs=(len(nodes) - 1,), shape=(flat,), attributes={"shape": (flat,)}))
    last = torch.randn(3, flat, generator=generator, dtype=F64).requires_grad_()
    nodes.append(Node(op="linear", inputs=(len(nodes) - 1,), shape=(3,), tensors={"weight": last}))
    return Graph(tuple(nodes), F64), [*weights, last]


@pytest.mark.parametrize("case", [c for c in CASES if c.op != "embedding"], ids=lambda c: c.name)
def test_networks_around_it_are_bounded_and_tighter_than_by_intervals(case):
    gain = 0.0
    for seed in range(1 if case.shapes[0] == (1, 26, 25) else 3):
        graph, _ = _chain(case, seed)
        x = 2 * torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=F64) - 1
        low, high = torch.tensor(-1.0, dtype=F64), torch.tensor(1.0, dtype=F64)
        ball = LpBall(norm=Norm.LINF, eps=torch.tensor([0.05, 0.6], dtype=F64), lower=low, upper=high)
        with torch.no_grad():
            crude, fine = Propagation(graph, Region(ball, x)), Propagation(graph, Region(ball, x))
            crude.run(lambda _: False)
            fine.run(lambda _: True, every=True)
            points = x + ball.eps.view(-1, 1) * (
                2 * torch.rand(2000, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 1
            )
            points = points.clamp(-1, 1)
            values = graph.as_module()(points.flatten(0, 1)).view(2000, 2, 3)
            for one, two in zip(fine.boxes, crude.boxes, strict=True):
                assert (one.lower >= two.lower - 1e-9).all()
                assert (one.upper <= two.upper + 1e-9).all()
            assert (values >= fine.boxes[-1].lower).all()
            assert (values <= fine.boxes[-1].upper).all()
            better = AlphaCROWN(iterations=5, deep_iterations=0).bounds(graph, ball, x, torch.eye(3))
            assert (better <= values.amin(0)).all()
            assert (better >= specification(fine, torch.eye(3)) - 1e-9).all()
            gain += float((better - fine.boxes[-1].lower).sum())
    assert gain >= -1e-9


@pytest.mark.parametrize("case", [c for c in CASES if c.op != "embedding"], ids=lambda c: c.name)
def test_bounds_have_the_gradients_that_differences_show(case):
    graph, weights = _chain(replace(case, most=3), 5)
    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(1), dtype=F64) / 2
    region = Region(LpBall.uniform(Norm.LINF, 0.11, 1, dtype=F64), x)
    found = Propagation(graph, region, sound=False)
    found.run(lambda _: True)
    generator = torch.Generator().manual_seed(2)
    last = len(graph.nodes) - 1
    chosen = [
        {
            k: (0.25 + 0.5 * torch.rand(1, *s.shape, generator=generator, dtype=F64)).requires_grad_()
            for k, s in part.items()
        }
        for part in ({}, found.alphas(last))
    ]

    def bound(slopes):
        found.run(lambda _: True)
        return specification(found, torch.eye(3, dtype=F64), None, slopes).sum()

    for slopes, variables in ((chosen[0], weights), (chosen[1], list(chosen[1].values()))):
        if not variables:
            continue
        gradients = torch.autograd.grad(bound(slopes), variables)
        assert all(g.isfinite().all() for g in gradients)
        directions = [torch.randn(v.shape, generator=generator, dtype=F64) for v in variables]
        step = 1e-6
        ends = []
        with torch.no_grad():
            for sign in (1, -2):
                for v, d in zip(variables, directions, strict=True):
                    v += sign * step * d
                ends.append(float(bound(slopes)))
            for v, d in zip(variables, directions, strict=True):
                v += step * d
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("op", "attributes", "low", "high"),
    [
        ("log", {}, -1.0, 2.0),
        ("log", {}, 0.0, 2.0),
        ("sqrt", {}, -0.1, 2.0),
        ("reciprocal", {}, -1.0, 2.0),
        ("reciprocal", {}, 0.0, 2.0),
        ("power", {"exponent": -2.0}, -1.0, 1.0),
        ("power", {"exponent": 0.5}, -1.0, 1.0),
    ],
)
def test_outside_its_domain_a_function_proves_nothing_and_harms_no_neighbour(op, attributes, low, high):
    """Two samples in one batch: the first leaves the domain."""
    nodes = (
        Node(op="input", inputs=(), shape=(1,)),
        Node(op=op, inputs=(0,), shape=(1,), attributes=attributes),
        Node(
            op="linear",
            inputs=(1,),
            shape=(2,),
            tensors={"weight": torch.tensor([[1.0], [-1.0]], dtype=F64), "bias": torch.ones(2).double() * 9},
        ),
    )
    ends = torch.tensor([[[low], [0.5]], [[high], [1.5]]], dtype=F64)
    ball = LpBall(norm=Norm.LINF, eps=torch.full((2,), torch.inf, dtype=F64), lower=ends[0], upper=ends[1])
    for method in (CROWN(), AlphaCROWN(iterations=2, deep_iterations=1)):
        bound = method.bounds(Graph(nodes, F64), ball, ends.mean(0), torch.eye(2, dtype=F64))
        assert not (bound[0] > -1e300).any()
        assert (bound[1] > 0).all()


def test_a_sine_over_many_turns_is_bounded_by_one():
    for name in ("sin", "cos"):
        box = TABLE[name].interval(
            Node(op=name, inputs=(0,), shape=(3,)), [Box(*torch.tensor([[[-30.0, 0, 1]], [[40.0, 7, 1.1]]]).double())]
        )
        assert box.lower[0, :2].tolist() == [-1, -1]
        assert box.upper[0, :2].tolist() == [1, 1]
        assert (box.upper - box.lower)[0, 2] < 0.1


def _attention(n, heads, wide, lower=None, seed=0):
    """softmax(q k^T) v with linear q, k and v of the input (n, heads, wide); ``lower``: how softmax is written."""
    generator = torch.Generator().manual_seed(seed)
    size, shape = n * heads * wide, (n, heads, wide)
    nodes = [Node(op="input", inputs=(), shape=(size,))]

    def add(op, inputs, shape, tensors=None, /, **attributes):
        nodes.append(
            Node(op=op, inputs=tuple(inputs), shape=tuple(shape), tensors=tensors or {}, attributes=attributes)
        )
        return len(nodes) - 1

    parts = []
    for k in range(3):
        weight = torch.randn(size, size, generator=generator, dtype=F64) / size**0.5
        z = add("reshape", [add("linear", [0], (size,), {"weight": weight})], shape, shape=shape)
        dims = (1, 2, 0) if k == 1 else (1, 0, 2)
        parts.append(add("permute", [z], [shape[d] for d in dims], dims=dims))
    scores = add("matmul", parts[:2], (heads, n, n))
    scores = add("softmax", [scores], (heads, n, n), dim=2) if lower is None else lower(add, scores, heads, n)
    out = add("matmul", [scores, parts[2]], (heads, n, wide))
    add("reshape", [out], (size,), shape=(size,))
    return Graph(tuple(nodes), F64)


def _naive(add, scores, heads, n):
    """exp(x_i) times one over the sum of exp(x_j)."""
    shape = (heads, n, n)
    top = add("exp", [scores], shape)
    ones = torch.ones(1, n, dtype=F64)
    total = add("reciprocal", [add("linear", [top], (heads, n, 1), {"weight": ones})], (heads, n, 1))
    total = add("select", [total], shape, {"index": torch.zeros(n, dtype=torch.int64)}, dim=2)
    return add("mul", [top, total], shape)


def test_attention_is_bounded_and_tighter_than_by_quotients():
    n, heads, wide = 4, 2, 3
    graph, naive = _attention(n, heads, wide), _attention(n, heads, wide, _naive)
    x = torch.rand(1, n * heads * wide, generator=torch.Generator().manual_seed(1), dtype=F64)
    ball = LpBall.uniform(Norm.LINF, 0.1, 1, dtype=F64)
    c = torch.cat([torch.eye(24), -torch.eye(24)]).double()
    module = graph.as_module()
    low, high = (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        torch.testing.assert_close(naive.as_module()(x), module(x))
        torch.testing.assert_close(lowered(graph).as_module()(x), module(x))
        least = torch.full((48,), torch.inf, dtype=F64)
        for _ in range(10):
            part = torch.rand(10_000, 24, generator=generator, dtype=F64)
            part = torch.where(torch.rand(part.shape, generator=generator) < 0.5, part.round(), part)
            least = torch.minimum(least, (module(low + part * (high - low)) @ c.T).amin(0))
        ours, theirs = (CROWN().bounds(g, ball, x, c)[0] for g in (graph, naive))
        best = AlphaCROWN(iterations=10, deep_iterations=1).bounds(graph, ball, x, c)[0]
    for bound in (ours, theirs, best):
        assert (bound <= least).all()
    assert (best >= ours).all()
    gaps = [float((least - b).mean()) for b in (best, ours, theirs)]
    assert gaps[0] < 0.9 * gaps[1]
    assert gaps[1] < 0.6 * gaps[2], gaps


def test_softmax_along_any_dimension_and_over_one_entry():
    for shape, dim in (((3, 4), 0), ((3, 4), 1), ((2, 3, 2), 1), ((3, 1), 1)):
        nodes = (
            Node(op="input", inputs=(), shape=shape),
            Node(op="softmax", inputs=(0,), shape=shape, attributes={"dim": dim}),
        )
        graph, x = Graph(nodes, F64), torch.randn(5, *shape, dtype=F64)
        torch.testing.assert_close(lowered(graph).as_module()(x), torch.softmax(x, dim + 1))
        assert all(ok for ok in covered(graph).values())


def test_products_of_one_value_are_functions_of_it():
    nodes = (
        Node(op="input", inputs=(), shape=(2,)),
        Node(op="mul", inputs=(0, 0), shape=(2,)),
        Node(op="sigmoid", inputs=(0,), shape=(2,)),
        Node(op="mul", inputs=(2, 0), shape=(2,)),
        Node(op="add", inputs=(1, 3), shape=(2,)),
    )
    graph = Graph(nodes, F64)
    assert [n.op for n in lowered(graph).nodes] == ["input", "power", "silu", "add"]
    ball = LpBall.uniform(Norm.LINF, 1.0, 1, low=-1.0, high=1.0)
    bound = CROWN().bounds(graph, ball, torch.zeros(1, 2).double(), torch.eye(2))
    assert (bound > -0.6).all()  # a product of two values gives -1 for x x alone
    module, x = graph.as_module(), torch.linspace(-1, 1, 50, dtype=F64)
    assert (bound <= module(torch.stack([x, x], 1)).amin(0)).all()


def test_what_is_not_covered_is_named():
    graph = Graph(
        (
            Node(op="input", inputs=(), shape=(3,)),
            Node(op="softmax", inputs=(0,), shape=(3,), attributes={"dim": 0}),
            Node(op="quantum_gate", inputs=(1,), shape=(3,)),
        )
    )
    assert covered(graph) == {"softmax": True, "quantum_gate": False}
    with pytest.raises(UnsupportedError, match="quantum_gate"):
        CROWN().bounds(graph, LpBall.uniform(Norm.LINF, 0.1, 1), torch.zeros(1, 3), torch.eye(3))


def test_rows_of_a_table_in_a_range_of_whole_numbers():
    weight = torch.tensor([[0.0, 1.0], [5.0, -1.0], [2.0, 2.0], [9.0, 9.0]], dtype=F64)
    node = Node(op="embedding", inputs=(0,), shape=(1, 2), tensors={"weight": weight})
    low = torch.tensor([[1.0], [0.0], [3.0], [math.nextafter(2.0, 0)]], dtype=F64)
    high = torch.tensor([[2.0], [0.0], [4.0], [math.nextafter(2.0, 9)]], dtype=F64)
    box = TABLE["embedding"].interval(node, [Box(low, high)])
    assert box.lower.flatten(1).tolist() == [[2, -1], [0, 1], [-math.inf, -math.inf], [2, 2]]
    assert box.upper.flatten(1).tolist() == [[5, 2], [0, 1], [math.inf, math.inf], [2, 2]]


@pytest.mark.parametrize("hidden", [-400.0, -1e4, -1e9])
@pytest.mark.parametrize("certifier", [IBP(), CROWN()])
def test_a_softmax_under_a_mask_of_large_negative_numbers_is_bounded_as_without_what_it_hides(hidden, certifier):
    generator = torch.Generator().manual_seed(4)
    mask = torch.zeros(4, 5, dtype=F64)
    mask[0, 1:] = mask[1, 2:] = hidden
    mask[2, ::2] = hidden
    mask[3] = hidden  # all of them: the softmax is that of the scores alone
    weight = torch.randn(20, 6, generator=generator, dtype=F64)
    nodes = (
        Node(op="input", inputs=(), shape=(6,)),
        Node(op="linear", inputs=(0,), shape=(20,), tensors={"weight": weight}),
        Node(op="reshape", inputs=(1,), shape=(4, 5), attributes={"shape": (4, 5)}),
        Node(op="affine", inputs=(2,), shape=(4, 5), tensors={"shift": mask}),
        Node(op="softmax", inputs=(3,), shape=(4, 5), attributes={"dim": 1}),
        Node(op="reshape", inputs=(4,), shape=(20,), attributes={"shape": (20,)}),
    )
    graph = Graph(nodes, F64)
    x, ball = torch.rand(1, 6, generator=generator, dtype=F64), LpBall.uniform(Norm.LINF, 0.05, 1, dtype=F64)
    low, high = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    found = graph.as_module()(low + torch.rand(20_000, 6, generator=generator, dtype=F64) * (high - low)).detach()
    least, most = (
        sign * certifier.bounds(graph, ball, x, sign * torch.eye(20, dtype=F64))[0].detach() for sign in (1.0, -1.0)
    )
    assert (least <= found.amin(0)).all()
    assert (most >= found.amax(0)).all()
    hides = (mask < 0) & (mask.amax(1, keepdim=True) == 0)
    assert (most.view(4, 5)[hides] < 1e-4).all()
    assert (least.view(4, 5)[0, 0] > 1 - 1e-4).all()
    assert (most - least < 3 * (found.amax(0) - found.amin(0)) + 1e-4).all()
