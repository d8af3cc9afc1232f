"""``holdfast attack NAME`` for attacks with one artefact for many samples: fit, save, judge on held-out samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from holdfast.api.folders import begin_results
from holdfast.cli.console import note, progress, say, say_json, table
from holdfast.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from holdfast.attacks.shared import Artefact, Evaluation, SharedAttack
    from holdfast.audits.context import Context
    from holdfast.core.problem import Problem

__all__ = ["SharedRun", "run_shared"]

_PICTURES = 12


@dataclass(frozen=True)
class SharedRun:
    """What the flags say of a run of a shared attack.

    Attributes:
        train_data: samples to fit on; None: the first half of the data, and the other half judges.
        also: further models that the artefact must fool, by name.
        artefact: a file to judge instead of a fit.
        draws: fresh draws of each held-out sample.
    """

    train_data: str | None
    also: dict[str, Any]
    artefact: Path | None
    draws: int


def run_shared(name: str, tool: SharedAttack, context: Context, out: Path, how: SharedRun, *, as_json: bool) -> None:
    """Fits or loads the artefact, judges it on held-out samples of every model, and writes what was found."""
    from holdfast.attacks.shared import Artefact, evaluate, fit
    from holdfast.core.files import write_whole

    begin_results(out, name)
    fitting, held = _problems(context, how)
    models = {context.source: context.model, **how.also}
    start, ledger = perf_counter(), None
    if how.artefact is not None:
        made = Artefact.load(how.artefact, context.device)
        if made.method != name:
            raise UsageError(f"{how.artefact} was made by {made.method}; judge it with: holdfast attack {made.method}")
    else:
        with progress(f"run the same command again to go on from {out / 'fit.safetensors'}") as tell:
            done = fit(
                tool, fitting, list(models.values()), seed=context.plan.seed, checkpoint=out / "fit.safetensors",
                progress=lambda step, steps: tell(tool.card.title, step, steps),
            )  # fmt: skip
        made, ledger = done.artefact, done.ledger
        made.save(out / "artefact.safetensors")
    judged = {
        source: evaluate(tool, made, held, model, draws=how.draws, seed=context.plan.seed)
        for source, model in models.items()
    }
    answer: dict[str, Any] = {
        "attack": name, "artefact": made.sha256, "facts": dict(made.facts), "seed": context.plan.seed,
        "subject": context.subject.sha256, "norm": str(context.plan.norm) if tool.card.norms else None,
        "eps": context.plan.eps_text if tool.card.norms else None, "fitted_on": 0 if ledger is None else len(fitting),
        "held_out": len(held), "draws": how.draws,
        **{k: 0 if ledger is None else int(getattr(ledger, k).sum()) for k in ("forwards", "backwards", "queries")},
        "models": {source: _figures(e) for source, e in judged.items()},
        "seconds": round(perf_counter() - start, 3),
    }  # fmt: skip
    write_whole(out / "evaluation.json", json.dumps(answer, indent=1))
    drawn = _pictures(out / "pictures", made, held, next(iter(judged.values())))
    if as_json:
        say_json(answer)
    else:
        _tell(tool.card.title, answer)
    saved = "" if how.artefact is not None else f"{out / 'artefact.safetensors'} and "
    note(f"saved {saved}{out / 'evaluation.json'}")
    if drawn:
        note(f"saved {drawn} pictures in {out / 'pictures'}")


def _problems(context: Context, how: SharedRun) -> tuple[Problem, Problem]:
    """What is fitted on and what judges; never the same samples."""
    import numpy as np

    ids = np.arange(len(context.data))
    if how.artefact is not None:
        whole = context.problem(ids)
        return whole, whole
    if how.train_data is None:
        if len(ids) < 2:
            raise UsageError("one sample cannot be both fitted on and held out; give --train-data")
        half = len(ids) // 2
        note(f"no --train-data: fitted on the first {half} samples, judged on the other {len(ids) - half}")
        return context.problem(ids[:half]), context.problem(ids[half:])
    fitting, held = context.problem_of(how.train_data), context.problem(ids)
    known = {row.tobytes() for row in fitting.x.cpu().numpy()}
    fresh = np.flatnonzero([row.tobytes() not in known for row in held.x.cpu().numpy()])
    if not len(fresh):
        raise UsageError(
            f"all {len(held)} samples of {context.data.name} are in {how.train_data} too: nothing is held out; give other "
            "--data, or leave out --train-data to fit on the first half"
        )
    if len(fresh) < len(held):
        note(f"{len(held) - len(fresh)} of {len(held)} samples are in {how.train_data} too: the others judge")
    return fitting, held.select(fresh)


def _figures(e: Evaluation) -> dict[str, Any]:
    low, high = e.interval
    return {
        "success": e.success, "interval": [low, high], "right": int(e.right.sum()),
        "conditions": {
            name: [{"from": a, "to": b, "pairs": n, "success": s} for a, b, n, s in e.by(name)] for name in e.conditions
        },
    }  # fmt: skip


def _tell(title: str, a: dict[str, Any]) -> None:
    size = f"{a['norm']} <= {a['eps']}, " if a["norm"] else ""
    say(f"{title}: {size}fitted on {a['fitted_on']} samples, judged on {a['held_out']} others, {a['draws']} draws each")
    for source, found in a["models"].items():
        low, high = (100 * v for v in found["interval"])
        say(
            f"success on {source}: {found['success']:.1%} of {found['right']} samples that were right "
            f"(most draws: 95 % interval {low:.1f} to {high:.1f} %)"
        )
        for name, rows in found["conditions"].items():
            table(
                (name, "pairs", "success"),
                [(f"{r['from']:.3g} to {r['to']:.3g}", r["pairs"], f"{r['success']:.1%}") for r in rows],
            )
    say(f"forwards {a['forwards']}, backwards {a['backwards']}, queries {a['queries']}, seconds {a['seconds']}")


def _pictures(folder: Path, made: Artefact, held: Problem, judged: Evaluation) -> int:
    """The artefact's own pictures, and held-out samples: clean, with the artefact, and the difference."""
    from holdfast.api.pictures import save_picture, save_strips

    count = 0
    for name, value in made.tensors.items():
        if value.ndim == 3 and value.shape[0] in (1, 3) and value.is_floating_point():
            save_picture(folder / f"artefact_{name}.png", _to_unit(value.cpu()))
            count += 1
    rows = judged.broken[:, 0].nonzero().squeeze(-1)[:_PICTURES]
    return count + save_strips(folder, held.x[rows].cpu(), judged.x[rows].cpu(), held.ids[rows.cpu().numpy()].tolist())


def _to_unit(value: Tensor) -> Tensor:
    """As it is if it lies in [0, 1], else around grey and scaled to its largest entry."""
    if float(value.min()) >= 0 and float(value.max()) <= 1:
        return value
    return value / (2 * value.abs().amax().clamp_min(1e-12)) + 0.5
