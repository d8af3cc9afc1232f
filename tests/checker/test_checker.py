"""The checker accepts what is proved, and nothing else."""

import gzip
import io
import json
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from recorded import boxed, by_inputs, by_neurons, declared, dense, least, propagated, random_dense, rows_of, save
from typer.testing import CliRunner

from holdfast.certifiers.verification import proof
from holdfast.certifiers.verification.tree import Leaf, Tree
from holdfast.certifiers.verification.vnnlib import read_vnnlib
from holdfast.checker import Rejected, check
from holdfast.checker.file import FORMAT, VERSION, content, sha256
from holdfast.checker.onnx_network import read_network
from holdfast.checker.propagation import NodeBounds
from holdfast.checker.property import read_property
from holdfast.checker.rounding import gamma, outward
from holdfast.cli.main import app
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.graph.onnx import read_onnx

LOW, HIGH = [-0.8] * 3, [0.9] * 3


def unsafe_below(path, threshold, more=""):
    path.write_text(declared(3, 2) + boxed(LOW, HIGH) + f"(assert (<= Y_0 {threshold!r})){more}")
    return path


class Proved:
    """A random network, a property that holds by a margin, and a proof of it."""

    def __init__(self, folder, solver, seed, margin=0.1, slope=None):
        self.net = random_dense(folder / f"{seed}.onnx", seed, slope=slope)
        self.graph = read_onnx(self.net)
        whole = read_vnnlib(unsafe_below(folder / f"{seed}.vnnlib", 0.0), self.graph)[0]
        self.least = least(self.graph, whole)[0]
        self.prop = unsafe_below(folder / f"{seed}.vnnlib", self.least - margin)
        self.queries = read_vnnlib(self.prop, self.graph)
        self.tree = solver(self.graph, self.queries[0])
        assert self.tree is not None
        self.file = folder / f"{seed}.proof"
        proof.write(self.file, self.net, self.prop, self.graph, self.queries, [self.tree])


@pytest.fixture(scope="module", params=[(by_inputs, 2), (by_neurons, 0)], ids=["inputs", "neurons"])
def proved(request, tmp_path_factory):
    """A proof with several leaves by either way of splitting."""
    found = Proved(tmp_path_factory.mktemp("proved"), *request.param)
    assert len(found.tree.vertices) > 10
    return found


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        arrays = {n: np.load(io.BytesIO(archive.read(n))) for n in archive.namelist() if n != "header.json"}
        return json.loads(archive.read("header.json")), arrays


def packed(path, header, arrays):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, value in arrays.items():
            stream = io.BytesIO()
            np.save(stream, value)
            archive.writestr(name, stream.getvalue())
    return path


def accepted(path, net, prop):
    try:
        return bool(check(path, net, prop))
    except Rejected:
        return False


def forged(path, net, prop, sizes, lower, upper, c, d, groups, **more):
    """A proof written by hand: at the root, or with the arrays given."""
    arrays = {
        "lower": np.asarray(lower, float), "upper": np.asarray(upper, float), "c": np.asarray(c, float),
        "d": np.asarray(d, float), "groups": np.asarray(groups, np.int32), "node": np.array([-1], np.int32),
        "index": np.zeros(1, np.int32), "point": np.zeros(1), "rows": np.zeros((1, 1), np.int32),
        "weighted": np.zeros(1, np.int32), "multipliers": np.zeros(0, np.float32),
    }  # fmt: skip
    told = {"slopes": sorted(int(k.split("/")[1]) for k in more if k.count("/") == 1), "root": []}
    header = {
        "format": FORMAT, "version": VERSION, "activations": sizes, "queries": [told],
        "network": {"path": str(net), "sha256": sha256(content(net))},
        "property": {"path": str(prop), "sha256": sha256(content(prop))},
    }  # fmt: skip
    return packed(path, header, {f"0/{k}.npy": v for k, v in {**arrays, **more}.items()})


# what is proved is accepted


