"""Options that several commands share, by kind; `spread` makes single options of each kind's fields.

A default of None leaves the value to the library, the only place of defaults.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from holdfast.api.folders import no_run
from holdfast.audits.suites import suite_names
from holdfast.cli.console import volume
from holdfast.core.errors import UsageError
from holdfast.core.threat import Access, Goal, Norm, ThreatModel, parse_eps

if TYPE_CHECKING:
    from holdfast.data.table import Table
    from holdfast.models.wrap import Normalisation
    from holdfast.session.spec import ModelSpec, Surrogates

__all__ = [
    "Anyway",
    "AskedOptions",
    "AttackerOptions",
    "Certify",
    "Data",
    "Eps",
    "FormatName",
    "GoalName",
    "Grid",
    "MaxQueries",
    "ModelOptions",
    "NormName",
    "NormOptions",
    "Normalise",
    "Out",
    "Output",
    "RadiusMax",
    "RunOptions",
    "Samples",
    "Set",
    "Sigma",
    "Suite",
    "Surrogate",
    "SurrogateArch",
    "TalkOptions",
    "Trust",
    "assignments",
    "exact_size",
    "several",
    "threat",
]

_MODEL, _THREAT, _RUN = "Model and data", "Threat", "Run"


def exact_size(text: str | None) -> str | None:
    """Refuses what is no size before anything heavy is imported."""
    if text is not None:
        parse_eps(text)
    return text


class FormatName(StrEnum):
    """How a command prints its answer."""

    TEXT = "text"
    JSON = "json"


Model = Annotated[
    str | None,
    typer.Option(
        help="State dict or safetensors (with --arch), ONNX file, Hugging Face folder, predict.py:function, pickled "
        "estimator, or the URL of a prediction API.",
        metavar="FILE|URL", rich_help_panel=_MODEL,
    ),
]  # fmt: skip
Arch = Annotated[
    str | None,
    typer.Option(
        help="Builds the architecture of a state dict.",
        metavar="MODULE:FUNCTION|FILE.py:FUNCTION|timm:NAME", rich_help_panel=_MODEL,
    ),
]  # fmt: skip
Trust = Annotated[
    bool | None,
    typer.Option("--trust", help="Open files whose opening can run code.", show_default=False, rich_help_panel=_MODEL),
]
Anyway = Annotated[
    bool,
    typer.Option(
        "--anyway",
        help="Start although the model does worse than guessing.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Normalise = Annotated[
    str | None,
    typer.Option(
        help="Normalisation that the deployment applies, per channel: 0.5,0.5,0.5/0.25,0.25,0.25.",
        metavar="MEAN/STD", rich_help_panel=_MODEL,
    ),
]  # fmt: skip
Binary = Annotated[
    Literal["logit", "probability"] | None,
    typer.Option(help="The model has one output: the logit, or the probability, of class 1.", rich_help_panel=_MODEL),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        help="Names of the classes in the model's order; labels or folders that are names are numbered by it.",
        metavar="NAME,...|FILE", rich_help_panel=_MODEL,
    ),
]  # fmt: skip
TableFile = Annotated[
    Path | None,
    typer.Option(
        "--table", help="Columns of a table: range, integer or not, immutable or not (YAML).",
        metavar="FILE", rich_help_panel=_MODEL,
    ),
]  # fmt: skip
Data = Annotated[
    str | None,
    typer.Option(
        help="npz (x float32 in [0, 1] or uint8, NCHW; y int), csv, folder of class folders, or digits:train|test.",
        metavar="FILE|FOLDER|digits", rich_help_panel=_MODEL,
    ),
]  # fmt: skip
Samples = Annotated[
    int | None, typer.Option(help="Take the first N rows.", metavar="N", show_default="all", rich_help_panel=_MODEL)
]
Surrogate = Annotated[
    list[str] | None,
    typer.Option(
        help="A model of the attacker's own, for transfer; several, with commas or repeated, make an ensemble.",
        metavar="FILE,...", rich_help_panel=_THREAT,
    ),
]  # fmt: skip
SurrogateArch = Annotated[
    list[str] | None,
    typer.Option(
        help="Builds the surrogate's architecture: one for all, or one for each.",
        metavar="MODULE:FUNCTION,...", rich_help_panel=_THREAT,
    ),
]  # fmt: skip
NormName = Annotated[
    Norm | None, typer.Option(help="Distortion that is bounded.", show_default="linf", rich_help_panel=_THREAT)
]
Eps = Annotated[
    str | None,
    typer.Option(
        help="Its bound, exact: 8/255 or 0.1.",
        metavar="SIZE",
        show_default="0.1",
        rich_help_panel=_THREAT,
        callback=exact_size,
    ),
]
GoalName = Annotated[
    Goal | None,
    typer.Option(
        help="Any wrong class, or the class after the label.", show_default="untargeted", rich_help_panel=_THREAT
    ),
]
Queries = Annotated[
    int | None,
    typer.Option(
        help="Most queries for one sample of a query attack.", metavar="N", show_default="none", rich_help_panel=_THREAT
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="The deployment shows so many classes.", metavar="K", show_default="all", rich_help_panel=_THREAT
    ),
]
Answers = Annotated[
    Literal["scores", "labels"] | None,
    typer.Option(help="What a prediction API answers.", show_default="scores", rich_help_panel=_THREAT),
]
Scores = Annotated[
    Literal["probabilities", "logits"] | None,
    typer.Option(help="What the scores of a prediction API are.", show_default="probabilities", rich_help_panel=_MODEL),
]
Request = Annotated[
    str | None,
    typer.Option(
        help='The JSON that a prediction API wants, with $inputs, $row, $data, $shape or $rows: {"instances": $inputs}.',
        metavar="JSON", show_default='{"inputs": $inputs}', rich_help_panel=_MODEL,
    ),
]  # fmt: skip
AnswerPath = Annotated[
    str | None,
    typer.Option(
        "--answer", help="Where its answer has the rows: predictions[*].scores, or predictions[*]{label: score}.",
        metavar="PATH", show_default="labels, scores or top", rich_help_panel=_MODEL,
    ),
]  # fmt: skip
Output = Annotated[
    str | None,
    typer.Option(
        help="The output of an ONNX file that is meant, if it has several.", metavar="NAME", rich_help_panel=_MODEL
    ),
]
Classes = Annotated[
    int | None,
    typer.Option(
        help="How many classes a model has that does not say it, as a prediction API.",
        metavar="K",
        rich_help_panel=_MODEL,
    ),
]
MaxQueries = Annotated[
    int | None,
    typer.Option(
        help="Most rows ever sent to a prediction API: your consent to ask it.", metavar="N", rich_help_panel=_MODEL
    ),
]
Suite = Annotated[
    str | None,
    typer.Option(
        help=f"Which attacks: {', '.join(suite_names())}.", metavar="NAME", show_default="fast", rich_help_panel=_RUN
    ),
]
Certify = Annotated[
    str | None,
    typer.Option(
        help="Which certificate: crown, alpha-crown, ibp or another sound bound of networks; smoothing, or none.",
        metavar="NAME",
        show_default="crown",
        rich_help_panel=_RUN,
    ),
]
RadiusMax = Annotated[
    str | None,
    typer.Option(
        help="Largest radius that a certificate is searched for.",
        metavar="SIZE", show_default="2 eps", rich_help_panel=_RUN, callback=exact_size,
    ),
]  # fmt: skip
Sigma = Annotated[
    float | None,
    typer.Option(help="Noise of randomised smoothing.", metavar="S", show_default="0.25", rich_help_panel=_RUN),
]
Grid = Annotated[
    str | None,
    typer.Option(
        help="Judge on valid inputs only: multiples of this (1/255 for 8-bit images).",
        metavar="STEP", rich_help_panel=_THREAT, callback=exact_size,
    ),
]  # fmt: skip
Seed = Annotated[
    int | None, typer.Option(help="Keys all randomness.", metavar="S", show_default="0", rich_help_panel=_RUN)
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", metavar="D", show_default="cpu", rich_help_panel=_RUN)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A parameter of the method; see: holdfast methods NAME. May be repeated.",
        metavar="KEY=VALUE", rich_help_panel=_RUN,
    ),
]  # fmt: skip


def _of_no_run(out: Path) -> Path:
    """Refuses the folder of a run before anything is opened."""
    no_run(out)
    return out


Out = Annotated[
    Path, typer.Option(help="Folder for the results; none of a run.", metavar="FOLDER", callback=_of_no_run)
]
Format = Annotated[FormatName, typer.Option("--format", help="What is printed.")]


def _quiet(value: bool) -> bool:
    volume.quiet = value
    logging.getLogger("holdfast").setLevel(logging.ERROR if value else logging.WARNING)
    return value


def _verbose(value: bool) -> bool:
    volume.verbose = value
    return value


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the answer and errors only.", callback=_quiet, show_default=False)
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Notes, and tracebacks of errors.", callback=_verbose, show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and the data."""

    model: Model = None
    arch: Arch = None
    trust: Trust = None
    anyway: Anyway = False
    normalise: Normalise = None
    binary: Binary = None
    class_names: ClassNames = None
    table: TableFile = None
    data: Data = None
    samples: Samples = None

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
            model=self.model, arch=self.arch, trust=self.trust, binary=self.binary,
            class_names=class_names(self.class_names), table=table(self.table),
        )  # fmt: skip

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

    norm: NormName = None
    eps: Eps = None


