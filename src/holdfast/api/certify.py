"""``holdfast.certify``: how far each sample is proved safe, by one method."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from typing_extensions import override

from holdfast.api.keywords import kind_of, method_and_spec, threat_model
from holdfast.api.results import Block, Result, Rows, Saved
from holdfast.api.voice import Progress, Stages, Voice
from holdfast.core.arrays import listed
from holdfast.core.errors import UsageError
from holdfast.core.registry import name_of
from holdfast.core.threat import Guarantee, parse_eps, size_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from holdfast.certifiers.set_certifier import Reach, SetCertifier
    from holdfast.core.cost import Cost
    from holdfast.core.threat import ThreatModel
    from holdfast.session.session import Session
    from holdfast.session.spec import DataLike, ModelLike, ModelSpec
    from holdfast.studies.common.columns import RadiiColumn

__all__ = ["CertifyResult", "Radii", "Ranges", "certify", "certify_radii", "certify_ranges", "deployed_type"]

DeployedName = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, repr=False)
class CertifyResult(Result):
    """What every kind of certifier answers with.

    Attributes:
        method: name of the certifier.
        title: as its paper writes it.
        guarantee: sound, probabilistic, or only an estimate.
        session: what is certified.
        seconds: for all samples.
        notes: what a reader of the figures must know.
    """

    method: str
    title: str
    guarantee: Guarantee
    session: Session
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def radius(self) -> NDArray[np.float64]:
        """(n,) how far each sample is certified; NaN where it is not at all."""

    @property
    @abstractmethod
    def arithmetic(self) -> str:
        """For sound methods, the arithmetic in which what they say holds."""

    def certified_at(self, size: float | str | Fraction) -> float:
        """Share of the samples that are certified at least so far: ``0.25``, ``"8/255"``."""
        import numpy as np

        return float((np.nan_to_num(self.radius, nan=-1.0) >= float(parse_eps(size))).mean())

    @override
    def columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "id": list(range(len(self.radius))),
            "label": listed(self.session.data.y),
            "radius": self.radius.tolist(),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Radii(CertifyResult):
    """Certified radii, in the norm of the threat.

    Attributes:
        column: what the method says of every sample.
    """

    column: RadiiColumn

    @property
    @override
    def radius(self) -> NDArray[np.float64]:
        return self.column.radius

    @property
    @override
    def arithmetic(self) -> str:
        return self.column.arithmetic

    @property
    @override
    def cost(self) -> Cost:
        """What smoothing and estimates asked of the model; bounds read its graph and ask it nothing.

        The look at model and data beforehand, and the comparison of the graph with the model, are not in it.
        """
        return self.column.cost

    @override
    def to_dict(self) -> dict[str, Any]:
        return of_column(self.session, self.column)

    @override
    def blocks(self) -> list[Block]:
        norm, eps = self.session.threat.norm, size_text(self.session.threat.eps)
        head = f"{self.title}: {norm}, {self.session.source}, {self.session.data.name}"
        return [head, radii_rows([self.to_dict()], eps), *radii_remarks([self.to_dict()])]

    @override
    def save(self, path: str | Path, *, command: str = "") -> Saved:
        """Writes ``METHOD.npz``, ``radii.csv`` and the page ``radii.html`` into a folder."""
        from holdfast.api.certify_files import save_columns
        from holdfast.api.folders import results_folder
        from holdfast.studies.radii import gathered

        results_folder(Path(path))
        return save_columns(self.session, gathered(self.session, [self.column]), Path(path), command)


@dataclass(frozen=True, kw_only=True, repr=False)
class Ranges(CertifyResult):
    """Certified ranges of weights, patches or semantic changes, in units of their own.

    Attributes:
        ranges: of each sample; None where the model is wrong as it is.
        held_against: what the graph was compared with.
    """

    ranges: tuple[Reach | None, ...]
    held_against: str

    @property
    @override
    def radius(self) -> NDArray[np.float64]:
        """(n,) the upper end of each sample's certified range; NaN where the model is wrong as it is."""
        import numpy as np

        return np.array([np.nan if r is None else r.high for r in self.ranges])

    @property
    @override
    def cost(self) -> Cost:
        """Nothing: the ranges are bounds of the graph, which is compared with the model beforehand."""
        from holdfast.core.cost import Cost

        return Cost()

    @property
    @override
    def arithmetic(self) -> str:
        return next((r.arithmetic for r in self.ranges if r is not None), "")

    @override
    def to_dict(self) -> dict[str, Any]:
        import numpy as np

        known = [r for r in self.ranges if r is not None]
        high = [r.high for r in known]
        return {
            "method": self.method, "unit": known[0].unit if known else "", "samples": len(self.ranges), "right": len(known),
            "whole": sum(r.whole for r in known), "median_reach": float(np.median(high)) if high else 0.0,
            "largest_reach": max(high, default=0.0), "arithmetic": self.arithmetic,
            "subject": self.session.subject.sha256, "held_against": self.held_against,
            "ranges": [
                None if r is None else {k: v for k, v in asdict(r).items() if k != "arithmetic"} for r in self.ranges
            ],
        }  # fmt: skip

    @override
    def blocks(self) -> list[Block]:
        return [range_rows([self.to_dict()])]

    @override
    def save(self, path: str | Path, *, command: str = "") -> Saved:
        """Writes ``METHOD.json`` into a folder."""
        from holdfast.api.folders import results_folder
        from holdfast.core.files import write_whole

        results_folder(Path(path))
        file = Path(path) / f"{self.method}.json"
        write_whole(file, json.dumps(self.to_dict(), indent=1))
        return Saved(files=(file,))


