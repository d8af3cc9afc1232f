"""Who can be attacked with whose examples: every model a source, every model a target (Liu et al. 2017, tables 2 and 4).

Each source is searched once, and its last iterates are judged on every target: on the source itself that is the white-box
figure. Samples that a target gets wrong as they are do not count for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.common.ensemble import Ensemble
from holdfast.attacks.engine import Settings, run
from holdfast.core.cards import Card, parameter, parameters_of
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import cards, name_of
from holdfast.core.threat import Access, Norm, size_text
from holdfast.judge.archive import Keep
from holdfast.judge.asking import Model
from holdfast.judge.referee import Referee
from holdfast.session.session import Session
from holdfast.studies.common.chosen import attack_of
from holdfast.studies.common.statements import broken_by, interval_of, is_adversarial
from holdfast.studies.study import StageProgress, Study, StudyResult

__all__ = ["Transfer", "TransferCell", "TransferMatrix", "TransferResult", "crafted", "transfer_matrix"]


@dataclass(frozen=True, kw_only=True)
class TransferCell:
    """What examples of one source do to one target.

    Attributes:
        source: name of the model, or of the ensemble, that was searched.
        target: name of the model that was judged.
        white_box: the target took part in the search.
        attacked: samples that the target gets right as they are.
        broken: those among them that the referee upholds.
        share: broken of attacked; None without any.
        interval: its 95 % Clopper-Pearson interval.
    """

    source: str
    target: str
    white_box: bool
    attacked: int
    broken: int
    share: float | None
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TransferMatrix(StudyResult):
    """All sources against all targets with one method.

    Attributes:
        attack: name of the method.
        title: its title.
        parameters: its parameters.
        norm: of the set.
        eps: its size, as written.
        goal: untargeted or targeted.
        samples: how many were attacked.
        seed: keys all draws.
        sources: in the order of the rows.
        targets: in the order of the columns.
        accuracy: clean accuracy of each target.
        cells: source by source.
        passes: forwards and backwards through the sources, all samples together.
    """

    attack: str
    title: str
    parameters: dict[str, object]
    norm: str
    eps: str
    goal: str
    samples: int
    seed: int
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    accuracy: tuple[float, ...]
    cells: tuple[TransferCell, ...]
    passes: int

    def cell(self, source: str, target: str) -> TransferCell:
        """The cell of a source and a target."""
        return next(c for c in self.cells if (c.source, c.target) == (source, target))

    @property
    def black_box(self) -> float | None:
        """Mean share over the cells whose target took no part in the search."""
        shares = [c.share for c in self.cells if not c.white_box and c.share is not None]
        return sum(shares) / len(shares) if shares else None

    @override
    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"black_box": self.black_box}


@dataclass(frozen=True, kw_only=True)
class TransferResult(StudyResult):
    """The matrices of several methods, of the same models and samples.

    Attributes:
        matrices: one for each method.
    """

    matrices: tuple[TransferMatrix, ...]

    @override
    def to_dict(self) -> dict[str, Any]:
        return {"matrices": [m.to_dict() for m in self.matrices]}


@dataclass(frozen=True, kw_only=True)
class Transfer(Study[TransferResult]):
    """Every model a source of examples, every model a target; the session's own takes no part."""

    card: ClassVar[Card] = Card(
        title="Transfer matrix",
        rows=("E35",),
        paper="Liu, Chen, Liu & Song 2017, Delving into Transferable Adversarial Examples, arXiv:1611.02770",
        section="2.2",
        summary="Searches every model with a transfer attack and judges the last iterates on every other: who can be attacked "
        "with whose examples.",
        norms=(Norm.L2, Norm.LINF),
        failure_modes=(
            "That few examples transfer says how alike two models are, and nothing of how robust they are.",
        ),
        checked_by="the diagonal, which is a white-box attack; two networks of which one is the other",
    )
    methods: tuple[str | Attack[Any, Any], ...] = parameter(
        (), "transfer attacks; none: all that there are", "Liu et al. 2017, tables 2 and 4"
    )
    ensembles: bool = parameter(
        False, "for each model also search the ensemble of all the others", "Liu et al. 2017, section 5"
    )
    models: Mapping[str, nn.Module] | None = parameter(
        None,
        "by name, of the same inputs and classes; two at least, and three with ensembles",
        "Liu et al. 2017, table 2",
    )

    @override
    def run(self, session: Session, *, progress: StageProgress | None = None) -> TransferResult:
        named = self.methods or tuple(n for n, c in cards("attack") if c.access is Access.TRANSFER)
        problem = session.problem(session.ids)
        matrices: list[TransferMatrix] = []
        for attack in [attack_of(m) for m in named]:

            def sources(done: int, of: int, title: str = attack.card.title) -> None:
                if progress is not None:
                    progress(title, done, of)

            matrices.append(
                transfer_matrix(
                    self.models or {},
                    problem,
                    attack,
                    eps=size_text(session.threat.eps),
                    ensembles=self.ensembles,
                    seed=session.seed,
                    settings=session.settings,
                    progress=sources,
                )
            )
        return TransferResult(matrices=tuple(matrices))


