"""Are adversarial examples errors of generalisation? On-manifold error against test error (Stutz, Hein, Schiele 2019).

The claim: an example that was found on the manifold of the data is an ordinary error, so models that generalise better
have fewer; regular examples leave the manifold, and say little about generalisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.common.generator import off_manifold
from holdfast.attacks.engine import Settings, run
from holdfast.attacks.evasion.semantic.on_manifold import OnManifold
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.attacks.semantic import SemanticOutcome, run_semantic
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Norm
from holdfast.data.dataset import Dataset
from holdfast.judge.outcome import Outcome
from holdfast.models.vae import Decoded
from holdfast.models.zoo import substitute
from holdfast.numerics.evaluation import evaluate
from holdfast.session.reading import open_data
from holdfast.session.session import Session
from holdfast.session.spec import DataLike
from holdfast.studies.common.statements import interval_of
from holdfast.studies.study import StageProgress, Study, StudyResult
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

__all__ = ["Manifold", "ManifoldResult", "ManifoldRow", "compare_on_manifold", "models_of_sizes", "rank_correlation"]

_REFINE = 100
_BATCH = 64
_SIZES = (50, 100, 200, 400, 800)


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class ManifoldResult(StudyResult):
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


@dataclass(frozen=True, kw_only=True)
class Manifold(Study[ManifoldResult]):
    """On-manifold error and regular error against test error, over models that generalise differently.

    The session's own model takes no part.
    """

    card: ClassVar[Card] = Card(
        title="On-manifold error against test error",
        rows=("E46",),
        paper="Stutz, Hein & Schiele 2019, Disentangling Adversarial Robustness and Generalization, arXiv:1812.00740",
        section="2.2",
        summary="Asks whether adversarial examples are errors of generalisation: attacks models in the latent space of a "
        "learned decoder and in the input space, and ranks both errors against the test error.",
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        modality=("image",),
        failure_modes=(
            "The manifold is a learned one: what its decoder does not draw is not tested.",
            "A rank correlation over few models is weak evidence; fewer than three have none.",
        ),
        checked_by="models of growing training sets on the digits: the on-manifold error falls with the test error",
    )
    train_data: DataLike | None = parameter(
        None, "what the decoder, and models of sizes, learn from", "Stutz et al. 2019, section 3.1: the training set"
    )
    sizes: tuple[int, ...] = parameter(
        _SIZES,
        "training samples of each model, where none is given",
        "Stutz et al. 2019, figure 5: growing training sets",
    )
    epochs: int = parameter(
        30, "passes over the largest training set; all models see nearly as many batches", "ours: enough for the digits"
    )
    regular_steps: int = parameter(40, "PGD steps of the regular attack", "Stutz et al. 2019, section 4: 40 iterations")
    method: OnManifold | None = parameter(
        None, "the on-manifold attack; none: with its defaults", "Stutz et al. 2019, section 3.3"
    )
    models: Mapping[str, nn.Module] | None = parameter(
        None, "by name; none: the same network, trained on each of the sizes", "Stutz et al. 2019, figure 5"
    )

    @override
    def run(self, session: Session, *, progress: StageProgress | None = None) -> ManifoldResult:
        if self.train_data is None:
            raise UsageError("what train data? give --train-data")
        train = open_data(self.train_data, class_names=session.spec.class_names, table=session.spec.table)
        models = self.models or models_of_sizes(
            train, self.sizes, epochs=self.epochs, seed=session.seed, device=session.device, progress=progress
        )
        return compare_on_manifold(
            models,
            session.problem(session.ids),
            train,
            self.method,
            regular_steps=self.regular_steps,
            seed=session.seed,
            settings=session.settings,
            progress=progress,
        )


def compare_on_manifold(
    models: Mapping[str, nn.Module],
    problem: Problem,
    train: Dataset,
    method: OnManifold | None = None,
    *,
    regular_steps: int = 40,
    seed: int = 0,
    settings: Settings | None = None,
    progress: StageProgress | None = None,
) -> ManifoldResult:
    """Attacks every model on the manifold and off it, on the same samples with the same decoder.

    Args:
        models: by name.
        problem: samples that neither the models nor the decoder were trained on; their set is that of the regular attack.
        train: what the decoder learns from.
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
    method.check(x, problem.goal)
    prepared = method.prepare(x, y, next(iter(models.values())), train, seed)
    decoder = prepared.transform
    if not isinstance(decoder, Decoded):
        raise UsageError("the on-manifold attack has no decoder")
    rows: list[ManifoldRow] = []
    for k, (name, model) in enumerate(models.items()):
        regular = run(PGD(steps=regular_steps), problem, model, seed=seed, settings=settings)
        attacked = replace(prepared, attacked=model)
        on = run_semantic(method, x, y, model, prepared=attacked, ids=problem.ids, seed=seed, settings=settings)
        rows.append(_row(name, model, problem, decoder, on, regular))
        if progress is not None:
            progress("attacks", k + 1, len(models))
    test = [r.test_error for r in rows]
    return ManifoldResult(
        rows=tuple(rows),
        samples=len(x),
        size=f"{method.norm} <= {method.eps:g}",
        eps=f"{problem.set.norm} <= {float(problem.set.eps.max()):g}",
        reconstruction=prepared.facts["reconstruction_rmse"],
        variance_explained=prepared.facts["variance_explained"],
        off_clean=_off(decoder, x, y) or 0.0,
        rank_on=rank_correlation(test, [r.on_manifold_error for r in rows]),
        rank_regular=rank_correlation(test, [r.regular_error for r in rows]),
        seed=seed,
    )


