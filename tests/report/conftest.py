"""A realistic audit of 200 samples, made without a model; the bounds follow from the samples as in a real run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from holdfast.audits.document import Document
from holdfast.report.audits import Picture

EPS = 8 / 255
ATTACKS = ("apgd_ce", "apgd_t", "fab_t", "square")
PARTS = Path(__file__).with_name("parts.json")


def _interval(k: int, n: int) -> list[float]:
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    return [low, float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0]


def _sample(i: int, strength: float, rng: np.random.Generator) -> dict:
    label, kind = int(rng.integers(10)), rng.random()
    row = {"id": i, "label": label, "prediction": label, "witness": None, "certificate": None}
    row |= {"forwards": 40, "backwards": 30, "queries": 0}
    radius = float(np.round(min(2 * EPS, EPS * rng.gamma(4, 0.24) * strength), 6))
    certificate = {"radius": radius, "guarantee": "sound", "method": "crown", "arithmetic": "real numbers, in float64"}
    witness = {"sha256": f"{rng.integers(1 << 62):064x}", "attack": ATTACKS[int(min(3, rng.exponential(0.7)))]}
    if kind < 0.07:
        return row | {"status": "MISCLASSIFIED", "prediction": (label + 3) % 10}
    row["certificate"] = certificate
    if radius >= EPS:
        return row | {"status": "CERTIFIED", "forwards": 4, "backwards": 2}
    if kind < 0.08:
        return row | {"status": "MARGINAL"}
    if rng.random() < 0.72 / strength:
        distance = radius + (EPS - radius) * float(rng.beta(2, 1.6))
        found = witness | {"distance": distance, "margin": -float(rng.exponential(0.4))}
        return row | {"status": "BROKEN", "witness": found, "forwards": int(rng.integers(30, 900)), "backwards": 60}
    return row | {"status": "UNKNOWN", "forwards": 2710, "backwards": 1900, "queries": 5000}


def _curves(samples: list[dict]) -> dict:
    n, right = len(samples), [s for s in samples if s["status"] != "MISCLASSIFIED"]
    distances = sorted(s["witness"]["distance"] for s in right if s["witness"])
    radii = sorted(s["certificate"]["radius"] for s in right if s["certificate"])
    left = len(right) - len(distances)
    steps = [(0.0, len(right)), *((d, len(right) - k - 1) for k, d in enumerate(distances)), (EPS, left)]
    half = max(0, sum(d > EPS / 2 for d in distances) + left - 4)
    grid = [(EPS / 2, half), (EPS, left), (1.5 * EPS, int(left * 0.45)), (2 * EPS, int(left * 0.15))]

    def fall(q: float, slow: float, power: float) -> float:
        return (left + (len(right) - left) * (1 + q / slow) ** -power) / n

    return {
        "eps": [{"eps": e, "accuracy": k / n, "kind": "witness"} for e, k in steps]
        + [{"eps": e, "accuracy": k / n, "kind": "grid"} for e, k in grid],
        "certified": [{"radius": 0.0, "accuracy": len(radii) / n}]
        + [{"radius": r, "accuracy": (len(radii) - k) / n} for k, r in enumerate(radii)],
        "queries": [
            {
                "attack": "square",
                "points": [[q, fall(q, 120, 0.9)] for q in (0, 1, 10, 30, 100, 300, 1000, 3000, 5000)],
            },
            {"attack": "hopskipjump", "points": [[q, fall(q, 900, 0.7)] for q in (0, 10, 100, 1000, 3000, 10000)]},
        ],
    }


def make_document(seed: int = 0, strength: float = 1.0, n: int = 200, **changes: object) -> Document:
    """An audit; ``strength`` moves the certificates, ``changes`` replace top-level parts."""
    rng = np.random.default_rng(seed)
    samples = [_sample(i, strength, rng) for i in range(n)]
    count = {s: sum(x["status"] == s for x in samples) for s in ("MISCLASSIFIED", "BROKEN", "CERTIFIED", "MARGINAL")}
    kept, clean, sure = n - count["MISCLASSIFIED"] - count["BROKEN"], n - count["MISCLASSIFIED"], count["CERTIFIED"]
    headline = {
        "samples": n,
        "clean_accuracy": clean / n,
        "empirical_robust_accuracy": kept / n,
        "certified_robust_accuracy": sure / n,
        "unknown": (kept - sure) / n,
        "upper_bound_weak": False,
        "marginal": count["MARGINAL"],
        "intervals": {"clean": _interval(clean, n), "empirical": _interval(kept, n), "certified": _interval(sure, n)},
        "statement": f"certified {100 * sure / n:.1f} % <= true robust accuracy <= empirical {100 * kept / n:.1f} %",
    }
    values = json.loads(PARTS.read_text(encoding="utf-8"))
    values["data"]["samples"] = n
    values["suite"] |= {"certified_attacked": sure, "certified_full_ladder": max(1, sure // 20)}
    for attack in values["suite"]["attacks"]:
        attack["broken"] = sum(bool(s["witness"]) and s["witness"]["attack"] == attack["name"] for s in samples)
    values["grid"] = {
        "grid": "1/255",
        "empirical_robust_accuracy": min(n, kept + 2) / n,
        "pictures_saved": count["BROKEN"],
        "pictures_still_breaking": max(0, count["BROKEN"] - 2),
    }
    values |= {"headline": headline, "samples": samples, "curves": _curves(samples)}
    return Document.model_validate(values | changes)


def make_pictures(document: Document, size: int = 32, channels: int = 3) -> list[Picture]:
    """Pictures of the first twelve broken samples: soft blobs with a signed change."""
    rng = np.random.default_rng(1)
    yy, xx = np.mgrid[0:size, 0:size] / size
    out = []
    for s in [s for s in document.samples if s.witness][:12]:
        at = rng.random((channels, 3))
        clean = np.stack([0.15 + 0.8 * np.exp(-((xx - a) ** 2 + (yy - b) ** 2) / (0.05 + 0.1 * c)) for a, b, c in at])
        change = s.witness.distance * np.sign(
            np.kron(rng.normal(size=(channels, size // 2, size // 2)), np.ones((2, 2)))
        )
        out.append(
            Picture(
                id=s.id, label=s.label, prediction=s.prediction, adversarial_prediction=(s.label + 1) % 10,
                distance=s.witness.distance, attack=s.witness.attack, clean=clean.clip(0, 1).astype(np.float32),
                adversarial=(clean + change).clip(0, 1).astype(np.float32),
            )
        )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def make() -> Callable[..., Document]:
    return make_document


@pytest.fixture(scope="session")
def document() -> Document:
    return make_document()


@pytest.fixture(scope="session")
def pictures(document: Document) -> list[Picture]:
    return make_pictures(document)


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[..., list[Picture]]:
    return make_pictures
