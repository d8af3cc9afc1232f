"""ONNX files mean what they say: nothing goes unread, constants are exact, whole numbers are whole, and it is compared."""

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError  # noqa: E402
from holdfast.graph import onnx_truth  # noqa: E402
from holdfast.graph.onnx import read_onnx  # noqa: E402
from holdfast.graph.onnx_truth import believe  # noqa: E402
from holdfast.verification.decide import Effort, decide  # noqa: E402

N, F32, I64 = helper.make_node, np.float32, np.int64
INT64 = TensorProto.INT64


def _write(path, nodes, constants=None, shape=(1, 2), opset=17, kind=TensorProto.FLOAT, outputs=("y",)):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )  # fmt: skip
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()
    )
    return path


def _verdict(path, low, high, unsafe, outputs=1, seconds=5.0):
    """What verify says where every X lies in [low, high]; refusals as 'refused'."""
    graph = onnx.load(path).graph
    size = int(np.prod([d.dim_value or 1 for d in graph.input[0].type.tensor_type.shape.dim]))
    lines = [f"(declare-const X_{i} Real)" for i in range(size)] + [
        f"(declare-const Y_{j} Real)" for j in range(outputs)
    ]
    lines += [f"(assert (>= X_{i} {low!r}))(assert (<= X_{i} {high!r}))" for i in range(size)]
    prop = path.with_suffix(".vnnlib")
    prop.write_text("\n".join([*lines, f"(assert {unsafe})"]))
    try:
        return str(decide(path, prop, Effort(timeout=seconds)).answer.decision)
    except HoldfastError:
        return "refused"


_NORM = ["x", "s", "s", "s", "s"]
# what must be refused, and the word that says why
REFUSED = {
    "batch statistics": ([N("BatchNormalization", _NORM, ["y", "m", "v"], training_mode=1)], 17, "training_mode"),
    "batch statistics by their outputs": ([N("BatchNormalization", _NORM, ["y", "m", "v", "a", "b"])], 9, "outputs"),
    "drawn dropout": ([N("Dropout", ["x", "half", "on"], ["y"])], 17, "training_mode"),
    "celu that is not monotone": ([N("Celu", ["x"], ["y"], alpha=-1.0)], 17, "alpha"),
    "an attribute that nobody knows": ([N("Relu", ["x"], ["y"], slope=0.1)], 17, "slope"),
    "an input that nobody knows": ([N("Relu", ["x", "s"], ["y"])], 17, "input 1"),
    "an output that nobody makes": ([N("MaxPool", ["x"], ["y", "i"], kernel_shape=[1])], 17, "outputs"),
    "old broadcasting": ([N("Add", ["x", "s"], ["y"], axis=1, broadcast=1)], 6, "opset 6"),
    "an opset of tomorrow": ([N("Relu", ["x"], ["y"])], 99, "opset 99"),
    "several exponents": ([N("Pow", ["x", "s"], ["y"])], 17, "exponents"),
    "rounding to whole numbers": ([N("Cast", ["x"], ["i"], to=7), N("Cast", ["i"], ["y"], to=1)], 17, "Cast"),
    "rounding to half": ([N("Cast", ["x"], ["i"], to=10), N("Cast", ["i"], ["y"], to=1)], 17, "Cast"),
    "an operation nobody knows, of constants": ([N("Det", ["s"], ["d"]), N("Add", ["x", "d"], ["y"])], 17, "Det"),
    "a pad that repeats": ([N("Pad", ["x", "p"], ["y"], mode="reflect")], 17, "mode=reflect"),
    "an average of ceil windows": ([N("AveragePool", ["x"], ["y"], kernel_shape=[2], strides=[2], ceil_mode=1)], 17, "ceil_mode"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_be_another_function_is_refused_by_name(tmp_path, name):
    nodes, opset, word = REFUSED[name]
    constants = {
        "s": np.array([1.0, 2.0, 3.0], F32),
        "half": F32(0.5),
        "on": np.array(True),
        "p": np.array([0, 0, 1, 0, 0, 1]),
    }
    path = _write(tmp_path / "m.onnx", nodes, constants, shape=(1, 3, 3), opset=opset)
    with pytest.raises((UnsupportedError, ModelError), match=word):
        read_onnx(path)


def test_shrinking_by_the_nearest_before_opset_11_is_refused_and_growing_is_served(tmp_path):
    for scales, served in (([1.0, 1.5], True), ([1.0, 0.7], False)):
        path = _write(
            tmp_path / "n.onnx", [N("Resize", ["x", "s"], ["y"])], {"s": np.array(scales, F32)}, (1, 6), opset=10
        )
        if not served:
            with pytest.raises(UnsupportedError, match="opset 10 that shrinks"):
                read_onnx(path)
            continue
        x = np.random.default_rng(0).random((1, 6), F32)
        session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, {"x": x})[0], read_onnx(path).as_module()(torch.from_numpy(x)).numpy())


