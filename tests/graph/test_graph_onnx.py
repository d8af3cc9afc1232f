"""Our ONNX reader against onnxruntime."""

import csv
import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import ModelError, UnsupportedError

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from holdfast.graph.onnx import read_onnx  # noqa: E402
from holdfast.graph.survey import survey  # noqa: E402

RNG = np.random.default_rng(0)


def _write(path, nodes, constants=None, shape=(1, 2, 6, 6), opset=13, kind=TensorProto.FLOAT):
    """A model whose last node's output is the output."""
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)], held,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def _session(path):
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return runtime.InferenceSession(str(path), options)


def _agrees(path, batch=1):
    session = _session(path)
    graph = read_onnx(path)
    source = session.get_inputs()[0]
    x = torch.rand(batch, *graph.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if "int" in source.type:
        x = (x * 4 + 5).long()
    given = x.numpy() if batch > 1 else x.numpy().reshape([s if isinstance(s, int) else 1 for s in source.shape])
    expected = torch.from_numpy(session.run(None, {source.name: given})[0])
    with torch.no_grad():
        found = graph.as_module()(x)
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # any other batch, too
        assert torch.allclose(
            graph.as_module()(x.repeat(3, *(1,) * (x.ndim - 1))), found.repeat(3, *(1,) * (found.ndim - 1)), atol=1e-5
        )
    return graph


def _f(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def _i(*values):
    return np.array(values, dtype=np.int64)


N = helper.make_node
CASES = {
    "conv, asymmetric pads, groups": (
        [N("Conv", ["x", "w", "b"], ["y"], pads=[0, 1, 2, 1], strides=[2, 1], group=2)],
        {"w": _f(4, 1, 3, 2), "b": _f(4)},
    ),
    "conv, same": ([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])], {"w": _f(3, 2, 4, 4)}),
    "batch norm": (
        [N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=1e-3)],
        {"s": _f(2), "b": _f(2), "m": _f(2), "v": np.abs(_f(2)) + 0.5},
    ),
    "activations": (
        [
            N("LeakyRelu", ["x"], ["a"], alpha=0.2),
            N("Tanh", ["a"], ["b"]),
            N("Sigmoid", ["x"], ["c"]),
            N("Sub", ["b", "c"], ["d"]),
            N("Relu", ["d"], ["y"]),
        ],
        {},
    ),
    "constants on either side": (
        [
            N("Sub", ["c", "x"], ["a"]),
            N("Mul", ["c", "a"], ["b"]),
            N("Div", ["b", "d"], ["e"]),
            N("Add", ["e", "x"], ["y"]),
        ],
        {"c": _f(2, 1, 1), "d": _f(1, 2, 1, 1)},
    ),
    "gemm": (
        [N("Flatten", ["x"], ["a"]), N("Gemm", ["a", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
        {"w": _f(72, 3), "b": _f(1, 3)},
    ),
    "matmul and softmax": (
        [
            N("Reshape", ["x", "s"], ["a"]),
            N("MatMul", ["a", "w"], ["b"]),
            N("Add", ["b", "b0"], ["c"]),
            N("Softmax", ["c"], ["y"]),
        ],
        {"s": _i(-1, 72), "w": _f(72, 3), "b0": _f(3)},
    ),
    "max pool": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "average pool": ([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])], {}),
    "average pool that counts its padding": (
        [N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        {},
    ),
    "global pool and squeeze": (
        [N("GlobalAveragePool", ["x"], ["a"]), N("Squeeze", ["a", "axes"], ["y"])],
        {"axes": _i(2, -1)},
    ),
    "reduce, unsqueeze": (
        [N("ReduceMean", ["x"], ["a"], axes=[2, 3], keepdims=0), N("Unsqueeze", ["a", "axes"], ["y"])],
        {"axes": _i(1)},
    ),
    "pad, slice, gather": (
        [
            N("Pad", ["x", "p"], ["a"]),
            N("Slice", ["a", "s", "e", "axes", "step"], ["b"]),
            N("Gather", ["b", "i"], ["y"], axis=1),
        ],
        {
            "p": _i(0, 0, 1, 2, 0, 0, 0, 1),
            "s": _i(1, -1),
            "e": _i(9, -9),
            "axes": _i(2, 3),
            "step": _i(2, -1),
            "i": np.int64(-1),
        },
    ),
    "transpose, concat": (
        [
            N("Transpose", ["x"], ["a"], perm=[0, 2, 1, 3]),
            N("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
            N("Concat", ["x", "b", "x"], ["y"], axis=-3),
        ],
        {},
    ),
    "clip": ([N("Clip", ["x", "lo", "hi"], ["y"])], {"lo": np.float32(-0.4), "hi": np.float32(0.3)}),
    "smooth units": (
        [N(op, ["x"], [op]) for op in ("Softplus", "Exp", "Sin", "Cos", "Erf", "Sign", "Abs", "Softsign")]
        + [N("Sum", ["Softplus", "Exp", "Sin", "Cos", "Erf", "Sign", "Abs", "Softsign"], ["y"])],
        {},
    ),
    "units of pieces": (
        [
            N("Elu", ["x"], ["a"], alpha=0.7),
            N("Selu", ["x"], ["b"]),
            N("Celu", ["x"], ["c"], alpha=0.6),
            N("HardSigmoid", ["x"], ["d"], alpha=0.3),
            N("PRelu", ["x", "slope"], ["e"]),
            N("LeakyRelu", ["x"], ["f"], alpha=-1.5),
            N("Mean", ["a", "b", "c", "d", "e", "f"], ["y"]),
        ],
        {"slope": _f(2, 1, 1)},
    ),
    "roots, logarithms, powers, quotients": (
        [
            N("Mul", ["x", "x"], ["a"]),
            N("Add", ["a", "one"], ["b"]),
            N("Sqrt", ["b"], ["c"]),
            N("Log", ["b"], ["d"]),
            N("Reciprocal", ["b"], ["e"]),
            N("Pow", ["b", "p"], ["f"]),
            N("Pow", ["two", "x"], ["g"]),
            N("Div", ["x", "b"], ["h"]),
            N("Div", ["one", "b"], ["i"]),
            N("Sum", ["c", "d", "e", "f", "g", "h", "i"], ["y"]),
        ],
        {"one": np.float32(1), "p": np.float32(1.7), "two": np.float32(2)},
    ),
    "products of values and broadcasting": (
        [
            N("ReduceMean", ["x"], ["a"], axes=[2], keepdims=1),
            N("Mul", ["x", "a"], ["b"]),
            N("Sub", ["b", "a"], ["c"]),
            N("Slice", ["x", "zero", "one", "two"], ["d"]),
            N("Add", ["d", "c"], ["e"]),
            N("Mul", ["a", "k"], ["f"]),
            N("Add", ["e", "f"], ["y"]),
        ],
        {"zero": _i(0), "one": _i(1), "two": _i(2), "k": _f(6, 1)},
    ),
    "maxima and minima": (
        [
            N("Max", ["x", "k", "x"], ["a"]),
            N("Min", ["a", "l"], ["b"]),
            N("ReduceMax", ["b"], ["c"], axes=[1, 2]),
            N("ReduceMin", ["x"], ["d"], axes=[-1]),
            N("GlobalMaxPool", ["x"], ["e"]),
            N("Sum", ["c", "d", "e"], ["y"]),
        ],
        {"k": _f(6), "l": _f(2, 1, 1)},
    ),
    "reductions": (
        [
            N("ReduceSum", ["x", "last"], ["a"]),
            N("ReduceL2", ["x"], ["b"], axes=[3]),
            N("ReduceL1", ["x"], ["c"], axes=[3]),
            N("ReduceLogSumExp", ["x"], ["d"], axes=[3]),
            N("ReduceProd", ["x"], ["e"], axes=[3]),
            N("ReduceSumSquare", ["x"], ["f"], axes=[3]),
            N("Sum", ["a", "b", "c", "d", "e", "f"], ["y"]),
        ],
        {"last": _i(-1)},
    ),
    "everything into one number": ([N("ReduceMean", ["x"], ["y"], keepdims=0)], {}),
    "products of matrices": (
        [
            N("Transpose", ["x"], ["a"], perm=[0, 1, 3, 2]),
            N("MatMul", ["x", "a"], ["b"]),
            N("MatMul", ["k", "b"], ["c"]),
            N("MatMul", ["c", "l"], ["d"]),
            N("MatMul", ["d", "m"], ["e"]),
            N("MatMul", ["n", "e"], ["f"]),
            N("MatMul", ["f", "v"], ["y"]),
        ],
        {"k": _f(4, 6), "l": _f(6, 3), "m": _f(2, 3, 5), "n": _f(1, 2, 3, 4), "v": _f(5)},
    ),
    "transposed convolution": (
        [N("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 3], pads=[1, 0, 0, 2], output_padding=[1, 2], group=2)],
        {"w": _f(2, 3, 3, 4), "b": _f(6)},
    ),
    "transposed convolution and batch norm": (
        [
            N("ConvTranspose", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1], dilations=[2, 1]),
            N("BatchNormalization", ["a", "s", "s", "s", "v"], ["y"]),
        ],
        {"w": _f(2, 3, 3, 3), "s": _f(3), "v": np.abs(_f(3)) + 0.5},
    ),
    "instance norm": ([N("InstanceNormalization", ["x", "s", "s"], ["y"], epsilon=1e-3)], {"s": _f(2)}),
    "log softmax": ([N("LogSoftmax", ["x"], ["a"], axis=-1), N("Softmax", ["a"], ["y"], axis=1)], {}),
    "repeats": (
        [
            N("Tile", ["x", "t"], ["a"]),
            N("Slice", ["a", "zero", "one", "two"], ["b"]),
            N("Expand", ["b", "s"], ["y"]),
        ],
        {"t": _i(1, 2, 1, 2), "zero": _i(0), "one": _i(1), "two": _i(2), "s": _i(7, 1)},
    ),
    "split": (
        [
            N("Split", ["x", "s"], ["a", "b"], axis=2),
            N("Split", ["b"], ["c", "d"], axis=3),
            N("Mul", ["c", "d"], ["y"]),
        ],
        {"s": _i(1, 5)},
    ),
    "depth and space": (
        [
            N("SpaceToDepth", ["x"], ["a"], blocksize=2),
            N("DepthToSpace", ["a"], ["b"], blocksize=2, mode="CRD"),
            N("SpaceToDepth", ["b"], ["c"], blocksize=2),
            N("DepthToSpace", ["c"], ["y"], blocksize=2),
        ],
        {},
    ),
    "a class token": (
        [
            N("Shape", ["x"], ["a"]),
            N("Slice", ["a", "zero", "one"], ["b"]),
            N("Concat", ["b", "rest"], ["c"], axis=0),
            N("ConstantOfShape", ["c"], ["d"]),
            N("Add", ["d", "token"], ["e"]),
            N("Concat", ["e", "x", "e"], ["y"], axis=2),
        ],
        {"zero": _i(0), "one": _i(1), "rest": _i(2, 1, 6), "token": _f(6)},
    ),
    "where": ([N("Where", ["k", "x", "l"], ["y"])], {"k": _f(6, 6) > 0, "l": _f(2, 1, 1)}),
    "cumulated sums": ([N("CumSum", ["x", "d"], ["y"])], {"d": np.int64(2)}),
    "a matrix before the transposed batch": (
        [
            N("Flatten", ["x"], ["a"]),
            N("Transpose", ["a"], ["b"]),
            N("MatMul", ["w", "b"], ["c"]),
            N("Gemm", ["c", "v"], ["y"], transA=1, alpha=0.5),
        ],
        {"w": _f(4, 72), "v": _f(4, 3)},
    ),
    "the batch dropped and found again": (
        [
            N("Squeeze", ["x"], ["a"]),
            N("Gather", ["a", "one"], ["b"], axis=0),
            N("Unsqueeze", ["b", "axes"], ["c"]),
            N("Conv", ["c", "w"], ["d"]),
            N("MaxPool", ["d"], ["e"], kernel_shape=[2, 2]),
            N("AveragePool", ["e"], ["y"], kernel_shape=[2, 2]),
        ],
        {"one": np.int64(1), "axes": _i(0, 1), "w": _f(3, 1, 2, 2)},
    ),
    "a table read by two indices": ([N("Gather", ["x", "i"], ["y"], axis=2)], {"i": np.array([[0, -1], [2, 2]])}),
    "shapes computed in the graph": (
        [
            N("Shape", ["x"], ["a"]),
            N("Gather", ["a", "zero"], ["b"]),
            N("Unsqueeze", ["b", "axes"], ["c"]),
            N("Concat", ["c", "rest"], ["d"], axis=0),
            N("Reshape", ["x", "d"], ["e"]),
            N("Dropout", ["e"], ["f"]),
            N("Identity", ["f"], ["y"]),
        ],
        {"zero": np.int64(0), "axes": _i(0), "rest": _i(36, 2)},
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_operations(tmp_path, name):
    nodes, constants = CASES[name]
    _agrees(_write(tmp_path / "m.onnx", nodes, constants))


@pytest.mark.parametrize(
    ("nodes", "constants", "opset"),
    [
        ([N("Gelu", ["x"], ["a"]), N("Gelu", ["a"], ["y"], approximate="tanh")], {}, 20),
        ([N("LayerNormalization", ["x", "s", "b"], ["y"], axis=-2)], {"s": _f(6, 6), "b": _f(6, 6)}, 17),
        ([N("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=2)], {"s": _f(2)}, 21),
        ([N("HardSwish", ["x"], ["a"]), N("Mish", ["a"], ["y"])], {}, 18),
        ([N("Softmax", ["x"], ["y"], axis=2)], {}, 11),
        ([N("Upsample", ["x", "s"], ["y"])], {"s": np.array([1, 1, 2, 1.5], np.float32)}, 9),
        ([N("Upsample", ["x", "s"], ["y"], mode="linear")], {"s": np.array([1, 1, 2, 1.5], np.float32)}, 9),
        ([N("Split", ["x"], ["a", "b"], axis=2, num_outputs=2), N("Sub", ["a", "b"], ["y"])], {}, 18),
    ],
)
def test_operations_of_other_opsets(tmp_path, nodes, constants, opset):
    _agrees(_write(tmp_path / "m.onnx", nodes, constants, opset=opset))


@pytest.mark.parametrize("how", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["linear", "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_resize(tmp_path, mode, how):
    kind = {"mode": "linear"} if mode == "linear" else {"mode": "nearest", "nearest_mode": mode}
    nodes = [
        N("Resize", ["x", "", "s"], ["a"], coordinate_transformation_mode=how, **kind),
        N("Resize", ["a", "", "", "t"], ["y"], coordinate_transformation_mode=how, **kind),
    ]
    _agrees(_write(tmp_path / "m.onnx", nodes, {"s": np.array([1, 1, 2.5, 0.5], np.float32), "t": _i(1, 2, 7, 5)}))


def test_embeddings(tmp_path):
    nodes = [N("Gather", ["w", "x"], ["a"]), N("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0)]
    graph = _agrees(_write(tmp_path / "m.onnx", nodes, {"w": _f(10, 3)}, (1, 5), kind=TensorProto.INT64))
    assert [n.op for n in graph.nodes][:2] == ["input", "embedding"]
    assert graph.dtype == torch.float32


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 1, 5), ("n", 5), (4, 5)])
def test_inputs_with_and_without_a_batch(tmp_path, shape):
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("Relu", ["a"], ["b"]), N("MatMul", ["b", "v"], ["y"])]
    path = _write(tmp_path / "m.onnx", nodes, {"w": _f(5, 6), "v": _f(6, 3)}, shape)
    graph = read_onnx(path)
    assert graph.input_shape == ((5,) if len(shape) == 1 else shape[1:])
    assert graph.output_shape == (*graph.input_shape[:-1], 3)
    _agrees(path, batch=4 if shape[0] == 4 else 1)


def test_a_first_dimension_that_is_no_batch_is_a_feature(tmp_path):
    nodes = [N("MatMul", ["w", "x"], ["a"]), N("Relu", ["a"], ["y"])]
    graph = _agrees(_write(tmp_path / "m.onnx", nodes, {"w": _f(3, 5)}, (5, 1)))
    assert graph.input_shape == (5, 1)


def test_gelu_as_exporters_write_it_is_one_operation(tmp_path):
    nodes = [
        N("Div", ["x", "root"], ["a"]),
        N("Erf", ["a"], ["b"]),
        N("Add", ["b", "one"], ["c"]),
        N("Mul", ["x", "c"], ["d"]),
        N("Mul", ["d", "half"], ["y"]),
    ]
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    graph = _agrees(_write(tmp_path / "m.onnx", nodes, constants))
    # what float32 made of the root of 2 is kept: gelu(c x) / c
    assert [n.op for n in graph.nodes] == ["input", "affine", "gelu", "affine"]


def test_the_survey_names_everything_at_once(tmp_path):
    nodes = [
        N("Det", ["x"], ["a"]),
        N("Shape", ["x"], ["b"]),
        N("Range", ["k", "k", "k"], ["c"]),
        N("Relu", ["a"], ["d"]),
        N("Thing", ["d"], ["y"], domain="own"),
    ]
    found = survey(_write(tmp_path / "m.onnx", nodes, {"k": np.int64(1)}))
    assert found == [
        ("Det", 1, False),
        ("own.Thing", 1, False),
        ("Range", 1, True),
        ("Relu", 1, True),
        ("Shape", 1, True),
    ]


def test_what_torch_exports(tmp_path):
    pytest.importorskip("onnxscript")
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    path = tmp_path / "m.onnx"
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        verbose=False,
    )
    _agrees(path, batch=5)


@pytest.mark.parametrize(
    ("nodes", "word"),
    [
        ([N("Det", ["x"], ["y"])], "Det"),
        ([N("Thing", ["x"], ["y"], domain="own")], "own.Thing"),
        ([N("Transpose", ["x"], ["a"], perm=[1, 0, 2, 3]), N("Det", ["a"], ["y"])], "Det"),
        ([N("Cast", ["x"], ["y"], to=TensorProto.INT64)], "Cast"),
        ([N("Less", ["x", "x"], ["a"]), N("Where", ["a", "x", "x"], ["y"])], "Less"),
        ([N("ReduceMax", ["x"], ["a"]), N("Conv", ["a", "x"], ["y"])], "Conv"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(tmp_path, nodes, word):
    with pytest.raises(UnsupportedError, match=word):
        read_onnx(_write(tmp_path / "m.onnx", nodes))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", ""])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    path = _write(folder / "m.onnx", [N("Add", ["x", "w"], ["y"])], {"w": _f(1)})
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside"):
        read_onnx(path)


def test_weights_beside_the_file_are_read(tmp_path):
    path = _write(tmp_path / "m.onnx", [N("Flatten", ["x"], ["a"]), N("Gemm", ["a", "w"], ["y"])], {"w": _f(72, 30)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").exists()
    _agrees(path)


def test_no_onnx_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no readable ONNX"):
        read_onnx(tmp_path / "m.onnx")


DEV = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "verification" / "dev"


def _box(path, size):
    """The smallest and largest bound of each input of a VNN-LIB file."""
    text = gzip.decompress(path.read_bytes()).decode()
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    for kind, i, value in re.findall(r"\((<=|>=)\s+X_(\d+)\s+([-+.\deE]+)\)", text):
        side, best = (high, max) if kind == "<=" else (low, min)
        side[int(i)] = best(side[int(i)], float(value))
    return low, high


@pytest.mark.shared
@pytest.mark.parametrize("path", sorted(DEV.glob("*/onnx/*.onnx")), ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_competition_networks(path):
    with (DEV / "instances.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["onnx"].endswith(path.name)]
    graph, session = read_onnx(path), _session(path)
    size = torch.Size(graph.input_shape).numel()
    assert (size, torch.Size(graph.output_shape).numel()) == (int(rows[0]["n_in"]), int(rows[0]["n_out"]))
    vnnlib = next((path.parents[1] / "vnnlib").glob(Path(rows[0]["vnnlib"]).name.removesuffix(".gz") + "*"))
    low, high = _box(vnnlib, size)
    x = (low + np.random.default_rng(0).random((3, size)) * (high - low)).astype(np.float32)
    source = session.get_inputs()[0]
    shape = [s if isinstance(s, int) else 1 for s in source.shape]
    expected = np.stack([session.run(None, {source.name: row.reshape(shape)})[0].reshape(-1) for row in x])
    inputs = torch.from_numpy(x).view(3, *graph.input_shape)
    with torch.no_grad():
        found = graph.as_module()(inputs).flatten(1)
        fine = graph.to(torch.float64).as_module()(inputs.double()).flatten(1)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * scale)
    np.testing.assert_allclose(fine, expected, rtol=0, atol=5e-6 * scale)
