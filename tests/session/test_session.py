"""A session: model, data and threat opened once, whatever they were given as."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import DataError, UsageError
from holdfast.core.threat import Goal, Norm, ThreatModel, parse_eps
from holdfast.data import load_data
from holdfast.models.load import load_model
from holdfast.models.zoo import digits_mlp
from holdfast.session import ModelSpec, Surrogates, open_session
from holdfast.training.checkpoint import save_weights

LINF = ThreatModel(norm=Norm.LINF, eps=parse_eps("0.1"))
ARCH = "holdfast.models.zoo:digits_mlp"


def test_a_module_a_loaded_model_and_a_file_are_one_subject(tmp_path):
    module, file = digits_mlp(), tmp_path / "m.safetensors"
    save_weights(module, file)
    loaded = load_model(file, arch=ARCH)
    x = torch.rand(3, 1, 8, 8)
    given = [module, loaded, ModelSpec(model=file, arch=ARCH), ModelSpec(model=str(file), arch=ARCH)]
    sessions = [open_session(model, "digits:test", LINF, samples=3) for model in given]
    assert len({s.subject.sha256 for s in sessions}) == 1
    assert all(torch.equal(s.model(x), module(x)) for s in sessions)


def test_arrays_tensors_and_a_data_set_are_the_same_data():
    data = load_data("digits:test").head(5)
    given = [data, (data.x, data.y), (data.x.numpy(), data.y.numpy()), (data.x.numpy(), data.y.tolist())]
    assert len({open_session(digits_mlp(), d, LINF).data.sha256 for d in given}) == 1


def test_what_is_no_data_is_refused_as_the_command_line_refuses_it():
    one_hot = nn.functional.one_hot(torch.tensor([0, 1]), 10)
    for data, why in [
        ((torch.zeros(2, 4), one_hot), "look one-hot"),
        ((torch.zeros(2, 4), [0]), "2 samples but 1 labels"),
        ((np.zeros((2, 4), dtype=int), [0, 1]), "save it as float32"),
    ]:
        with pytest.raises(DataError, match=why):
            open_session(nn.Linear(4, 2), data, LINF)
    with pytest.raises(UsageError, match=r"data are \(x, y\)"):
        open_session(nn.Linear(4, 2), (torch.zeros(2, 4),), LINF)


def test_targets_are_the_class_after_the_label():
    targeted = ThreatModel(norm=Norm.LINF, eps=parse_eps("0.1"), goal=Goal.TARGETED)
    session = open_session(digits_mlp(), "digits:test", targeted, samples=4)
    problem = session.problem(session.ids)
    assert torch.equal(problem.target, (problem.y + 1) % 10)


def test_a_model_is_left_where_it_is_and_asked_there():
    module = digits_mlp().double()
    session = open_session(module, "digits:test", LINF, samples=2)
    assert session.base is module
    assert session.device == torch.device("cpu")


def test_several_surrogates_make_an_ensemble_whose_archs_must_fit():
    a, b = digits_mlp(), digits_mlp()
    session = open_session(a, "digits:test", LINF, samples=2, surrogates=Surrogates(models=(a, b)))
    x = session.inputs(session.ids)
    assert torch.allclose(session.surrogate(x), (a(x) + b(x)) / 2, atol=1e-6)
    with pytest.raises(UsageError, match="2 surrogates with 3 architectures"):
        Surrogates(models=("a.pt", "b.pt"), archs=("x", "y", "z"))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"model": "https://here.example/"}, "does not say how many classes"),
        ({"model": "https://here.example/", "classes": 2, "binary": "logit"}, "leave out --binary"),
        ({"request": '{"a": $inputs}'}, "--request is about the JSON"),
        ({"classes": 2, "class_names": ("a",)}, "1 class names with --classes 2"),
        ({"answers": "labels", "top_k": 2}, "labels alone have no top-k"),
        ({"classes": 1}, "--classes starts at 2"),
    ],
)
def test_what_cannot_be_had_together_is_refused_before_anything_is_opened(values, why):
    with pytest.raises(UsageError, match=why):
        ModelSpec(**values)
