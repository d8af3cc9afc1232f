"""A semantic attack on an opened session: search the parameters of a change of the image, judged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.attack_result import AttackResult, a_sample, wrong_already
from holdfast.api.results import Block, Rows, Saved, figure
from holdfast.core.arrays import listed
from holdfast.core.errors import UsageError
from holdfast.core.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.api.attack import AttackOptions
    from holdfast.api.voice import Voice
    from holdfast.attacks.semantic import SemanticAttack, SemanticOutcome
    from holdfast.core.cost import Cost
    from holdfast.core.problem import Problem
    from holdfast.data.dataset import Dataset
    from holdfast.session.session import Session

__all__ = ["SemanticAttackResult", "run_semantic_attack"]

_PICTURES = 12
_SLICES = 6
_SHOWN_AXES = 8


def run_semantic_attack(
    session: Session, tool: SemanticAttack, options: AttackOptions, voice: Voice
) -> SemanticAttackResult:
    """Runs a semantic attack; what it learns from and what it attacks are never the same samples."""
    from holdfast.attacks.semantic import run_semantic
    from holdfast.core.registry import name_of
    from holdfast.core.threat import Goal
    from holdfast.judge.ledger import Budget

    start, title = perf_counter(), tool.card.title
    problem, known = _problem(session, tool, options, voice)
    with voice.progress() as tell:
        found = run_semantic(
            tool, problem.x, problem.y, session.model, known=known, ids=problem.ids, seed=session.seed,
            target=problem.target if session.threat.goal is Goal.TARGETED else None, budget=Budget(queries=session.queries),
            draws=session.referee().draws, settings=session.settings,
            progress=lambda done, total: tell(title, done, total),
        )  # fmt: skip
    return SemanticAttackResult(
        method=name_of(tool), title=title, session=session, seed=session.seed, problem=problem, found=found,
        theta_norm=str(tool.norm), seconds=round(perf_counter() - start, 3), notes=tuple(voice.notes),
    )  # fmt: skip


def _problem(
    session: Session, tool: SemanticAttack, options: AttackOptions, voice: Voice
) -> tuple[Problem, Dataset | None]:
    """The attacked samples, and what the method may learn from."""
    from holdfast.data.dataset import Dataset
    from holdfast.session.reading import open_data

    ids = session.ids
    if not tool.learns:
        return session.problem(ids), None
    if options.train_data is not None:
        return session.problem(ids), open_data(options.train_data)
    half = len(ids) // 2
    if not half:
        raise UsageError("one sample cannot be both learned from and attacked; give --train-data")
    voice.note(f"no --train-data: learned from the first {half} samples, the other {len(ids) - half} are attacked")
    learned = Dataset.of(session.data.x[:half], session.data.y[:half], name=session.data.name)
    return session.problem(ids[half:]), learned


@dataclass(frozen=True, kw_only=True, repr=False)
class SemanticAttackResult(AttackResult):
    """What a semantic attack found.

    Attributes:
        problem: the attacked samples.
        found: what the referee upheld, with the parameters of the change.
        theta_norm: the norm of those.
    """

    problem: Problem
    found: SemanticOutcome
    theta_norm: str

    @property
    @override
    def x(self) -> Tensor:
        return self.found.x

    @property
    @override
    def broken(self) -> Tensor:
        return self.found.found & self.found.right

    @property
    @override
    def distance(self) -> Tensor:
        """(n,) float64 size of the change in scaled parameters, 1 being the whole range; inf where nothing is upheld."""
        return self.found.distance

    @property
    @override
    def success(self) -> float:
        return self.found.success

    @property
    @override
    def cost(self) -> Cost:
        return self.found.ledger.total

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        natural = {name: listed(value) for name, value in self.found.natural.items()}
        return {
            "id": self.problem.ids.tolist(),
            "label": listed(self.problem.y),
            "broken": listed(self.broken),
            "distance": listed(self.distance),
            **natural,
        }

    @override
    def to_dict(self) -> dict[str, Any]:
        found, cost = self.found, self.cost
        return {
            "attack": self.method, "samples": len(self.problem), "adversarial_as_they_are": int((~found.right).sum()),
            "broken": int(self.broken.sum()), "success": self.success, "not_upheld": found.marginal,
            "median_size": _median(found.distance[self.broken]), "theta_norm": self.theta_norm,
            "axes": {a.name: self._axis(a.name) for a in found.lifted.transform.axes}, "facts": dict(found.facts),
            "forwards": cost.forwards, "backwards": cost.backwards, "queries": cost.queries,
            "seconds": self.seconds, "seed": self.seed, "subject": self.session.subject.sha256,
        }  # fmt: skip

    def _axis(self, name: str) -> dict[str, Any]:
        """Where the parameters of broken samples lie, and how many samples broke in each slice of the range."""
        found = self.found
        axis = next(a for a in found.lifted.transform.axes if a.name == name)
        value = found.natural[name][self.broken].double()
        low, width = axis.neutral - axis.extent, 2 * axis.extent / _SLICES
        which = ((value - low) / width).long().clamp(0, _SLICES - 1)
        total = max(1, int(found.right.sum()))
        return {
            "unit": axis.unit, "from": low, "to": axis.neutral + axis.extent, "median": _median(value),
            "slices": [
                {"from": low + k * width, "to": low + (k + 1) * width, "broken": int((which == k).sum()),
                 "share": int((which == k).sum()) / total}
                for k in range(_SLICES)
            ],
        }  # fmt: skip

    @override
    def blocks(self) -> list[Block]:
        a = self.to_dict()
        right, wrong = a["samples"] - a["adversarial_as_they_are"], a["adversarial_as_they_are"]
        size = "none" if a["median_size"] is None else f"{a['median_size']:.3g} of the range"
        lines: list[Block] = [
            f"{self.title}: seed {a['seed']}",
            figure(
                "success",
                f"{a['success']:.1%}   ({a['broken']} of {counted(right, 'sample')} that were right; {wrong_already(wrong)})",
            ),
            figure("median size", f"{size} ({a['theta_norm']})"),
            *(figure(name, f"{value:.4g}") for name, value in a["facts"].items()),
            *a_sample(self.cost, max(1, a["samples"])),
            figure("seconds", a["seconds"]),
            *([f"not upheld by the referee: {a['not_upheld']}"] if a["not_upheld"] else []),
        ]
        if len(a["axes"]) > _SHOWN_AXES:
            return lines  # a latent code: its numbers say nothing to people
        return [*lines, *(_slices(name, axis) for name, axis in a["axes"].items())]

    @override
    def save(self, path: str | Path, *, command: str = "") -> Saved:
        import numpy as np

        from holdfast.core.files import write_whole

        out, found, problem = Path(path), self.found, self.problem
        anew = self._begin(out)
        write_whole(out / "evaluation.json", json.dumps(self.to_dict(), indent=1))
        arrays: dict[str, Any] = {f"natural_{k}": v.cpu().numpy() for k, v in found.natural.items()}
        np.savez(
            out / "adversarial.npz",
            x_adv=found.x.cpu().numpy(),
            x=problem.x.cpu().numpy(),
            y=problem.y.cpu().numpy(),
            found=found.found.cpu().numpy(),
            theta=found.theta.cpu().numpy(),
            distance=found.distance.cpu().numpy(),
            ids=problem.ids,
            **arrays,
        )
        files = (out / "adversarial.npz", out / "evaluation.json")
        return Saved(files=files, pictures=self._pictures(out / "pictures"), anew=anew)

    def _pictures(self, folder: Path) -> int:
        """Clean, changed and difference; the new images alone where there is nothing that they were changed from."""
        from holdfast.api.pictures import save_picture, save_strips

        problem, found = self.problem, self.found
        rows = self.broken.nonzero().squeeze(-1)[:_PICTURES]
        if found.refers:
            ids = problem.ids[rows.cpu().numpy()].tolist()
            return save_strips(folder, problem.x[rows].cpu(), found.x[rows].cpu(), ids)
        for row in listed(rows):
            save_picture(folder / f"{int(problem.ids[row]):06d}_class{int(problem.y[row])}.png", found.x[row].cpu())
        return len(rows)


def _median(values: Tensor) -> float | None:
    return float(values.median()) if len(values) else None


def _slices(name: str, axis: Mapping[str, Any]) -> Rows:
    return Rows(
        (f"{name} ({axis['unit']})", "broken there", "of those right"),
        tuple((f"{s['from']:.3g} to {s['to']:.3g}", s["broken"], f"{s['share']:.1%}") for s in axis["slices"]),
    )
