"""VNN-LIB files: what they say exactly, what queries and witnesses make of it, and what is refused."""

import gzip
import random
from fractions import Fraction
from itertools import pairwise, product

import pytest
import torch

from holdfast.certifiers.verification.vnnlib import parse_counterexample, parse_vnnlib, read_property, read_vnnlib
from holdfast.core.errors import DataError, HoldfastError, UnsupportedError
from holdfast.graph.model import Graph, Node


def _declared(inputs=2, outputs=2):
    names = [*(f"X_{i}" for i in range(inputs)), *(f"Y_{j}" for j in range(outputs))]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def _box(inputs=2, low="0", high="1"):
    return "".join(f"(assert (>= X_{i} {low}))(assert (<= X_{i} {high}))\n" for i in range(inputs))


def _linear(weight):
    return Graph(
        (
            Node(op="input", inputs=(), shape=weight.shape[1:]),
            Node(op="linear", inputs=(0,), shape=weight.shape[:1], tensors={"weight": weight}),
        )
    )


def _graph(inputs=2):
    return _linear(torch.ones(2, inputs))


def _identity():
    return _linear(torch.eye(2))


# --- what a text says -------------------------------------------------------------------------------------------------


def test_a_box_and_a_disjunction():
    found = parse_vnnlib(_declared() + _box() + "(assert (or (and (<= Y_0 Y_1) (>= Y_0 0.1)) (<= Y_1 -2.5)))")
    (box,) = found.boxes
    assert [b.number for b in box.lower + box.upper] == [0, 0, 1, 1]
    assert [len(group) for group in box.groups] == [2, 1]
    first, second = box.groups[0]
    assert dict(first.factors) == {0: 1, 1: -1}
    assert first.offset == 0
    assert dict(second.factors) == {0: -1}
    assert second.offset == Fraction(1, 10)
    assert dict(box.groups[1][0].factors) == {1: 1}
    assert box.groups[1][0].offset == Fraction(5, 2)


def test_boxes_in_a_disjunction_become_queries_of_their_own_and_equal_ones_are_joined():
    text = _declared() + (
        "(assert (>= X_1 0))(assert (<= X_1 1))"
        "(assert (or (and (>= X_0 0) (<= X_0 1) (<= Y_0 0)) (and (>= X_0 5) (<= X_0 6) (<= Y_0 1))"
        "            (and (<= X_0 1) (>= X_0 0) (>= Y_1 7))))"
    )
    found = parse_vnnlib(text)
    assert [[float(b.number) for b in box.lower] for box in found.boxes] == [[0, 0], [5, 0]]
    assert [len(box.groups) for box in found.boxes] == [2, 1]
    queries = found.queries(_graph())
    assert [q.groups.tolist() for q in queries] == [[0, 1], [0]]
    assert queries[1].upper.tolist() == [6, 1]


def test_assertions_with_disjunctions_multiply_out():
    halves = "(assert (or (<= Y_0 0) (>= Y_0 1)))(assert (or (<= Y_1 0) (>= Y_1 1)))"
    (box,) = parse_vnnlib(_declared() + _box() + halves).boxes
    assert [len(group) for group in box.groups] == [2, 2, 2, 2]


def test_an_intersection_of_boxes_that_is_empty_drops_out():
    text = _declared(1, 1) + (
        "(assert (or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 4) (<= X_0 5))))(assert (or (<= X_0 2) (>= X_0 9)))"
        "(assert (<= Y_0 0))"
    )
    (box,) = parse_vnnlib(text).boxes
    assert (box.lower[0].number, box.upper[0].number) == (0, 1)


@pytest.mark.parametrize(
    ("term", "factors", "offset"),
    [
        ("(<= (+ Y_0 (* 2 Y_1) -3) 0)", {0: 1, 1: 2}, -3),
        ("(>= (- Y_0 Y_1 1) (- 2))", {0: -1, 1: 1}, -1),
        ("(<= (/ Y_0 4) (* 0.5 (+ Y_1 1)))", {0: Fraction(1, 4), 1: Fraction(-1, 2)}, Fraction(-1, 2)),
        ("(<= (* Y_0 (- 1 3) (+ 1 1)) 1e-3)", {0: -4}, Fraction(-1, 1000)),
        ("(<= Y_0 +.5)", {0: 1}, Fraction(-1, 2)),
    ],
)
def test_linear_terms(term, factors, offset):
    (box,) = parse_vnnlib(_declared() + _box() + f"(assert {term})").boxes
    assert dict(box.groups[0][0].factors) == factors
    assert box.groups[0][0].offset == offset


def test_an_input_may_be_bounded_in_a_linear_term():
    (box,) = parse_vnnlib(
        _declared(1, 1) + "(assert (<= (+ (* -2 X_0) 1) 3))(assert (= X_0 (- 1)))(assert (<= Y_0 0))"
    ).boxes
    assert (box.lower[0].number, box.upper[0].number) == (-1, -1)