@pytest.mark.parametrize("slope", [None, 0.1])
@pytest.mark.parametrize("solver", [by_inputs, by_neurons])
def test_proofs_of_random_networks(tmp_path, solver, slope):
    for seed in (1, 4) if solver is by_inputs else (4,):
        case = Proved(tmp_path, solver, seed, 0.6, slope)
        found = check(case.file, case.net, case.prop)
        assert found.leaves == (len(case.tree.vertices) + 1) // 2
        assert (found.network, found.cases) == (sha256(case.net.read_bytes()), 1)


def test_paths_in_the_file_and_a_packed_property(proved, tmp_path):
    assert check(proved.file).leaves > 5
    packed_prop = tmp_path / "p.vnnlib.gz"
    packed_prop.write_bytes(gzip.compress(proved.prop.read_bytes()))
    assert check(proved.file, proved.net, packed_prop).leaves > 5
    path = tmp_path / "packed.proof"
    proof.write(path, proved.net, packed_prop, proved.graph, proved.queries, [proved.tree])
    assert check(path).leaves > 5


def test_slopes_for_the_roots_boxes(tmp_path):
    case = Proved(tmp_path, by_neurons, 0, 0.5)
    relus = [i for i, node in enumerate(case.graph.nodes) if node.op == "relu"]
    second = case.graph.nodes[relus[1]].inputs[0]
    case.tree.slopes = {second: {relus[0]: np.full(8, 0.25, np.float32)}}
    proof.write(case.file, case.net, case.prop, case.graph, case.queries, [case.tree])
    assert check(case.file)  # boxes are never larger for it
    header, arrays = unpacked(case.file)
    for value in (-0.1, 1.1, np.nan):
        bad = {**arrays, "0/root/2/1.npy": np.full(8, value, np.float32)}
        assert not accepted(packed(tmp_path / "bad", header, bad), case.net, case.prop)


# mutations


def test_every_array_cut_short_or_of_another_type_is_rejected(proved, tmp_path):
    header, arrays = unpacked(proved.file)
    for name, value in arrays.items():
        if value.size:
            short = {**arrays, name: value[:-1]}
            assert not accepted(packed(tmp_path / "m", header, short), proved.net, proved.prop), name
        other = {**arrays, name: value.astype(np.int64 if value.dtype != np.int64 else float)}
        assert not accepted(packed(tmp_path / "m", header, other), proved.net, proved.prop), name
        gone = {k: v for k, v in arrays.items() if k != name}
        assert not accepted(packed(tmp_path / "m", header, gone), proved.net, proved.prop), name


def test_every_number_that_no_proof_may_hold_is_rejected(proved, tmp_path):
    header, arrays = unpacked(proved.file)
    for name, value in arrays.items():
        if value.dtype.kind != "f" or not value.size:
            continue
        splits = arrays["0/node.npy"] >= 0
        for worse in (np.nan, np.inf, -np.inf):
            changed = value.copy()
            changed[splits if "point" in name else ...] = worse
            assert not accepted(packed(tmp_path / "m", header, {**arrays, name: changed}), proved.net, proved.prop), (
                name
            )
    for name in ("0/multipliers.npy", "0/slopes/1.npy", "0/slopes/2.npy"):
        if arrays.get(name, np.zeros(0)).size:
            for worse in (-1e-3, 1.001):
                if "slopes" in name or worse < 0:
                    changed = arrays[name].copy()
                    changed[(0,) * changed.ndim] = worse
                    bad = {**arrays, name: changed}
                    assert not accepted(packed(tmp_path / "m", header, bad), proved.net, proved.prop), name


def test_the_tree(proved, tmp_path):
    header, arrays = unpacked(proved.file)
    node = arrays["0/node.npy"]
    leaf, split = int(np.nonzero(node < 0)[0][0]), int(np.nonzero(node >= 0)[0][-1])

    def with_(**changed):
        new = {**arrays, **{f"0/{k}.npy": v for k, v in changed.items()}}
        return accepted(packed(tmp_path / "m", header, new), proved.net, proved.prop)

    vertices = {k: arrays[f"0/{k}.npy"] for k in ("node", "index", "point")}
    assert with_()
    assert not with_(**{k: np.delete(v, leaf) for k, v in vertices.items()})  # a leaf is missing
    assert not with_(**{k: np.insert(v, leaf, v[leaf]) for k, v in vertices.items()})  # a leaf twice
    assert not with_(**{k: v[:1] for k, v in vertices.items()})  # the root alone
    for wrong in (-2, 3, 99):  # there is no such value
        assert not with_(node=np.where(np.arange(len(node)) == split, wrong, node).astype(np.int32))
    for wrong in (-1, 8, 99):  # nor such an entry
        index = arrays["0/index.npy"].copy()
        index[split] = wrong
        assert not with_(index=index)
    far = arrays["0/point.npy"] + 1e3
    assert not with_(point=far)  # then one child of each split is all of its parent
    assert not with_(node=np.array([-1], np.int32), index=np.zeros(1, np.int32), point=np.zeros(1))


