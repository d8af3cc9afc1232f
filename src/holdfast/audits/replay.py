"""The journal held against the model: its cheap units are done again, its claims judged anew, its dear units held to who
must have been attacked.

Every witness is judged; certificates of bounds are proved again, those of smoothing drawn again with the run's own key. An
attack's search is not repeated: what it spent and that it found no more stays the journal's word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from holdfast.audits.context import Context
from holdfast.audits.evidence import Claim, Standing, decoded
from holdfast.audits.journal import Key, Payload
from holdfast.audits.pictures import altered, in_8_bits, pictured
from holdfast.audits.reconcile import missing
from holdfast.audits.stages.certificates import form, prove, proved_at
from holdfast.audits.stages.diagnostics import diagnose
from holdfast.audits.stages.suite import ALONE, Stage, as_number, attacked, met_at, on_levels, still_breaking
from holdfast.audits.units import Layout
from holdfast.audits.workers import Progress
from holdfast.core.errors import JournalError, UnsupportedError
from holdfast.core.threat import Guarantee, parse_eps
from holdfast.core.verdict import Certificate
from holdfast.models.checks import preflight
from holdfast.numerics.distance import contains, measured

__all__ = ["Replay"]

_CLOSE = 1e-3  # of the largest score: another machine's float32 stays far within it
_AGAIN = ("clean", "gradients", "triage", "probe")
_STORED = ("witnesses", "marginal", "no_answer")
_SAME = 1e-9  # of a distance
_COUNTS = re.compile(r"\d[\d.,]*(e[+-]?\d+)?( samples?\b)?")


class Replay:
    """One look at a journal.

    Attributes:
        witnesses: how many claims were judged.
        certificates: how many were proved again.
        marginal: ids of claims that flip within the rounding.
        problems: what does not hold.
        unread: what cannot be derived for this plan.
    """

    def __init__(self, context: Context, units: Mapping[Key, Payload], progress: Progress | None = None) -> None:
        """Takes the run's context, with what the journal says of randomness, its units and whom to tell of samples."""
        self.context, self.units, self.progress = context, units, progress
        self.layout = Layout.of(context)
        self.witnesses = self.certificates = 0
        self.marginal: list[int] = []
        self.problems: list[str] = []
        self.unread: list[str] = []
        self.deterministic = not context.randomised and not context.plan.remote

    def run(self, parts: Sequence[Standing]) -> None:
        """Looks at everything."""
        for stage, k in missing(self.context, self.units):
            self.problems.append(f"the journal has no unit {stage} of chunk {k}: it is unfinished, or one was removed")
        known = {*self.layout.all_keys(), ("preflight", -1), ("diagnostics", -1)}
        for stage, k in self.units:
            if (stage, k) not in known:
                self.problems.append(f"the journal has a unit {stage} of chunk {k}, which is not in the plan")
        if not self._files():
            return  # what is built on them cannot be looked at
        self._preflight()
        if not self.deterministic:
            why = (
                "the API is asked about witnesses alone" if self.context.plan.remote else "the model answers at random"
            )
            self.unread.append(f"clean predictions, findings and margins: {why}")
        for stage in self.layout.order:
            for k, ids in enumerate(self.layout.units(stage.name)):
                if (stage.name, k) in self.units:
                    self._unit(stage, k, ids)
                self._tell(stage.title, int(ids[-1]) + 1)
        for standing in parts:
            self.judge([(i, c) for i, c in standing.broken.items()], float(self.context.plan.eps))
            self._certificates(standing)
        self._diagnostics(parts)

    def _files(self) -> bool:
        """Whether every witness that the journal names is there, unaltered and of the data's shape."""
        before = len(self.problems)
        for unit in self.units.values():
            for key, record in [pair for kind in _STORED for pair in unit.get(kind, {}).items()]:
                try:
                    if self.context.folder.witness(record["sha256"]).shape != self.context.data.x.shape[1:]:
                        self.problems.append(f"sample {key}: a witness has another shape than the data")
                except JournalError as error:
                    self.problems.append(f"sample {key}: {error}")
        return len(self.problems) == before

    def _in_units(self, stage: str, ids: np.ndarray) -> list[np.ndarray]:
        """Ids as the units of a stage have them, in which they were asked about."""
        parts = [ids[np.isin(ids, unit)] for unit in self.layout.units(stage)]
        return [part for part in parts if len(part)]

    def _tell(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(what, done, self.layout.samples)

    def _say(self, stage: str, k: int, what: str) -> None:
        self.problems.append(f"the journal's unit {stage} of chunk {k} {what}")

    def _unit(self, stage: Stage, k: int, ids: np.ndarray) -> None:
        unit, before = self.units[stage.name, k], self.layout.before(self.units, stage.name, ids)
        if "fault" in unit:
            due = ids if stage.runs_on is None else stage.runs_on(self.context, ids, before)
            if unit.get("failed") != due.tolist():
                self._say(stage.name, k, "failed, and names other samples than it was run on")
            self.unread.append(f"that the stage {stage.name} failed in chunk {k}: {unit['fault']}")
        else:
            if ("failed" in unit) != ("raised" in unit):
                self._say(
                    stage.name, k, "does not name together the samples that the model raised on, and what it raised"
                )
            if stage.name in _AGAIN and self.deterministic:
                self._again(stage, k, ids, unit, before)
            if "clean" in before:
                standing = Standing.of(ids, self.context.data.y.numpy()[ids], self._eps, before)
                self._who(stage, k, unit, standing, {r.stage: r for r in self.context.plan.entries})
                self._named(stage, k, unit, standing)
        self._unanswered(unit.get("no_answer", {}))
        if stage.name != "clean":
            self.judge(self._claims(stage.name, unit, ids), float("inf"))

    @property
    def _eps(self) -> float:
        return float(self.context.plan.eps)

    def _again(self, stage: Stage, k: int, ids: np.ndarray, unit: Payload, before: Mapping[str, Payload]) -> None:
        """A unit that costs little, done again."""
        due = stage.unit(self.context, ids, before)
        for name in ("ids", "prediction", "hindered", "proved", "refused", "failed"):
            if name in due | unit and due.get(name) != unit.get(name):
                self._say(stage.name, k, f"says something else about '{name}' than the model does")
        self._same_unanswered(stage.name, k, unit, due)
        if "scores" in due:
            told, now = decoded(unit["scores"]), decoded(due["scores"])
            size = max(1.0, float(np.abs(now[np.isfinite(now)]).max(initial=0)))
            if told.shape != now.shape or not np.allclose(told, now, rtol=0, atol=_CLOSE * size, equal_nan=True):
                self._say(stage.name, k, "has other scores than the model gives")

    def _who(self, stage: Stage, k: int, unit: Payload, standing: Standing, by_rung: Mapping[str, Any]) -> None:
        """The samples that a stage was run on are those that the plan sends there."""
        due: list[int] | None = None
        if stage.name in by_rung:
            due = standing.ids[attacked(self.context, by_rung[stage.name], standing)].tolist()
        elif stage.name in ("shrink", "certificates"):
            due = standing.ids[standing.correct].tolist()
        elif stage.name == "grid":
            due = sorted(standing.broken)
            self._on_grid(stage.name, k, unit, np.array(due, dtype=np.int64), standing)
        elif stage.name.startswith("eps-grid:"):
            size = float(parse_eps(stage.name.partition(":")[2]))
            near = [i for i, c in standing.nearest.items() if c.witness.distance <= size]
            right = set(standing.ids[standing.correct].tolist())
            due = [i for i in standing.ids.tolist() if i in right and i not in near]
            if unit.get("broken_here") != sorted({*near, *map(int, unit.get("witnesses", {}))} & right):
                self._say(stage.name, k, "counts other samples as broken than it has witnesses for")
        if due is not None and unit.get("ids") != due:
            self._say(stage.name, k, "was run on other samples than the plan sends there")
        ran = set(unit.get("ids", ()))
        for kind in (*_STORED, "certificates", "failed", "rejected"):
            if stray := {int(i) for i in unit.get(kind, {})} - ran:
                self._say(stage.name, k, f"has {kind} of samples that it was not run on: {sorted(stray)[:5]}")

    def _on_grid(self, stage: str, k: int, unit: Payload, chosen: np.ndarray, standing: Standing) -> None:
        """The witnesses moved to the grid and judged there, and as the pictures that were saved of them."""
        holds, saved, still = list[int](), 0, 0
        if len(chosen):
            problem, ruling = on_levels(self.context, chosen, standing)
            holds = chosen[ruling.holds.cpu().numpy()].tolist()
            if pictured(self.context, ruling.x):
                saved, still = len(chosen), still_breaking(self.context, problem, in_8_bits(ruling.x))
                for i in altered(self.context, chosen, ruling.x):
                    self.problems.append(f"sample {i}: its saved picture shows something else than its witness")
        if unit["broken_on_grid"] != holds:
            self._say(stage, k, "has other witnesses on the grid than the model breaks on")
        if (unit["saved"], unit["still_breaking"]) != (saved, still) and self.deterministic:
            self._say(
                stage,
                k,
                f"says that {unit['still_breaking']} of {unit['saved']} pictures break the model, not {still} of {saved}",
            )

    def _named(self, stage: Stage, k: int, unit: Payload, standing: Standing) -> None:
        """A witness bears the name of the attack whose stage it is from; a nearer one that of the one it was made of."""
        for key, record in [*unit.get("witnesses", {}).items(), *unit.get("no_answer", {}).items()]:
            due = stage.name.partition(":")[2] if stage.name.startswith("attack:") else stage.name
            if stage.name.startswith("eps-grid:"):
                due = self.context.plan.entries[0].name
            if stage.name == "shrink" and "met" not in record and int(key) in standing.nearest:
                due = standing.nearest[int(key)].witness.attack
            if record["attack"] != due:
                self._say(stage.name, k, f"ascribes the input of sample {key} to '{record['attack']}', not to '{due}'")

    def _claims(self, stage: str, unit: Payload, ids: np.ndarray) -> list[tuple[int, Claim]]:
        alone = self.layout.known(self.units, ["clean"], ids) | {stage: unit}
        if "clean" not in alone:
            return []
        standing = Standing.of(ids, self.context.data.y.numpy()[ids], self._eps, alone)
        return [*standing.nearest.items(), *((i, replace(c, stage="")) for i, c in standing.marginal.items())]

    def judge(self, claims: Iterable[tuple[int, Claim]], eps: float) -> None:
        """Claims of one stage, judged by a referee that has not seen them; those on the edge need only lie in the set."""
        kept = sorted(claims, key=lambda pair: pair[0])
        if not kept:
            return
        tensors = [self.context.folder.witness(claim.witness.sha256).to(self.context.device) for _, claim in kept]
        problem = self.context.problem(np.array([i for i, _ in kept]), eps)
        stored = torch.stack(tensors)
        far = measured(problem.set, stored, problem.x).tolist()
        ruling = self.context.referee().judge(problem, stored)
        inside, holds = ruling.inside.tolist(), ruling.holds.tolist()
        prediction = [None if label < 0 else label for label in ruling.prediction.tolist()]
        self.witnesses += len(kept)
        for k, (i, claim) in enumerate(kept):
            told = claim.witness
            margin = as_number(ruling.margin[k])
            # of the scores that made the margin; rounding that the model's own inside makes of them shows here too
            close = max(_CLOSE * max(self._score_size(i), abs(margin)), 4 * as_number(ruling.rounding[k]))
            if claim.rounding > close:
                self.problems.append(
                    f"sample {i}: the rounding of its witness, {claim.rounding:.3g}, is none of this model's"
                )
            slack = min(claim.rounding, close) + 1e-9 * abs(told.margin)
            moved = abs(float(ruling.distance[k]) - told.distance) > _SAME * max(1.0, told.distance)
            if abs(far[k] - told.distance) > _SAME * max(1.0, far[k]):
                self.problems.append(f"sample {i}: its witness lies at {far[k]:.6g}, not at {told.distance:.6g}")
            elif not inside[k]:
                self.problems.append(f"sample {i}: its witness does not lie in the set")
            elif claim.stage == "":
                continue
            elif told.arithmetics != ruling.arithmetics:
                self.problems.append(
                    f"sample {i}: its witness is said to hold in {_listed(told.arithmetics)}; the model is asked in "
                    f"{_listed(ruling.arithmetics)}"
                )
            elif holds[k] and not moved:
                if self.deterministic and abs(told.margin - margin) > max(slack, 1e-3 * close):
                    self.problems.append(
                        f"sample {i}: its witness is said to have the margin {told.margin:.3g}, not {margin:.3g}"
                    )
                elif self.deterministic and told.prediction != prediction[k]:
                    self.problems.append(
                        f"sample {i}: its witness is said to be of class {told.prediction}, not {prediction[k]}"
                    )
            elif max(margin, 0.0) - told.margin <= slack:
                # where the referee had to move it, it did not hold where it was stored: the margin there was at least 0
                self.marginal.append(i)
            else:
                self.problems.append(f"sample {i}: its witness does not break the model any more (margin {margin:.3g})")

    def _score_size(self, i: int) -> float:
        clean = self.layout.known(self.units, ["clean"], np.array([i])).get("clean", {})
        scores = decoded(clean.get("scores", []))
        return float(np.abs(scores[np.isfinite(scores)]).max(initial=0))

    def _certificates(self, standing: Standing) -> None:
        claims = {i: c for i, c in standing.certificates.items() if c.guarantee is not Guarantee.ESTIMATE}
        for i, c in standing.certificates.items():
            if c.guarantee is Guarantee.ESTIMATE:
                self.unread.append(f"sample {i}: its certificate is an estimate")
        if claims:
            for ids in self._in_units("certificates", np.array(sorted(claims))):
                radii = np.array([claims[i].radius for i in ids.tolist()], dtype=np.float64)
                for i, radius, held in zip(ids.tolist(), radii.tolist(), prove(self.context, ids, radii), strict=True):
                    self.certificates += 1
                    if not held:
                        self.problems.append(f"sample {i}: its certified radius {radius:.6g} is not proved any more")
                self._tell("certificates, proved anew", int(ids[-1]) + 1)
            self._forms(claims)
            self._held_against(standing)
        self._left_out(standing)

    def _held_against(self, standing: Standing) -> None:
        """The graph was held against what it is held against here, or that is not to be told any more."""
        if self.context.plan.certify == "smoothing":
            return
        units = [self.units.get(key, {}) for key in self.layout.covering("certificates", standing.ids)]
        told = {u["held_against"] for u in units if "held_against" in u} - {self.context.believed.held_against}
        words = "that the graph was held against {}: here it is held against {}"
        self.unread += [words.format(one, self.context.believed.held_against) for one in sorted(told)]

    def _forms(self, claims: Mapping[int, Certificate]) -> None:
        due = form(self.context, min(claims))
        if due is None:
            return
        for i, c in claims.items():
            if replace(c, radius=due.radius) != due:
                self.problems.append(
                    f"sample {i}: its certificate is said to be {c.guarantee} by {c.method}, and is not"
                )
            if c.radius > float(self.context.plan.largest_radius):
                self.problems.append(f"sample {i}: its radius is larger than any that was searched for")

    def _left_out(self, standing: Standing) -> None:
        """Certificates that were there to be had at eps: nobody took them out of the journal."""
        eps = min(self._eps, float(self.context.plan.largest_radius))
        ids = standing.ids[standing.correct]
        if self.context.plan.certify == "none":
            return
        units = [self.units.get(key, {}) for key in self.layout.covering("certificates", standing.ids)]
        if any("fault" in unit for unit in units) or (
            self.context.randomised and self.context.plan.certify != "smoothing"
        ):
            return
        refused = {unit["refused"] for unit in units if "refused" in unit}
        try:
            held = proved_at(self.context, ids, eps)
        except UnsupportedError as refusal:
            if refused != {str(refusal)}:
                self.problems.append(f"the journal does not say why there are no certificates: {refusal}")
            return
        if refused and (held is not None or self.context.plan.certify == "smoothing"):
            self.problems.append(f"the journal says that certificates are refused, and they are not: {refused.pop()}")
        if held is None:
            if self.context.plan.certify == "smoothing":
                self.unread.append(
                    "that samples without a certificate have none: smoothing is not drawn again for them"
                )
            return
        self.unread.append("that no larger radius than the certified one can be proved")
        for i in ids[held].tolist():
            if i not in standing.certificates or standing.certificates[i].radius < eps:
                self.problems.append(
                    f"sample {i}: is proved safe at {eps:.6g}, and the journal has no such certificate"
                )

    def _preflight(self) -> None:
        """The look at model and data, and whether the model is random: not for the journal alone to say."""
        context = self.context
        if context.plan.remote:
            return
        found = preflight(context.base, context.data, context.plan.threat, device=context.device)
        random = any(f.code == "model.randomised" for f in found)
        if random != context.randomised:
            told = "random" if context.randomised else "the same each time"
            self.problems.append(f"the journal says that the model's answers are {told}, and they are not")
        self.deterministic = not random
        context.randomised = random
        if not random:
            found += [f for f in [context.referee().finding(context.inputs(np.arange(1)))] if f is not None]
        self._compare_findings("preflight", [f.as_dict() for f in found])

    def _diagnostics(self, parts: Sequence[Standing]) -> None:
        unit = self.units.get(("diagnostics", -1), {})
        if self.deterministic and "fault" not in unit:
            due = diagnose(self.context, parts)
            self._compare_findings("diagnostics", due["findings"])
            self._same_unanswered("diagnostics", -1, unit, due)
            self._unanswered(unit.get("no_answer", {}))

    def _same_unanswered(self, stage: str, k: int, unit: Payload, due: Payload) -> None:
        if unit.get("no_answer", {}).keys() != due.get("no_answer", {}).keys():
            self._say(stage, k, "names other samples than the model has no answer for")

    def _unanswered(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Inputs that the model is said to have no decision for: where they lie, and what it answers."""
        if not records:
            return
        ids = np.array(sorted(map(int, records)), dtype=np.int64)
        told = [records[str(i)] for i in ids.tolist()]
        x = torch.stack([self.context.folder.witness(one["sha256"]) for one in told]).to(self.context.device)
        problem = self.context.problem(ids, float("inf"))
        inside = contains(problem.set, x, problem.x).tolist()
        distance = measured(problem.set, x, problem.x).tolist()
        answers = met_at(self.context, x) if self.deterministic else [one["met"] for one in told]
        for i, one, within, far, met in zip(ids.tolist(), told, inside, distance, answers, strict=True):
            if not within or abs(far - one["distance"]) > _SAME * max(1.0, far):
                self.problems.append(
                    f"sample {i}: the input without an answer lies at {far:.6g}, not where it is said to"
                )
            elif met != one["met"]:
                self.problems.append(
                    f"sample {i}: the model is said to answer with {one['met']}, and answers with {met}"
                )
            elif met == ALONE:
                self.unread.append(f"sample {i}: that the model gave no answer to an input; asked alone, it does")

    def _compare_findings(self, stage: str, due: Sequence[Mapping[str, Any]]) -> None:
        told = self.units.get((stage, -1), {}).get("findings", [])
        for words, findings, others in (("lacks", due, told), ("has", told, due)):
            known = {_worded(f) for f in others}
            for finding in findings:
                if _worded(finding) not in known:
                    self.problems.append(
                        f"the journal's {stage} {words} the finding {finding['code']} ({finding['severity']}: {finding['title']})"
                        + ("" if words == "lacks" else ", which the model does not give")
                    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _worded(finding: Mapping[str, Any]) -> tuple[str, ...]:
    """A finding but for its figures, which rounding may change."""
    return tuple(_COUNTS.sub("#", str(finding.get(k, ""))) for k in ("code", "severity", "title", "message", "remedy"))
