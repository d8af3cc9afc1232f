"""The graph computes what the module does."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.graph import trace
from holdfast.graph.operations import compute
from holdfast.graph.survey import survey


def _same(net, x, tolerance=1e-5):
    graph = trace(net, x[:1])
    net.eval()
    with torch.no_grad():
        _shapes_hold(graph, x)
        torch.testing.assert_close(graph.as_module()(x), net(x), rtol=tolerance, atol=tolerance)
    return graph


def _shapes_hold(graph, x):
    values = [x]
    for node in graph.nodes[1:]:
        values.append(compute(node.op, [values[i] for i in node.inputs], _tensors(node), node.attributes))
        assert values[-1].shape[1:] == node.shape, node.op


def _tensors(node):
    return {k: t.float() if t.is_floating_point() else t for k, t in node.tensors.items()}


class _Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
        self.register_buffer("c", torch.tensor([[0.5, -2.0, 3.0]]), persistent=False)

    def forward(self, x):
        return self.f(self, x)


FUNCTIONS = {
    "constants on either side": lambda m, x: 2 - (m.c - x * 3) / m.c + x.flatten(1),
    "negation and scalars": lambda m, x: torch.clamp(-x, -0.5, 0.7) + F.hardtanh(x) - F.relu6(5 * x),
    "two branches": lambda m, x: torch.tanh(x) - torch.sigmoid(x) + F.leaky_relu(x, 0.3),
    "matrix product": lambda m, x: x @ torch.outer(m.c[0], m.c[0]),
    "slices": lambda m, x: torch.cat([x[:, 1:], x[:, :1]], -1),
    "select and stack by cat": lambda m, x: torch.cat([x[:, 2].unsqueeze(1), x[:, 0:3:2]], 1),
    "reshape and transpose": lambda m, x: x.unsqueeze(1).transpose(1, 2).permute(0, 2, 1).reshape(x.shape[0], -1),
    "pad and crop": lambda m, x: F.pad(F.pad(x, (2, 1)), (-1, 0)),
    "mean and sum": lambda m, x: x.mean(1, keepdim=True) + x.sum(1, keepdim=True),
    "softmax": lambda m, x: torch.softmax(x, 1),
    "smooth units": lambda m, x: (
        F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.softplus(x) + F.softplus(x, beta=3.0) + F.mish(x)
    ),
    "softplus with thresholds": lambda m, x: (
        F.softplus(x, 2.0, 1.0) + F.softplus(x, -1.0, 0.5) + F.softplus(3 * x, 1, -1)
    ),
    "average pools with a divisor": lambda m, x: (
        F.avg_pool2d(x.view(-1, 1, 1, 3), (1, 2), 1, (0, 1), divisor_override=3).flatten(1)
        + F.avg_pool2d(x.view(-1, 1, 1, 3), (1, 2), 1, (0, 1), count_include_pad=False, divisor_override=-2).flatten(1)
    ),
    "exponential units": lambda m, x: F.elu(x, 0.7) + F.celu(x, 0.7) + F.selu(x) + F.logsigmoid(x) + torch.expm1(x),
    "units of pieces": lambda m, x: (
        F.hardswish(x)
        + F.hardsigmoid(x)
        + F.softsign(x)
        + F.softshrink(x, 0.3)
        + F.tanhshrink(x)
        + F.leaky_relu(x, -2.0)
    ),
    "elementary functions": lambda m, x: torch.exp(x) * torch.sin(x) + torch.cos(x) - torch.erf(x) * torch.sign(x),
    "logarithms and roots": lambda m, x: (
        torch.log(x.abs() + 1)
        + torch.sqrt(x * x + 1)
        + torch.rsqrt(x.square() + 1)
        + torch.log1p(x.abs())
        + x**2
        + x**3
    ),
    "reciprocals and powers": lambda m, x: (
        (x.abs() + 1).reciprocal() + (x.abs() + 1) ** -1.5 + 2.0**x + 1 / (x * x + 1)
    ),
    "products and quotients": lambda m, x: x * torch.tanh(x) / (x.abs() + 0.5) + (x - 1) * (x + 1),
    "addition with a factor": lambda m, x: torch.add(x, torch.relu(x), alpha=-0.3) + torch.rsub(x, m.c, alpha=2.0),
    "broadcasting": lambda m, x: (x[:, :, None] * x[:, None, :] + m.c[0][:, None] + x[:, :1, None]).flatten(1),
    "a constant that is larger": lambda m, x: x[:, :1] * m.c + m.c[0].expand(2, 2, 3).sum((0, 1)),
    "batched matrix products": lambda m, x: (x[:, :, None] @ x[:, None]) @ x[:, None].mT,
    "constants on the left": lambda m, x: (
        torch.outer(m.c[0], m.c[0]) @ x[:, :, None] + (m.c[0] @ x[:, :, None])[:, None]
    ),
    "a constant for each head": lambda m, x: (
        x[:, None, None].expand(-1, 2, 4, 3) @ torch.stack([m.c[0][:, None] * m.c, m.c.T + m.c])
    ),
    "maximum and minimum": lambda m, x: (
        torch.maximum(x, m.c)
        + torch.minimum(x.flip(1), x)
        + x.clamp(min=m.c[0])
        + x.amax(1, True)
        + x.min(1)[0][:, None]
    ),
    "clamp one side": lambda m, x: x.clamp_min(0.1) - x.clamp_max(0.2) + torch.clamp(x, max=0.3),
    "reductions": lambda m, x: x.prod(1, True) + x.logsumexp(1, True) + x.var(1, keepdim=True) + x.std(1, False, True),
    "norms": lambda m, x: (
        F.normalize(x + 3) + x.norm(dim=1, keepdim=True) + x.norm(1, 1, True) + x.abs().amax((1,), keepdim=True)
    ),
    "layer norms": lambda m, x: F.layer_norm(x, (3,), m.c[0], m.c[0]) + F.rms_norm(x, (3,), m.c[0]),
    "log softmax": lambda m, x: F.log_softmax(30 * x, 1) + F.softmin(x, 1),
    "stack, split and unbind": lambda m, x: (
        torch.stack([x, m.c.expand(len(x), 3), -x], 1).flatten(1)[:, :4]
        + torch.cat(x.split([2, 1], 1)[::-1] + x.chunk(3, 1)[:1], 1)
    ),
    "unbind": lambda m, x: sum(x.unbind(1))[:, None],
    "a constant in a concatenation": lambda m, x: torch.cat([m.c.expand(len(x), -1), x, x, m.c.expand(len(x), -1)], 1),
    "repeats": lambda m, x: (
        x.repeat(1, 2) + x.repeat_interleave(2, 1) + torch.roll(x.tile((1, 2)), 1, 1) + F.pad(x, (3, 0))
    ),
    "advanced indexing": lambda m, x: x[:, [2, 0, 0]] + x[:, torch.tensor([True, False, True])].sum(1, True),
    "masks": lambda m, x: torch.where(m.c > 0, x, m.c).masked_fill(m.c > 2, 7.0) + torch.where(m.c[0] < 0, m.c[0], x),
    "cumulated sums": lambda m, x: x.cumsum(1) + torch.einsum("bi,ij->bj", x, m.c.T @ m.c),
    "what PyTorch decomposes": lambda m, x: torch.addcmul(x, x, m.c) + torch.lerp(x, 2 * x, 0.3),
    "moving the batch": lambda m, x: (m.c.T @ m.c @ x.T).T + x.T.flatten().reshape(3, -1).T,
    "shapes computed in the model": lambda m, x: (
        x.view(x.shape[0], -1, 1).expand(x.size(0), 3, 2).reshape(x.shape[0], 6)
    ),
    "dropout and copies": lambda m, x: F.dropout(x.contiguous().clone(), 0.5, m.training).detach() + x,
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name):
    _same(_Function(FUNCTIONS[name]), torch.randn(7, 3))


def test_batch_norms_fold_and_dropout_goes():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 1),
        nn.Identity(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3),
    )  # fmt: skip
    for module in net:
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    graph = _same(net, torch.randn(5, 2, 6, 6))
    assert [n.op for n in graph.nodes] == ["input", "conv", "relu", "conv", "mean", "reshape", "linear"]
    assert all(n.tensors["weight"].dtype == torch.float64 for n in graph.nodes if "weight" in n.tensors)
    assert graph.as_module().state_dict()["conv_1_weight"].dtype == torch.float32


def test_the_module_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trace(net, torch.zeros(1, 3))
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_tensors_are_the_modules_own_until_something_folds():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    graph = trace(net, torch.zeros(1, 3))
    assert graph.nodes[1].tensors["weight"] is net[0].weight


def test_the_graph_as_a_module():
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(4, 1, 6)
    module = trace(net, x).as_module()
    assert sorted(module.state_dict()) == ["conv_1_bias", "conv_1_weight", "linear_4_bias", "linear_4_weight"]
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert net[0].weight.grad is None
    torch.testing.assert_close(module.double()(x.double()), net.double()(x.double()))
    again = trace(module, x.double())
    torch.testing.assert_close(again.as_module()(x.double()), module(x.double()))


class _Attention(nn.Module):
    """What a vision transformer does, with a class token, written by hand."""

    def __init__(self):
        super().__init__()
        self.project, self.token = nn.Conv2d(2, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.qkv, self.norm, self.head = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.project(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        return self.head(x[:, 0])


class _Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.mix(self.embed(x).mean(1))


MODULES = {
    "transposed convolutions": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 2, 1, dilation=2),
            nn.BatchNorm2d(3),
        ),
        (2, 4, 4),
    ),
    "norms of groups": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True)), (4, 3, 3)
    ),
    "layer norm of images": (lambda: nn.LayerNorm((2, 3, 3)), (2, 3, 3)),
    "upsampling": (
        lambda: nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=1.5, mode="bilinear"),
            nn.Upsample((7, 5), mode="bilinear", align_corners=True), nn.Upsample((9, 6), mode="nearest-exact"),
            nn.Upsample((5, 5), mode="bicubic"),
        ),
        (2, 3, 4),
    ),
    "upsampling of sequences": (lambda: nn.Upsample(scale_factor=2, mode="linear"), (2, 5)),
    "pools": (
        lambda: nn.Sequential(nn.AdaptiveMaxPool2d(4), nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveMaxPool2d(1)),
        (2, 8, 8),
    ),
    "shuffles": (
        lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.PReLU(8), nn.PReLU()),
        (8, 2, 2),
    ),
    "gates": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Tanhshrink(), nn.Softmin(1)), (4,)),
    "attention by hand": (_Attention, (2, 4, 4)),
    "attention of PyTorch": (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu"), (3, 8)),
    "batch norm of tokens": (lambda: nn.BatchNorm1d(4), (4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules(name):
    torch.manual_seed(0)
    make, shape = MODULES[name]
    net = make()
    for module in net.modules():
        if getattr(module, "running_var", None) is not None:
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    _same(net, torch.randn(4, *shape))


def test_embeddings_take_whole_numbers():
    torch.manual_seed(0)
    graph = _same(_Words(), torch.randint(0, 11, (5, 6)))
    assert [n.op for n in graph.nodes][:2] == ["input", "embedding"]
    assert graph.dtype == torch.float32


def test_whatever_writes_out_a_gelu_or_silu_it_is_one_operation():
    def f(m, x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2))) + x * torch.sigmoid(1.7 * x)

    graph = _same(_Function(f), torch.randn(7, 3))
    ops = [n.op for n in graph.nodes]
    assert "erf" not in ops
    assert "mul" not in ops
    assert {"gelu", "silu"} < set(ops)


def test_layout_of_images_and_tokens_costs_nothing():
    graph = _same(
        _Function(lambda m, x: x[:, :, None].expand(-1, 3, 2).mT.mT.reshape(-1, 6).reshape(-1, 2, 3)), torch.randn(7, 3)
    )
    assert [n.op for n in graph.nodes] == ["input", "reshape", "select", "reshape"]


def test_gradients_of_lowered_operations_reach_the_parameters():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 2))
    graph = trace(net, torch.zeros(1, 3))
    held = {id(t) for n in graph.nodes for t in n.tensors.values()}
    assert {id(net[0].weight), id(net[3].bias)} <= held
    reached = torch.autograd.grad(
        sum(t.double().sum() for n in graph.nodes for t in n.tensors.values() if t.requires_grad),
        list(net.parameters()),
        allow_unused=True,
    )
    assert all(g is not None for g in reached)


@pytest.mark.parametrize(
    ("f", "word"),
    [
        (lambda m, x: torch.special.i0(x), "i0"),
        (lambda m, x: torch.floor(x), "floor"),
        (lambda m, x: x + math.inf, "infinite"),
        (lambda m, x: x.mean(0, keepdim=True) + x, "batch"),
        (lambda m, x: torch.where(x > 0, x, -x), "gt"),
        (lambda m, x: F.pad(x, (1, 1), value=2.0), "zeros"),
        (lambda m, x: x.norm(3, 1), "l3"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(f, word):
    with pytest.raises(UnsupportedError, match=word):
        trace(_Function(f), torch.zeros(1, 3))


def test_the_survey_names_everything_at_once():
    net = _Function(lambda m, x: torch.floor(x) + torch.special.i0(F.relu(x)) + (m.c + 1))
    assert survey(net, torch.zeros(1, 3)) == [
        ("floor", 1, False),
        ("i0", 1, False),
        ("add", 2, True),
        ("relu", 1, True),
    ]
    with pytest.raises(UsageError, match="example"):
        survey(net)


def test_models_that_cannot_be_captured():
    with pytest.raises(ModelError, match="capture"):
        trace(_Function(lambda m, x: x if x.sum() > 0 else -x), torch.zeros(1, 3))
    with pytest.raises(ModelError, match="does not depend"):
        trace(_Function(lambda m, x: m.c * 2), torch.zeros(1, 3))


@pytest.mark.shared
@pytest.mark.slow
def test_real_models(shared_data):
    sys.path.insert(0, str(shared_data))
    try:
        import zoo
    finally:
        sys.path.pop(0)
    for name in [*zoo.names(), "sign_opt_mnist_cnn"]:
        try:
            net = zoo.load(name)
        except ValueError:
            continue  # a cascade of networks
        shape = next(m for m in ((3, 32, 32), (1, 28, 28), (3, 48, 48)) if _takes(net, m))
        _same(net, torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)))


def _takes(net, shape):
    try:
        net(torch.zeros(1, *shape))
    except (RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_norm_before_a_unit_that_writes_in_place(kind):
    """As in every ResNet: made functional, its batch norm is the call with three results."""
    torch.manual_seed(0)
    first = nn.Linear(3, 4) if kind is nn.BatchNorm1d else nn.Sequential(nn.Unflatten(1, (1, 1, 3)), nn.Conv2d(1, 4, 1))
    net = nn.Sequential(first, kind(4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2))
    with torch.no_grad():
        net(torch.randn(16, 3))  # running statistics that are not 0 and 1
        net(torch.randn(16, 3) * 2 + 1)
    _same(net.eval(), torch.randn(5, 3))
