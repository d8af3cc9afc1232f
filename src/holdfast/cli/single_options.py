"""The options of the commands, one by one; `holdfast.cli.options` has them by kind."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.api.folders import no_run
from holdfast.audits.suites import suite_names
from holdfast.cli.console import volume
from holdfast.core.threat import Goal, Norm, parse_eps

__all__ = [
    "AnswerPath",
    "Answers",
    "Anyway",
    "Arch",
    "Binary",
    "Certify",
    "ClassNames",
    "Classes",
    "Data",
    "Device",
    "Eps",
    "Format",
    "FormatName",
    "GoalName",
    "Grid",
    "MaxQueries",
    "Model",
    "NormName",
    "Normalise",
    "Out",
    "Output",
    "Queries",
    "Quiet",
    "RadiusMax",
    "Request",
    "Samples",
    "Scores",
    "Seed",
    "Set",
    "Sigma",
    "Suite",
    "Surrogate",
    "SurrogateArch",
    "TableFile",
    "TopK",
    "Trust",
    "Verbose",
    "exact_size",
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
        metavar="JSON",
        show_default='{"inputs": $inputs}',
        rich_help_panel=_MODEL,
    ),
]
AnswerPath = Annotated[
    str | None,
    typer.Option(
        "--answer",
        help="Where its answer has the rows: predictions[*].scores, or predictions[*]{label: score}.",
        metavar="PATH",
        show_default="labels, scores or top",
        rich_help_panel=_MODEL,
    ),
]
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
        metavar="SIZE",
        show_default="2 eps",
        rich_help_panel=_RUN,
        callback=exact_size,
    ),
]
Sigma = Annotated[
    float | None,
    typer.Option(help="Noise of randomised smoothing.", metavar="S", show_default="0.25", rich_help_panel=_RUN),
]
Grid = Annotated[
    str | None,
    typer.Option(
        help="Judge on valid inputs only: multiples of this (1/255 for 8-bit images).",
        metavar="STEP",
        rich_help_panel=_THREAT,
        callback=exact_size,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Keys all randomness.", metavar="S", show_default="0", rich_help_panel=_RUN)
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", metavar="D", show_default="cpu", rich_help_panel=_RUN)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A parameter of the method; see: holdfast methods NAME. May be repeated.",
        metavar="KEY=VALUE",
        rich_help_panel=_RUN,
    ),
]


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
