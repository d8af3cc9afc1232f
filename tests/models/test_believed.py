"""A graph is held against the thing itself on the box of the sets in question, for modules and files alike."""

import numpy as np
import pytest
import torch
from torch import nn

import holdfast.session.session as sessions
from holdfast.audits.context import Context
from holdfast.audits.folder import RunFolder
from holdfast.audits.plan import Plan
from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.models.believed import believed
from holdfast.models.load import load_model
from holdfast.models.wrap import Normalisation, Normalised
from holdfast.verification.decide import Effort, Unread, decide


class _Elsewhere(nn.Module):
    """A model that was recorded as another function than it runs, where an input is above a number."""

    def __init__(self, above=400.0):
        super().__init__()
        self.above = above
        self.net = nn.Linear(2, 2)

    def forward(self, x):
        if torch.compiler.is_exporting():
            return self.net(x)
        return torch.where(x > self.above, 0.0, self.net(x))


def _box(low, high, n=2):
    return torch.full((n,), float(low)), torch.full((n,), float(high))


def test_a_module_is_compared_where_it_is_asked_about():
    model = _Elsewhere()
    assert believed(model, torch.zeros(1, 2), *_box(0, 1)).held_against == "the module itself"
    with pytest.raises(ModelError, match="runs otherwise than it was recorded"):
        believed(model, torch.zeros(1, 2), *_box(390, 500))


@pytest.mark.parametrize(
    "bounds", ["(assert (<= X_0 500.0))(assert (<= X_1 1.0))", "(assert (<= X_0 1.0))(assert (<= X_1 1.0))"]
)
def test_verify_compares_a_module_on_the_box_of_the_property(bounds, tmp_path):
    prop = tmp_path / "p.vnnlib"
    names = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
    prop.write_text(f"{names}(assert (>= X_0 0))(assert (>= X_1 0)){bounds}(assert (>= Y_0 1e9))")
    if "500" in bounds:
        with pytest.raises(ModelError, match="not the model"):
            decide(Unread(_Elsewhere(), (2,)), prop, Effort(timeout=5.0))
    else:
        found = decide(Unread(_Elsewhere(), (2,)), prop, Effort(timeout=5.0))
        assert found.record.verdict == "unsat"
        assert found.record.held_against == "the module itself"


def _context(tmp_path, module, scale=1.0, **plan):
    x = scale * torch.rand(5, 2, generator=torch.Generator().manual_seed(0)).float()
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=np.array([0, 1, 0, 1, 0]))
    given = Plan.of(
        **{"data": str(tmp_path / "d.npz"), "norm": "linf", "eps": "0.1", "suite": "fast", "certify": "crown", **plan}
    )
    return Context.open(given, RunFolder(tmp_path / "run"), module), x


@pytest.mark.parametrize("radius", [None, "0.5"])
def test_an_audit_compares_on_the_box_around_all_sets_as_far_as_radii_are_searched(tmp_path, radius, monkeypatch):
    seen = []
    own = sessions.believed
    monkeypatch.setattr(sessions, "believed", lambda *given: (seen.append(given[2:]), own(*given))[1])
    context, x = _context(tmp_path, nn.Linear(2, 2), radius_max=radius)
    _ = context.graph, context.graph
    ((low, high),) = seen  # once
    reach = 0.2 if radius is None else float(radius)
    assert torch.allclose(low, (x.double().amin(0) - reach).clamp(min=0))
    assert torch.allclose(high, (x.double().amax(0) + reach).clamp(max=1))


def test_what_was_recorded_wrongly_on_the_box_gets_no_certificate(tmp_path):
    context, _ = _context(tmp_path, _Elsewhere(above=0.5))
    with pytest.raises(UnsupportedError, match="not the model"):
        _ = context.graph


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2, Norm.L0])
def test_the_hull_is_the_smallest_box_around_all_sets(norm):
    x = torch.tensor([[0.2, 0.9], [0.5, 0.6]])
    ball = LpBall.uniform(norm, 0.25 if norm is not Norm.L0 else 1, 2)
    low, high = ball.hull(x)
    due = ([0.0, 0.0], [1.0, 1.0]) if norm is Norm.L0 else ([0.0, 0.35], [0.75, 1.0])
    assert torch.allclose(low, torch.tensor(due[0], dtype=torch.float64), atol=1e-7)
    assert torch.allclose(high, torch.tensor(due[1], dtype=torch.float64), atol=1e-7)
    held = LpBall.uniform(norm, 1, 2, mask=torch.tensor([[True, False]] * 2)).hull(x)
    assert torch.equal(held[0][1], x.double()[:, 1].min())
    assert torch.equal(held[1][1], x.double()[:, 1].max())


def _misread(monkeypatch, beyond=1.5):
    """The reader of ONNX files takes what is beyond a number for a constant."""
    import holdfast.graph.onnx as reader
    from holdfast.graph import compose, onnx_truth
    from holdfast.graph.build import Builder

    def wrong(path, output=None, entries=None):
        b = Builder((2,), torch.float32)
        return b.finish(b.linear(compose.clip(b, 0, None, beyond), torch.eye(2)))

    monkeypatch.setattr(reader, "read_onnx", wrong)
    monkeypatch.setattr(onnx_truth, "read_onnx", wrong)


def _identity(path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [[h.make_tensor_value_info(name, kind, ["n", 2])] for name in "xy"]
    graph = h.make_graph([h.make_node("Identity", ["x"], ["y"])], "g", *ends)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_is_compared_where_it_is_asked_about_through_whatever_stands_before_it(tmp_path, monkeypatch):
    path = _identity(tmp_path / "m.onnx")
    _misread(monkeypatch)
    module = load_model(path).module  # on [-1, 1] nothing differs
    assert believed(module, torch.zeros(1, 2), *_box(0, 1)).held_against.startswith("onnxruntime")
    with pytest.raises(ModelError, match="not the model"):
        believed(module, torch.zeros(1, 2), *_box(0, 2))
    shifted = Normalised(module, Normalisation((0.0,), (0.5,))).eval()
    assert believed(shifted, torch.zeros(1, 2), *_box(0, 0.7)).held_against.startswith("onnxruntime")
    with pytest.raises(ModelError, match="not the model"):
        believed(shifted, torch.zeros(1, 2), *_box(0, 1))


def test_an_audit_of_a_file_compares_on_its_own_box(tmp_path, monkeypatch):
    path = _identity(tmp_path / "m.onnx")
    _misread(monkeypatch)
    context, _ = _context(tmp_path, None, scale=3.0, model=str(path), high=4.0)
    with pytest.raises(UnsupportedError, match="not the model"):
        _ = context.graph
    near, _ = _context(tmp_path, None, model=str(path))
    assert near.believed.held_against.startswith("onnxruntime")


def test_a_file_that_was_changed_since_is_not_taken_for_what_was_opened(tmp_path):
    path = _identity(tmp_path / "m.onnx")
    module = load_model(path).module
    path.unlink()
    with pytest.raises(ModelError, match="changed or moved"):
        believed(module, torch.zeros(1, 2), *_box(0, 1))
