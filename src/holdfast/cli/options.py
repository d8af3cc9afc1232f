"""Options that several commands share, by kind; `spread` makes single options of each kind's fields.

A default of None leaves the value to the library, the only place of defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from holdfast.cli import single_options as one
from holdfast.core.errors import UsageError
from holdfast.core.threat import Access, Goal, Norm, ThreatModel, parse_eps

if TYPE_CHECKING:
    from holdfast.data.table import Table
    from holdfast.models.wrap import Normalisation
    from holdfast.session.spec import ModelSpec, Surrogates

__all__ = [
    "AskedOptions",
    "AttackerOptions",
    "ModelOptions",
    "NormOptions",
    "RunOptions",
    "TalkOptions",
    "assignments",
    "several",
    "threat",
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and the data."""

    model: one.Model = None
    arch: one.Arch = None
    trust: one.Trust = None
    anyway: one.Anyway = False
    normalise: one.Normalise = None
    binary: one.Binary = None
    class_names: one.ClassNames = None
    table: one.TableFile = None
    data: one.Data = None
    samples: one.Samples = None

    def named(self) -> tuple[str, str]:
        """The model and the data, which must be there.

        Raises:
            UsageError: one of them is not.
        """
        if self.model is None or self.data is None:
            flag = "model" if self.model is None else "data"
            raise UsageError(f"what {flag}? give --{flag}")
        return self.model, self.data

    def values(self) -> dict[str, Any]:
        """What is said of the model, but for its normalisation: what a plan and a `ModelSpec` have alike."""
        return given(
            model=self.model,
            arch=self.arch,
            trust=self.trust,
            binary=self.binary,
            class_names=class_names(self.class_names),
            table=table(self.table),
        )

    def plan_values(self) -> dict[str, Any]:
        """What is said of the model and the data, as a plan has it."""
        read = normalisation(self.normalise)
        normalise = None if read is None else (read.mean, read.std)
        return self.values() | given(normalise=normalise, data=self.data, samples=self.samples)

    def spec(self, asked: AskedOptions | None = None, **more: Any) -> ModelSpec:
        """The model, and how it is to be read.

        Args:
            asked: what is said of a model that can only be asked.
            more: further fields; None was not given.
        """
        from holdfast.session.spec import ModelSpec

        read = normalisation(self.normalise)
        return ModelSpec(normalise=read, **self.values() | ({} if asked is None else asked.values()) | given(**more))


@dataclass(frozen=True, kw_only=True)
class NormOptions:
    """The distortion and its bound."""

    norm: one.NormName = None
    eps: one.Eps = None


@dataclass(frozen=True, kw_only=True)
class AttackerOptions:
    """What the attacker has and may ask."""

    queries: one.Queries = None
    top_k: one.TopK = None
    surrogate: one.Surrogate = None
    surrogate_arch: one.SurrogateArch = None

    def surrogates(self, trust: bool | None) -> Surrogates | None:
        """The attacker's own models."""
        return surrogates(self.surrogate, self.surrogate_arch, trust)


@dataclass(frozen=True, kw_only=True)
class AskedOptions:
    """A model that can only be asked."""

    answers: one.Answers = None
    scores: one.Scores = None
    request: one.Request = None
    answer_path: one.AnswerPath = None
    output: one.Output = None
    classes: one.Classes = None
    max_queries: one.MaxQueries = None

    def values(self) -> dict[str, Any]:
        """What a plan and a `ModelSpec` have alike; only what was given."""
        return given(
            answers=self.answers,
            scores=self.scores,
            request=self.request,
            answer=self.answer_path,
            output=self.output,
            classes=self.classes,
            max_queries=self.max_queries,
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a command runs."""

    seed: one.Seed = None
    device: one.Device = None

    def place(self) -> str | None:
        """The device, if this machine has it."""
        if self.device is None:
            return None
        from holdfast.session.reading import as_device

        return str(as_device(self.device))


@dataclass(frozen=True, kw_only=True)
class TalkOptions:
    """What is printed, and how much."""

    format_: one.Format = one.FormatName.TEXT
    quiet: one.Quiet = False
    verbose: one.Verbose = False

    @property
    def json(self) -> bool:
        """The answer is printed as JSON."""
        return self.format_ is one.FormatName.JSON


def is_url(name: str | None) -> bool:
    """Whether a model's name is that of a prediction API."""
    return name is not None and name.startswith(("http://", "https://"))


def given(**values: Any) -> dict[str, Any]:
    """The values that were given; the library has the defaults of the others."""
    return {k: v for k, v in values.items() if v is not None}


def threat(
    norm: Norm | None, eps: str | None, goal: Goal | None = None, asked: AskedOptions | None = None
) -> ThreatModel:
    """The threat model that flags say."""
    access = Access.HARD_LABEL if asked is not None and asked.answers == "labels" else Access.WHITE_BOX
    return ThreatModel(norm=norm or Norm.LINF, eps=parse_eps(eps or "0.1"), goal=goal or Goal.UNTARGETED, access=access)


def surrogates(files: list[str] | None, archs: list[str] | None, trust: bool | None) -> Surrogates | None:
    """The attacker's own models that flags name."""
    from holdfast.session.spec import Surrogates

    named = Surrogates(models=several(files) or (), archs=several(archs) or (), trust=bool(trust))
    return named if named.models else None


def normalisation(text: str | None) -> Normalisation | None:
    """``MEAN/STD``."""
    if text is None:
        return None
    from holdfast.models.wrap import Normalisation

    return Normalisation.parse(text)


def class_names(text: str | None) -> tuple[str, ...] | None:
    """``NAME,NAME,...``, or a file with a name on each line."""
    if text is None:
        return None
    path = Path(text)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    return tuple(name.strip() for name in lines if name.strip())


def table(path: Path | None) -> Table | None:
    """A table's columns from its file."""
    if path is None:
        return None
    from holdfast.data.table import Table

    return Table.read(path)


def several(values: list[str] | None) -> tuple[str, ...] | None:
    """The names of a flag that may be repeated and may hold several with commas.

    Example:
        >>> several(["a.pt,b.pt", "c.pt"]), several(None)
        (('a.pt', 'b.pt', 'c.pt'), None)
    """
    return tuple(name.strip() for text in values for name in text.split(",") if name.strip()) if values else None


def assignments(pairs: list[str] | None, method: type) -> dict[str, object]:
    """``--set`` arguments as values of a method's parameters.

    Raises:
        UsageError: not of the form, no such parameter, or a value of another type.
    """
    from holdfast.api.keywords import parameter_values

    given: dict[str, str | list[str] | None] = {}
    hints = get_type_hints(method)
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"'{pair}' sets nothing; write --set KEY=VALUE")
        several_values = "tuple" in str(hints.get(name, ""))
        given[name] = None if text.lower() == "none" else text.split(",") if several_values else text
    return parameter_values(method, given, flag="--set ")
