"""An attack with one artefact for many samples, on an opened session: fit, judge on held-out samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.attack_result import AttackResult
from holdfast.api.results import Block, Rows, Saved
from holdfast.core.arrays import listed
from holdfast.core.errors import UsageError
from holdfast.core.threat import size_text
from holdfast.core.words import counted

if TYPE_CHECKING:
    from fractions import Fraction

    from torch import Tensor

    from holdfast.api.attack import AttackOptions
    from holdfast.api.voice import Voice
    from holdfast.attacks.shared import Artefact, Evaluation, Fitted, SharedAttack
    from holdfast.core.cost import Cost
    from holdfast.core.problem import Problem
    from holdfast.judge.asking import Model
    from holdfast.session.session import Session

__all__ = ["SharedAttackResult", "run_shared_attack"]

_PICTURES = 12


def run_shared_attack(
    session: Session, tool: SharedAttack[Any, Any], options: AttackOptions, voice: Voice
) -> SharedAttackResult:
    """Fits an artefact, or takes the one that is given, and judges it on held-out samples of every model."""
    from holdfast.attacks.shared import evaluate
    from holdfast.core.registry import name_of

    name = name_of(tool)
    fitting, held = _problems(session, options, voice)
    models = {session.source: session.model, **options.also}
    start, done = perf_counter(), None
    if options.artefact is not None:
        artefact = _given(options.artefact, name, session)
    else:
        done = _fitted(session, tool, fitting, list(models.values()), options, voice)
        artefact = done.artefact
    draws = options.draws or tool.draws
    evaluations = {
        source: evaluate(tool, artefact, held, model, draws=draws, seed=session.seed)
        for source, model in models.items()
    }
    return SharedAttackResult(
        method=name, title=tool.card.title, session=session, seed=session.seed, artefact=artefact, held=held,
        evaluations=evaluations, fit=done, fitted_on=0 if done is None else len(fitting), draws=draws,
        eps=session.threat.eps if tool.card.norms else None, seconds=round(perf_counter() - start, 3),
        notes=tuple(voice.notes),
    )  # fmt: skip


def _given(path: Path, name: str, session: Session) -> Artefact:
    from holdfast.attacks.shared import Artefact

    artefact = Artefact.load(path, session.device)
    if artefact.method != name:
        raise UsageError(f"{path} was made by {artefact.method}; judge it with: holdfast attack {artefact.method}")
    return artefact


def _fitted(
    session: Session,
    tool: SharedAttack[Any, Any],
    problem: Problem,
    models: list[Model],
    options: AttackOptions,
    voice: Voice,
) -> Fitted:
    from holdfast.attacks.shared import fit

    title, at = tool.card.title, options.checkpoint
    with voice.progress("" if at is None else f"run the same command again to go on from {at}") as tell:
        return fit(
            tool, problem, models, seed=session.seed, checkpoint=at,
            progress=lambda step, steps: tell(title, step, steps),
        )  # fmt: skip


def _problems(session: Session, options: AttackOptions, voice: Voice) -> tuple[Problem, Problem]:
    """What is fitted on and what judges; never the same samples."""
    import numpy as np

    ids, given = session.ids, options.train_data
    if options.artefact is not None:
        whole = session.problem(ids)
        return whole, whole
    if given is None:
        if len(ids) < 2:
            raise UsageError("one sample cannot be both fitted on and held out; give --train-data")
        half = len(ids) // 2
        voice.note(
            f"no --train-data: fitted on the first {counted(half, 'sample')}, judged on the other {len(ids) - half}"
        )
        return session.problem(ids[:half]), session.problem(ids[half:])
    fitting, held = session.problem_of(given), session.problem(ids)
    known = {row.tobytes() for row in fitting.x.cpu().numpy()}
    fresh = np.flatnonzero([row.tobytes() not in known for row in held.x.cpu().numpy()])
    where = given if isinstance(given, str | Path) else "the training data"
    if not len(fresh):
        raise UsageError(
            f"all {len(held)} samples of {session.data.name} are in {where} too: nothing is held out; give other "
            "--data, or leave out --train-data to fit on the first half"
        )
    if len(fresh) < len(held):
        voice.note(f"{len(held) - len(fresh)} of {len(held)} samples are in {where} too: the others judge")
    return fitting, held.select(fresh)


@dataclass(frozen=True, kw_only=True, repr=False)
class SharedAttackResult(AttackResult):
    """How one artefact does on samples that it was not fitted on.

    Attributes:
        artefact: what belongs to all samples.
        held: the samples that judge it.
        evaluations: by model, the attacked one first.
        fit: how it was made; None where it was given.
        fitted_on: how many samples it was made from.
        draws: fresh draws of each held-out sample.
        eps: the bound of the distortion, for methods that have one.
    """

    artefact: Artefact
    held: Problem
    evaluations: Mapping[str, Evaluation]
    fit: Fitted | None
    fitted_on: int
    draws: int
    eps: Fraction | None

    @property
    def evaluation(self) -> Evaluation:
        """Of the attacked model."""
        return next(iter(self.evaluations.values()))

    @property
    @override
    def x(self) -> Tensor:
        """(n, \\*features) the held-out inputs with the artefact on them, in the first draw."""
        return self.evaluation.x

    @property
    @override
    def broken(self) -> Tensor:
        """(n,) bool: right as it is, and broken in the first draw."""
        return self.evaluation.broken[:, 0] & self.evaluation.right

    @property
    @override
    def distance(self) -> Tensor:
        """(n,) float64 of the inputs of the first draw, broken or not."""
        return self.evaluation.distance

    @property
    @override
    def success(self) -> float:
        """Share of (sample, draw) pairs that break, among samples that were right."""
        return self.evaluation.success

    @property
    @override
    def cost(self) -> Cost:
        """Of the fit."""
        from holdfast.core.cost import Cost

        return Cost() if self.fit is None else self.fit.ledger.total

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        judged = self.evaluation
        return {
            "id": self.held.ids.tolist(),
            "label": listed(self.held.y),
            "right": listed(judged.right),
            "broken": listed(judged.broken.double().mean(1)),
            "distance": listed(judged.distance),
        }

    @override
    def to_dict(self) -> dict[str, Any]:
        cost = self.cost
        return {
            "attack": self.method,
            "artefact": self.artefact.sha256,
            "facts": dict(self.artefact.facts),
            "seed": self.seed,
            "subject": self.session.subject.sha256,
            "norm": None if self.eps is None else str(self.session.threat.norm),
            "eps": None if self.eps is None else size_text(self.eps),
            "fitted_on": self.fitted_on,
            "held_out": len(self.held),
            "draws": self.draws,
            "forwards": cost.forwards,
            "backwards": cost.backwards,
            "queries": cost.queries,
            "models": {source: _figures(e) for source, e in self.evaluations.items()},
            "seconds": self.seconds,
        }

    @override
    def blocks(self) -> list[Block]:
        a = self.to_dict()
        size = f"{a['norm']} <= {a['eps']}, " if a["norm"] else ""
        blocks: list[Block] = [
            f"{self.title}: {size}fitted on {counted(a['fitted_on'], 'sample')}, judged on {counted(a['held_out'], 'other')}, "
            f"{counted(a['draws'], 'draw')} each"
        ]
        for source, judged in a["models"].items():
            low, high = (100 * v for v in judged["interval"])
            blocks.append(
                f"success on {source}: {judged['success']:.1%} of {counted(judged['right'], 'sample')} that were right "
                f"(most draws: 95 % interval {low:.1f} to {high:.1f} %)"
            )
            for name, rows in judged["conditions"].items():
                cells = ((f"{r['from']:.3g} to {r['to']:.3g}", r["pairs"], f"{r['success']:.1%}") for r in rows)
                blocks.append(Rows((name, "pairs", "success"), tuple(cells)))
        asked = ", ".join(f"{name} {a[name]}" for name in ("forwards", "backwards", "queries", "seconds"))
        return [*blocks, asked]

    @override
    def save(self, path: str | Path, *, command: str = "") -> Saved:
        from holdfast.core.files import write_whole

        out = Path(path)
        anew = self._begin(out)
        files = [out / "evaluation.json"]
        if self.fit is not None:
            self.artefact.save(out / "artefact.safetensors")
            files.insert(0, out / "artefact.safetensors")
        write_whole(out / "evaluation.json", json.dumps(self.to_dict(), indent=1))
        return Saved(files=tuple(files), pictures=self._pictures(out / "pictures"), anew=anew)

    def _pictures(self, folder: Path) -> int:
        """The artefact's own pictures, and held-out samples: clean, with the artefact, and the difference."""
        from holdfast.api.pictures import save_picture, save_strips

        count, judged, held = 0, self.evaluation, self.held
        for name, value in self.artefact.tensors.items():
            if value.ndim == 3 and value.shape[0] in (1, 3) and value.is_floating_point():
                save_picture(folder / f"artefact_{name}.png", _to_unit(value.cpu()))
                count += 1
        rows = judged.broken[:, 0].nonzero().squeeze(-1)[:_PICTURES]
        ids = held.ids[rows.cpu().numpy()].tolist()
        return count + save_strips(folder, held.x[rows].cpu(), judged.x[rows].cpu(), ids)


def _figures(e: Evaluation) -> dict[str, Any]:
    low, high = e.interval
    return {
        "success": e.success,
        "interval": [low, high],
        "right": int(e.right.sum()),
        "conditions": {
            name: [{"from": a, "to": b, "pairs": n, "success": s} for a, b, n, s in e.by(name)] for name in e.conditions
        },
    }


def _to_unit(value: Tensor) -> Tensor:
    """As it is if it lies in [0, 1], else around grey and scaled to its largest entry."""
    if float(value.min()) >= 0 and float(value.max()) <= 1:
        return value
    return value / (2 * value.abs().amax().clamp_min(1e-12)) + 0.5