def test_the_normal_form_means_what_the_text_means():
    """Random formulas over a grid of points: unsafe by the boxes if and only if the formula is true."""
    rng = random.Random(0)
    names = ["X_0", "X_1", "Y_0", "Y_1"]

    def formula(depth):
        if depth == 0 or rng.random() < 0.3:
            name, sign = rng.choice(names), rng.choice(["<=", ">=", "<", ">"])
            right = rng.choice(["Y_0", "Y_1"]) if name[0] == "Y" and rng.random() < 0.4 else str(rng.randint(-1, 2))
            return [sign, name, right]
        return [rng.choice(["and", "or"]), *(formula(depth - 1) for _ in range(rng.randint(1, 3)))]

    def text(f):
        return f if isinstance(f, str) else f"({' '.join(map(text, f))})"

    def true(f, at):
        head, *parts = f
        if head in ("and", "or"):
            return (all if head == "and" else any)(true(part, at) for part in parts)
        left, right = (at[p] if p in at else int(p) for p in parts)
        return {"<=": left <= right, ">=": left >= right, "<": left < right, ">": left > right}[head]

    tried, refused = 0, []
    while tried < 80:
        f = [formula(3) for _ in range(rng.randint(1, 3))]
        try:
            found = parse_vnnlib(_declared() + _box(2, "-1", "2") + "".join(f"(assert {text(g)})" for g in f))
        except DataError as error:
            refused.append(str(error))
            continue
        tried += 1
        for at in product((-1, 0, 1, 2), repeat=4):
            expected = all(true(g, dict(zip(names, at, strict=True))) for g in f)
            assert found.breaks([str(v) for v in at[:2]], torch.tensor([at[2:]])) == expected
    known = ("contradict", "unsafe whatever", "empty")
    assert all(any(word in text for word in known) for text in refused)


# --- what is refused --------------------------------------------------------------------------------------------------

_GOOD = _declared() + _box()


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (_GOOD + "\n(assert (<= Y_0 0)", DataError, "line 8: a parenthesis opens here"),
        (_GOOD + "(assert (<= Y_0 0)))", DataError, "outside of parentheses"),
        (_GOOD + "(asert (<= Y_0 0))", DataError, r"line 7: .*asert"),
        (_GOOD + "(assert (=< Y_0 0))", DataError, "=< Y_0 0"),
        (_GOOD + "(assert (not (<= Y_0 0)))", DataError, "not"),
        (_GOOD + "(assert (<= Y_2 0))", DataError, "Y_2 is used before it is declared"),
        (_GOOD + "(assert (<= Y_0 zero))", DataError, "'zero' is neither"),
        (_GOOD + "(assert (<= Y_0 nan))", DataError, "'nan' is neither"),
        (_GOOD + "(assert (<= Y_0 1e999))", DataError, "beyond float64"),
        (_GOOD + "(assert (<= (+ (* 1e308 Y_0) (* 1e308 Y_0)) 1))", UnsupportedError, "beyond float64"),
        (_GOOD + "(assert (<= (+ Y_0 1e308 1e308) 1))", UnsupportedError, "beyond float64"),
        (_GOOD + "(assert (<= (* 1e-300 X_0) 1e300))(assert (<= Y_0 0))", UnsupportedError, "bound .* beyond float64"),
        (_GOOD + "(assert (<= Y_0 \u0661))", DataError, "neither a number"),
        (_GOOD + "(assert (<= Y_0 1e99999999))", DataError, "neither a number"),
        (_GOOD + "(assert (<= (* Y_0 Y_1) 0))", UnsupportedError, r"not linear: \(<= \(\* Y_0 Y_1\) 0\)"),
        (_GOOD + "(assert (<= (/ 1 Y_1) 0))", UnsupportedError, "division"),
        (_GOOD + "(assert (<= X_0 Y_0))", UnsupportedError, "together"),
        (_GOOD + "(assert (<= X_0 X_1))", UnsupportedError, "one by one"),
        (_GOOD + "(assert (>= X_1 1.5))(assert (<= Y_0 0))", DataError, "the box is empty: X_1 .* 1.5 and at most 1.0"),
        (_GOOD + "(assert (> X_1 1))(assert (<= Y_0 0))", DataError, "the box is empty"),
        (_GOOD + "(assert (or (>= X_1 3) (<= X_0 -1)))(assert (<= Y_0 0))", DataError, "contradict"),
        (_GOOD, DataError, "whatever the outputs"),
        (
            _declared() + "(assert (>= X_0 0))(assert (<= Y_0 0))",
            DataError,
            r"X_1 has no lower bound; add \(assert \(>=",
        ),
        (_declared() + "(assert (<= X_0 0))(assert (<= Y_0 0))", DataError, "X_0 has no lower bound"),
        (_declared() + "(declare-const X_0 Real)", DataError, "second time"),
        (_declared() + "(declare-const X_3 Real)", DataError, "X_2 is not declared"),
        (_declared() + "(declare-const Z Real)", DataError, "names are"),
        (_declared() + "(declare-const X_2 Int)", DataError, "Int"),
        (_declared(0, 1), DataError, "declares no X_0"),
        ("", DataError, "declares no X_0"),
        ("nonsense", DataError, "line 1: .*outside"),
        (_GOOD + "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 17, UnsupportedError, "131072 disjuncts .*split"),
        (_GOOD + f"(assert (and {'(or (<= Y_0 0) (<= Y_1 0))' * 17}))", UnsupportedError, "131072 disjuncts .*split"),
        (_GOOD + "(assert " + "(and " * 5000 + "(<= Y_0 0)" + ")" * 5001, UnsupportedError, "nested"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, kind, says):
    with pytest.raises(kind, match=says):
        parse_vnnlib(text)


def test_a_property_of_another_network_is_refused():
    found = parse_vnnlib(_declared(3, 2) + _box(3) + "(assert (<= Y_0 0))")
    with pytest.raises(DataError, match=r"X_0 to X_2, the network has 2 inputs"):
        found.queries(_graph())


@pytest.mark.parametrize("row", ["(<= (* 1e-400 Y_0) 1)", "(<= (* 1e-300 1e-300 Y_0) 1)", "(>= (/ Y_0 1e250) 1e90)"])
def test_a_row_that_no_scale_fits_into_float64_is_refused(row):
    with pytest.raises(UnsupportedError, match="float64 cannot hold"):
        parse_vnnlib(_GOOD + f"(assert {row})").queries(_graph())


def test_mutated_texts_are_refused_in_words_or_read():
    errors, rng, good = [], random.Random(1), _GOOD + "(assert (or (and (<= Y_0 (* 2 Y_1))) (>= Y_1 0.5)))"
    for _ in range(400):
        text = list(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 3)] = rng.choice(["", "(", ")", "Y_9", "1e", "/", "; ", "-"])
        try:
            parse_vnnlib("".join(text))
        except HoldfastError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert all("the property" in error for error in errors)


