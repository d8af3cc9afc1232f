"""Against auto_LiRPA's stored bounds, on real networks: never looser, and equal where there is nothing to gain."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.certifiers.bounds.alpha_crown import AlphaCROWN
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.verification.vnnlib import read_vnnlib
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace

pytestmark = pytest.mark.shared
NETWORKS = {
    "kw_mnist": "convex_adversarial/models/mnist.pth",
    "mnist_a_adv": "auto_LiRPA/examples/vision/pretrained/mnist_a_adv.pth",
}


def _network(folder, name):
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    state = torch.load(folder / "dev" / "torch" / NETWORKS[name], weights_only=True, map_location="cpu")
    state = state.get("state_dict", state)
    net.load_state_dict(state[0] if isinstance(state, list) else state)
    return net.eval()


def _first_images(folder, count):
    table = np.loadtxt(folder / "dev" / "mnist_test_eran100.csv", delimiter=",")[:count]
    return torch.tensor(table[:, 1:] / 255, dtype=torch.float32).view(-1, 1, 28, 28), torch.tensor(table[:, 0]).long()


@pytest.mark.parametrize(("network", "eps"), [("kw_mnist", 0.1), ("mnist_a_adv", 0.1), ("mnist_a_adv", 0.3)])
def test_conv_networks(shared_data, network, eps):
    folder = shared_data / "verification"
    reference = json.loads((folder / "lirpa_reference_b8.json").read_text())
    x, y = _first_images(folder, 8)
    graph = trace(_network(folder, network), x[:1])
    ball = LpBall.uniform(Norm.LINF, eps, 8)
    methods = {"IBP": IBP(), "backward": CROWN(), "CROWN-Optimized": AlphaCROWN(deep_iterations=0, settle=False)}
    for name, method in methods.items():
        theirs = reference[f"{network}|{eps}|{name}"]
        margins = method.margins(graph, x, y, ball)
        ours, first = margins.amin(1), margins[0]
        worst, image0 = torch.tensor(theirs["per_image_min"]).double(), torch.tensor(theirs["lb0"]).double()
        if name == "CROWN-Optimized":  # theirs also optimises what lies behind the boxes
            crown = torch.tensor(reference[f"{network}|{eps}|backward"]["per_image_min"]).double()
            assert ((ours - crown).mean() >= 0.6 * (worst - crown).mean()) if eps < 0.3 else (ours > crown).all()
            continue
        assert (ours >= worst - 1e-4 * worst.abs()).all()
        assert (first >= image0 - 1e-4 * image0.abs()).all()
        if name == "IBP":
            torch.testing.assert_close(ours, worst, rtol=1e-4, atol=0)
        elif network == "kw_mnist":  # intersecting with intervals gains nothing here
            torch.testing.assert_close(first, image0, rtol=1e-4, atol=0)


def _instances(folder):
    reference = json.loads((folder / "lirpa_reference_vnncomp.json").read_text())
    return sorted({tuple(key.split("|")[:3]) for key in reference}), reference


class _Plain(Propagation):
    """Boxes of unstable entries are those of the backward pass alone, as auto_LiRPA has them: no intersection."""

    def _tighten(self, i, slopes, every):
        low, high = self.boxes[i]
        open_ = ~((low >= 0) | (high <= 0)) if i in self.tightened() else torch.zeros_like(low, dtype=torch.bool)
        self.boxes[i] = Box(torch.where(open_, low - 1e9, low), torch.where(open_, high + 1e9, high))
        return super()._tighten(i, slopes, every)


def _plain(graph, query):
    with torch.no_grad():
        found = _Plain(graph.to(torch.float64), Region(query.ball, query.x))
        found.run(refine=lambda _: True)
        return specification(found, query.c)


@pytest.mark.slow
def test_competition_networks(shared_data):
    """Labels of images, and ACAS Xu's first property, which is about one score (the reference leaves its offset out)."""
    pytest.importorskip("onnx")
    from holdfast.graph.onnx import read_onnx

    folder = shared_data / "verification"
    instances, reference = _instances(folder)
    gains = []
    for split, onnx, vnnlib in instances:
        graph = read_onnx(folder / split / onnx)
        (query,) = read_vnnlib(folder / split / vnnlib, graph)
        ibp, crown = (method.bounds(graph, query.ball, query.x, query.c)[0] for method in (IBP(), CROWN()))
        for name, ours in (("IBP", ibp), ("backward", crown)):
            theirs = torch.tensor(reference["|".join((split, onnx, vnnlib, name))], dtype=torch.float64)
            assert len(ours) == len(theirs), (onnx, vnnlib)
            assert ours.min() >= theirs.min() - 1e-4 * theirs.min().abs(), (onnx, vnnlib, name, ours, theirs)
        if any(node.op in ("sigmoid", "tanh") for node in graph.nodes):
            assert (crown >= theirs - 1e-4 * theirs.abs()).all(), (onnx, vnnlib, crown, theirs)
            continue
        # row by row it is the same bound; a box cut by intervals may move another row down a little: no theorem
        torch.testing.assert_close(_plain(graph, query)[0], theirs, rtol=1e-4, atol=1e-5)
        assert (crown >= theirs - 1e-3 * theirs.abs()).all(), (onnx, vnnlib, crown, theirs)
        gains += ((crown - theirs) / theirs.abs()).tolist()
    assert len(gains) >= 80
    assert sum(g >= -1e-4 for g in gains) >= len(gains) - 1


@pytest.mark.slow
def test_a_real_network_is_certified_as_published(shared_data):
    """MNIST at 0.1, trained by Wong and Kolter: CROWN in the box proves 92.8 % of the first 1000, MIP 95.62 %."""
    import sys

    sys.path.insert(0, str(shared_data))
    try:
        import zoo
    finally:
        sys.path.pop(0)
    x, y = zoo.images("mnist", limit=60)
    graph = trace(zoo.load("mnist_wk17a_linf0.1"), x[:1])
    ball = LpBall.uniform(Norm.LINF, 0.1, len(x))
    crown = CROWN().certify(graph, x, y, ball)
    assert 52 <= int(crown.sum()) <= 59
    assert (AlphaCROWN(deep_iterations=0).certify(graph, x, y, ball) >= crown).all()
