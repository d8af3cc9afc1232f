"""A graph is the module's function or there is none: what is not understood is refused by name."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError
from holdfast.graph import trace
from holdfast.graph.onnx import read_onnx


class _Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
        self.register_buffer("c", torch.tensor([[0.5, -2.0, 3.0]]))

    def forward(self, x):
        return self.f(self, x)


def _written(index, value):
    def f(m, x):
        h = x * 1
        h[index] = value(x)
        return h

    return f


def _through(change):
    def f(m, x):
        h = x + m.c
        change(h)
        return h

    return f


WRITES = {
    "a column clamped": _through(lambda h: h[:, 0].clamp_(max=0.4)),
    "a view scaled": _through(lambda h: h.view(-1, 3, 1)[:, 1:].mul_(-2.0)),
    "a transposed view": _through(lambda h: h.unsqueeze(1).transpose(1, 2).relu_()),
    "chunks": _through(lambda h: h.chunk(3, 1)[1].add_(h[:, :1])),
    "under no_grad": _through(lambda h: _no_grad(h)),
    "a column set": _written((slice(None), 0), lambda x: 7.0),
    "a slice set": _written((slice(None), slice(0, 3, 2)), lambda x: x[:, 1:] * 2),
    "a list of columns set": _written((slice(None), [2, 0]), lambda x: 0.5),
    "all set": _written(slice(None), lambda x: x.flip(1)),
    "out=": lambda m, x: torch.add(x, 1, out=torch.empty_like(x)),
    "units in place": lambda m, x: F.relu(F.leaky_relu(x * 2, 0.3, True).add_(m.c), True).clamp_(max=2.0),
    "filled": lambda m, x: x + torch.empty(3).fill_(2.0),
}


def _no_grad(h):
    with torch.no_grad():
        h[:, 1:].sigmoid_()


@pytest.mark.parametrize("name", sorted(WRITES))
def test_what_is_written_through_a_view_is_in_the_graph(name):
    net, x = _Function(WRITES[name]), 3 * torch.randn(9, 3)
    found = trace(net, x).as_module()(x)
    torch.testing.assert_close(found, net(x.clone()))


RANDOM = {
    "dropout": lambda m, x: F.dropout(x, 1e-3, training=True),
    "noise of the input's shape": lambda m, x: x + 1e-4 * torch.rand_like(x),
    "noise of its own shape": lambda m, x: x + 1e-4 * torch.randn(3),
    "a mask": lambda m, x: x * torch.bernoulli(torch.full((3,), 0.999)),
    "attention": lambda m, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.01)[:, 0],
    "rrelu": lambda m, x: F.rrelu(x, training=True),
    "in place": lambda m, x: x + torch.zeros(3).uniform_(),
    "alpha dropout": lambda m, x: F.alpha_dropout(x, 0.01, training=True),
    "an order": lambda m, x: x[:, torch.randperm(3)],
}


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_a_random_model_has_no_graph_and_hears_that_it_is_random(name):
    with pytest.raises(UnsupportedError, match=r"random.*line \d+ of test_capture_refusals.py"):
        trace(_Function(RANDOM[name]), torch.zeros(1, 3))


def test_a_dropout_that_is_off_is_no_randomness():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.RReLU(), nn.AlphaDropout(), nn.Linear(3, 2))
    trace(nn.Sequential(net[0], net[1], net[3], net[4]), torch.zeros(1, 3))


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: x + 1e-3 * random.random(),
        lambda m, x: x + 1e-3 * float(np.random.default_rng().random()),
        lambda m, x: x * len(x),
        lambda m, x: x + torch.arange(len(x))[:, None],
    ],
    ids=["Python's draws", "numpy's draws", "the batch size", "the place in the batch"],
)
def test_randomness_and_batches_that_no_operation_shows_are_found_by_asking_the_model(f):
    with pytest.raises(HoldfastError):
        trace(_Function(f), torch.zeros(1, 3))


class _Keeps(nn.Module):
    """Answers x, or -x once in a while, by something that is no tensor."""

    def __init__(self, turns, **kept):
        super().__init__()
        self.turns, self.part = turns, nn.Identity()
        for name, value in kept.items():
            setattr(self.part, name, value)

    def forward(self, x):
        return -x if self.turns(self.part) else x * 1


def _count(part):
    part.calls += 1
    return part.calls % 400 == 0


def _remember(part):
    part.seen.append(0.5)
    return len(part.seen) > 100


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Keeps(_count, calls=0), r"changes its attribute 'part.calls' as it answers \(1, then 3\)"),
        (_Keeps(_remember, seen=[]), "changes its attribute 'part.seen'"),
        (_Keeps(lambda p: random.random() < 1e-4), "random: it draws numbers from Python's random"),
        (_Keeps(lambda p: np.random.rand() < 1e-4), "random: it draws numbers from numpy.random"),
        (_Keeps(lambda p: p.draws.random() < 1e-4, draws=random.Random(0)), "changes its attribute 'part.draws'"),
        (_Keeps(lambda p: p.draws.random() < 1e-4, draws=np.random.default_rng(0)), "its attribute 'part.draws'"),
        (nn.Sequential(nn.Embedding(5, 3, max_norm=0.1)), "writes into its parameter '0.weight'"),
    ],
)
def test_what_python_counts_or_draws_is_found_however_seldom_it_shows(model, words):
    example = torch.ones(1, 3) if not isinstance(model, nn.Sequential) else torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(UnsupportedError, match=words):
        trace(model, example)


def test_what_a_model_keeps_from_its_first_call_on_is_no_change():
    class Caches(nn.Linear):
        def forward(self, input):
            self.form = tuple(input.shape[1:])
            self.last = super().forward(input)
            return self.last

    trace(Caches(3, 2), torch.zeros(1, 3))


def test_a_model_whose_answer_depends_on_the_place_in_the_batch_hears_so():
    f = _Function(lambda m, x: x + torch.arange(x.shape[0]).float().unsqueeze(1))
    with pytest.raises(ModelError, match="depends on the others in the batch"):
        trace(f, torch.zeros(1, 3))


def test_a_model_that_decides_by_whether_gradients_are_on_hears_so():
    f = _Function(lambda m, x: torch.tanh(x) if torch.is_grad_enabled() else 2 * x)
    with pytest.raises(ModelError, match="runs otherwise than it was recorded"):
        trace(f, torch.zeros(1, 3))


def test_batch_statistics_are_refused_by_name():
    nets = [
        nn.BatchNorm1d(3, track_running_stats=False),
        _Function(lambda m, x: F.batch_norm(x, None, None, training=True)),
        _Function(lambda m, x: F.batch_norm(x, m.c[0], m.c[0].abs(), training=True)),
    ]
    for net in nets:
        with pytest.raises(UnsupportedError, match=r"statistics of the batch|writes into its buffer"):
            trace(net, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("f", "word"),
    [
        (lambda m, x: x.clamp_(0, 1) * 2, "its own input"),
        (lambda m, x: F.relu(x, inplace=True), "its own input"),
        (lambda m, x: x * m.c.add_(1), "buffer 'c'"),
        (lambda m, x: (x, 2 * x), "2 outputs"),
        (lambda m, x: {"a": x * 2, "b": x + 1}, "2 outputs"),
        (lambda m, x: F.softplus(x, beta=0), "beta=0"),
        (lambda m, x: torch.div(x, 2, rounding_mode="floor"), "rounding_mode=floor"),
        (lambda m, x: x.max(1)[1] + x.max(1)[0], "second result"),
        (lambda m, x: x.long() * 2, "int64"),
        (lambda m, x: x.half().float(), "float16"),
        (lambda m, x: x.double().sum(1, keepdim=True), "float64"),
        (lambda m, x: x.sum(1, keepdim=True, dtype=torch.float64), "float64"),
        (lambda m, x: x // 0.5, "floor"),
        (lambda m, x: x % 0.5, "remainder"),
        (lambda m, x: x.pow(torch.tensor([2.0, 2.0, 3.0])), "several exponents"),
        (lambda m, x: x.pow(x), "pow"),
        (lambda m, x: F.celu(x, -0.5), "alpha"),
        (lambda m, x: torch.ops.aten.elu.default(x, 1.0, 2.0), "scale"),
        (lambda m, x: x.argmax(1), "argmax"),
        (lambda m, x: x[:, None, None, [True, False, True]][:, 0, 0] + x[x > 0].sum(), "gt|several lists|index"),
    ],
)
def test_what_the_graph_would_drop_is_refused_by_name(f, word):
    with pytest.raises(UnsupportedError, match=word) as refusal:
        trace(_Function(f), torch.zeros(1, 3))
    assert "; " in str(refusal.value)  # what is served, or what to do


def test_one_output_in_a_dictionary_is_served():
    x = torch.randn(4, 3)
    net = _Function(lambda m, x: {"logits": x * m.c})
    torch.testing.assert_close(trace(net, x).as_module()(x), net(x)["logits"])


def test_a_model_that_decides_by_its_input_hears_so_in_one_sentence_with_the_line(capfd):
    with pytest.raises(ModelError, match=r"decides by the values of the input \(line \d+ of test_capture") as told:
        trace(_Function(_decides), torch.zeros(1, 3))
    assert len(str(told.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def _decides(m, x):
    if x.sum() > 0:
        return x
    return -x


def test_powers_by_a_tensor_of_one_exponent_are_those_of_negative_numbers_too():
    x = torch.tensor([[-1.0, -0.5, -2.0]])
    net = _Function(lambda m, x: x.pow(torch.tensor([3.0, 3.0, 3.0])))
    torch.testing.assert_close(trace(net, x).as_module()(x), net(x))


MASKS = {
    "all true": lambda n: torch.ones(n, n, dtype=torch.bool),
    "keys hidden": lambda n: torch.arange(n)[None].expand(n, n) < n - 1,
    "rows of their own": lambda n: torch.eye(n, dtype=torch.bool) | (torch.arange(n) == 0),
    "minus infinity": lambda n: torch.zeros(n, n).masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf) + 0.3,
    "numbers": lambda n: torch.linspace(-3, 3, n * n).view(n, n),
}


@pytest.mark.parametrize("name", [*sorted(MASKS), "causal"])
def test_constant_masks_of_attention(name):
    class Attention(nn.Module):
        def forward(self, x):
            q, k, v = x[:, None], 2 * x[:, None].flip(2), x[:, None] - 1
            mask = None if name == "causal" else MASKS[name](x.shape[1])
            if name == "all true":
                mask = mask.expand(x.shape[0], 1, -1, -1)
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=name == "causal")[:, 0]

    net, x = Attention(), torch.randn(3, 4, 5)
    torch.testing.assert_close(trace(net, x).as_module()(x), net(x))


def test_a_mask_that_hides_all_keys_of_a_query_is_refused():
    mask = torch.tensor([[True, True], [False, False]])
    net = _Function(lambda m, x: F.scaled_dot_product_attention(x, x, x, mask))
    with pytest.raises(UnsupportedError, match="hides all keys"):
        trace(net, torch.zeros(1, 2, 3))


def test_a_module_that_captures_as_another_function_is_refused_with_the_operation():
    class Turned(nn.Module):
        def forward(self, x):
            return 2 * x if torch.compiler.is_compiling() else x.abs()

    with pytest.raises(ModelError, match="is not the model"):
        trace(Turned(), torch.zeros(1, 3))


def test_an_exported_program_is_captured_in_the_mode_in_which_it_was_exported():
    x = torch.randn(3, 4)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(), nn.Linear(3, 2)).eval()
    batch = torch.export.Dim("n")
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(trace(exported, x).as_module()(x), net(x))
    training = torch.export.export(net.train(), (x,), dynamic_shapes=({0: batch},)).module()
    with pytest.raises(HoldfastError):
        trace(training, x)


@pytest.mark.parametrize("f", [lambda s, x: x if len(x) == 1 else -x, lambda s, x: x * len(x)])
def test_a_model_that_decides_by_the_size_of_the_batch_hears_so(f):
    with pytest.raises(ModelError, match="by the number of inputs in the batch"):
        trace(_Function(f), torch.zeros(1, 3))


def test_a_model_that_cannot_run_on_the_type_of_its_inputs_is_a_refusal_and_no_traceback():
    with pytest.raises(ModelError, match="cannot run on inputs in float32 of shape"):
        trace(nn.Linear(4, 2).bfloat16(), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda m, x: x.norm(p=3, dim=1), "an l3 norm; the l1, l2 and linf norms are served"),
        (lambda m, x: x.cumprod(1), "'cumprod' .*which the graph does not know; .*holdfast verify --operations"),
        (lambda m, x: x * x.shape[0], "'mul' .*batch size.*; .*holdfast verify --operations"),
        (
            lambda m, x: F.avg_pool1d(x[:, None], 3, ceil_mode=True)[:, 0],
            "'avg_pool1d': an average pool with ceil_mode=True",
        ),
        (lambda m, x: x.to(torch.complex64).abs(), "'_to_copy'"),
    ],
)
def test_a_refusal_says_what_was_met_what_is_served_and_what_to_do(f, words):
    with pytest.raises(HoldfastError, match=words) as refusal:
        trace(_Function(f), torch.zeros(1, 4))
    assert "'" in str(refusal.value)  # the operation by its name


def test_what_a_reader_stumbles_over_is_named_with_what_to_do(tmp_path):
    onnx = pytest.importorskip("onnx")
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [h.make_tensor_value_info("x", kind, [1, 2, 4, 4])], [h.make_tensor_value_info("y", kind, None)]
    node = h.make_node("MaxPool", ["x"], ["y"], name="pool", kernel_shape=[9, 9])  # no window fits
    model = h.make_model(h.make_graph([node], "g", *ends), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        UnsupportedError, match=r"'MaxPool' \(pool\) is set in a way that cannot be read .*; served are"
    ):
        read_onnx(tmp_path / "m.onnx")
