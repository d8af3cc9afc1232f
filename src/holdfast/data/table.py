"""Tables of features with ranges of their own: what each column may be, and the unit in which its change is measured.

A column with the range [low, high] becomes ``(value - low) / (high - low)``, so that a perturbation of size eps is a
share of each column's range; the model gets the columns' own values back (`holdfast.models.wrap.Ranged`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.errors import DataError, UsageError, did_you_mean
from holdfast.core.files import read_yaml
from holdfast.core.kinds import is_dict
from holdfast.core.sets import FeatureGrid, LpBall
from holdfast.core.threat import Norm
from holdfast.data.dataset import Dataset

__all__ = ["Column", "Table"]

_SHAPE = "write it as 'columns: {age: {low: 18, high: 99, type: integer}, sex: {high: 1, immutable: true}}'"


class Column(BaseModel):
    """What one column may be.

    Attributes:
        low: least value.
        high: largest value.
        type: any number, or whole ones.
        immutable: the attacker cannot change it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = 0.0
    high: float = 1.0
    type: Literal["number", "integer"] = "number"
    immutable: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> Column:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range [{self.low:g}, {self.high:g}] is empty or not finite; give low below high")
        if self.type == "integer" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"an integer column runs between integers, not from {self.low:g} to {self.high:g}")
        return self


