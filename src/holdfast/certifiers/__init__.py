"""Certificates: what is proved safe. Never imports attacks, so that the two sides check each other."""

from typing import TYPE_CHECKING

from holdfast.core.lazy import lazily

if TYPE_CHECKING:
    from holdfast.certifiers.graph_certifier import GraphCertifier as GraphCertifier
    from holdfast.certifiers.learner_certifier import LearnerCertifier as LearnerCertifier
    from holdfast.certifiers.oracle_certifier import OracleCertifier as OracleCertifier
    from holdfast.certifiers.set_certifier import SetCertifier as SetCertifier

_HOMES = {
    "GraphCertifier": "certifiers.graph_certifier",
    "LearnerCertifier": "certifiers.learner_certifier",
    "OracleCertifier": "certifiers.oracle_certifier",
    "SetCertifier": "certifiers.set_certifier",
}

__all__ = [
    "GraphCertifier",
    "LearnerCertifier",
    "OracleCertifier",
    "SetCertifier",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__, _HOMES)
