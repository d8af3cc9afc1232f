"""Classifiers of scikit-learn, and whatever has its interface, as models that answer queries."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
from typing_extensions import override

from holdfast.core.errors import ModelError, UsageError
from holdfast.models.queries_only import QueriesOnly

__all__ = ["FromSklearn", "is_estimator_file", "read_estimator"]

_LIFT = 1e-5
_WHY = "it is an estimator of scikit-learn's kind, which gives no gradients"


class FromSklearn(QueriesOnly):
    """A fitted classifier: column k of the scores is ``classes_[k]``, and a sample's label is that index.

    Scores are those of ``predict_proba``, else of ``decision_function``; an estimator with neither answers labels. The
    decision is always that of ``predict``: its class is put above the others where the scores would say otherwise (ties, the
    calibrated probabilities of a support vector machine, votes of one class against another).

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> model = FromSklearn(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
        >>> import torch
        >>> model(torch.tensor([[0.0], [1.0]])).argmax(1)
        tensor([0, 1])
    """

    def __init__(self, estimator: Any, *, identity: str | None = None, what: str | None = None) -> None:
        """Wraps an estimator.

        Args:
            estimator: fitted, with ``classes_`` and ``predict``.
            identity: SHA-256 of the file that it came from; None: of the object.
            what: how to call it.

        Raises:
            ModelError: no fitted classifier of one label.
        """
        what = what or type(estimator).__name__
        if not hasattr(estimator, "predict"):
            raise ModelError(f"{what} has no predict; wanted a classifier of scikit-learn's kind")
        classes = getattr(estimator, "classes_", None)
        if classes is None:
            raise ModelError(
                f"{what} has no classes_: it is not fitted, or no classifier (audits are for classifiers; a regressor has "
                "no label that could change)"
            )
        if isinstance(classes, list) or np.ndim(classes) != 1 or len(classes) < 2:
            raise ModelError(
                f"{what} has several outputs or a single class; served are classifiers with one label a sample"
            )
        if getattr(estimator, "decision_function_shape", "ovr") == "ovo" and not hasattr(estimator, "predict_proba"):
            raise ModelError(
                f"{what} scores each pair of classes; call set_params(decision_function_shape='ovr') for a score a class"
            )
        names: list[Any] = [c.item() if isinstance(c, np.generic) else c for c in classes]
        super().__init__(identity or _identity(estimator), what, _WHY, names)
        self._estimator = estimator
        self._rank: dict[Any, int] = {name: k for k, name in enumerate(names)}

    @property
    @override
    def notes(self) -> tuple[str, ...]:
        """The classes where they are no numbers from 0."""
        if self.names == tuple(range(len(self.names))):
            return ()
        return (
            f"labels are the places of the classes: {', '.join(f'{k} {n}' for k, n in enumerate(self.names[:20]))}",
        )

    @override
    def ask(self, x: np.ndarray) -> np.ndarray:
        """(n, \\*features) float32 -> scores (n, K); labels where the estimator has no scores."""
        rows = x.reshape(len(x), -1).astype(np.float64)
        try:
            label = np.asarray(self._estimator.predict(rows)).reshape(-1)
            scores = self._scores(rows)
        except Exception as fault:  # an estimator may raise anything
            raise ModelError(f"{self.what} fails on {len(rows)} rows of {rows.shape[1]} features: {fault}") from None
        index = np.array([self._rank[name] for name in label.tolist()])
        if scores is None:
            return index
        rows = np.arange(len(scores))
        others = scores.copy()
        others[rows, index] = -np.inf
        scores[rows, index] = np.maximum(scores[rows, index], _above(others.max(1)))
        return scores

    def _scores(self, rows: np.ndarray) -> np.ndarray | None:
        for name in ("predict_proba", "decision_function"):
            try:
                function = getattr(self._estimator, name)
            except AttributeError:  # a property that raises where the estimator was not fitted for it
                continue
            scores = np.asarray(function(rows))
            if scores.ndim == 1 or scores.shape[1] == 1:
                scores = scores.reshape(-1, 1)
                scores = np.concatenate([np.zeros_like(scores), scores], 1)
            if scores.shape[1] == len(self.names):
                return scores.astype(np.float32)
        return None


def _above(score: np.ndarray) -> np.ndarray:
    """A little more than a score, and more than rounding could take away again."""
    return score + np.float32(_LIFT) * np.maximum(np.abs(score), np.float32(1))


def _identity(estimator: Any) -> str:
    try:
        content = pickle.dumps(estimator, protocol=4)
    except Exception as fault:  # an estimator may hold anything
        raise ModelError(
            f"{type(estimator).__name__} cannot be pickled, so it has no hash to name it by: {fault}"
        ) from None
    return hashlib.sha256(content).hexdigest()


def is_estimator_file(runs: tuple[str, ...]) -> bool:
    """Whether a pickle names code of other packages and none of PyTorch's."""
    roots = {name.partition(".")[0] for name in runs if "." in name and " " not in name}
    return bool(roots - {"torch", "builtins", "collections"}) and "torch" not in roots


def read_estimator(path: Path) -> FromSklearn:
    """A pickled or joblib-dumped estimator. Opening it runs its code; only for files that are trusted.

    Raises:
        UsageError: it needs a package that is not installed.
        ModelError: damaged, or no classifier.
    """
    import joblib  # pyright: ignore[reportMissingTypeStubs]  # joblib comes without types

    try:
        held = cast(Any, joblib).load(path)
    except ModuleNotFoundError as fault:
        raise UsageError(f"{path} needs the package '{fault.name}', which is not installed") from None
    except Exception as fault:  # whatever the file's code raises
        raise ModelError(f"{path} cannot be opened: {type(fault).__name__}: {str(fault)[:200]}") from None
    if not hasattr(held, "predict"):
        raise ModelError(f"{path} holds {type(held).__name__}, which is no model: it has no predict")
    name = f"{type(held).__name__} in {path.name}"
    return FromSklearn(held, identity=hashlib.sha256(path.read_bytes()).hexdigest(), what=name)