def crafted(
    attack: Attack[Any, Any], problem: Problem, source: Model, *, seed: int = 0, settings: Settings | None = None
) -> tuple[Tensor, int]:
    """The last iterates (n, \\*features) of a transfer attack on a source, and the passes that they took.

    Raises:
        UnsupportedError: the attack asks the attacked model itself.
    """
    if attack.card.access is not Access.TRANSFER:
        raise UnsupportedError(
            f"{attack.card.title} asks the attacked model itself; take a transfer attack: surrogate_transfer, di_fgsm, ..."
        )
    outcome = run(attack, problem, source, keep=Keep.LAST, seed=seed, settings=settings)
    return outcome.x, outcome.ledger.total.passes


def transfer_matrix(
    models: Mapping[str, nn.Module],
    problem: Problem,
    attack: Attack[Any, Any],
    *,
    eps: str | None = None,
    ensembles: bool = False,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TransferMatrix:
    """Attacks each model and judges on each.

    Args:
        models: x (m, \\*features) -> logits (m, K), by name; all of the same inputs and classes.
        problem: the samples with their sets.
        attack: a transfer attack.
        eps: the size as people write it; default: the largest of the set.
        ensembles: also attack, for each model, the ensemble of all the others.
        seed: keys all draws.
        settings: how the engine works.
        progress: told how many sources are done, of how many.

    Raises:
        UsageError: fewer than two models, or none left for an ensemble.
        UnsupportedError: no transfer attack.

    Example:
        >>> from holdfast.attacks.evasion.transfer.surrogate_transfer import SurrogateTransfer
        >>> from holdfast.core.sets import LpBall
        >>> from holdfast.core.threat import Norm
        >>> from holdfast.testing.toys import affine_digits, digits, net
        >>> x, y = digits(10)
        >>> problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.1, 10, dtype=x.dtype))
        >>> matrix = transfer_matrix({"affine": affine_digits(), "net": net()}, problem, SurrogateTransfer())
        >>> matrix.cell("net", "net").share >= matrix.cell("affine", "net").share
        True
    """
    sources = _sources(models, ensembles)
    right = {name: ~is_adversarial(model, problem, problem.x) for name, model in models.items()}
    referees = {name: Referee(model) for name, model in models.items()}
    cells: list[TransferCell] = []
    passes = 0
    for k, (source, (model, members)) in enumerate(sources.items()):
        x, spent = crafted(attack, problem, model, seed=seed, settings=settings)
        passes += spent
        for target in models:
            broken = broken_by(referees[target], problem, x, right[target])
            white_box = target in members
            cells.append(_cell(source, target, int(right[target].sum()), int(broken.sum()), white_box=white_box))
        if progress is not None:
            progress(k + 1, len(sources))
    n = max(1, len(problem))
    return TransferMatrix(
        attack=name_of(attack),
        title=attack.card.title,
        parameters={p.name: getattr(attack, p.name) for p in parameters_of(type(attack))},
        norm=str(problem.set.norm),
        eps=eps or f"{float(problem.set.eps.max()) if len(problem) else 0:g}",
        goal=str(problem.goal),
        samples=len(problem),
        seed=seed,
        sources=tuple(sources),
        targets=tuple(models),
        accuracy=tuple(int(r.sum()) / n for r in right.values()),
        cells=tuple(cells),
        passes=passes,
    )


def _sources(models: Mapping[str, nn.Module], ensembles: bool) -> dict[str, tuple[nn.Module, set[str]]]:
    """What is searched, by name, with the names of the models that are part of it."""
    if len(models) < (3 if ensembles else 2):
        raise UsageError("a transfer matrix takes at least two models, and three with ensembles")
    sources: dict[str, tuple[nn.Module, set[str]]] = {name: (model, {name}) for name, model in models.items()}
    for out in models if ensembles else ():
        rest = {name: model for name, model in models.items() if name != out}
        sources[f"all but {out}"] = Ensemble(list(rest.values())), set(rest)
    return sources


def _cell(source: str, target: str, attacked: int, broken: int, *, white_box: bool) -> TransferCell:
    return TransferCell(
        source=source,
        target=target,
        white_box=white_box,
        attacked=attacked,
        broken=broken,
        share=broken / attacked if attacked else None,
        interval=interval_of(broken, attacked),
    )