def certify(
    model: ModelLike | ModelSpec,
    data: DataLike,
    method: str | object,
    threat: ThreatModel,
    *,
    radius_max: float | str | None = None,
    deployed: DeployedName | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = True,
    anyway: bool = False,
    **parameters: Any,
) -> CertifyResult:
    """Finds how far a method certifies each sample.

    Args:
        model: a module, a loaded model or a path.
        data: a `Dataset`, what `holdfast.load_data` reads, or (x, y) as tensors or arrays.
        method: the certifier's name, or the certifier.
        threat: says the norm; its eps is the radius that figures are given at.
        radius_max: the largest radius that is searched for; None: 2 eps.
        deployed: prove the model as it runs in this type, in any order of summation; None: in real numbers.
        samples: the first so many rows; None is all.
        seed: keys the draws of smoothing.
        device: where the model runs; None: where a module is, else the CPU.
        progress: show how far it is, or who is told (stage, done, of how many).
        anyway: start although the model does worse than guessing.
        parameters: the method's parameters, and how the model is to be read.

    Returns:
        `Radii`, or `Ranges` for methods that certify weights, patches or semantic changes.

    Raises:
        UsageError: no such certifier or parameter.
        UnsupportedError: the method does not serve the norm or the model.
        DataError: what an audit would refuse.
    """
    from holdfast.api.attack import open_with
    from holdfast.certifiers.set_certifier import SetCertifier
    from holdfast.session.opening import open_session

    voice = Voice(progress)
    name = name_of(kind_of(method))
    threat = threat_model(threat)
    tool, spec = method_and_spec(method, model, parameters, certify)
    session = open_session(spec, data, threat, samples=samples, radius_max=radius_max, seed=seed, device=device)
    open_with(session, voice, anyway=anyway)
    if isinstance(tool, SetCertifier):
        if deployed is not None:
            raise UsageError(f"{name} certifies no radius of inputs; leave out deployed")
        return certify_ranges(session, name, tool, voice)
    return certify_radii(session, name, tool, voice, deployed=deployed_type(deployed))


def certify_radii(
    session: Session, name: str, tool: Any, voice: Voice, *, deployed: torch.dtype | None = None
) -> Radii:
    """The radii of one method on an opened session."""
    from holdfast.studies.common.columns import certified

    with voice.progress() as tell:
        column = certified(session, name, tool, tell, deployed=deployed)
    return Radii(
        method=name, title=column.title, guarantee=Guarantee(column.guarantee), session=session, column=column,
        seconds=round(column.seconds, 3), notes=tuple(voice.notes),
    )  # fmt: skip


