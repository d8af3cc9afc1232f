"""Defences: those that train, detect, sanitise or repair."""

from typing import TYPE_CHECKING

from holdfast.core.lazy import lazily

if TYPE_CHECKING:
    from holdfast.defences.aggregator import Aggregator as Aggregator
    from holdfast.defences.detector import Detector as Detector
    from holdfast.defences.inspector import Inspector as Inspector
    from holdfast.defences.inspector import ScanFinding as ScanFinding
    from holdfast.defences.repair import Repair as Repair
    from holdfast.defences.sanitiser import Sanitiser as Sanitiser
    from holdfast.defences.training_defence import TrainingDefence as TrainingDefence

_HOMES = {
    "Aggregator": "defences.aggregator",
    "Detector": "defences.detector",
    "Inspector": "defences.inspector",
    "Repair": "defences.repair",
    "Sanitiser": "defences.sanitiser",
    "ScanFinding": "defences.inspector",
    "TrainingDefence": "defences.training_defence",
}

__all__ = [
    "Aggregator",
    "Detector",
    "Inspector",
    "Repair",
    "Sanitiser",
    "ScanFinding",
    "TrainingDefence",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__, _HOMES)