@dataclass(frozen=True, kw_only=True)
class AttackerOptions:
    """What the attacker has and may ask."""

    queries: Queries = None
    top_k: TopK = None
    surrogate: Surrogate = None
    surrogate_arch: SurrogateArch = None

    def surrogates(self, trust: bool | None) -> Surrogates | None:
        """The attacker's own models."""
        return surrogates(self.surrogate, self.surrogate_arch, trust)


@dataclass(frozen=True, kw_only=True)
class AskedOptions:
    """A model that can only be asked."""

    answers: Answers = None
    scores: Scores = None
    request: Request = None
    answer_path: AnswerPath = None
    output: Output = None
    classes: Classes = None
    max_queries: MaxQueries = None

    def values(self) -> dict[str, Any]:
        """What a plan and a `ModelSpec` have alike; only what was given."""
        return given(
            answers=self.answers, scores=self.scores, request=self.request, answer=self.answer_path, output=self.output,
            classes=self.classes, max_queries=self.max_queries,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a command runs."""

    seed: Seed = None
    device: Device = None

    def place(self) -> str | None:
        """The device, if this machine has it."""
        return device_named(self.device)


@dataclass(frozen=True, kw_only=True)
class TalkOptions:
    """What is printed, and how much."""

    format_: Format = FormatName.TEXT
    quiet: Quiet = False
    verbose: Verbose = False

    @property
    def json(self) -> bool:
        """The answer is printed as JSON."""
        return self.format_ is FormatName.JSON


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


def device_named(name: str | None) -> str | None:
    """The device, if this machine has it.

    Raises:
        UsageError: it has not, or there is no such kind.
    """
    if name is None:
        return None
    import torch

    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as fault:
        raise UsageError(f"--device {name} cannot be used here, take cpu: {str(fault).splitlines()[0]}") from None
    return name


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