def test_what_the_proof_is_about(proved, tmp_path):
    header, arrays = unpacked(proved.file)

    def with_(name, value):
        new = {**arrays, f"0/{name}.npy": value}
        return accepted(packed(tmp_path / "m", header, new), proved.net, proved.prop)

    lower, upper, c, d = (arrays[f"0/{k}.npy"] for k in ("lower", "upper", "c", "d"))
    assert not with_("lower", lower + 1e-12)  # a smaller box
    assert not with_("upper", upper - 1e-12)
    assert not with_("lower", lower - 10)  # a larger one, of which it is false
    assert not with_("c", -c)
    assert not with_("c", c * np.nextafter(1, 2) + np.array([[0, 1e-300]]))
    assert not with_("d", d + 1e-9)  # a weaker row
    assert not with_("d", d - 10)  # a stronger one, which is false
    assert with_("d", np.nextafter(d, -np.inf))
    for groups in ([1], [-1], [0, 0]):
        assert not with_("groups", np.array(groups, np.int32))
    for row in (1, -1):
        assert not with_("rows", np.full_like(arrays["0/rows.npy"], row))


def test_the_header(proved, tmp_path):
    header, arrays = unpacked(proved.file)
    changes = {
        "format": "another", "version": VERSION + 1, "activations": [8, 9], "queries": [],
        "network": {**header["network"], "sha256": "0" * 64}, "property": {**header["property"], "sha256": "0" * 64},
    }  # fmt: skip
    assert changes.keys() == header.keys()
    for key, value in changes.items():
        for new in ({**header, key: value}, {k: v for k, v in header.items() if k != key}):
            assert not accepted(packed(tmp_path / "m", new, arrays), proved.net, proved.prop), key
    for told in ({"slopes": [3], "root": []}, {"slopes": [], "root": [[1, [2]]]}, {}):
        assert not accepted(packed(tmp_path / "m", {**header, "queries": [told]}, arrays), proved.net, proved.prop)


def test_another_network_or_property(proved, tmp_path):
    other = random_dense(tmp_path / "other.onnx", 99)
    prop = unsafe_below(tmp_path / "other.vnnlib", proved.least + 0.1)
    with pytest.raises(Rejected, match="another network"):
        check(proved.file, other, proved.prop)
    with pytest.raises(Rejected, match="another property"):
        check(proved.file, proved.net, prop)
    header, arrays = unpacked(proved.file)
    for kind, path in (("network", other), ("property", prop)):
        header[kind]["sha256"] = sha256(path.read_bytes())
    # at another network the leaves do not prove it; the false property is in no query
    with pytest.raises(Rejected):
        check(packed(tmp_path / "m", header, arrays), other, prop)


def test_broken_files(proved, tmp_path):
    data, path = proved.file.read_bytes(), tmp_path / "m"
    rng = np.random.default_rng(0)
    whole = unpacked(proved.file)
    for size in [0, 1, 100, len(data) - 1, *rng.integers(0, len(data), 20)]:
        path.write_bytes(data[:size])
        assert not accepted(path, proved.net, proved.prop)
    for at in rng.integers(0, len(data), 200):
        broken = bytearray(data)
        broken[at] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bytes(broken))
        if accepted(path, proved.net, proved.prop):  # a byte that says nothing, such as a date
            header, arrays = unpacked(path)
            assert header == whole[0]
            assert all(np.array_equal(arrays[k], v) for k, v in whole[1].items())