def test_files(tmp_path):
    text = _GOOD + "(assert (<= Y_0 0))"
    plain, packed = tmp_path / "p.vnnlib", tmp_path / "p.vnnlib.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_property(plain).boxes == read_property(packed).boxes
    assert len(read_vnnlib(packed, _graph())) == 1
    packed.write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(DataError, match="no VNN-LIB file"):
        read_property(packed)
    plain.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="no VNN-LIB file"):
        read_property(plain)
    with pytest.raises(DataError, match="cannot read"):
        read_property(tmp_path / "absent.vnnlib")


# --- rounding ---------------------------------------------------------------------------------------------------------


def test_the_queries_cover_the_files_numbers():
    rng = random.Random(0)
    for _ in range(300):
        number = rng.choice([repr(rng.uniform(-2, 2)), f"{rng.uniform(-2, 2):.9f}", f"{rng.uniform(-1, 1):.30f}"])
        exact = Fraction(number)
        text = _declared(1, 2) + f"(assert (= X_0 {number}))(assert (<= (* 2 Y_0) (+ Y_1 {number})))"
        (query,) = parse_vnnlib(text).queries(_graph(inputs=1))
        low, high, offset = (Fraction(float(v)) for v in (query.lower, query.upper, query.d))
        assert low <= exact <= high
        assert offset <= -exact  # a smaller offset makes more outputs unsafe, never fewer
        for value, side in ((query.lower, 1), (query.upper, -1)):  # and by an ulp at most
            next_one = torch.nextafter(value, torch.full_like(value, side * torch.inf))
            assert side * Fraction(float(next_one)) > side * exact or Fraction(float(value)) == exact


def test_factors_that_float64_lacks_are_scaled_exactly():
    (query,) = parse_vnnlib(_GOOD + "(assert (<= (+ (* 0.1 Y_0) (* 0.3 Y_1)) 0.7))").queries(_graph())
    ratio = Fraction(float(query.c[0, 1])) / Fraction(float(query.c[0, 0]))
    assert ratio == 3
    offset, scale = Fraction(float(query.d[0])), Fraction(float(query.c[0, 0])) * 10
    assert offset <= Fraction(-7, 10) * scale
    assert float(offset / scale) == pytest.approx(-0.7)
    with pytest.raises(UnsupportedError, match="fewer digits"):
        parse_vnnlib(_GOOD + "(assert (<= (+ (* 0.1234567890123456789 Y_0) (* 1e9 Y_1)) 0))").queries(_graph())


# --- witnesses --------------------------------------------------------------------------------------------------------


