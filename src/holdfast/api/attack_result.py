"""What an attack found, as the referee let it stand: figures, tensors and files."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from holdfast.api.folders import begin_results
from holdfast.api.results import Block, Result, Saved, figure
from holdfast.core.arrays import listed
from holdfast.core.threat import size_text
from holdfast.core.words import counted

if TYPE_CHECKING:
    from fractions import Fraction

    from torch import Tensor

    from holdfast.core.cost import Cost
    from holdfast.judge.judged import Judged
    from holdfast.judge.outcome import Outcome
    from holdfast.session.session import Session

__all__ = ["AttackResult", "SampleAttackResult", "a_sample", "wrong_already"]

_PICTURES = 12


@dataclass(frozen=True, kw_only=True, repr=False)
class AttackResult(Result):
    """What every kind of attack answers with; the referee has upheld each sample that counts as broken.

    Attributes:
        method: name of the attack.
        title: as its paper writes it.
        session: what was attacked.
        seed: keyed all draws.
        seconds: of the search and the judging.
        notes: what a reader of the figures must know.
    """

    method: str
    title: str
    session: Session
    seed: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def x(self) -> Tensor:
        """(n, \\*features) the adversarial input of each sample; its clean input where there is none."""

    @property
    @abstractmethod
    def broken(self) -> Tensor:
        """(n,) bool: right as it is, and broken."""

    @property
    @abstractmethod
    def distance(self) -> Tensor:
        """(n,) float64 from the clean input; 0 where the sample is wrong as it is, inf where nothing is upheld."""

    @property
    @abstractmethod
    def success(self) -> float:
        """Share of the samples that were right and are broken."""

    @override
    @abstractmethod
    def save(self, path: str | Path, *, command: str = "") -> Saved:
        """Writes figures, tensors and pictures into a folder.

        Args:
            path: the folder; an earlier attack's results in it are made anew.
            command: the command line that repeats it.

        Raises:
            UsageError: the folder holds an audit, or files of the same names that no attack wrote.
        """

    def _begin(self, folder: Path) -> bool:
        return begin_results(folder, self.method)


@dataclass(frozen=True, kw_only=True, repr=False)
class SampleAttackResult(AttackResult):
    """What an attack on single samples found.

    Attributes:
        judged: sample by sample.
        outcome: what the search left behind, before it was judged.
        eps: the bound of the distortion; None where the method looks for the least one without.
        subject: hash of what was attacked.
        views: the random changes of the input that the model was behind, as they were written.
    """

    judged: Judged
    outcome: Outcome
    eps: Fraction | None
    subject: str
    views: str | None = None

    @property
    @override
    def x(self) -> Tensor:
        return self.judged.x

    @property
    @override
    def broken(self) -> Tensor:
        return self.judged.broken

    @property
    @override
    def distance(self) -> Tensor:
        return self.judged.distance

    @property
    @override
    def success(self) -> float:
        return int(self.judged.broken.sum()) / max(1, int((~self.judged.clean_wrong).sum()))

    @property
    @override
    def cost(self) -> Cost:
        return self.judged.cost

    @property
    def judging(self) -> Cost:
        """What the referee asked, beside the search."""
        return self.judged.judging

    @property
    def median_distance(self) -> float | None:
        """Over the broken samples; None where there is none."""
        import numpy as np

        far = self.distance[self.broken].cpu().numpy()
        return float(np.median(far)) if len(far) else None

    @property
    def wrong(self) -> Tensor:
        """(n,) bool: adversarial as it is; no attack was needed."""
        return self.judged.clean_wrong

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "id": list(range(len(self.broken))),
            "label": listed(self.session.data.y),
            "wrong": listed(self.wrong),
            "broken": listed(self.broken),
            "distance": listed(self.distance),
            "prediction": listed(self.judged.prediction),
            "queries": listed(self.judged.found_at),
        }

    @override
    def to_dict(self) -> dict[str, Any]:
        found, cost, not_upheld = self.outcome, self.cost, self.judged.marginal | self.judged.rejected
        return {
            "attack": self.method, "norm": str(self.session.threat.norm),
            "eps": None if self.eps is None else size_text(self.eps),
            "samples": len(self.broken), "adversarial_as_they_are": int(self.wrong.sum()), "broken": int(self.broken.sum()),
            "success": self.success, "median_distance": self.median_distance, "not_upheld": int(not_upheld.sum()),
            "judged_at": list(self.judged.runs), "forwards": cost.forwards, "backwards": cost.backwards,
            "queries": cost.queries, "seconds": self.seconds, "seed": self.seed, "subject": self.subject,
            "views": self.views, "without_gradient": int(found.blind.sum()),
            "failed": 0 if found.failed is None else int(found.failed.sum()),
            "not_a_number": 0 if found.unusable is None else int((found.unusable > 0).sum()),
        }  # fmt: skip

    @override
    def blocks(self) -> list[Block]:
        a = self.to_dict()
        n, wrong = max(1, a["samples"]), a["adversarial_as_they_are"]
        bound = "unbounded" if a["eps"] is None else f"<= {a['eps']}"
        lines: list[Block] = [
            f"{self.title}: {a['norm']} {bound}, seed {a['seed']}",
            figure(
                "success",
                f"{a['success']:.1%}   ({a['broken']} of {counted(a['samples'] - wrong, 'sample')}; {wrong_already(wrong)})",
            ),
            figure("median distance", "none" if a["median_distance"] is None else f"{a['median_distance']:.4g}"),
            *a_sample(self.cost, n),
            figure("seconds", self.seconds),
        ]
        return [*lines, *([f"not upheld by the referee: {a['not_upheld']}"] if a["not_upheld"] else [])]

    @override
    def save(self, path: str | Path, *, command: str = "") -> Saved:
        import numpy as np

        from holdfast.api.pictures import save_strips
        from holdfast.audits.export import ROWS, own_rows, own_values
        from holdfast.core.files import write_whole

        out, data, columns = Path(path), self.session.data, self.session.spec.table
        anew = self._begin(out)
        answer = self.to_dict() | ({"command": command} if command else {})
        write_whole(out / "attack.json", json.dumps(answer, indent=1))
        np.savez(
            out / "adversarial.npz",
            x_adv=own_values(columns, self.x),
            x=own_values(columns, data.x),
            y=data.y.numpy(),
            found=(self.broken | self.wrong).cpu().numpy(),
            distance=self.distance.cpu().numpy(),
        )
        files = [out / "adversarial.npz"]
        broken = self.broken.nonzero().squeeze(-1).cpu().numpy()
        if data.features is not None:
            own = own_values(columns, self.x[broken])
            rows = own_rows(data, broken, own, self.distance.cpu().numpy()[broken], self._answers(broken))
            write_whole(out / ROWS, rows)
            files.append(out / ROWS)
        shown = broken[:_PICTURES]
        captions = self._captions(shown.tolist())
        drawn = save_strips(out / "pictures", data.x[shown], self.x[shown].cpu(), shown.tolist(), captions)
        return Saved(files=tuple(files), pictures=drawn, anew=anew)

    def _answers(self, broken: Any) -> Any:
        """(m,) what the model says of the broken inputs; None where one more answer could be another."""
        if self.session.spec.remote or self.session.randomised or not len(broken):
            return None
        return self.judged.prediction.cpu().numpy()[broken]

    def _captions(self, shown: list[int]) -> list[tuple[str, str]]:
        """The label over the clean picture, and over the other what the model says of it."""
        names = dict(enumerate(self.session.data.classes or ()))
        labels = [names.get(k, str(k)) for k in listed(self.session.data.y[shown])]
        if not self.session.differentiable or self.session.randomised:
            return [(f"label {label}", "adversarial") for label in labels]
        said = listed(self.judged.prediction[shown])
        return [(f"label {label}", f"model says {names.get(k, str(k))}") for label, k in zip(labels, said, strict=True)]


def wrong_already(count: int) -> str:
    """How many samples needed no attack.

    Example:
        >>> wrong_already(1), wrong_already(2)
        ('1 was wrong as it is', '2 were wrong as they are')
    """
    return f"{count} was wrong as it is" if count == 1 else f"{count} were wrong as they are"


def a_sample(cost: Cost, n: int) -> list[Block]:
    """What was asked, in all and for one sample."""
    counts = (("forwards", cost.forwards), ("backwards", cost.backwards), ("queries", cost.queries))
    return [figure(name, f"{count}   ({count / n:.1f} a sample)") for name, count in counts]