def test_slopes_and_points_may_be_others_that_prove_it(proved, tmp_path):
    """Sound whatever they are: moved a little they still prove it."""
    header, arrays = unpacked(proved.file)
    inner = arrays["0/node.npy"] == 0
    moved = {**arrays, "0/point.npy": arrays["0/point.npy"] + 1e-9 * inner}
    for name in [n for n in arrays if n.startswith("0/slopes") and "leaves" not in n]:
        moved[name] = np.clip(moved[name] + np.float32(1e-9), 0, 1)
    assert accepted(packed(tmp_path / "m", header, moved), proved.net, proved.prop)


# what is false is never accepted


def test_forged_proofs_of_false_properties(proved, tmp_path):
    """The proof of a true property, turned into one of a false one and mutated at random in whatever may help it."""
    header, arrays = unpacked(proved.file)
    rng = np.random.default_rng(1)
    false = unsafe_below(tmp_path / "false.vnnlib", proved.least + 1e-3)
    header["property"]["sha256"] = sha256(false.read_bytes())
    arrays["0/d.npy"] = read_vnnlib(false, proved.graph)[0].d.numpy()
    for trial in range(150):
        new = dict(arrays)
        for name, value in arrays.items():
            if rng.random() < 0.5:
                continue
            if "slopes" in name and "leaves" not in name:
                new[name] = rng.random(value.shape, np.float32)
            elif "multipliers" in name:
                new[name] = (value * rng.random(value.shape) * 10 ** rng.uniform(-1, 2)).astype(np.float32)
            elif "point" in name:
                new[name] = value + rng.normal(size=value.shape) * 10 ** rng.uniform(-3, 0)
            elif "node" in name or "index" in name:
                new[name] = np.where(arrays["0/node.npy"] < 0, value, rng.integers(0, 3, value.shape)).astype(np.int32)
        assert not accepted(packed(tmp_path / "m", header, new), proved.net, false), trial


