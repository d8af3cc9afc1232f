"""The real classifiers of ../shared/data load by their architecture and reach their measured clean accuracy."""

import json
from math import sqrt

import numpy as np
import pytest

from holdfast.core.findings import Severity
from holdfast.core.threat import Norm, ThreatModel, parse_eps
from holdfast.data import load_data
from holdfast.models import load_model, preflight

pytestmark = pytest.mark.shared

FILES = {"mnist": ("mnist.npz", "x_test", "y_test"), "fashion_mnist": ("fashion_mnist_test.npz", "x", "y")}


def cards(shared_data):
    return json.loads((shared_data / "vision" / "models.json").read_text())["models"]


@pytest.fixture
def images(shared_data, tmp_path):
    def make(name):
        file, x, y = FILES.get(name, ("cifar10_test_0000_0499.npz", "x", "y"))
        with np.load(shared_data / "vision" / file, allow_pickle=False) as held:
            pixels, labels = held[x][:200], held[y][:200]
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        np.savez(tmp_path / "d.npz", x=pixels, y=labels)
        return load_data(tmp_path / "d.npz")

    return make


def test_every_model(shared_data, images, monkeypatch):
    monkeypatch.syspath_prepend(str(shared_data))
    import zoo  # ../shared/data/zoo.py

    threat = ThreatModel(norm=Norm.LINF, eps=parse_eps("1/255"))
    seen = 0
    for card in cards(shared_data):
        name = card["file"].removesuffix(".safetensors")
        if not (shared_data / "vision" / card["file"]).is_file():
            continue
        data = images(card["dataset"])
        loaded = load_model(shared_data / "vision" / card["file"], arch=f"zoo:{name}")
        assert loaded.subject == load_model(shared_data / "vision" / card["file"], arch=f"zoo:{name}").subject
        reference = zoo.load(name)(data.x).argmax(1)
        predicted = loaded.module(data.x).argmax(1)
        assert predicted.tolist() == reference.tolist(), name
        measured = float(card["measured"]["clean"].partition("%")[0]) / 100
        spread = 3 * sqrt(measured * (1 - measured) / len(data))  # the figure is of more images than these 200
        assert float((predicted == data.y).float().mean()) == pytest.approx(measured, abs=spread + 0.005), name
        findings = preflight(loaded.module, data, threat)
        assert [f.code for f in findings if f.severity is not Severity.NOTE] == [], name
        seen += 1
    assert seen >= 9


def test_predictions_equal_an_outside_verifiers(shared_data, images, monkeypatch):
    monkeypatch.syspath_prepend(str(shared_data))
    vision, name = shared_data / "vision", "cifar10_relu_stable_linf_2_255"
    with np.load(vision / "relu_stable_cifar10_linf_2_255_verdicts.npz", allow_pickle=False) as held:
        published = held["predicted"][np.argsort(held["index"])][:200]
    loaded = load_model(vision / f"{name}.safetensors", arch=f"zoo:{name}")
    assert loaded.module(images("cifar10").x).argmax(1).tolist() == published.tolist()
