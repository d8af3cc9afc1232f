"""Curves and pictures."""

import base64
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from xml.etree import ElementTree as xml

import numpy as np
import pytest
from PIL import Image

from holdfast.audits.sections import Curves
from holdfast.report.audits import Picture, curves
from holdfast.report.audits.bar import headline_bar
from holdfast.report.audits.page import render
from holdfast.report.audits.pictures import MOST, cards
from holdfast.report.draw import after, before


def _image(uri: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def _picture(clean: np.ndarray, adversarial: np.ndarray) -> Picture:
    return Picture(
        id=0, label=1, prediction=1, adversarial_prediction=2, distance=0.1, attack="pgd", clean=clean,
        adversarial=adversarial,
    )  # fmt: skip


def test_step_curves_never_flatter():
    points = [(0.0, 1.0), (2.0, 0.4)]
    assert after(points) == [(0.0, 1.0), (2.0, 1.0), (2.0, 0.4)]  # an upper bound stays up until its witness
    assert before(points) == [(0.0, 1.0), (0.0, 0.4), (2.0, 0.4)]  # a lower bound falls at once behind its radius


def test_bar_spans_every_sample(document):
    rects = xml.fromstring(str(headline_bar(document))).findall("rect")
    ends = [(float(r.get("x", 0)), float(r.get("width", 0))) for r in rects]
    assert ends[0][0] == 0
    assert sum(ends[-1]) == pytest.approx(958, abs=0.1)
    for (x, w), (y, _) in pairwise(ends):
        assert x + w + 2 == pytest.approx(y, abs=0.1)


@pytest.mark.parametrize("eps", ["8/255", "0.1", "300"])
def test_charts_are_well_formed_at_any_size(make, document, eps):
    size = float(Fraction(eps))
    threat = document.threat.model_copy(update={"eps": eps, "eps_value": size, "high": 1.0 if size < 1 else 1000.0})
    audit = make(threat=threat)
    for figure in (
        curves.security(audit),
        curves.queries(audit),
        curves.overlay([("a", audit)] * 9),
        curves.tradeoff([("a", audit)] * 9),
    ):
        root = xml.fromstring(str(figure))
        assert "nan" not in str(figure)
        assert root.find(".//svg") is not None


def nothing(document):
    """A run that was stopped before its first chunk."""
    head = document.headline.model_copy(update={"samples": 0, "certified_robust_accuracy": 0.0, "unknown": 0.0})
    return document.model_copy(update={"headline": head, "samples": [], "curves": Curves(), "complete": False})


@pytest.mark.parametrize("n", [0, 1])
def test_charts_bear_empty_curves_and_no_samples(make, document, n):
    empty = make(n=n, curves={}) if n else nothing(document)
    for figure in (curves.security(empty), curves.queries(empty), curves.overlay([("a", empty)]), headline_bar(empty)):
        xml.fromstring(str(figure))
    assert "INCOMPLETE" in render(empty) or n


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_show_the_very_pixels(document, channels):
    clean = np.linspace(0, 1, channels * 64, dtype=np.float32).reshape(channels, 8, 8)
    adversarial = np.clip(clean + 0.1, 0, 1)
    (card,) = cards(document, [_picture(clean, adversarial)])
    shown = _image(card["clean"])
    shown = shown[None] if channels == 1 else shown.transpose(2, 0, 1)
    assert (shown == np.rint(clean * 255)).all()
    assert card["scale"] == 5  # 0.1 magnified five times is the most that stays inside the greys
    middle = _image(card["difference"])
    assert middle.max() == 255
    assert middle.min() >= 127
    assert card["after"] == document.data.class_names[2]


def test_what_is_no_picture_is_left_out(document):
    flat, two, bad = np.zeros((4,)), np.zeros((2, 4, 4)), np.full((1, 4, 4), np.nan)
    fine = np.zeros((1, 4, 4))
    assert cards(document, [_picture(x, x) for x in (flat, two, bad)]) == []
    assert len(cards(document, [_picture(fine, fine)] * 20)) == MOST


def test_large_pictures_are_shrunk_and_said_to_be(document):
    (card,) = cards(document, [_picture(np.zeros((3, 224, 200)), np.ones((3, 224, 200)))])
    assert _image(card["clean"]).shape == (74, 66, 3)
    assert card["shrunk"] == "200 × 224"
    assert card["scale"] == 1