class Table(BaseModel):
    """The columns of a table in their order.

    Attributes:
        columns: by name.

    Example:
        >>> table = Table.of({"columns": {"age": {"low": 20, "high": 60, "type": "integer"}, "share": {}}})
        >>> data = Dataset.of(torch.tensor([[30.0, 0.5]]), torch.tensor([0]), features=("age", "share"))
        >>> table.to_units(data).x.tolist()
        [[0.25, 0.5]]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, Column] = Field(min_length=1)

    @classmethod
    def of(cls, values: Any, source: str = "the table") -> Table:
        """A table from plain values.

        Raises:
            UsageError: not of that form; the message names the column and what is wrong.
        """
        columns = values.get("columns") if is_dict(values) else None
        if not is_dict(columns):
            raise UsageError(f"{source} has no 'columns'; {_SHAPE}")
        filled: dict[Any, Any] = {name: {} if column is None else column for name, column in columns.items()}
        try:
            return cls(**{**values, "columns": filled})  # pyright: ignore[reportArgumentType]  # checked by pydantic
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "it"
            raise UsageError(f"{source}: {where}: {first['msg'].removeprefix('Value error, ')}; {_SHAPE}") from None

    @classmethod
    def read(cls, path: Path) -> Table:
        """A table from a YAML file.

        Raises:
            UsageError: no such file, no YAML, or not of that form.
        """
        try:
            values = read_yaml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"there is no table at {path} ({error.strerror}); {_SHAPE}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: {error}") from None
        return cls.of(values, str(path))

    @classmethod
    def seen_in(cls, data: Dataset) -> Table:
        """A first version: each column with the range of its values, and as integers where all are whole.

        Raises:
            DataError: no rows of columns, or values that are not finite.

        Example:
            >>> rows = torch.tensor([[30.0, 0.5], [45.0, 0.25]])
            >>> Table.seen_in(Dataset.of(rows, torch.tensor([0, 1]), features=("age", "share"))).columns["age"].high
            45.0
        """
        x = data.x.double()
        if x.ndim != 2:
            raise DataError(f"{data.name} has inputs of shape {tuple(x.shape[1:])}; a table's are rows of columns")
        if not bool(x.isfinite().all()):
            raise DataError(f"{data.name} holds values that are not finite; remove or repair their rows first")
        names = data.features or tuple(f"column_{i}" for i in range(x.shape[1]))
        return cls(columns={name: _seen(values) for name, values in zip(names, x.unbind(1), strict=True)})

    def to_yaml(self) -> str:
        """The table as YAML, a line a column, what is a default left out."""
        lines = ["columns:"]
        for name, column in self.columns.items():
            told = {"low": column.low, "high": column.high} | column.model_dump(exclude_defaults=True)
            told = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in told.items()}
            value = yaml.safe_dump(told, default_flow_style=True, sort_keys=False, width=10**6)
            lines.append(f"  {json.dumps(name) if _needs_quotes(name) else name}: {value.strip()}")
        return "\n".join(lines) + "\n"

    @property
    def low(self) -> Tensor:
        """(columns,) float64 least values."""
        return torch.tensor([c.low for c in self.columns.values()], dtype=torch.float64)

    @property
    def width(self) -> Tensor:
        """(columns,) float64 widths of the ranges."""
        return torch.tensor([c.high for c in self.columns.values()], dtype=torch.float64) - self.low

    @property
    def mask(self) -> Tensor | None:
        """(1, columns) bool: True where the attacker may change a value; None where all may change."""
        fixed = [c.immutable for c in self.columns.values()]
        return ~torch.tensor([fixed]) if any(fixed) else None

    @property
    def grid(self) -> FeatureGrid | None:
        """The whole values of integer columns, in units of the range; None where there are none."""
        steps = [c.high - c.low if c.type == "integer" else 0.0 for c in self.columns.values()]
        return FeatureGrid(tuple(steps)) if any(steps) else None

    def to_units(self, data: Dataset) -> Dataset:
        """The data with each column in units of its range, in the table's order.

        Raises:
            DataError: columns are missing or too many, a value lies outside its range, or is no integer where one is due.
        """
        x = data.x.double()
        names = tuple(self.columns)
        if x.ndim != 2:
            raise DataError(f"{data.name} has inputs of shape {tuple(x.shape[1:])}; a table's are rows of columns")
        if data.features is None and x.shape[1] != len(names):
            raise DataError(f"{data.name} has {x.shape[1]} features and the table describes {len(names)} columns")
        if data.features is not None:
            missing, extra = [n for n in names if n not in data.features], set(data.features) - set(names)
            if missing:
                raise DataError(f"{data.name} has no column '{missing[0]}'. {did_you_mean(missing[0], data.features)}")
            if extra:
                raise DataError(
                    f"the table says nothing of the column '{sorted(extra)[0]}' of {data.name}; describe it"
                )
            if data.features != names:
                raise DataError(
                    f"{data.name} has the columns in another order than the table; the model sees them in the file's "
                    f"order, so write the table so: {', '.join(data.features)[:300]}"
                )
        if any("uint8" in note for note in data.notes):
            raise DataError(f"{data.name} holds uint8, which was divided by 255; save a table's values as float32")
        units = (x - self.low) / self.width
        for i, (name, column) in enumerate(self.columns.items()):
            self._check(data.name, name, column, x[:, i])
        made = units.float().clamp(0, 1)
        note = "each column is in units of its range, as the table has it"
        return replace(data, x=made, features=names, sha256=fingerprint_arrays(made, data.y), notes=(*data.notes, note))

    def ball(self, norm: Norm | str, eps: float | str, n: int) -> LpBall:
        """The set of ``n`` rows in units: the same share of each column's range, immutable columns left alone."""
        return LpBall.uniform(norm, eps, n, mask=self.mask)

    def own_changes(self, size: np.ndarray) -> dict[str, np.ndarray]:
        """By column, (n,) how far a change of a size (n,) in units moves it at most; whole steps where it holds integers."""
        found: dict[str, np.ndarray] = {}
        for name, column in self.columns.items():
            moved = size * (0.0 if column.immutable else column.high - column.low)
            found[name] = np.floor(moved) if column.type == "integer" else moved
        return found

    def own(self, x: Tensor) -> Tensor:
        """(n, columns) float64 values of the columns themselves, from units; whole where they are integers."""
        values = x.detach().cpu().double() * self.width + self.low
        whole = torch.tensor([c.type == "integer" for c in self.columns.values()])
        near = (values - values.round()).abs() < 1e-3  # float32 units of a wide range
        return torch.where(whole & near, values.round(), values)

    @staticmethod
    def _check(data: str, name: str, column: Column, values: Tensor) -> None:
        outside = ((values < column.low) | (values > column.high)).nonzero().flatten()
        if len(outside):
            raise DataError(
                f"{data}: column '{name}' is {float(values[outside[0]]):g} in row {int(outside[0])}, outside "
                f"[{column.low:g}, {column.high:g}]; correct the row or the table"
            )
        broken = (values != values.round()).nonzero().flatten()
        if column.type == "integer" and len(broken):
            raise DataError(
                f"{data}: column '{name}' is {float(values[broken[0]]):g} in row {int(broken[0])}, and the table says "
                "that it holds integers"
            )


def _seen(values: Tensor) -> Column:
    """A column by (n,) float64 values that it has."""
    low, high = float(values.min()), float(values.max())
    if bool((values == values.round()).all()) and max(abs(low), abs(high)) < 2**24:
        return Column(low=low, high=high if high > low else low + 1, type="integer")
    room = high - low or max(1.0, abs(high))
    step = 10.0 ** (floor(log10(room)) - 2)  # three digits of the width
    floored, ceiled = (float(f"{whole * step:.12g}") for whole in (floor(low / step), ceil(high / step)))
    # rounding may leave an end a trifle inside
    return Column(low=min(floored, low), high=max(ceiled, high) if ceiled > floored else low + room)


def _needs_quotes(name: str) -> bool:
    """Whether YAML would read a plain name as something else than this text."""
    try:
        return yaml.safe_load(f"{name}: 1") != {name: 1}
    except yaml.YAMLError:
        return True
