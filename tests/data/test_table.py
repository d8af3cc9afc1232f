"""Tables with ranges of their own: units, whole numbers, columns that nobody may change, and names of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.core.errors import DataError, UsageError
from holdfast.core.sets import FeatureGrid, LpBall
from holdfast.core.threat import Norm
from holdfast.data.dataset import Dataset
from holdfast.data.load import load_data
from holdfast.data.table import Table
from holdfast.models.wrap import OneLogit, OneProbability, Ranged, with_two_classes
from holdfast.numerics.distance import contains, on_grid
from holdfast.numerics.project import snap_to_grid

TABLE = Table.of(
    {
        "columns": {
            "age": {"low": 18, "high": 99, "type": "integer"},
            "income": {"high": 250_000},
            "sex": {"immutable": True},
        }
    }
)
ROWS = torch.tensor([[18.0, 0.0, 1.0], [37.0, 125_000.0, 0.0], [99.0, 250_000.0, 1.0]])


def rows(x=ROWS, features=("age", "income", "sex")):
    return Dataset.of(x, torch.tensor([0, 1, 1])[: len(x)], features=features)


def test_columns_are_measured_in_their_ranges_and_come_back_whole():
    data = TABLE.to_units(rows())
    assert data.x.min() == 0
    assert data.x.max() == 1
    assert torch.allclose(data.x[1], torch.tensor([19 / 81, 0.5, 0.0]))
    assert torch.equal(TABLE.own(data.x)[:, 0], ROWS[:, 0].double())
    assert torch.allclose(Ranged(nn.Identity(), TABLE.low, TABLE.width)(data.x), ROWS)
    assert data.sha256 != rows().sha256


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (rows(torch.tensor([[17.0, 1.0, 0.0]])), "column 'age' is 17 in row 0, outside"),
        (rows(torch.tensor([[20.5, 1.0, 0.0]])), "holds integers"),
        (rows(features=("age", "pay", "sex")), "no column 'income'"),
        (rows(features=("income", "age", "sex")), "another order"),
        (rows(torch.ones(1, 2) * 20, features=None), "has 2 features and the table describes 3"),
        (Dataset.of(torch.ones(1, 3, dtype=torch.uint8), torch.tensor([0])), "uint8"),
        (Dataset.of(torch.ones(1, 1, 2, 2), torch.tensor([0])), "rows of columns"),
    ],
)
def test_data_that_do_not_fit_the_table_are_refused_by_column(data, words):
    with pytest.raises(DataError, match=words):
        TABLE.to_units(data)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"age": {}}, "has no 'columns'"),
        ({"columns": {"age": {"low": 5, "high": 5}}}, "is empty"),
        ({"columns": {"age": {"high": 0.5, "type": "integer"}}}, "runs between integers"),
        ({"columns": {"age": {"hihg": 5}}}, "age.hihg"),
        ({"columns": {}}, "columns"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_in_words(values, words):
    with pytest.raises(UsageError, match=words):
        Table.of(values)


def test_a_column_given_twice_is_refused(tmp_path):
    (tmp_path / "columns.yaml").write_text("columns:\n  age: {low: 0, high: 1}\n  age: {low: 0, high: 9}\n")
    with pytest.raises(UsageError, match="'age' is given twice"):
        Table.read(tmp_path / "columns.yaml")


class TestGridByFeature:
    x = torch.tensor([[19 / 81, 0.5, 0.0]])
    ball = LpBall.uniform(Norm.LINF, 0.1, 1, mask=TABLE.mask, grid=TABLE.grid)

    def test_whole_columns_snap_toward_the_clean_value_and_free_ones_stay(self):
        moved = torch.tensor([[19 / 81 + 2.7 / 81, 0.537, 0.0]])
        snapped = snap_to_grid(self.ball, moved, self.x)
        assert torch.allclose(TABLE.own(snapped), torch.tensor([[39.0, 0.537 * 250_000, 0.0]], dtype=torch.float64))
        assert on_grid(self.ball, snapped).all()
        assert not on_grid(self.ball, moved).any()
        assert contains(self.ball, snapped, self.x).all()

    def test_clean_rows_lie_on_it(self):
        units = TABLE.to_units(rows()).x
        assert on_grid(LpBall.uniform(Norm.LINF, 0.1, 3, grid=TABLE.grid), units).all()
        ages = torch.arange(18.0, 100)[:, None].expand(-1, 3).clone()
        table = Table.of({"columns": {k: {"low": 18, "high": 99, "type": "integer"} for k in "abc"}})
        data = table.to_units(Dataset.of(ages, torch.zeros(len(ages), dtype=torch.long)))
        assert on_grid(LpBall.uniform(Norm.LINF, 0.1, len(ages), grid=FeatureGrid((81.0,) * 3)), data.x).all()


def test_a_mask_keeps_immutable_columns_in_every_kind_of_attack():
    from holdfast.attacks.engine import run
    from holdfast.core.problem import Problem
    from holdfast.core.registry import method
    from holdfast.testing.contract import reduced

    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.rand(12, 3)
    with torch.no_grad():
        model.bias[1] -= (model(x) @ torch.tensor([-1.0, 1.0])).median()
    y = model(x).argmax(1)
    for name in ("pgd", "square", "fmn", "hopskipjump"):
        ball = LpBall.uniform(Norm.LINF, 0.4, 12, mask=TABLE.mask)
        found = run(reduced(method(name)(), {"queries": 300}), Problem.of(x, y, ball), model)
        assert found.found.any()
        assert torch.equal(found.x[:, 2], x[:, 2]), name


class TestClassNames:
    def csv(self, path):
        (path / "t.csv").write_text("a,label\n0.1,malignant\n0.2,benign\n")
        return path / "t.csv"

    def test_nobody_is_left_to_guess_the_order(self, tmp_path):
        data = load_data(self.csv(tmp_path))
        assert data.y.tolist() == [1, 0]
        assert "numbered alphabetically (0 benign, 1 malignant)" in data.notes[0]

    def test_the_models_order_can_be_given(self, tmp_path):
        data = load_data(self.csv(tmp_path), classes=("malignant", "benign", "unknown"))
        assert (data.y.tolist(), data.classes, data.notes) == ([0, 1], ("malignant", "benign", "unknown"), ())

    def test_a_name_that_is_missing_is_told(self, tmp_path):
        with pytest.raises(DataError, match="has a class 'malignant' that --class-names lacks"):
            load_data(self.csv(tmp_path), classes=("malign", "benign"))

    def test_numbers_get_names(self, tmp_path):
        np.savez(tmp_path / "d.npz", x=np.zeros((2, 3), np.float32), y=np.array([0, 1]))
        assert load_data(tmp_path / "d.npz", classes=("no", "yes")).classes == ("no", "yes")


def test_one_output_becomes_two_classes_with_the_same_decision():
    s = torch.tensor([[-2.0], [0.5], [3.0]])
    one = with_two_classes(nn.Identity(), "logit")
    assert isinstance(one, OneLogit)
    assert one(s).argmax(1).tolist() == [0, 1, 1]
    assert isinstance(with_two_classes(nn.Identity(), "probability"), OneProbability)
    assert with_two_classes(nn.Identity(), "probability")(s.sigmoid()).argmax(1).tolist() == [0, 1, 1]
    assert one(s[:0]).shape == (0, 2)


class TestSeenIn:
    @given(
        st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=8),
        st.sampled_from([("age", "yes", "a: b"), ("1", "null", 'say "x"'), ("x#y", "é", "- z"), None]),
    )
    @settings(max_examples=60, deadline=None)
    def test_a_first_version_is_read_back_and_holds_all_values(self, rows, names):
        data = Dataset.of(torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64), features=names)
        made = Table.seen_in(data)
        assert Table.of(yaml.safe_load(made.to_yaml())) == made
        assert made.to_units(data).x.shape == data.x.shape

    def test_whole_numbers_are_integers_and_a_constant_has_room(self):
        data = Dataset.of(torch.tensor([[3.0, 7.0, 0.5], [5.0, 7.0, 0.25]]), torch.tensor([0, 1]))
        age, constant, share = Table.seen_in(data).columns.values()
        assert (age.low, age.high, age.type) == (3, 5, "integer")
        assert (constant.low, constant.high) == (7, 8)
        assert share.type == "number"

    def test_pictures_and_nan_are_refused(self):
        with pytest.raises(DataError, match="rows of columns"):
            Table.seen_in(Dataset.of(torch.rand(2, 1, 2, 2), torch.tensor([0, 1])))
        with pytest.raises(DataError, match="not finite"):
            Table.seen_in(Dataset.of(torch.tensor([[1.0, float("nan")]]), torch.tensor([0])))