def test_a_ceil_mode_that_adds_no_window_is_served(tmp_path):
    node = N("AveragePool", ["x"], ["y"], kernel_shape=[2], strides=[2], ceil_mode=1)
    assert read_onnx(_write(tmp_path / "m.onnx", [node], shape=(1, 3, 4))).output_shape == (3, 2)


@pytest.mark.parametrize(
    ("nodes", "constants", "exact"),
    [
        ([N("Gemm", ["x", "w"], ["y"], alpha=0.1)], {"w": F32([[0.3]])}, Fraction(float(F32(0.1))) * Fraction(float(F32(0.3)))),
        (
            [N("Mul", ["a", "b"], ["c"]), N("Mul", ["x", "c"], ["y"])],
            {"a": F32([[0.1]]), "b": F32([[0.3]])},
            Fraction(float(F32(0.1))) * Fraction(float(F32(0.3))),
        ),
        (
            [N("Add", ["a", "b"], ["c"]), N("Mul", ["x", "c"], ["y"])],
            {"a": F32([[0.1]]), "b": F32([[1e3]])},
            Fraction(float(F32(0.1))) + 1000,
        ),
        ([N("Neg", ["x"], ["n"]), N("LeakyRelu", ["n"], ["m"]), N("Neg", ["m"], ["y"])], {}, Fraction(float(F32(0.01)))),
        ([N("Div", ["x", "a"], ["y"])], {"a": F32([[0.3]])}, 1 / Fraction(float(F32(0.3)))),
    ],
)  # fmt: skip
def test_constants_are_those_of_the_file_and_not_rounded_again(tmp_path, nodes, constants, exact):
    graph = read_onnx(_write(tmp_path / "m.onnx", nodes, constants, shape=(1, 1))).to(torch.float64)
    found = Fraction(graph.as_module()(torch.ones(1, 1, dtype=torch.float64)).item())
    assert abs(found - exact) <= Fraction(2) ** -52 * abs(exact)


def test_softmax_of_constants_before_opset_13_is_over_all_dimensions_behind_its_axis(tmp_path):
    nodes = [N("Softmax", ["a"], ["s"]), N("Mul", ["x", "s"], ["y"])]
    path = _write(tmp_path / "m.onnx", nodes, {"a": F32([[[0.1, 0.2], [0.3, 0.4]]])}, shape=(1, 2, 2), opset=12)
    assert float(read_onnx(path).as_module()(torch.ones(1, 2, 2)).sum()) == pytest.approx(1.0, rel=1e-6)


def test_a_constant_that_cancels_is_refused_and_one_that_is_exact_is_not(tmp_path):
    nodes = [N("Div", ["a", "b"], ["q"]), N("Sub", ["q", "c"], ["d"]), N("Mul", ["x", "d"], ["y"])]
    third = {"a": F32(1), "b": F32(3), "c": F32(1 / 3)}
    with pytest.raises(UnsupportedError, match="cancels"):
        read_onnx(_write(tmp_path / "a.onnx", nodes, third))
    nodes = [N("Sub", ["a", "c"], ["d"]), N("Mul", ["x", "d"], ["y"])]
    read_onnx(_write(tmp_path / "b.onnx", nodes, {"a": F32(1.0000001), "c": F32(1)}))