def test_random_proofs_with_planted_counterexamples(tmp_path):
    """Random trees, slopes and multipliers over random networks whose output is unsafe somewhere in the box."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        net = random_dense(tmp_path / "n.onnx", seed, (2, 4, 3, 2))
        session = onnxruntime.InferenceSession(net)
        x = rng.uniform(-1, 1, (1, 2)).astype(np.float32)
        bad = float(session.run(None, {"x": x})[0][0, 0])
        prop = tmp_path / "p.vnnlib"
        prop.write_text(declared(2, 2) + boxed([-1.0] * 2, [1.0] * 2) + f"(assert (<= Y_0 {bad + 1e-5!r}))")
        (query,) = read_vnnlib(prop, read_onnx(net))
        node = [-1]
        while len(node) < 31:  # a leaf becomes a split with two leaves
            at = int(rng.choice(np.nonzero(np.array(node) < 0)[0]))
            node[at : at + 1] = [int(rng.integers(0, 3)), -1, -1]
        node = np.array(node)
        depths = sum(_depths(node))
        size = {0: 2, 1: 4, 2: 3}
        leaves = int((node < 0).sum())
        file = forged(
            tmp_path / "f", net, prop, [4, 3], query.lower, query.upper, query.c, query.d, query.groups.numpy(),
            node=node.astype(np.int32),
            index=np.array([rng.integers(0, size.get(int(k), 1)) for k in node], np.int32),
            point=np.where(node == 0, rng.uniform(-1, 1, 31), rng.choice([0.0, 0.1], 31)),
            rows=np.zeros((leaves, 1), np.int32), weighted=np.ones(leaves, np.int32),
            multipliers=rng.exponential(size=depths).astype(np.float32),
            **{"slopes/1": rng.random((1, 4, leaves), np.float32), "slopes/1/leaves": np.arange(leaves, dtype=np.int32)},
        )  # fmt: skip
        with pytest.raises(Rejected, match="is not proved"):
            check(file, net, prop)


def _depths(node):
    open_, found = [0], []
    for k in node:
        depth = open_.pop()
        if k < 0:
            found.append(depth)
        else:
            open_ += [depth + 1, depth + 1]
    return found


@pytest.mark.parametrize("huge", [2.0**30, 2.0**60])
def test_rounding_that_hides_a_counterexample(tmp_path, huge):
    """The output is 0.5 - x_0: one sum with a huge number hides x_0 from floating point, the next takes it away."""
    identity = [[1.0, 0.0], [0.0, 0.0]], [huge, huge]
    traps = {
        "hidden": (identity, ([[-1.0, 1.0], [0.0, 0.0]], [0.5, 0.0])),
        "scaled": (([[huge, huge], [0.0, huge]], [0.0, 0.0]), ([[-1 / huge, 1 / huge], [0.0, 0.0]], [0.5, 0.0])),
    }
    prop, box = tmp_path / "p.vnnlib", ([-0.25, 0.25], [0.75, 0.75])
    half = {"node": np.array([0, -1, -1], np.int32), "index": np.zeros(3, np.int32), "point": np.full(3, 0.25),
            "rows": np.zeros((2, 1), np.int32), "weighted": np.zeros(2, np.int32)}  # fmt: skip
    for name, layers in traps.items():
        net = dense(tmp_path / f"{name}.onnx", *layers)
        for false_at in (0.0, -0.125):
            prop.write_text(declared(2, 2) + boxed(*box) + f"(assert (<= Y_0 {false_at}))")
            for more in ({}, half):
                file = forged(tmp_path / "f", net, prop, [2], *box, [[1.0, 0.0]], [-false_at], [0], **more)
                with pytest.raises(Rejected, match="is not proved"):
                    check(file, net, prop)
    # where rounding cannot hide that much, what is true is proved
    net = dense(tmp_path / "n.onnx", *traps["hidden"])
    prop.write_text(declared(2, 2) + boxed(*box) + "(assert (<= Y_0 -0.25390625))")
    file = forged(tmp_path / "f", net, prop, [2], *box, [[1.0, 0.0]], [0.25390625], [0])
    assert accepted(file, net, prop) == (huge < 2**50)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e120, 1e-120])
def test_numbers_that_are_none(tmp_path, value):
    layers = [np.eye(2), np.zeros(2)], [np.eye(2), np.ones(2)]
    for i in range(2):
        for part in range(2):
            weights = [[np.array(w, np.float64) for w in layer] for layer in layers]
            weights[i][part].flat[-1] = value
            constants = {f"{k}{n}": w for n, pair in enumerate(weights) for k, w in zip("wb", pair, strict=True)}
            nodes = [
                ("Gemm", ("x", "w0", "b0"), "z", {}),
                ("Relu", ("z",), "a", {}),
                ("Gemm", ("a", "w1", "b1"), "y", {}),
            ]
            net, prop = save(tmp_path / "n.onnx", nodes, constants, (2,), 2), tmp_path / "p.vnnlib"
            prop.write_text(declared(2, 2) + boxed([0.0] * 2, [1.0] * 2) + "(assert (<= Y_0 0))")
            file = forged(tmp_path / "f", net, prop, [2], [0, 0], [1, 1], [[1.0, 0.0]], [0.0], [0])
            with pytest.raises(Rejected, match="not a number or too large"):
                check(file, net, prop)


def test_the_rounding_of_a_dot_product_is_covered():
    rng = np.random.default_rng(0)
    for n in (3, 50, 2000):
        a, b = rng.normal(size=(2, n)) * 10 ** rng.uniform(-8, 8, (2, n))
        exact = sum(Fraction(p) * Fraction(q) for p, q in zip(a, b, strict=True))
        assert abs(Fraction(float(a @ b)) - exact) <= Fraction(gamma(n)) / 2 * Fraction(float(np.abs(a) @ np.abs(b)))
    assert Fraction(outward(Fraction(1, 10), -1)) < Fraction(1, 10) < Fraction(outward(Fraction(1, 10), 1))
    assert outward(Fraction(1, 4), -1) == outward(Fraction(1, 4), 1) == 0.25


# rows and groups


def test_a_row_for_each_group(tmp_path):
    """Two disjuncts, one of them a conjunction: one row of each must be positive throughout."""
    net = dense(tmp_path / "n.onnx", (np.eye(2), [0, 0]), (np.eye(2), [1.0, -3.0]))
    prop = tmp_path / "p.vnnlib"
    text = "(assert (or (and (<= Y_0 0.5) (<= Y_1 0)) (<= (* 2 Y_0) (+ Y_1 1))))"
    prop.write_text(declared(2, 2) + boxed([0.0] * 2, [1.0] * 2) + text)
    graph = read_onnx(net)
    queries = read_vnnlib(prop, graph)
    assert queries[0].groups.tolist() == [0, 0, 1]
    best, shown = rows_of(propagated(graph.to(torch.float64), queries[0]), queries[0])
    assert shown
    for rows, good in ((best, True), ([1, 2], False), ([0, 0], False), ([2, 2], False), ([0, 3], False), ([0], False)):
        tree = Tree()
        tree.close(0, Leaf(tuple(rows)))
        proof.write(tmp_path / "f", net, prop, graph, queries, [tree])
        assert accepted(tmp_path / "f", net, prop) == good


def test_a_box_for_each_case(tmp_path):
    net = random_dense(tmp_path / "n.onnx", 0, (2, 4, 2))
    cases = "(assert (or (and (<= X_0 0.1) (>= X_0 0) (<= Y_0 -9)) (and (<= X_0 0.7) (>= X_0 0.6) (<= Y_0 -9))))"
    prop = tmp_path / "p.vnnlib"
    prop.write_text(declared(2, 2) + "(assert (<= X_1 1)) (assert (>= X_1 0))" + cases)
    graph = read_onnx(net)
    queries = read_vnnlib(prop, graph)
    tree = Tree()
    tree.close(0, Leaf((0,)))
    proof.write(tmp_path / "f", net, prop, graph, queries, [tree, tree])
    assert check(tmp_path / "f", net, prop).cases == 2
    proof.write(tmp_path / "f", net, prop, graph, queries[:1], [tree])
    with pytest.raises(Rejected, match="in no query"):
        check(tmp_path / "f", net, prop)


def test_the_property_is_read_exactly():
    text = declared(1, 2) + "(assert (and (>= X_0 0.1) (< X_0 2e-1))) ; a word\n(assert (>= (- Y_1 (* 3 Y_0)) -0.3))"
    (case,) = read_property(text, 1, 2)
    assert Fraction(case.lower[0]) <= Fraction(1, 10)
    assert case.rows == [((Fraction(3), Fraction(-1)), Fraction(-3, 10))]
    assert case.has([6.0, -2.0], -0.6000000000000001)
    assert not case.has([6.0, -2.0], -0.6 + 1e-16)
    assert not case.has([-6.0, 2.0], -1.0)
    assert read_property(declared(1, 1) + "(assert (<= X_0 0)) (assert (>= X_0 1)) (assert (<= Y_0 0))", 1, 1) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(assert (<= X_0 1)) (assert (<= Y_0 0))", "without bounds"),
        ("(assert (<= (+ X_0 Y_0) 1))", "several inputs"),
        ("(assert (not (<= Y_0 1)))", "'not'"),
        ("(assert (<= (* Y_0 Y_0) 1))", "'\\*'"),
        ("(assert (<= Y_0 1)", "brackets"),
        ("(push 1)", "'push'"),
        ("(declare-const X_1 Real)", "1 inputs"),
    ],
)
def test_properties_that_cannot_be_checked(text, reason):
    with pytest.raises(Rejected, match=reason):
        read_property(declared(1, 1) + text, 1, 1)


# the network


def _networks():
    rng = np.random.default_rng(3)

    def w(*shape):
        return rng.normal(size=shape).astype(np.float32)

    flat = [("Flatten", ("last",), "f", {}), ("Gemm", ("f", "w", "b"), "y", {"transB": 1, "alpha": 0.5, "beta": 2.0})]
    norm = {"g": w(4), "h": w(4), "m": w(4), "v": np.abs(w(4)) + np.float32(0.1)}
    return {
        "conv": (
            [
                ("Conv", ("x", "c", "d"), "z", {"strides": [2, 1], "pads": [1, 0, 0, 2], "group": 2, "dilations": [1, 2]}),
                ("LeakyRelu", ("z",), "last", {"alpha": 0.25}), *flat,
            ],
            {"c": w(4, 1, 2, 3), "d": w(4), "w": w(2, 48), "b": w(2)}, (2, 6, 6),
        ),
        "residual": (
            [
                ("Sub", ("x", "mean"), "s", {}), ("Div", ("s", "std"), "t", {}),
                ("Conv", ("t", "c"), "z", {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
                ("BatchNormalization", ("z", "g", "h", "m", "v"), "n", {"epsilon": 1e-3}), ("Relu", ("n",), "r", {}),
                ("Conv", ("r", "e"), "q", {}), ("Add", ("q", "z"), "u", {}), ("Relu", ("u",), "p", {}),
                ("AveragePool", ("p",), "a", {"kernel_shape": [2, 2], "strides": [2, 2]}),
                ("Sub", ("a", "half"), "k", {}), ("Pad", ("k", "sides"), "last", {}), *flat,
            ],
            {"mean": w(1, 2, 1, 1), "std": np.float32([3.0]), "c": w(4, 2, 3, 3), "e": w(4, 4, 1, 1), "half": w(4, 1, 1),
             "sides": np.int64([0, 0, 1, 0, 0, 0, 0, 1]), "w": w(2, 64), "b": w(1, 2), **norm}, (2, 6, 6),
        ),
        "moved": (
            [
                ("Transpose", ("x",), "t", {"perm": [0, 3, 1, 2]}), ("Conv", ("t", "c", "d"), "z", {}), ("Relu", ("z",), "r", {}),
                ("GlobalAveragePool", ("r",), "a", {}), ("Reshape", ("a", "to"), "v", {}), ("MatMul", ("v", "w"), "o", {}),
                ("Add", ("b", "o"), "p", {}), ("Mul", ("p", "s"), "q", {}), ("Dropout", ("q",), "i", {}),
                ("Identity", ("i",), "j", {}), ("Sub", ("b", "j"), "y", {}),
            ],
            {"c": w(4, 3, 2, 2), "d": w(4), "to": np.int64([-1, 4]), "w": w(4, 2), "b": w(2), "s": w(2)}, (5, 5, 3),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_networks()))
def test_networks_are_read_as_they_run(tmp_path, name):
    """Against onnxruntime at points, and the other implementation of CROWN in a box."""
    nodes, constants, shape = _networks()[name]
    net = save(tmp_path / "n.onnx", nodes, constants, shape, 2)
    network = read_network(net.read_bytes())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, *shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(net)
    y = np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])
    points = NodeBounds(network, x.astype(float), x.astype(float)).run({})
    np.testing.assert_allclose(points.lower[-1], y, rtol=1e-4, atol=1e-4)
    assert (points.upper[-1] - points.lower[-1] < 1e-10).all()
    prop = tmp_path / "p.vnnlib"
    size = int(np.prod(shape))
    prop.write_text(declared(size, 2) + boxed([0.0] * size, [0.1] * size) + "(assert (<= Y_0 Y_1))")
    graph = read_onnx(net).to(torch.float64)
    (query,) = read_vnnlib(prop, graph)
    theirs = propagated(graph, query)
    ours = NodeBounds(network, query.lower.numpy()[None], query.upper.numpy()[None]).run({})
    places = [i for i, node in enumerate(graph.nodes) if node.op in ("relu", "leaky_relu")]
    for k, i in zip(network.activations, places, strict=True):
        box, z = theirs.boxes[graph.nodes[i].inputs[0]], network.nodes[k].inputs[0]
        np.testing.assert_allclose(ours.lower[z].ravel(), box.lower.flatten(), atol=1e-9)
        np.testing.assert_allclose(ours.upper[z].ravel(), box.upper.flatten(), atol=1e-9)
    inside = torch.rand(2000, *shape, dtype=torch.float64) * 0.1
    with torch.no_grad():
        values = graph.as_module()(inside).numpy()
    bound = ours.minimum(len(network.nodes) - 1, np.concatenate([np.eye(2), -np.eye(2)]), np.zeros(4, int), {})
    assert (values >= bound[:2] - 1e-12).all()
    assert (-values >= bound[2:] - 1e-12).all()
    tree = Tree()
    tree.close(0, Leaf((0,)))
    low = f"(assert (<= Y_0 {float(bound[0]) - 1e-6!r}))"
    prop.write_text(declared(size, 2) + boxed([0.0] * size, [0.1] * size) + low)
    proof.write(tmp_path / "f", net, prop, graph, read_vnnlib(prop, graph), [tree])
    assert accepted(tmp_path / "f", net, prop)


def test_operations_that_cannot_be_checked(tmp_path):
    prop = tmp_path / "p.vnnlib"
    prop.write_text(declared(2, 2) + boxed([0.0] * 2, [1.0] * 2) + "(assert (<= Y_0 0))")
    for op in ("Softmax", "Exp", "QuantumGate"):
        net = save(tmp_path / "n.onnx", [(op, ("x",), "y", {})], {}, (2,), 2)
        with pytest.raises(Rejected, match=f"'{op}' cannot be checked"):
            check(forged(tmp_path / "f", net, prop, [], [0, 0], [1, 1], [[1.0, 0.0]], [0.0], [0]), net, prop)
        with pytest.raises(UnsupportedError, match=f"'{op}' cannot be checked"):
            proof.check_supported(net, prop)


def test_the_writer_refuses_what_it_cannot_say(proved, tmp_path):
    given = proved.net, proved.prop, proved.graph, proved.queries
    with pytest.raises(UsageError, match="complete"):
        proof.write(tmp_path / "f", *given, [Tree()])
    tree = Tree()
    children = tree.split([0], [len(proved.graph.nodes) - 1], [0], [0.0])[0]
    for child in children:
        tree.close(int(child), Leaf((0,)))
    with pytest.raises(UnsupportedError, match="no ReLU reads"):
        proof.write(tmp_path / "f", *given, [tree])
    assert not (tmp_path / "f").exists()


# the program


def test_it_is_a_program_of_its_own(proved):
    """No torch, and nothing of the rest of the package."""
    code = (
        "import sys; from holdfast.checker.__main__ import main; code = main(sys.argv[1:])\n"
        "mine = [m for m in sys.modules if m.startswith('holdfast.') and not m.startswith('holdfast.checker')]\n"
        "assert not mine and 'torch' not in sys.modules and 'scipy' not in sys.modules, mine; sys.exit(code)"
    )
    for words, expected in (([proved.file], 0), ([proved.file, proved.net, proved.net], 1), ([], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stderr
        assert not expected or "rejected: the proof is about another property" in done.stdout or "FILE" in done.stderr


def test_it_imports_only_itself_and_numpy():
    folder = Path(sys.modules["holdfast.checker"].__file__).parent
    for file in folder.glob("*.py"):
        lines = [x.split()[1] for x in file.read_text().splitlines() if x.strip().startswith(("import ", "from "))]
        foreign = {x.split(".")[0] for x in lines} - set(sys.stdlib_module_names) - {"numpy", "onnx"}
        assert foreign <= {"holdfast"}
        assert all(x.startswith("holdfast.checker") for x in lines if x.startswith("holdfast"))


def test_the_command(proved, tmp_path):
    runner = CliRunner()
    said = runner.invoke(app, ["check", str(proved.file)])
    assert said.exit_code == 0
    assert sha256(proved.net.read_bytes()) in said.output
    said = runner.invoke(app, ["check", str(proved.file), str(proved.net), str(proved.net), "--format", "json"])
    assert said.exit_code == 1
    assert json.loads(said.output) == {"accepted": False, "reason": json.loads(said.output)["reason"]}
    assert isinstance(runner.invoke(app, ["check", str(tmp_path / "none")]).exception, UsageError)


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        (helper.make_node("Add", ["X", "w"], ["Y"], axis=1, broadcast=1), 6),
        (helper.make_node("Relu", ["X"], ["Y"], slope=0.5), 13),
        (helper.make_node("Relu", ["X", "w"], ["Y"]), 13),
        (helper.make_node("BatchNormalization", ["X", "w", "w", "w", "w"], ["Y"], training_mode=1), 15),
        (helper.make_node("BatchNormalization", ["X", "w", "w", "w", "w"], ["Y", "m", "v"]), 15),
    ],
)
def test_the_checker_reads_all_of_an_operation_or_rejects_it(node, opset):
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("X", 1, [1, 2, 3])], [helper.make_tensor_value_info("Y", 1, None)],
        [onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    with pytest.raises(Rejected):
        read_network(model.SerializeToString())