def test_a_witness_is_confirmed_in_exact_numbers_and_written_in_full():
    graph = _identity()
    said = parse_vnnlib(_declared() + _box(2, "0.1", "0.3") + "(assert (>= Y_0 0.2))")
    found = said.confirm(graph, torch.tensor([[0.25, 0.1]], dtype=torch.float64))
    assert found is not None
    assert found.text.startswith("sat\n((X_0 0.25)\n (X_1 ")
    assert found.text.rstrip().endswith("))")
    inputs = parse_counterexample(found.text, 2)
    assert Fraction(inputs[1]) >= Fraction(1, 10)  # float32 has no 0.1: rounded inward
    assert torch.equal(torch.tensor([float(v) for v in inputs], dtype=torch.float64), found.x[0])
    assert found.y.dtype == torch.float32
    assert said.breaks(inputs, found.y)
    assert said.confirm(graph, torch.tensor([[0.15, 0.1]])) is None


def test_a_point_that_no_float_holds_is_written_as_the_file_has_it():
    said = parse_vnnlib(_declared() + _box(2, "0.1", "0.1") + "(assert (>= Y_0 0.05))")
    found = said.confirm(_identity(), said.queries(_identity())[0].x)
    assert found is not None
    assert found.inputs == ("0.1", "0.1")


@pytest.mark.parametrize(
    ("low", "high", "runs"),
    [
        ("1e-400", "1e-400", False),
        ("-2e-400", "-1e-400", False),
        ("1e-310", "1e-309", False),
        ("1e-400", "1", True),
        ("-1", "-1e-400", True),
        ("-1e-400", "1e-400", True),
        ("1e-50", "1e-50", True),
        ("0", "0", True),
    ],
)
def test_an_input_that_reads_as_another_is_no_witness(low, high, runs):
    said = parse_vnnlib(_declared() + _box(2, low, high) + "(assert (<= Y_0 9))")  # every input of the box breaks it
    assert (said.unrunnable == "") == runs
    for x in (-1e-3, -1e-30, 0.0, 1e-30, 1e-3):
        found = said.confirm(_identity(), torch.full((1, 2), x))
        assert (found is not None) == runs
        for text, value in zip(found.inputs if found else (), found.x.flatten().tolist() if found else (), strict=True):
            assert Fraction(low) <= Fraction(text) <= Fraction(high)
            assert float(text) == value
            assert (Fraction(text) == 0) == (value == 0)
    assert not said.breaks(["1e-400", "1e-400"], torch.zeros(2))
    assert said.breaks(["0", "0"], torch.zeros(2)) == (low in ("0", "-1e-400"))


def test_what_is_strict_in_the_file_is_strict_for_a_witness():
    at = torch.tensor([[0.5, 0.5]])
    for sign, holds in ((">=", False), (">", True)):
        said = parse_vnnlib(_declared() + _box() + f"(assert ({sign} Y_0 0.5))")
        assert (said.confirm(_identity(), at) is None) == holds
        said = parse_vnnlib(
            _declared() + _box(2, "0", "0.5") + f"(assert (or (<= X_0 7) ({sign} 0.5 X_0)))(assert (<= Y_0 9))"
        )
        assert said.confirm(_identity(), at) is not None
    said = parse_vnnlib(_declared() + _box() + "(assert (< X_0 0.5))(assert (<= Y_0 9))")
    assert said.confirm(_identity(), at) is None


def test_not_a_number_confirms_nothing():
    said = parse_vnnlib(_GOOD + "(assert (<= Y_0 9))")
    assert said.confirm(_linear(torch.full((2, 2), torch.nan)), torch.zeros(1, 2)) is None


@pytest.mark.parametrize("text", ["sat\n((X_0 1))", "sat\n((X_0 1)(X_2 1))", "", "sat ((X_0 1)(X_1 e))"])
def test_no_counterexample(text):
    with pytest.raises(DataError, match="counterexample"):
        parse_counterexample(text, 2)


@pytest.mark.shared
def test_the_competitions_files(shared_data):
    found = {}
    for path in sorted((shared_data / "verification" / "dev").glob("*/vnnlib/*")):
        found.setdefault(path.parts[-3], []).append(path)
    assert len(found) == 13
    counted = {name: read_property(paths[0]) for name, paths in found.items()}
    assert (counted["mnist_fc"].inputs, counted["mnist_fc"].outputs) == (784, 10)
    assert (counted["ml4acopf_14"].inputs, len(counted["collins_rul_cnn"].boxes)) == (22, 1)
    six = next(path for path in found["acasxu"] if "prop_6" in path.name)
    assert [len(box.groups) for box in read_property(six).boxes] == [4, 4]
    sizes = [read_property(path).inputs for path in found["vit"][:3]]
    assert all(a == b == 3072 for a, b in pairwise(sizes))
