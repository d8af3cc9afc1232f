"""Certified radii of every sample by several methods, beside the distance at which an attack breaks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.oracle_certifier import OracleCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.registry import method, name_of
from holdfast.core.threat import Norm, size_text
from holdfast.session.session import Session
from holdfast.studies.common.chosen import attack_of
from holdfast.studies.common.columns import (
    Array,
    Crossing,
    RadiiColumn,
    by_column,
    certified,
    crossings,
    distances,
)
from holdfast.studies.study import StageProgress, Study, StudyResult

_DEPLOYED = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

DeployedName = Literal["float32", "float64", "bfloat16", "float16"]

__all__ = ["RadiiResult", "RadiiStudy", "gathered"]


@dataclass(frozen=True, kw_only=True)
class RadiiResult(StudyResult):
    """What several methods say of the same samples.

    Attributes:
        columns: one for each method; an attack's last.
        labels: of the samples.
        norm: of the radii.
        eps: the size that is asked about, as people write it.
        eps_value: the same as a number.
        own: by method and by column of a table, (n,) the change in its own units that a radius allows; empty where the data
            are no table of their own values.
        crossings: wherever a radius reaches a witness; a contradiction must not be.
        refused: methods that do not serve the model or the norm, and why.
    """

    columns: tuple[RadiiColumn, ...]
    labels: tuple[int, ...]
    norm: Norm
    eps: str
    eps_value: float
    own: dict[str, dict[str, Array]]
    crossings: tuple[Crossing, ...]
    refused: dict[str, str]

    @override
    def to_dict(self) -> dict[str, Any]:
        return {
            "norm": str(self.norm),
            "eps": self.eps,
            "columns": [c.summary().to_dict() | {"at_eps": c.at_least(self.eps_value)} for c in self.columns],
            "refused": self.refused,
        }

    def own_medians(self) -> list[tuple[str, list[float]]]:
        """For each column of a table, the median change that each method allows; no radius counts as none."""
        far = [self.own[c.name] for c in self.columns if c.name in self.own]
        names = far[0] if far else {}
        return [(name, [float(np.median(np.nan_to_num(f[name], posinf=0.0))) for f in far]) for name in names]


@dataclass(frozen=True, kw_only=True)
class RadiiStudy(Study[RadiiResult]):
    """The largest radius that each of several methods proves or estimates, beside the distance at which an attack breaks."""

    card: ClassVar[Card] = Card(
        title="Certified radii side by side",
        rows=("V15",),
        paper="Chen & Liu, Holistic Adversarial Robustness of Deep Learning Models, section 3.3",
        section="3.3",
        summary="Searches for each sample the largest radius that each method certifies, with an attack's distances above and "
        "estimates beside.",
        norms=(Norm.L0, Norm.L1, Norm.L2, Norm.LINF),
        failure_modes=("Radii are searched up to a largest one; a sample that reaches it may be certified further.",),
        checked_by="every sound radius held against every witness, by guarantee and arithmetic",
    )
    methods: tuple[str | GraphCertifier | OracleCertifier, ...] = parameter(
        ("crown",), "certifiers of radii", "Zhang et al. 2018, the usual one"
    )
    attack: str | Attack[Any, Any] | None = parameter(
        None,
        "an attack whose distances stand beside the radii, from above; none: no such column",
        "survey, section 3.3",
    )
    deployed: DeployedName | None = parameter(
        None, "the type in whose arithmetic the model is proved as it runs; none: real numbers", "ours"
    )

    @override
    def run(self, session: Session, *, progress: StageProgress | None = None) -> RadiiResult:
        tell = progress or _silent
        kind = None if self.deployed is None else _DEPLOYED[self.deployed]
        columns: list[RadiiColumn] = []
        refused: dict[str, str] = {}
        for given in self.methods:
            name = given if isinstance(given, str) else name_of(given)
            tool = method(given)() if isinstance(given, str) else given
            try:
                columns.append(certified(session, name, tool, tell, deployed=kind))
            except UnsupportedError as refusal:
                if len(self.methods) == 1:
                    raise
                refused[name] = str(refusal)
        if not columns:
            why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            raise UsageError(f"none of the methods serves this model and norm. {why}")
        if self.attack is not None:
            attack = attack_of(self.attack)
            columns.append(distances(session, name_of(attack), attack, tell))
        return gathered(session, columns, refused)


def gathered(
    session: Session, columns: Sequence[RadiiColumn], refused: Mapping[str, str] = MappingProxyType({})
) -> RadiiResult:
    """What several methods said of the session's samples, side by side."""
    return RadiiResult(
        columns=tuple(columns),
        labels=tuple(int(y) for y in session.data.y),
        norm=session.threat.norm,
        eps=size_text(session.threat.eps),
        eps_value=float(session.threat.eps),
        own={c.name: far for c in columns if (far := by_column(session, c))},
        crossings=crossings(columns),
        refused=dict(refused),
    )


def _silent(stage: str, done: int, of: int) -> None:
    """Nobody is told."""
