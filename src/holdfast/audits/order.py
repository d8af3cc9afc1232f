"""The stages of a plan, in order; the looks at the whole run (pre-flight, diagnostics, reconciliation) are the driver's."""

from __future__ import annotations

from holdfast.audits.plan import Plan
from holdfast.audits.stage import AnyStage, UnitSize
from holdfast.audits.stages.attack import AttackStage
from holdfast.audits.stages.certificates import CertificateStage
from holdfast.audits.stages.clean import CleanStage
from holdfast.audits.stages.gradients import GradientsStage
from holdfast.audits.stages.grid import GridStage
from holdfast.audits.stages.probe import ProbeStage
from holdfast.audits.stages.shrink import ShrinkStage
from holdfast.audits.stages.size import SizeStage
from holdfast.audits.stages.triage import TriageStage
from holdfast.audits.suite import SuiteEntry
from holdfast.core.threat import size_text

__all__ = ["stages"]

_PROOF, _DEAR, _HEAVY = 8, 16, 32  # samples of a unit
_MANY = 400  # forwards and backwards of a sample


def stages(plan: Plan) -> tuple[AnyStage, ...]:
    """The stages of a plan."""
    # what goes over a line to an API is paid for, so that little of it may be lost
    search = UnitSize(most=_DEAR if plan.remote else None, if_heavy=_HEAVY)
    bound = plan.lower_bound
    searching: list[AnyStage] = [_attack(plan, entry, search) for entry in plan.entries]
    if plan.composition.uses_gradients:  # asked once there is something to compare with
        searching.insert(1, GradientsStage(unit_size=search))
    if plan.composition.proves_early and bound is not None and bound.uses_graph:
        # what the first attack breaks needs no proof, what is proved may be spared the dear ones
        searching.insert(1, TriageStage(bound=bound, unit_size=UnitSize(most=_DEAR)))
    sizes = [
        SizeStage(
            name=f"eps-grid:{eps}",
            title=f"attack at eps {size_text(eps)}",
            unit_size=search,
            entry=plan.entries[0],
            eps=eps,
        )
        for eps in plan.eps_grid
    ]
    return (
        CleanStage(unit_size=search),
        *searching,
        ProbeStage(unit_size=search),
        *sizes,
        ShrinkStage(unit_size=search),
        *_grid(plan),
        *_certificates(plan),
    )


def _attack(plan: Plan, entry: SuiteEntry, search: UnitSize) -> AttackStage:
    """An attack that asks hundreds of times about nearly every sample is dear on any model."""
    everyone = entry.takes_over or plan.composition.runs_on_everyone
    is_dear = everyone and entry.attack().passes >= _MANY
    size = UnitSize(most=search.most or (_HEAVY if is_dear else None), if_heavy=_HEAVY)
    return AttackStage(name=entry.stage, title=f"attack {entry.name}", unit_size=size, entry=entry)


def _grid(plan: Plan) -> list[GridStage]:
    if plan.grid is not None:
        return [GridStage(title=f"witnesses on the grid {plan.grid_text}")]
    if plan.table is not None and plan.table.grid is not None:
        return [GridStage(title="witnesses with whole numbers in integer columns")]
    return []


def _certificates(plan: Plan) -> list[CertificateStage]:
    bound = plan.lower_bound
    if bound is None:
        return []
    title = f"certificates ({plan.certify})"
    return [CertificateStage(title=title, unit_size=UnitSize(most=_PROOF), uses_graph=bound.uses_graph, bound=bound)]
