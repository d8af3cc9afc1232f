"""Random small graphs over the whole vocabulary, with parameters from all of their ranges."""

import math
import random
from dataclasses import dataclass, field

import torch
from torch import nn

from holdfast.graph import Graph, trace
from holdfast.graph.build import Builder

F64 = torch.float64
EXPONENTS = (-3.0, -2.0, -1.0, -0.5, 0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 2.7, 3.0, 4.0, 5.0)
SLOPES = (-2.5, -1.0, -0.3, 0.0, 0.01, 0.5, 1.0, 1.7, 4.0)
ALPHAS = (-3.0, -1.0, -0.2, 0.0, 0.4, 1.0, 1.6732, 3.0)
PLAIN = ("relu", "sigmoid", "tanh", "silu", "softplus", "erf", "exp", "sin", "cos", "abs", "sign")
ROOTED = ("log", "sqrt", "reciprocal")  # of positive numbers


@dataclass
class Case:
    """A graph to be judged.

    Attributes:
        graph: in float64.
        kind: ``vocabulary``, ``pieces`` (piecewise linear, few neurons) or ``module``.
        model: what computes it, where that is not the graph itself.
        whole: inputs are whole numbers below this (rows of a table), or 0.
    """

    graph: Graph
    kind: str
    model: nn.Module | None = None
    whole: int = 0
    words: list[str] = field(default_factory=list)