@pytest.mark.parametrize(
    ("a", "b", "quotient"), [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-6, 3, -2), (2**62, 3, 2**62 // 3)]
)
def test_whole_numbers_divide_towards_zero(tmp_path, a, b, quotient):
    nodes = [
        N("Div", ["a", "b"], ["q"]),
        N("Sub", ["q", "c"], ["r"]),
        N("Cast", ["r"], ["f"], to=1),
        N("Add", ["x", "f"], ["y"]),
    ]
    path = _write(tmp_path / "m.onnx", nodes, {"a": I64(a), "b": I64(b), "c": I64(quotient)})
    assert read_onnx(path).as_module()(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]


def test_the_graph_of_whole_inputs_is_broken_by_whole_numbers_only(tmp_path):
    nodes = [N("Cast", ["x"], ["f"], to=1), N("Sub", ["f", "k"], ["g"]), N("Abs", ["g"], ["y"])]
    path = _write(tmp_path / "m.onnx", nodes, {"k": F32(0.5)}, shape=(1, 1), kind=INT64)
    assert read_onnx(path).whole
    assert _verdict(path, 0.0, 1.0, "(<= Y_0 0.25)", seconds=3.0) in ("unsat", "unknown", "timeout", "refused")
    assert _verdict(path, 0.0, 3.0, "(>= Y_0 2.25)", seconds=3.0) == "sat"  # at 3


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT32])
def test_pictures_of_whole_numbers_are_served(tmp_path, kind):
    nodes = [N("Cast", ["x"], ["f"], to=1), N("Mul", ["f", "k"], ["g"]), N("MatMul", ["g", "w"], ["y"])]
    path = _write(tmp_path / "m.onnx", nodes, {"k": F32(1 / 255), "w": np.ones((3, 2), F32)}, (1, 3), kind=kind)
    graph = read_onnx(path)
    assert believe(path, graph, torch.zeros(3), torch.full((3,), 255.0)).startswith("onnxruntime 1.")
    assert _verdict(path, 0.0, 255.0, "(>= Y_0 3.1)", 2) == "unsat"


def test_arithmetic_of_whole_numbers_is_refused(tmp_path):
    nodes = [N("Sub", ["x", "k"], ["d"]), N("Cast", ["d"], ["y"], to=1)]
    with pytest.raises(UnsupportedError, match="uint8"):
        read_onnx(_write(tmp_path / "m.onnx", nodes, {"k": np.uint8(3)}, kind=TensorProto.UINT8))


@pytest.mark.parametrize("far", [-3.4028235e38, -1e20, -1e9, -5e4, -300.0])
def test_a_far_end_leaves_the_value_alone(tmp_path, far):
    x = torch.tensor([[1.25, 1.75]])
    for nodes in ([N("Max", ["x", "c"], ["y"])], [N("Min", ["x", "d"], ["y"])], [N("Clip", ["x", "c", "d"], ["y"])]):
        graph = read_onnx(_write(tmp_path / "m.onnx", nodes, {"c": F32(far), "d": F32(-far)}))
        assert torch.equal(graph.as_module()(x), x)
        assert torch.equal(graph.to(torch.float64).as_module()(x.double()), x.double())


@pytest.mark.parametrize("alpha", [-3.0, -0.25, 0.0, 1.5])
def test_elu_of_any_alpha_is_within_its_bounds(tmp_path, alpha):
    from holdfast.certifiers.verification.query import Query
    from holdfast.core import registry

    graph = read_onnx(_write(tmp_path / "m.onnx", [N("Elu", ["x"], ["y"], alpha=alpha)], shape=(1, 1)))
    c = torch.ones(1, 1).double()
    query = Query.of_box(torch.tensor([-2.0]), torch.tensor([2.0]), c, torch.zeros(1))
    least = float(graph.to(torch.float64).as_module()(torch.linspace(-2, 2, 401).double()[:, None]).min())
    for method in ("ibp", "crown"):
        bound = registry.method(method)().bounds(graph, query.ball, query.x, c[None], torch.zeros(1, 1).double())
        assert float(bound[0, 0]) <= least + 1e-9


def test_prelu_is_the_identity_above_zero(tmp_path):
    slope = F32([0.25011018, 0.3])
    graph = read_onnx(_write(tmp_path / "m.onnx", [N("PRelu", ["x", "s"], ["y"])], {"s": slope})).to(torch.float64)
    x = torch.tensor([[1.0, 3.0]]).double()
    assert float((graph.as_module()(x) - x).abs().max()) <= 1e-15


def test_a_power_by_a_larger_constant_is_enlarged(tmp_path):
    nodes = [N("Pow", ["x", "e"], ["a"]), N("ReduceSum", ["a", "ax"], ["y"])]
    path = _write(tmp_path / "m.onnx", nodes, {"e": F32([[2, 2, 2]]), "ax": I64([1])}, shape=(1, 1))
    assert _verdict(path, 0.0, 2.0, "(>= Y_0 5.0)") == "sat"


@pytest.mark.parametrize(
    "nodes",
    [
        [N("MatMul", ["x", "w"], ["a"]), N("Squeeze", ["a", "ax"], ["y"])],
        [N("MatMul", ["x", "v"], ["y"])],
        [N("ReduceSum", ["x", "ax"], ["y"], keepdims=0)],
        [N("ReduceSum", ["x", "ax"], ["a"], keepdims=0), N("Mul", ["a", "a"], ["b"]), N("Sigmoid", ["b"], ["y"])],
    ],
)
def test_a_single_number_is_a_vector_of_one(tmp_path, nodes):
    path = _write(tmp_path / "m.onnx", nodes, {"w": F32([[1], [2]]), "v": F32([1, 2]), "ax": I64([1])})
    assert read_onnx(path).output_shape == (1,)
    assert _verdict(path, -1.0, 1.0, "(>= Y_0 100.0)") == "unsat"


