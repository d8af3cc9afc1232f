"""The nearest witness of every sample, whatever eps is.

On samples whose gradients lead nowhere it runs what `black-box` runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import override

from holdfast.audits.suite import Suite, SuiteEntry, SuiteRequest, where_gradients_fail
from holdfast.core.threat import Norm

__all__ = ["Minimal"]

# For each norm the three whose per-sample best came nearest on three real networks at 800 passes each, the cheap before
# the dear; in linf the third looks for what is just inside the others' witnesses.
_ENTRIES: Mapping[Norm, tuple[SuiteEntry, ...]] = {
    norm: tuple(SuiteEntry(name=name, method=name, nearest=True) for name in chosen)
    for norm, chosen in {
        Norm.L0: ("sigma_zero", "pdpgd", "brendel_bethge"),
        Norm.L1: ("pdpgd", "alma", "brendel_bethge"),
        Norm.L2: ("ddn", "alma", "fab_t"),
        Norm.LINF: ("fmn", "pdpgd"),
    }.items()
}
_INSIDE = SuiteEntry(name="apgd_ce_inside", method="apgd_ce", nearest=True, under=0.97)


class Minimal(Suite):
    """A few minimal-distortion attacks, the nearest of their witnesses sample by sample."""

    uses_gradients = True
    runs_on_everyone = True

    @override
    def composition(self, request: SuiteRequest) -> tuple[SuiteEntry, ...]:
        inside = (_INSIDE,) if request.norm is Norm.LINF else ()
        return (*_ENTRIES[request.norm], *inside, *where_gradients_fail(request))

    @override
    def stamp(self, request: SuiteRequest) -> str:
        return "minimal: the nearest witness of a few minimal-distortion attacks, sample by sample"
