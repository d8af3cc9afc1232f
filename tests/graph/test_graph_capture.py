"""The graph computes what the module does."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph import Graph


def _same(net, x, tolerance=1e-5):
    graph = Graph.from_module(net, x[:1])
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(graph.as_module()(x), net(x), rtol=tolerance, atol=tolerance)
    return graph


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
    Graph.from_module(net, torch.zeros(1, 3))
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_tensors_are_the_modules_own_until_something_folds():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    graph = Graph.from_module(net, torch.zeros(1, 3))
    assert graph.nodes[1].tensors["weight"] is net[0].weight


def test_the_graph_as_a_module():
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(4, 1, 6)
    module = Graph.from_module(net, x).as_module()
    assert sorted(module.state_dict()) == ["conv_1_bias", "conv_1_weight", "linear_4_bias", "linear_4_weight"]
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert net[0].weight.grad is None
    torch.testing.assert_close(module.double()(x.double()), net.double()(x.double()))
    again = Graph.from_module(module, x.double())
    torch.testing.assert_close(again.as_module()(x.double()), module(x.double()))


@pytest.mark.parametrize(
    ("f", "word"),
    [
        (lambda m, x: torch.erf(x), "erf"),
        (lambda m, x: x * x, "product"),
        (lambda m, x: m.c / x, "division"),
        (lambda m, x: x.mean(0, keepdim=True) + x, "batch"),
        (lambda m, x: x + x[:, :1], "shapes"),
        (lambda m, x: F.pad(x, (1, 1), value=2.0), "zeros"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(f, word):
    with pytest.raises(UnsupportedError, match=word):
        Graph.from_module(_Function(f), torch.zeros(1, 3))


def test_models_that_cannot_be_captured():
    with pytest.raises(ModelError, match="capture"):
        Graph.from_module(_Function(lambda m, x: x if x.sum() > 0 else -x), torch.zeros(1, 3))
    with pytest.raises(ModelError, match="does not depend"):
        Graph.from_module(_Function(lambda m, x: m.c * 2), torch.zeros(1, 3))
    with pytest.raises(ModelError, match="random"):
        Graph.from_module(_Function(lambda m, x: F.dropout(x, 0.5, True)), torch.zeros(1, 3))


@pytest.mark.shared
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
