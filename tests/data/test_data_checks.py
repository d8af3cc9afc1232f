"""Every finding about data, by a data set that deserves it and one that does not."""

import json
import re

import pytest
import torch

from holdfast.core.findings import Severity
from holdfast.core.threat import Norm, ThreatModel, parse_eps
from holdfast.data import Dataset, check_data

THREAT = ThreatModel(norm=Norm.LINF, eps=parse_eps("8/255"))
X = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 10


def codes(x=X, y=Y, classes=10):
    return {f.code: f for f in check_data(Dataset.of(x, y), THREAT, classes)}


def test_good_data_has_no_findings():
    assert codes() == {}


@pytest.mark.parametrize(
    ("x", "looks"),
    [
        (X * 255, r"0\.\.255"),
        (X * 2 - 1, r"\[-1, 1\]"),
        ((X - 0.5) / 0.25, "standardised"),
        (X * 4000, "run from"),
        ((X * 16).round(), r"0\.\.16"),
        ((X * 127).round(), r"0\.\.127"),
        (X.where(X < 0.99, 1.0005), "leave it by 0.0005"),
        (X.where(X > 0.01, -1e-7), "leave it by 1e-07"),
    ],
)
def test_range(x, looks):
    found = codes(x)["data.range"]
    assert found.severity is Severity.ERROR
    assert found.remedy
    assert re.search(looks, found.message)


@pytest.mark.parametrize(("factor", "said"), [(0.03, True), (0.04, False)])
def test_a_change_as_large_as_the_data_are_wide_is_warned_of(factor, said):
    assert ("data.eps" in codes(X * factor + 0.5)) is said


@pytest.mark.parametrize("scale", [255.0, 4000.0])
@pytest.mark.parametrize("shift", [0.0, -0.5])
@pytest.mark.parametrize("features", [("a", "b"), None])
def test_a_table_is_pointed_to_its_columns_and_to_no_remedy_of_pictures(scale, shift, features):
    x = (torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) + shift) * scale
    found = check_data(Dataset.of(x, Y[:20], features=features), THREAT, 10)[0]
    assert found.code == "data.range"
    assert "holdfast columns" in found.remedy
    assert found.data["flags"] == "--table columns.yaml"
    for words in ("uint8", "mean", "standardis"):
        assert words not in found.message + found.remedy
    assert ("pictures" in found.remedy) == (features is None and shift == 0 and scale == 255)


def test_a_table_of_small_values_is_not_asked_about_its_pixels():
    found = check_data(Dataset.of(torch.rand(20, 2) / 255, Y[:20], features=("a", "b")), THREAT, 10)[0]
    assert found.code == "data.scaled_twice"
    assert "255" not in found.message + found.remedy
    assert "--table" in found.remedy


def test_scaled_twice():
    assert "data.scaled_twice" in codes(X / 255)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan(bad):
    x = X.clone()
    x[7, 0, 0, 0] = bad
    assert codes(x)["data.nan"].data == {"samples": 1, "first": 7}


def test_conversion_is_stated():
    found = codes((X * 255).to(torch.uint8).numpy())
    assert found["data.conversion"].message == "x was uint8: divided by 255"


@pytest.mark.parametrize(
    ("y", "classes", "code"),
    [
        (Y + 1, 10, "labels.one_based"),
        (Y, 5, "labels.range"),
        (Y - 1, 10, "labels.negative"),
        (Y * 0, 10, "labels.single"),
        (Y % 3, 10, "labels.fewer"),
    ],
)
def test_labels(y, classes, code):
    found = codes(y=y, classes=classes)
    assert set(found) == {code}
    assert found[code].data["max"] == int(y.max())


def test_labels_without_a_model_are_only_looked_at_for_themselves():
    assert codes(y=Y + 1, classes=None) == {}


def test_findings_are_plain_values():
    assert json.loads(json.dumps(codes(X * 255)["data.range"].as_dict()))["severity"] == "error"
