"""The plan of an audit: everything that decides its figures, diffable and hashable."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from typing_extensions import override

from holdfast.audits.lower_bound import LowerBound, SmoothedBound, canonical, lower_bound
from holdfast.audits.suite import Suite, SuiteEntry, SuiteRequest, load_suite
from holdfast.core.errors import UsageError, did_you_mean
from holdfast.core.files import read_yaml
from holdfast.core.threat import Access, Goal, Norm, ThreatModel, parse_eps, size_text
from holdfast.data.table import Table
from holdfast.models.wrap import Normalisation
from holdfast.session.spec import ModelSpec, Surrogates

__all__ = ["Plan", "names_of"]

_FIRST = frozenset(
    {
        "schema_version", "model", "arch", "trust", "normalise", "data", "train_data", "surrogate", "surrogate_arch",
        "samples", "norm", "eps", "low", "high", "goal", "suite", "certify", "radius_max", "sigma", "smoothing_samples",
        "grid", "eps_grid", "queries", "top_k", "answers", "classes", "max_queries", "seed", "chunk", "slots", "device",
    }
)  # fmt: skip
"""The fields that plans had when the first runs were made; a later one counts in the hash only where it is no default, so
that the hash of an old run stays what it was."""


Size = Annotated[Fraction, BeforeValidator(parse_eps)]
"""An exact size, however it was typed: ``8/255``, ``0.1``."""


class Plan(BaseModel):
    """What an audit does. Sizes are exact: write eps as ``8/255``.

    Two plans that say the same are one plan: the hash is of exact values, whatever way they were written, and leaves out what
    decides no figure (`trust`, and the budget `max_queries`).

    Attributes:
        model: file of the deployed model, ``predict.py:function``, or the URL of a prediction API; None for a module handed
            over in Python.
        arch: ``package.module:function`` that builds the architecture of a state dict, or ``timm:NAME``.
        trust: open files that can run code; never taken from a file.
        normalise: mean and standard deviation per channel that the deployment applies before the model.
        output: the output of an ONNX file that is meant, where it has several.
        binary: the model has one output: the logit, or the probability, of class 1 of 2.
        data: what to audit on: a file, a folder or ``digits:test``.
        class_names: names of the classes in the model's order; labels that are names are numbered by it.
        table: range, type and immutability of the columns, where the data are a table of their own values; a file of them
            is read at once.
        train_data: the training set, where the attacker knows it (survey row T06).
        surrogate: file of a model that the attacker owns, for transfer, or several for an ensemble.
        surrogate_arch: builds its architecture; one for all, or one for each.
        samples: the first so many rows; None is all.
        norm: the distortion that is bounded.
        eps: its bound.
        low: least feature value.
        high: largest feature value.
        goal: untargeted, or targeted at the class after the label.
        suite: which attacks.
        certify: which certificate.
        radius_max: largest radius that a certificate is searched for; None: 2 eps.
        sigma: noise of smoothing.
        smoothing_samples: draws per sample of smoothing.
        grid: distance of neighbouring valid feature values, to judge the witnesses on (1/255 for 8-bit images).
        eps_grid: further sizes at which the samples are attacked for the security curve.
        queries: the most queries for one sample of a black-box attack.
        top_k: how many classes the deployment shows; None is all.
        answers: what the deployment answers: scores, or labels alone.
        scores: what the scores of a prediction API are.
        request: the JSON that a prediction API wants, with placeholders; see `holdfast.models.template`.
        answer: the path of the rows in its answer.
        classes: how many classes a model has that does not say it, as a prediction API.
        max_queries: the most rows that may ever be sent to a prediction API; the consent to ask one that may bill.
        seed: keys all draws.
        chunk: samples of a journal row.
        slots: samples of a batch.
        device: where the model runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    schema_version: Literal["1"] = "1"
    model: str | None = None
    arch: str | None = None
    trust: bool = False
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    output: str | None = None
    binary: Literal["logit", "probability"] | None = None
    data: str = "digits:test"
    class_names: tuple[str, ...] | None = None
    table: Table | None = None
    train_data: str | None = None
    surrogate: str | tuple[str, ...] | None = None
    surrogate_arch: str | tuple[str, ...] | None = None
    samples: int | None = Field(default=None, ge=1)
    norm: Norm = Norm.LINF
    eps: Size = Fraction(1, 10)
    low: float = 0.0
    high: float = 1.0
    goal: Goal = Goal.UNTARGETED
    suite: str = "fast"
    certify: str = "crown"
    radius_max: Size | None = None
    sigma: float = Field(default=0.25, gt=0)
    smoothing_samples: int = Field(default=2000, ge=100)
    grid: Size | None = None
    eps_grid: tuple[Size, ...] = ()
    queries: int | None = Field(default=None, ge=1)
    top_k: int | None = Field(default=None, ge=1)
    answers: Literal["scores", "labels"] = "scores"
    scores: Literal["probabilities", "logits"] = "probabilities"
    request: str | None = None
    answer: str | None = None
    classes: int | None = Field(default=None, ge=2)
    max_queries: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    chunk: int = Field(default=256, ge=1)
    slots: int = Field(default=256, ge=1)
    device: str = "cpu"

    _typed: dict[str, str] = PrivateAttr(default_factory=dict)
    _theirs: frozenset[str] = PrivateAttr(default=frozenset())
    _may_ask: bool = PrivateAttr(default=False)
    _stepped_down: str = PrivateAttr(default="")

    @field_validator("eps_grid", mode="before")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        """Each size once, by its value."""
        return tuple(sorted({parse_eps(v) for v in value or ()}))

    @model_validator(mode="wrap")
    @classmethod
    def _remember_texts(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """The sizes as they were typed, since that is how their reader thinks of them; the hash is of the values."""
        plan = handler(values)
        if isinstance(values, dict):
            given = cast("dict[str, Any]", values)
            plan._typed = {k: str(given[k]).strip() for k in ("eps", "radius_max", "grid") if given.get(k) is not None}
        return plan

    @field_serializer("eps", "radius_max", "grid")
    def _as_typed(self, value: Fraction | None, info: FieldSerializationInfo) -> str | None:
        return None if value is None else self._text(info.field_name, value)

    @field_serializer("eps_grid")
    def _as_fractions(self, value: tuple[Fraction, ...]) -> tuple[str, ...]:
        return tuple(map(str, value))

    @field_validator("certify", mode="after")
    @classmethod
    def _one_name(cls, value: str) -> str:
        return canonical(value)

    @field_validator("suite", mode="after")
    @classmethod
    def _listed(cls, value: str) -> str:
        load_suite(value)
        return value

    @field_validator("table", mode="before")
    @classmethod
    def _table_of(cls, value: Any) -> Any:
        """The columns themselves, from a file where one is named: a plan holds what decides its figures."""
        return Table.read(Path(value)) if isinstance(value, str | Path) else value

    @field_validator("surrogate", "surrogate_arch", mode="after")
    @classmethod
    def _one_is_one(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        """One name is written as a name, so that a plan keeps the hash it had before there were several."""
        if isinstance(value, tuple):
            return (value[0] if len(value) == 1 else value) if value else None
        return value

    @override
    def model_post_init(self, context: Any) -> None:
        """Refuses combinations that cannot be had."""
        _ = self.threat
        if self.goal is Goal.TARGETED and "certify" not in self.model_fields_set:
            object.__setattr__(self, "certify", "none")
            self._stepped_down = "no certificates: they are about every other class, and --goal targeted is about one"
        if self.lower_bound is not None:
            self.lower_bound.refuse(self.norm)
        if self.goal is Goal.TARGETED and self.lower_bound is not None:
            raise UsageError("certificates are untargeted; use --certify none with --goal targeted")
        if self.remote and (not self.composition.queries_only or self.lower_bound is not None):
            raise UsageError("a prediction API can only be asked queries: use --suite black-box --certify none")
        _ = self.spec
        self.composition.refuse(self.suite_request)
        _ = self.surrogates
        if self.table is not None and (self.grid is not None or (self.low, self.high) != (0.0, 1.0)):
            raise UsageError("a table has ranges and whole numbers by column; leave out --grid, low and high")
        if self.grid is not None and self.grid == 0:
            raise UsageError("a grid of 0 has no distance between its points; for 8-bit images write --grid 1/255")

    @property
    def stepped_down(self) -> str:
        """What a default was set to because of what was asked, in words; empty if none was."""
        return self._stepped_down

    @property
    def threat(self) -> ThreatModel:
        """The threat model of the plan."""
        known = ("training-data",) * (self.train_data is not None) + ("surrogate",) * (self.surrogate is not None)
        return ThreatModel(
            norm=self.norm, eps=self.eps, goal=self.goal, access=self.access, low=self.low, high=self.high, grid=self.grid,
            known=known,
        )  # fmt: skip

    @property
    def spec(self) -> ModelSpec:
        """The model, and how it is to be read."""
        return ModelSpec(
            model=self.model,
            arch=self.arch,
            trust=self.trust,
            output=self.output,
            binary=self.binary,
            normalise=None if self.normalise is None else Normalisation(*self.normalise),
            class_names=self.class_names,
            classes=self.classes,
            table=self.table,
            answers=self.answers,
            top_k=self.top_k,
            scores=self.scores,
            request=self.request,
            answer=self.answer,
            max_queries=self.max_queries,
            token="model" not in self.theirs,  # it goes to no host but the one that the caller named himself
        )

    @property
    def surrogates(self) -> Surrogates | None:
        """The models of the attacker's own that the plan names."""
        named = Surrogates(models=names_of(self.surrogate), archs=names_of(self.surrogate_arch), trust=self.trust)
        return named if named.models else None

    @property
    def access(self) -> Access:
        """White-box, unless the suite only asks queries."""
        if not self.composition.queries_only:
            return Access.WHITE_BOX
        return Access.HARD_LABEL if self.answers == "labels" else Access.SOFT_LABEL

    @property
    def remote(self) -> bool:
        """The model is a prediction API."""
        return self.model is not None and self.model.startswith(("http://", "https://"))

    @property
    def composition(self) -> Suite:
        """The suite itself."""
        return load_suite(self.suite)

    @property
    def suite_request(self) -> SuiteRequest:
        """What the suite is put together from."""
        return SuiteRequest(
            norm=self.norm,
            goal=self.goal,
            queries=self.queries,
            labels_only=self.answers == "labels",
            has_surrogate=self.surrogate is not None or self.train_data is not None,
        )

    @property
    def entries(self) -> tuple[SuiteEntry, ...]:
        """The attacks of the suite that serve the norm and the goal, in order."""
        return self.composition.entries(self.suite_request)

    @property
    def eps_text(self) -> str:
        """eps as it was typed."""
        return self._text("eps", self.eps)

    @property
    def grid_text(self) -> str | None:
        """The grid as it was typed."""
        return None if self.grid is None else self._text("grid", self.grid)

    def _text(self, name: str, value: Fraction) -> str:
        typed = self._typed.get(name)
        return size_text(value) if typed is None or parse_eps(typed) != value else typed

    @property
    def lower_bound(self) -> LowerBound | None:
        """What certifies; None for nothing."""
        return lower_bound(self.certify, sigma=self.sigma, draws=self.smoothing_samples)

    @property
    def smoothing(self) -> float | None:
        """Noise of smoothing, where the verdicts are about g = smooth(f, sigma); None: they are about f."""
        return self.sigma if isinstance(self.lower_bound, SmoothedBound) else None

    @property
    def largest_radius(self) -> Fraction:
        """The largest radius that is searched for."""
        return 2 * self.eps if self.radius_max is None else self.radius_max

    @property
    def theirs(self) -> frozenset[str]:
        """The fields that were read from a file and that nobody confirmed since; see `holdfast.audits.consent`."""
        return self._theirs

    @property
    def may_ask(self) -> bool:
        """Whether the caller agreed to ask the API that only the file names."""
        return self._may_ask

    def confirmed(self, *, may_ask: bool = False, **values: Any) -> Plan:
        """The plan with some values that the caller gives, which are his own from then on."""
        plan = self.model_copy(update=values)
        plan._theirs, plan._may_ask = self._theirs - values.keys(), may_ask
        return plan

    def decisive(self) -> dict[str, Any]:
        """What decides the figures, by field: exact values, in one way of writing."""
        values = self.model_dump(mode="json")
        for name in ("eps", "radius_max", "grid"):
            values[name] = None if values[name] is None else str(parse_eps(values[name]))
        later = {k for k in values.keys() - _FIRST if values[k] == type(self).model_fields[k].get_default()}
        return {k: v for k, v in values.items() if k not in later} | {"trust": False, "max_queries": None}

    @property
    def sha256(self) -> str:
        """Hash of what is decisive: the same for the plan that `read` makes of `to_yaml`."""
        values = self.decisive()  # by name; inside a value order counts: that of a table's columns is the model's
        text = json.dumps({name: values[name] for name in sorted(values)}, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: Plan) -> list[str]:
        """In words, each field in which another plan decides otherwise."""
        mine, theirs = self.decisive(), other.decisive()
        shown = (self.model_dump(mode="json"), other.model_dump(mode="json"))
        return [
            f"{name} {_words(shown[0][name])} there, {_words(shown[1][name])} here"
            for name in shown[0]
            if mine.get(name) != theirs.get(name)
        ]

    def to_yaml(self) -> str:
        """The plan as YAML, defaults included; but for trust, which no file can grant."""
        values = self.model_dump(mode="json", exclude={"trust"})
        return yaml.dump(values, Dumper=_ExactDumper, sort_keys=False, allow_unicode=True)

    @classmethod
    def of(cls, **values: Any) -> Plan:
        """A plan from values.

        Raises:
            UsageError: an unknown key or a wrong value; the message names it and the fix.

        Example:
            >>> Plan.of(eps="8/255").largest_radius
            Fraction(16, 255)
        """
        unknown = [k for k in values if k not in cls.model_fields]
        if unknown:
            raise UsageError(f"a plan has no '{unknown[0]}'. {did_you_mean(unknown[0], cls.model_fields)}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            why = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:  # a combination that was refused in words
                raise UsageError(why) from None
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"plan: {where}: {why} (got {first['input']!r})") from None

    @classmethod
    def read(cls, path: Path, **given: Any) -> Plan:
        """A plan from a YAML file; tags, duplicate and unknown keys are refused.

        Args:
            path: the file.
            given: values in the place of the file's; they are the caller's own word, as nothing in the file is.

        Raises:
            UsageError: no such file, or no plan.
        """
        try:
            values = read_yaml(path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the plan {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: {error}") from None
        if not isinstance(values, dict) or not all(isinstance(k, str) for k in cast("dict[Any, Any]", values)):
            raise UsageError(f"{path}: a plan is a mapping of names to values")
        named = cast("dict[str, Any]", values)
        plan = cls.of(**named | {"trust": False} | given)
        plan._theirs = frozenset(named) - given.keys()
        return plan


def _words(value: Any) -> str:
    if value in (None, [], ()):
        return "none"
    return ",".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)


def names_of(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names in a field that holds none, one or several.

    Example:
        >>> names_of(None), names_of("a.pt"), names_of(("a.pt", "b.pt"))
        ((), ('a.pt',), ('a.pt', 'b.pt'))
    """
    return () if value is None else (value,) if isinstance(value, str) else value


class _ExactDumper(yaml.SafeDumper):
    """Safe dumping whose texts are read back as they were.

    PyYAML folds a text that holds other line breaks than a newline (U+0085, U+2028, a carriage return) in its plain and
    single-quoted styles, and they come back as spaces; in double quotes each is escaped.
    """

    @override
    def represent_str(self, data: str) -> yaml.ScalarNode:
        return yaml.ScalarNode("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_ExactDumper.add_representer(str, _ExactDumper.represent_str)
