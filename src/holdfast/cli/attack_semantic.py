"""``holdfast attack NAME`` for semantic attacks: search the parameters, judge, save images, parameters and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from holdfast.cli.console import note, progress, say, say_json, table
from holdfast.cli.results import begin_results

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.attacks.semantic import SemanticAttack, SemanticOutcome
    from holdfast.audits.context import Context
    from holdfast.core.problem import Problem
    from holdfast.data.dataset import Dataset

__all__ = ["run_and_save"]

_PICTURES = 12
_SLICES = 6
_SHOWN_AXES = 8


def run_and_save(
    name: str, tool: SemanticAttack, context: Context, out: Path, train_data: str | None, *, as_json: bool
) -> None:
    """Runs a semantic attack and writes ``adversarial.npz``, ``evaluation.json`` and pictures."""
    import numpy as np

    from holdfast.attacks.semantic import run_semantic
    from holdfast.core.files import write_whole
    from holdfast.core.threat import Goal
    from holdfast.judge.ledger import Budget

    plan, start = context.plan, perf_counter()
    problem, known = _problem(tool, context, train_data)
    with progress() as tell:
        found = run_semantic(
            tool, problem.x, problem.y, context.model, known=known, ids=problem.ids, seed=plan.seed,
            target=problem.target if plan.goal is Goal.TARGETED else None, budget=Budget(queries=plan.queries),
            draws=context.referee().draws, settings=context.settings,
            progress=lambda done, total: tell(tool.card.title, done, total),
        )  # fmt: skip
    broken = found.found & found.right
    answer: dict[str, Any] = {
        "attack": name, "samples": len(problem), "adversarial_as_they_are": int((~found.right).sum()),
        "broken": int(broken.sum()), "success": found.success, "not_upheld": found.marginal,
        "median_size": _median(found.distance[broken]), "theta_norm": str(tool.norm),
        "axes": {a.name: _axis(found, a.name) for a in found.lifted.transform.axes}, "facts": dict(found.facts),
        **{k: int(getattr(found.ledger, k).sum()) for k in ("forwards", "backwards", "queries")},
        "seconds": round(perf_counter() - start, 3), "seed": plan.seed, "subject": context.subject.sha256,
    }  # fmt: skip
    begin_results(out, name)
    write_whole(out / "evaluation.json", json.dumps(answer, indent=1))
    arrays: dict[str, Any] = {f"natural_{k}": v.cpu().numpy() for k, v in found.natural.items()}
    np.savez(
        out / "adversarial.npz", x_adv=found.x.cpu().numpy(), x=problem.x.cpu().numpy(), y=problem.y.cpu().numpy(),
        found=found.found.cpu().numpy(), theta=found.theta.cpu().numpy(), distance=found.distance.cpu().numpy(),
        ids=problem.ids, **arrays,
    )  # fmt: skip
    drawn = _pictures(out / "pictures", problem, found, broken)
    if as_json:
        say_json(answer)
    else:
        _tell(tool.card.title, answer)
    note(f"saved {out / 'adversarial.npz'} (images and parameters) and {out / 'evaluation.json'}")
    if drawn:
        what = (
            "clean, changed, difference" if found.refers else "new images; look whether they are what their label says"
        )
        note(f"saved {drawn} pictures ({what}) in {out / 'pictures'}")


def _problem(tool: SemanticAttack, context: Context, train_data: str | None) -> tuple[Problem, Dataset | None]:
    """The attacked samples, and what the method may learn from; never the same."""
    import numpy as np

    from holdfast.core.errors import UsageError
    from holdfast.data.dataset import Dataset
    from holdfast.data.load import load_data

    ids = np.arange(len(context.data))
    if not tool.learns:
        return context.problem(ids), None
    if train_data is not None:
        return context.problem(ids), load_data(train_data)
    half = len(ids) // 2
    if not half:
        raise UsageError("one sample cannot be both learned from and attacked; give --train-data")
    note(f"no --train-data: learned from the first {half} samples, the other {len(ids) - half} are attacked")
    learned = Dataset.of(context.data.x[:half], context.data.y[:half], name=context.data.name)
    return context.problem(ids[half:]), learned


def _median(values: Tensor) -> float | None:
    return float(values.median()) if len(values) else None


def _axis(found: SemanticOutcome, name: str) -> dict[str, Any]:
    """Where the parameters of broken samples lie, and how many samples broke in each slice of the range."""
    axis = next(a for a in found.lifted.transform.axes if a.name == name)
    broken = found.found & found.right
    value = found.natural[name][broken].double()
    low, width = axis.neutral - axis.reach, 2 * axis.reach / _SLICES
    which = ((value - low) / width).long().clamp(0, _SLICES - 1)
    total = max(1, int(found.right.sum()))
    return {
        "unit": axis.unit, "from": low, "to": axis.neutral + axis.reach, "median": _median(value),
        "slices": [
            {"from": low + k * width, "to": low + (k + 1) * width, "broken": int((which == k).sum()),
             "share": int((which == k).sum()) / total}
            for k in range(_SLICES)
        ],
    }  # fmt: skip


def _tell(title: str, a: dict[str, Any]) -> None:
    right = a["samples"] - a["adversarial_as_they_are"]
    size = "none" if a["median_size"] is None else f"{a['median_size']:.3g} of the range"
    n = max(1, a["samples"])
    say(f"{title}: seed {a['seed']}")
    say(f"success            {a['success']:.1%}   ({a['broken']} of {right} samples that were right; "
        f"{a['adversarial_as_they_are']} were wrong as they are)")  # fmt: skip
    say(f"median size        {size} ({a['theta_norm']})")
    for name, value in a["facts"].items():
        say(f"{name:<18} {value:.4g}")
    for key in ("forwards", "backwards", "queries"):
        say(f"{key:<18} {a[key]}   ({a[key] / n:.1f} a sample)")
    say(f"seconds            {a['seconds']}")
    if a["not_upheld"]:
        say(f"not upheld by the referee: {a['not_upheld']}")
    if len(a["axes"]) > _SHOWN_AXES:
        return  # a latent code: its numbers say nothing to people
    for name, axis in a["axes"].items():
        table(
            (f"{name} ({axis['unit']})", "broken there", "of those right"),
            [(f"{s['from']:.3g} to {s['to']:.3g}", s["broken"], f"{s['share']:.1%}") for s in axis["slices"]],
        )


def _pictures(folder: Path, problem: Problem, found: SemanticOutcome, broken: Tensor) -> int:
    """Clean, changed and difference; the new images alone where there is nothing that they were changed from."""
    from holdfast.cli.pictures import save_picture, save_strips

    rows = broken.nonzero().squeeze(-1)[:_PICTURES]
    if found.refers:
        return save_strips(folder, problem.x[rows].cpu(), found.x[rows].cpu(), problem.ids[rows.cpu().numpy()].tolist())
    for row in rows.tolist():
        save_picture(folder / f"{int(problem.ids[row]):06d}_class{int(problem.y[row])}.png", found.x[row].cpu())
    return len(rows)