def _row(
    name: str, model: nn.Module, problem: Problem, decoder: Decoded, on: SemanticOutcome, regular: Outcome
) -> ManifoldRow:
    y = problem.y
    wrong = evaluate(model, problem.x).argmax(1) != y
    moved = regular.found & (regular.distance > 0)
    return ManifoldRow(
        name=name,
        test_error=_rate(wrong),
        on_manifold_error=_rate(on.found),
        regular_error=_rate(regular.found),
        test_interval=_interval(wrong),
        on_manifold_interval=_interval(on.found),
        regular_interval=_interval(regular.found),
        off_on=_off(decoder, on.x[on.found], y[on.found]),
        off_regular=_off(decoder, regular.x[moved], y[moved]),
    )


def _off(decoder: Decoded, images: Tensor, labels: Tensor) -> float | None:
    """Median distance of images from the manifold; None without any."""
    if not len(images):
        return None
    return float(off_manifold(decoder.vae, images, labels, steps=_REFINE, bound=decoder.bound).median())


def _rate(hit: Tensor) -> float:
    return int(hit.sum()) / len(hit)


def _interval(hit: Tensor) -> tuple[float, float]:
    return interval_of(int(hit.sum()), len(hit))


def models_of_sizes(
    train: Dataset,
    sizes: Sequence[int],
    *,
    epochs: int = 40,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: StageProgress | None = None,
) -> dict[str, nn.Module]:
    """The same network trained on the first so many samples: models that generalise differently.

    Every model sees as many batches, nearly, so that those of few samples are not merely trained for less.

    Raises:
        UsageError: a size that the data do not have.
    """
    if not sizes or min(sizes) < 2 or max(sizes) > len(train):
        raise UsageError(f"training sizes must lie between 2 and the {len(train)} samples there are, got {list(sizes)}")
    classes = 1 + int(train.y.max())

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    models: dict[str, nn.Module] = {}
    for k, size in enumerate(sizes):
        model = substitute(tuple(train.x.shape[1:]), classes, seed)
        passes = round(epochs * ceil(max(sizes) / _BATCH) / ceil(size / _BATCH))
        settings = TrainingSettings(epochs=passes, batch=_BATCH, validation=0.0, seed=seed)
        fit(model, train.head(size), loss, settings=settings, device=device)
        models[f"{size} samples"] = model
        if progress is not None:
            progress("training", k + 1, len(sizes))
    return models


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


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    v = np.asarray(values)
    return np.array([(v < x).sum() + ((v == x).sum() - 1) / 2 for x in v])
