"""Are adversarial examples errors of generalisation? On-manifold error against test error (Stutz, Hein, Schiele 2019).

The claim: an example that was found on the manifold of the data is an ordinary error, so models that generalise better
have fewer; regular examples leave the manifold, and say little about generalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.common.generator import off_manifold
from holdfast.attacks.engine import Settings, run
from holdfast.attacks.evasion.semantic.on_manifold import OnManifold
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.attacks.semantic import run_semantic
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.data.dataset import Dataset
from holdfast.models.vae import Decoded
from holdfast.models.zoo import substitute
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.stats import clopper_pearson
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

__all__ = ["ManifoldRow", "ManifoldStudy", "manifold_study", "models_of_sizes", "rank_correlation"]

_ROWS = 256
_REFINE = 100
_BATCH = 64

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ManifoldRow:
    """One model.

    Attributes:
        name: of the model.
        test_error: share of the samples that it gets wrong as they are.
        on_manifold_error: share that it gets wrong somewhere in the latent ball, the picture of the sample included.
        regular_error: share that it gets wrong somewhere in the lp ball.
        test_interval: 95 % Clopper-Pearson interval of the test error.
        on_manifold_interval: of the on-manifold error.
        regular_interval: of the regular error.
        off_on: median distance of its on-manifold examples from the manifold; None if there are none.
        off_regular: median distance of its regular examples.
    """

    name: str
    test_error: float
    on_manifold_error: float
    regular_error: float
    test_interval: tuple[float, float]
    on_manifold_interval: tuple[float, float]
    regular_interval: tuple[float, float]
    off_on: float | None
    off_regular: float | None


@dataclass(frozen=True)
class ManifoldStudy:
    """All models.

    Attributes:
        rows: in the order given.
        samples: attacked samples.
        size: radius of the latent ball, with its norm.
        eps: radius of the lp ball, with its norm.
        reconstruction: root mean squared distance of the clean samples from their pictures.
        variance_explained: share of the samples' variance that the pictures keep.
        off_clean: median distance of the clean samples from the manifold.
        rank_on: Spearman's correlation of test error and on-manifold error over the models; None for fewer than 3, or if
            one of the two is the same for all.
        rank_regular: of test error and regular error.
        seed: of the study.
    """

    rows: tuple[ManifoldRow, ...]
    samples: int
    size: str
    eps: str
    reconstruction: float
    variance_explained: float
    off_clean: float
    rank_on: float | None
    rank_regular: float | None
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def models_of_sizes(
    known: Dataset, sizes: Sequence[int], *, epochs: int = 40, seed: int = 0, device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, nn.Module]:  # fmt: skip
    """The same network trained on the first so many samples: models that generalise differently.

    Every model sees as many batches, nearly, so that those of few samples are not merely trained for less.

    Raises:
        UsageError: a size that the data do not have.
    """
    if not sizes or min(sizes) < 2 or max(sizes) > len(known):
        raise UsageError(f"training sizes must lie between 2 and the {len(known)} samples there are, got {list(sizes)}")
    classes = 1 + int(known.y.max())

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    found: dict[str, nn.Module] = {}
    for k, size in enumerate(sizes):
        model = substitute(tuple(known.x.shape[1:]), classes, seed)
        passes = round(epochs * ceil(max(sizes) / _BATCH) / ceil(size / _BATCH))
        settings = TrainingSettings(epochs=passes, batch=_BATCH, validation=0.0, seed=seed)
        fit(model, known.head(size), loss, settings=settings, device=device)
        found[f"{size} samples"] = model
        if progress is not None:
            progress("training", k + 1, len(sizes))
    return found


def manifold_study(
    models: Mapping[str, nn.Module],
    problem: Problem,
    known: Dataset,
    method: OnManifold | None = None,
    *,
    regular_steps: int = 40,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> ManifoldStudy:
    """Attacks every model on the manifold and off it, on the same samples with the same decoder.

    Args:
        models: by name.
        problem: samples that neither the models nor the decoder were trained on; their set is that of the regular attack.
        known: what the decoder learns from.
        method: the on-manifold attack.
        regular_steps: PGD steps of the regular attack.
        seed: keys all draws.
        settings: how the engine works.
        progress: told (stage, done, of how many).

    Raises:
        UsageError: no models or no samples.
    """
    if not models or not len(problem):
        raise UsageError("a study needs at least one model and one sample")
    method = method or OnManifold()
    x, y = problem.x, problem.y
    first = next(iter(models.values()))
    method.check(x, problem.goal)
    prepared = method.prepare(x, y, first, known, seed)
    decoder = prepared.transform
    if not isinstance(decoder, Decoded):
        raise UsageError("the on-manifold attack has no decoder")

    def off(images: Tensor, labels: Tensor) -> float | None:
        if not len(images):
            return None
        return float(off_manifold(decoder.vae, images, labels, steps=_REFINE, bound=decoder.bound).median())

    rows: list[ManifoldRow] = []
    for k, (name, model) in enumerate(models.items()):
        with torch.no_grad(), evaluating(model):
            wrong = torch.cat([model(part.clone()) for part in x.split(_ROWS)]).argmax(1) != y
        on = run_semantic(
            method,
            x,
            y,
            model,
            prepared=replace(prepared, attacked=model),
            ids=problem.ids,
            seed=seed,
            settings=settings,
        )
        regular = run(PGD(steps=regular_steps), problem, model, seed=seed, settings=settings)
        moved = regular.found & (regular.distance > 0)
        shares, ranges = zip(*(_share(b) for b in (wrong, on.found, regular.found)), strict=True)
        far = off(on.x[on.found], y[on.found]), off(regular.x[moved], y[moved])
        rows.append(ManifoldRow(name, shares[0], shares[1], shares[2], ranges[0], ranges[1], ranges[2], *far))
        if progress is not None:
            progress("attacks", k + 1, len(models))
    test = [r.test_error for r in rows]
    eps = float(problem.set.eps.max())
    return ManifoldStudy(
        tuple(rows), len(x), f"{method.norm} <= {method.eps:g}", f"{problem.set.norm} <= {eps:g}",
        prepared.facts["reconstruction_rmse"], prepared.facts["variance_explained"], off(x, y) or 0.0,
        rank_correlation(test, [r.on_manifold_error for r in rows]),
        rank_correlation(test, [r.regular_error for r in rows]), seed,
    )  # fmt: skip


def _share(hit: Tensor) -> tuple[float, tuple[float, float]]:
    """The share of samples that are hit, and its 95 % interval."""
    count = int(hit.sum())
    low, high = (float(np.asarray(v).flat[0]) for v in clopper_pearson(np.array([count]), len(hit), 0.05))
    return count / len(hit), (low, high)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's correlation, ties at their mean rank; None for fewer than 3 pairs or where one side is constant.

    Example:
        >>> rank_correlation([0.1, 0.2, 0.4], [1.0, 5.0, 9.0]), rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
        (1.0, None)
    """
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    p, q = _ranks(a), _ranks(b)
    return round(float(np.corrcoef(p, q)[0, 1]), 12)


def _ranks(values: Sequence[float]) -> np.ndarray:
    v = np.asarray(values)
    return np.array([(v < x).sum() + ((v == x).sum() - 1) / 2 for x in v])
