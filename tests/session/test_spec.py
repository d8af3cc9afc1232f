"""What a caller says of a model is refused or understood before anything is opened."""

from pathlib import Path

import pytest
from torch import nn

from holdfast.core.errors import UsageError
from holdfast.models.http import HttpModel
from holdfast.models.load import load_model
from holdfast.models.zoo import digits_mlp
from holdfast.session.spec import ModelSpec, Surrogates, at_least, described
from holdfast.training.checkpoint import save_weights

API = "https://here.example/predict"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"top_k": 0}, "--top-k starts at 1, got 0"),
        ({"max_queries": 0}, "--max-queries starts at 1, got 0"),
        ({"classes": 2.0}, r"--classes is a whole number, got 2\.0"),
        ({"answer": "rows"}, "--answer is about the JSON of a prediction API"),
        ({"model": "model.onnx", "request": "$inputs"}, "--request is about the JSON of a prediction API"),
        ({"classes": 2, "class_names": ("a", "b", "c")}, "3 class names with --classes 2"),
        ({"classes": 3, "class_names": ("a", "b")}, "2 class names with --classes 3"),
        ({"model": API, "classes": 2, "request": '{"inputs": 3}'}, "holds no rows"),
        ({"model": API, "classes": 2, "answer": "rows["}, r"rows\["),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_flag(values, why):
    with pytest.raises(UsageError, match=why):
        ModelSpec(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 1, "max_queries": 1, "classes": 2},
        {"classes": 2, "class_names": ("a", "b")},
        {"model": API, "class_names": ("a", "b")},
        {"model": API, "classes": 2, "request": '{"rows": $inputs}', "answer": "rows"},
        {"answers": "labels"},
    ],
)
def test_what_can_be_had_is(values):
    assert all(getattr(ModelSpec(**values), name) == value for name, value in values.items())


def test_an_api_is_remote_by_its_url_and_as_an_object():
    api = HttpModel(API, classes=2, max_queries=1)
    assert [ModelSpec(model=m, classes=2).remote for m in (API, "http://127.0.0.1:80/", api)] == [True] * 3
    assert [ModelSpec(model=m).remote for m in (None, "model.onnx", Path("http"), nn.Identity())] == [False] * 4


@pytest.mark.parametrize(("thing", "words"), [(0.5, "0.5"), (3, "3"), ("x" * 500, "'" + "x" * 59), ({}, "a dict")])
def test_what_was_given_is_described_in_a_few_words(thing, words):
    assert described(thing) == words


def test_a_number_may_be_the_least_that_is_allowed_and_none_was_not_given():
    at_least(1, samples=1, max_queries=None)
    with pytest.raises(UsageError, match="--max-queries starts at 1, got 0"):
        at_least(1, samples=1, max_queries=0)
    with pytest.raises(UsageError, match="--samples is a whole number, got '3'"):
        at_least(1, samples="3")


def test_one_surrogate_or_several_are_taken_as_a_caller_names_them(tmp_path):
    module, file = digits_mlp(), tmp_path / "m.safetensors"
    save_weights(module, file)
    loaded = load_model(file, arch="holdfast.models.zoo:digits_mlp")
    for one in (module, loaded, file, str(file)):
        assert Surrogates.of(one).models == (one,)
    assert Surrogates.of([module, file]).models == (module, file)
    given = Surrogates(models=(file, file), archs=("one for both",), trust=True)
    assert Surrogates.of(given) is given
