"""Holdfast: adversarial robustness of deep-learning models, from both sides.

Nothing heavy is imported before a name is used.

Example:
    >>> import holdfast as hf
    >>> hf.ThreatModel.of("linf", "8/255").describe()
    'linf <= 8/255 in [0, 1], untargeted, white-box'
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.api.attack import attack as attack
    from holdfast.api.audit import audit as audit
    from holdfast.api.audit import recheck as recheck
    from holdfast.api.audit import resume as resume
    from holdfast.api.certify import certify as certify
    from holdfast.api.harden import harden as harden
    from holdfast.api.load import load_model as load_model
    from holdfast.api.methods import method as method
    from holdfast.api.methods import methods as methods
    from holdfast.api.report import Report as Report
    from holdfast.api.verify import verify as verify
    from holdfast.audits.plan import Plan as Plan
    from holdfast.core.errors import HoldfastError as HoldfastError
    from holdfast.core.threat import Access as Access
    from holdfast.core.threat import Goal as Goal
    from holdfast.core.threat import Guarantee as Guarantee
    from holdfast.core.threat import Norm as Norm
    from holdfast.core.threat import ThreatModel as ThreatModel
    from holdfast.core.verdict import Status as Status
    from holdfast.core.version import __version__ as __version__
    from holdfast.data.dataset import Dataset as Dataset
    from holdfast.data.load import load_data as load_data

_HOMES = {
    "attack": "api.attack",
    "audit": "api.audit",
    "certify": "api.certify",
    "harden": "api.harden",
    "recheck": "api.audit",
    "resume": "api.audit",
    "verify": "api.verify",
    "method": "api.methods",
    "methods": "api.methods",
    "load_model": "api.load",
    "load_data": "data.load",
    "Access": "core.threat",
    "Goal": "core.threat",
    "Guarantee": "core.threat",
    "Norm": "core.threat",
    "ThreatModel": "core.threat",
    "Status": "core.verdict",
    "Plan": "audits.plan",
    "Report": "api.report",
    "Dataset": "data.dataset",
    "HoldfastError": "core.errors",
    "__version__": "core.version",
}

__all__ = [
    "Access",
    "Dataset",
    "Goal",
    "Guarantee",
    "HoldfastError",
    "Norm",
    "Plan",
    "Report",
    "Status",
    "ThreatModel",
    "__version__",
    "attack",
    "audit",
    "certify",
    "harden",
    "load_data",
    "load_model",
    "method",
    "methods",
    "recheck",
    "resume",
    "verify",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from holdfast.core.lazy import lazily  # not above: the checker of proofs runs no other code of the house

        return lazily(__name__, _HOMES)[0](name)

    def __dir__() -> list[str]:
        return sorted(_HOMES)