def test_a_property_of_all_numbers_makes_the_first_dimension_a_feature(tmp_path):
    path = _write(tmp_path / "m.onnx", [N("Relu", ["x"], ["y"])], shape=(2, 3))
    assert read_onnx(path).input_shape == (3,)
    assert read_onnx(path, entries=6).input_shape == (2, 3)
    assert _verdict(path, -1.0, 1.0, "(>= Y_5 100.0)", 6) == "unsat"


def test_one_of_several_outputs_is_chosen_by_name(tmp_path):
    nodes = [N("Relu", ["x"], ["y"]), N("Det", ["x"], ["z"]), N("Sigmoid", ["x"], ["p"])]
    path = _write(tmp_path / "m.onnx", nodes, outputs=("y", "z", "p"))
    with pytest.raises(ModelError, match="'y', 'z', 'p'"):
        read_onnx(path)
    with pytest.raises(ModelError, match="no output 'q'"):
        read_onnx(path, output="q")
    assert [n.op for n in read_onnx(path, output="p").nodes] == ["input", "sigmoid"]


def test_missing_weights_are_named(tmp_path):
    path = _write(tmp_path / "m.onnx", [N("MatMul", ["x", "w"], ["y"])], {"w": np.ones((2, 300), F32)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        read_onnx(path)


def test_an_unknown_operation_is_named_whatever_else_the_second_reading_meets(tmp_path):
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Attention", ["a", "a", "a"], ["y"])]
    path = _write(tmp_path / "m.onnx", nodes, {"w": np.ones((2, 3, 1, 1), F32)}, shape=(2, 3, 4, 4), opset=23)
    with pytest.raises(UnsupportedError, match="Attention"):
        read_onnx(path)


def _misread(tmp_path):
    """A file, and the graph of another one."""
    good = [N("MatMul", ["x", "w"], ["a"]), N("Tanh", ["a"], ["b"]), N("Relu", ["b"], ["y"])]
    bad = [N("MatMul", ["x", "w"], ["a"]), N("Sigmoid", ["a"], ["b"]), N("Relu", ["b"], ["y"])]
    paths = [_write(tmp_path / f"{k}.onnx", n, {"w": np.eye(2, dtype=F32)}) for k, n in (("a", good), ("b", bad))]
    return paths[0], read_onnx(paths[0]), read_onnx(paths[1])


def test_a_graph_that_is_not_the_file_is_found_and_the_operation_named(tmp_path, monkeypatch):
    path, right, wrong = _misread(tmp_path)
    assert believe(path, right, torch.zeros(2), torch.ones(2)).startswith("onnxruntime 1.")
    with pytest.raises(ModelError, match="not the model"):
        believe(path, wrong, torch.zeros(2), torch.ones(2))
    from holdfast.graph import onnx as reader

    served = reader.CALLS["Tanh"]
    monkeypatch.setitem(reader.CALLS, "Tanh", type(served)(lambda c: c.b.unary("sigmoid", c.x), 13, 6))
    with pytest.raises(ModelError, match="first operation that differs is 'Tanh'"):
        believe(path, read_onnx(path), torch.zeros(2), torch.ones(2))
    assert _verdict(path, 0.0, 1.0, "(>= Y_0 100.0)", 2) == "refused"


def test_without_onnxruntime_another_reading_of_ours_stands_in(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    onnx_truth._runtime.cache_clear()
    nodes = [N("Gemm", ["x", "w", "b"], ["a"]), N("Relu", ["a"], ["y"])]
    held = {"w": np.eye(2, dtype=F32), "b": F32([0.5, -0.5])}
    path = _write(tmp_path / "m.onnx", nodes, held)
    graph = read_onnx(path)
    assert believe(path, graph, torch.zeros(2), torch.ones(2)) == "our own second evaluation"
    other = read_onnx(_write(tmp_path / "o.onnx", nodes, {**held, "b": F32([0.5, -0.499])}))
    with pytest.raises(ModelError, match="not the model"):
        believe(path, other, torch.zeros(2), torch.ones(2))
    path, right, _ = _misread(tmp_path)
    assert believe(path, right, torch.zeros(2), torch.ones(2)) == "nothing: only one reading exists"
    onnx_truth._runtime.cache_clear()