class Draw:
    """Builds one graph from a stream of random numbers."""

    def __init__(self, seed: str) -> None:
        self.r = random.Random(seed)
        self.g = torch.Generator().manual_seed(self.r.getrandbits(60))

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=self.g, dtype=F64) * scale

    def scale(self) -> float:
        return self.r.choice((0.1, 0.5, 1.0, 1.0, 1.0, 3.0))

    def start(self, shape: tuple[int, ...]) -> None:
        self.b = Builder(shape, F64)

    def node(self, op: str, inputs: list[int], tensors=None, **attributes) -> int:
        return self.b.add_node(op, inputs, tensors, attributes)

    def shape(self, x: int) -> tuple[int, ...]:
        return self.b.shape(x)

    # pieces

    def affine(self, x: int) -> int:
        shape = tuple(s if self.r.random() < 0.6 else 1 for s in self.shape(x))
        tensors = {k: self.normal(*shape) for k in ("scale", "shift") if self.r.random() < 0.8}
        return self.node("affine", [x], tensors) if tensors else x

    def shifted(self, x: int, shift: float, scale: float = 1.0) -> int:
        ones = torch.ones((1,) * len(self.shape(x)), dtype=F64)
        return self.node("affine", [x], {"scale": ones * scale, "shift": ones * shift})

    def linear(self, x: int) -> int:
        out, into = self.r.randint(1, 5), self.shape(x)[-1]
        tensors = {"weight": self.normal(out, into, scale=self.scale())}
        if self.r.random() < 0.8:
            tensors["bias"] = self.normal(out)
        return self.node("linear", [x], tensors)

    def windows(self, sizes: tuple[int, ...]) -> dict:
        r = self.r
        return {
            "kernel": tuple(r.randint(1, min(3, s)) for s in sizes),
            "stride": tuple(r.randint(1, 2) for _ in sizes),
            "dilation": tuple(r.choice((1, 1, 2)) for _ in sizes),
        }

    def conv(self, x: int) -> int:
        channels, *sizes = self.shape(x)
        a = self.windows(tuple(sizes))
        groups = self.r.choice([g for g in (1, channels) if channels % g == 0])
        out = groups * self.r.randint(1, 2)
        a["padding"] = tuple(self.r.randint(0, 2) for _ in sizes)
        weight = self.normal(out, channels // groups, *a.pop("kernel"), scale=self.scale())
        tensors = {"weight": weight} | ({"bias": self.normal(out)} if self.r.random() < 0.7 else {})
        return self.node("conv", [x], tensors, groups=groups, **a)

    def conv_transpose(self, x: int) -> int:
        channels, *sizes = self.shape(x)
        a = self.windows(tuple(sizes))
        groups = self.r.choice([g for g in (1, channels) if channels % g == 0])
        a["padding"] = tuple(self.r.randint(0, 1) for _ in sizes)
        a["output_padding"] = tuple(
            self.r.randint(0, max(s, d) - 1) for s, d in zip(a["stride"], a["dilation"], strict=True)
        )
        weight = self.normal(channels, self.r.randint(1, 2), *a.pop("kernel"), scale=self.scale())
        tensors = {"weight": weight} | (
            {"bias": self.normal(weight.shape[1] * groups)} if self.r.random() < 0.5 else {}
        )
        return self.node("conv_transpose", [x], tensors, groups=groups, **a)

    def max_pool(self, x: int) -> int:
        a = self.windows(self.shape(x)[1:])
        a["padding"] = tuple(self.r.randint(0, k // 2) for k in a["kernel"])
        return self.node("max_pool", [x], ceil=self.r.random() < 0.4, **a)

    def average_pool(self, x: int) -> int:
        channels, *sizes = self.shape(x)
        a = self.windows(tuple(sizes))
        kernel = a.pop("kernel")
        weight = torch.full((channels, 1, *kernel), 1 / math.prod(kernel), dtype=F64)
        padding = tuple(self.r.randint(0, k // 2) for k in kernel)
        return self.node("conv", [x], {"weight": weight}, groups=channels, padding=padding, **a)

    def activation(self, x: int) -> int:
        r, op = self.r, self.r.choice((*PLAIN, *ROOTED, "leaky_relu", "elu", "gelu", "power", "power", "relu"))
        if op == "leaky_relu":
            return self.node(op, [x], slope=r.choice((*SLOPES, r.uniform(-3, 3))))
        if op == "elu":
            return self.node(op, [x], alpha=r.choice((*ALPHAS, r.uniform(-4, 4))))
        if op == "gelu":
            return self.node(op, [x], approximate=r.choice(("none", "tanh")))
        if op == "power":
            p = r.choice((*EXPONENTS, r.uniform(-3, 5)))
            if (p != int(p) or p < 0) and r.random() < 0.85:
                x = self.positive(x, 0.0 if p > 0 else 0.1)
            return self.node(op, [x], exponent=p)
        if op in ROOTED and r.random() < 0.85:
            x = self.positive(x, 0.0 if op == "sqrt" and r.random() < 0.5 else 0.1)
        if op in ("sin", "cos") and r.random() < 0.3:
            x = self.shifted(x, 0.0, r.choice((10.0, 1e4, 1e9)))
        if op == "exp" and r.random() < 0.1:
            x = self.shifted(x, 0.0, 300.0)
        return self.node(op, [x])

    def positive(self, x: int, least: float) -> int:
        op = self.r.choice(("abs", "exp", "softplus", "relu", "square", "sigmoid"))
        x = self.node("power", [x], exponent=2.0) if op == "square" else self.node(op, [x])
        return self.shifted(x, least) if least else x

    def softmax(self, x: int) -> int:
        return self.node("softmax", [x], dim=self.r.randrange(len(self.shape(x))))

    def mean(self, x: int) -> int:
        rank = len(self.shape(x))
        dims = tuple(sorted(self.r.sample(range(rank), self.r.randint(1, rank))))
        return self.node("mean", [x], dims=dims)

    def norm(self, x: int) -> int:
        """Layer, group, instance or rms norm of some dimensions, written out as the readers do."""
        shape = self.shape(x)
        if len(shape) > 1 and self.r.random() < 0.5:  # by channel: instance norm
            dims = tuple(range(1, len(shape)))
        else:
            dims = tuple(range(len(shape))) if self.r.random() < 0.3 else (len(shape) - 1,)
        centred = x
        if self.r.random() < 0.8:
            centred = self.node("sub", [x, self.spread(self.node("mean", [x], dims=dims), shape)])
        variance = self.node("mean", [self.node("power", [centred], exponent=2.0)], dims=dims)
        root = self.node("sqrt", [self.shifted(variance, self.r.choice((1e-5, 1e-2, 1.0)))])
        return self.node("mul", [centred, self.spread(self.node("reciprocal", [root]), shape)])

    def length(self, x: int) -> int:
        """The l2 norm along the last dimension: a root that may be 0."""
        square = self.node("power", [x], exponent=2.0)
        total = self.shifted(self.node("mean", [square], dims=(len(self.shape(x)) - 1,)), 0.0, self.shape(x)[-1])
        return self.node("sqrt", [total])

    def spread(self, x: int, shape: tuple[int, ...]) -> int:
        for dim, size in enumerate(shape):
            if self.shape(x)[dim] == 1 and size > 1:
                x = self.node("select", [x], {"index": torch.zeros(size, dtype=torch.long)}, dim=dim)
        return x

    def attention(self, x: int) -> int:
        """Of tokens (t, e), with a mask now and then."""
        rank = len(self.shape(x))
        out = self.r.randint(1, 3)
        q, k = (self.node("linear", [x], {"weight": self.normal(out, self.shape(x)[-1])}) for _ in range(2))
        v = self.linear(x)
        back = (*range(rank - 2), rank - 1, rank - 2)
        scores = self.node("matmul", [q, self.node("permute", [k], dims=back)])
        scores = self.shifted(scores, 0.0, 1 / math.sqrt(out))
        if self.r.random() < 0.2:
            mask = torch.zeros(self.shape(scores), dtype=F64)
            mask[..., -1] = self.r.choice((-1e9, -30.0))
            scores = self.node("affine", [scores], {"shift": mask})
        weights = self.node("softmax", [scores], dim=rank - 1)
        y = self.node("matmul", [weights, v])
        if self.shape(y) == self.shape(x) and self.r.random() < 0.5:
            y = self.node("add", [y, x])
        return y

    def binary(self, x: int) -> int:
        r, same = self.r, [i for i in range(len(self.b.nodes)) if self.shape(i) == self.shape(x)]
        op = r.choice(("add", "sub", "mul", "mul", "gate", "concat", "quotient", "maximum"))
        y = r.choice(same)
        if op == "gate":
            return self.node("mul", [x, self.node("sigmoid", [x])])
        if op == "concat":
            return self.node("concat", [x, y, x], dim=r.randrange(len(self.shape(x))))
        if op == "quotient":
            return self.node("mul", [x, self.node("reciprocal", [self.positive(y, 0.2)])])
        if op == "maximum":
            return self.node("add", [y, self.node("relu", [self.node("sub", [x, y])])])
        return self.node(op, [x, y])

    def layout(self, x: int) -> int:
        r, shape = self.r, self.shape(x)
        op = r.choice(("reshape", "permute", "select", "pad"))
        if op == "reshape":
            count = math.prod(shape)
            first = r.choice([d for d in range(1, count + 1) if count % d == 0])
            return self.node(op, [x], shape=(first, count // first) if r.random() < 0.6 else (count,))
        if op == "permute":
            return self.node(op, [x], dims=tuple(r.sample(range(len(shape)), len(shape))))
        dim = r.randrange(len(shape))
        if op == "select":
            index = torch.tensor([r.randrange(shape[dim]) for _ in range(r.randint(1, 4))])
            return self.node(op, [x], {"index": index}, dim=dim)
        pads = tuple((r.randint(0, 1), r.randint(0, 1)) for _ in shape)
        return self.node(op, [x], pads=pads)

    def step(self, x: int) -> int:
        rank = len(self.shape(x))
        kinds = [self.activation] * 5 + [self.linear] * 3 + [self.affine, self.binary, self.binary, self.layout]
        kinds += [self.softmax, self.norm, self.length, self.mean]
        if rank in (2, 3):
            kinds += [self.conv, self.conv, self.conv_transpose, self.max_pool, self.max_pool, self.average_pool]
            kinds += [self.attention] * 2
        return self.r.choice(kinds)(x)

    def vocabulary(self) -> Case:
        r = self.r
        table = r.random() < 0.05
        if table:
            self.start((r.randint(1, 3),))
            rows = r.randint(2, 6)
            x = self.node("embedding", [0], {"weight": self.normal(rows, r.randint(1, 3))})
        else:
            rows, x = 0, 0
            self.start(r.choice(((1,), (2,), (3,), (5,), (2, 3), (3, 2), (1, 4), (1, 3, 3), (2, 3, 3), (1, 4, 4))))
        for _ in range(r.randint(2, 7)):
            for _ in range(8):
                before = len(self.b.nodes)
                try:
                    y = self.step(x)
                except ValueError:  # windows that do not fit
                    y = None
                if y is not None and math.prod(self.shape(y)) <= 48:
                    x = y
                    break
                del self.b.nodes[before:]
        return Case(self.b.finish(self.ended(x)).to(F64), "vocabulary", whole=rows)

    def ended(self, x: int) -> int:
        count = math.prod(self.shape(x))
        x = self.node("reshape", [x], shape=(count,))
        if x == 0 or count > 4 or self.r.random() < 0.5:
            out = self.r.randint(1, 3)
            x = self.node("linear", [x], {"weight": self.normal(out, count), "bias": self.normal(out)})
        return x

    def pieces(self) -> Case:
        """Of linear maps, (leaky) ReLUs and max pools: up to 12 neurons, so that the exact optimum is known."""
        r, left = self.r, self.r.randint(2, 12)
        self.start((r.randint(1, 3),))
        x = 0
        while left > 0:
            width = min(r.randint(1, 5), left)
            weight = self.normal(width, math.prod(self.shape(x)), scale=1.2)
            y = self.node("linear", [x], {"weight": weight, "bias": self.normal(width, scale=0.5)})
            op = r.choice(("relu", "relu", "leaky_relu", "max_pool"))
            if op == "max_pool" and width > 1:
                pool = {"kernel": (2,), "stride": (1,), "padding": (r.randint(0, 1),), "dilation": (1,)}
                z = self.node(op, [self.node("reshape", [y], shape=(1, width))], ceil=False, **pool)
                z = self.node("reshape", [z], shape=(math.prod(self.shape(z)),))
            elif op == "leaky_relu":
                z = self.node(op, [y], slope=r.choice((0.1, 0.5, 0.9)))
            else:
                z = self.node("relu", [y])
            if self.shape(z) == self.shape(x) and r.random() < 0.4:
                z = self.node("add", [z, x])
            x, left = z, left - width
        out = r.randint(1, 3)
        weight = self.normal(out, math.prod(self.shape(x)))
        return Case(
            self.b.finish(self.node("linear", [x], {"weight": weight, "bias": self.normal(out)})).to(F64), "pieces"
        )

    def module(self) -> Case:
        """Layers of PyTorch with unusual parameters, captured."""
        torch.manual_seed(self.r.getrandbits(60))
        r = self.r
        acts = [
            nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.Softsign, nn.Hardswish, nn.Hardsigmoid,
            nn.LogSigmoid, nn.Tanhshrink, nn.SELU, nn.PReLU, nn.Hardtanh,
            lambda: nn.ELU(r.choice(ALPHAS)), lambda: nn.CELU(r.choice((0.3, 1.0, 2.5))),
            lambda: nn.LeakyReLU(r.choice(SLOPES)), lambda: nn.GELU(approximate=r.choice(("none", "tanh"))),
            lambda: nn.Softplus(r.choice((0.3, 1.0, 5.0)), r.choice((5.0, 20.0))),
            lambda: nn.Hardtanh(-r.random(), r.random() + 0.1), lambda: nn.Softmax(1),
        ]  # fmt: skip

        def act() -> nn.Module:
            return r.choice(acts)()

        if r.random() < 0.5:
            wide = r.randint(2, 5)
            layers: list[nn.Module] = [nn.Linear(3, wide), act()]
            if r.random() < 0.5:
                layers.append(r.choice((nn.LayerNorm(wide), nn.BatchNorm1d(wide), nn.RMSNorm(wide), nn.Identity())))
            layers += [nn.Linear(wide, 4), act(), nn.Linear(4, r.randint(1, 3))]
            shape = (3,)
        else:
            pool = r.choice((
                nn.MaxPool2d(2, 1, 1), nn.MaxPool2d(2, 2, ceil_mode=True), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(2),
                nn.MaxPool2d(2, 1, dilation=2), nn.AvgPool2d(3, 2, 1, count_include_pad=r.random() < 0.5),
            ))  # fmt: skip
            norm = r.choice((nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Identity()))
            conv = nn.Conv2d(1, 4, r.choice((2, 3)), r.choice((1, 2)), r.choice((0, 1)))
            size = r.choice((4, 5))
            layers = [conv, norm, act(), pool, nn.Flatten()]
            try:
                with torch.no_grad():
                    count = nn.Sequential(*layers).eval()(torch.zeros(1, 1, size, size)).shape[1]
            except (RuntimeError, ValueError):  # a window that does not fit
                return self.module()
            layers += [nn.Linear(count, 3), act(), nn.Linear(3, 2)]
            shape = (1, size, size)
        model = nn.Sequential(*layers).double()
        for p in model.parameters():
            p.data.mul_(r.choice((1.0, 2.0)))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.2, 3.0)
        model.eval()
        return Case(trace(model, torch.zeros(1, *shape, dtype=F64)).to(F64), "module", model)


def draw(seed: int, number: int) -> Case:
    """The graph of this number, whatever was drawn before it."""
    made = Draw(f"{seed}/{number}")
    kind = {0: made.module, 1: made.pieces, 2: made.pieces, 3: made.pieces}.get(number % 20, made.vocabulary)
    case = kind()
    case.words = [node.op for node in case.graph.nodes[1:]]
    return case
