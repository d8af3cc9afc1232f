"""Models in: files and prediction APIs, the wrappers around them, small networks, and the pre-flight."""

from holdfast.models.checks import preflight
from holdfast.models.estimator import FromSklearn
from holdfast.models.fingerprint import fingerprint
from holdfast.models.http import HttpModel
from holdfast.models.load import LoadedModel, load_model
from holdfast.models.opening import open_model
from holdfast.models.queries_only import QueriesOnly
from holdfast.models.serve import serve
from holdfast.models.wrap import (
    Bpda,
    Eot,
    FixedMode,
    FixedRandomness,
    FromHF,
    InputTransform,
    Normalisation,
    Normalised,
    OneLogit,
    Ranged,
)

__all__ = [
    "Bpda",
    "Eot",
    "FixedMode",
    "FixedRandomness",
    "FromHF",
    "FromSklearn",
    "HttpModel",
    "InputTransform",
    "LoadedModel",
    "Normalisation",
    "Normalised",
    "OneLogit",
    "QueriesOnly",
    "Ranged",
    "fingerprint",
    "load_model",
    "open_model",
    "preflight",
    "serve",
]
