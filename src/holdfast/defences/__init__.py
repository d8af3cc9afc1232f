"""Defences: those that train, detect, sanitise or repair."""

from typing import TYPE_CHECKING

from holdfast.core.lazy import lazily

if TYPE_CHECKING:
    from holdfast.defences.training_defence import TrainingDefence as TrainingDefence

_HOMES = {
    "TrainingDefence": "defences.training_defence",
}

__all__ = [
    "TrainingDefence",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__, _HOMES)