def certify_ranges(session: Session, name: str, tool: SetCertifier, voice: Voice) -> Ranges:
    """The ranges of one method on an opened session."""
    from time import perf_counter

    start, problem, model = perf_counter(), session.problem(session.ids), session.graph_of_all_inputs()
    with voice.progress() as tell:
        found = tool.certify(model.graph, problem.x, problem.y, _counted(tell, name, len(problem)))
    return Ranges(
        method=name,
        title=tool.card.title,
        guarantee=tool.card.guarantee or Guarantee.SOUND,
        session=session,
        ranges=tuple(found),
        held_against=model.held_against,
        seconds=round(perf_counter() - start, 3),
        notes=tuple(voice.notes),
    )


def _counted(tell: Stages, name: str, n: int) -> Callable[[int], None]:
    return lambda done: tell(name, done, n)


def deployed_type(name: str | None) -> torch.dtype | None:
    """The type in whose arithmetic a model is proved.

    Raises:
        UsageError: there is none of that name.
    """
    import torch

    if name is not None and name not in get_args(DeployedName):
        raise UsageError(f"no deployment in {name}; there is {', '.join(get_args(DeployedName))}")
    return None if name is None else getattr(torch, name)


def of_column(session: Session, column: RadiiColumn) -> dict[str, Any]:
    """What one method says, in plain values, without those of each sample."""
    eps = session.threat.eps
    threat = {"norm": str(session.threat.norm), "eps": size_text(eps), "at_eps": column.at_least(float(eps))}
    return {**column.summary().to_dict(), **threat, "subject": session.subject.sha256}


_SHARES = {"estimate": "estimated >= {}", "witness": "not broken at {}"}


def radii_rows(answers: Sequence[Mapping[str, Any]], eps: str) -> Rows:
    """A row for each method, a column for each kind of share: what is certified, only estimated, or left by an attack."""
    kinds = [kind for kind in _SHARES if any(a["guarantee"] == kind for a in answers)]
    proofs = any(a["guarantee"] not in _SHARES for a in answers)
    fitted = any("fit_rejected" in a for a in answers)

    def shares(a: Mapping[str, Any]) -> list[str]:
        own, share = a["guarantee"], f"{a['at_eps']:.1%}"
        certified = "0.0%" if own in _SHARES else share
        return [*([certified] if proofs else []), *(share if own == kind else "" for kind in kinds)]

    return Rows(
        ("method", "guarantee", *([f"certified at {eps}"] if proofs else []), *(_SHARES[k].format(eps) for k in kinds),
         "median radius", "largest", "none", "seconds", *(["fit rejected"] if fitted else [])),
        tuple(
            (a["method"], "upper bound" if a["guarantee"] == "witness" else a["guarantee"], *shares(a),
             f"{a['median_radius']:.4g}", f"{a['largest_radius']:.4g}", a["none"], a["seconds"],
             *([f"{a['fit_rejected']:.0%} at 5 %" if "fit_rejected" in a else ""] if fitted else []))
            for a in answers
        ),
    )  # fmt: skip


def radii_remarks(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the radii must know."""
    proofs = any(a["guarantee"] not in _SHARES for a in answers)
    estimates = any(a["guarantee"] == "estimate" for a in answers)
    doubt = ["an estimate certifies nothing: CLEVER can be far above the true distance"] if proofs and estimates else []
    proved = dict.fromkeys(a["arithmetic"] for a in answers if a["arithmetic"])
    held = dict.fromkeys(a["held_against"] for a in answers if a["held_against"])
    return [
        *doubt,
        *(f"proved: {words}" for words in proved),
        *(f"the graph was held against {against}, on the box around all samples' sets" for against in held),
    ]


def range_rows(answers: Sequence[Mapping[str, Any]]) -> Rows:
    """A row for each method."""
    return Rows(
        ("method", "unit", "whole range proved", "median reach", "largest", "wrong as they are"),
        tuple(
            (
                a["method"],
                a["unit"],
                f"{a['whole']} of {a['samples']}",
                f"{a['median_reach']:.4g}",
                f"{a['largest_reach']:.4g}",
                a["samples"] - a["right"],
            )
            for a in answers
        ),
    )
