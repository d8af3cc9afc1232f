"""Our ONNX reader against onnxruntime."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import ModelError, UnsupportedError

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from holdfast.graph.onnx import read_onnx  # noqa: E402

RNG = np.random.default_rng(0)


def _write(path, nodes, constants=None, shape=(1, 2, 6, 6), opset=13):
    """A model whose last node's output is the output."""
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)], held,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def _agrees(path, batch=1):
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(str(path), options)
    graph = read_onnx(path)
    x = torch.rand(batch, *graph.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    with torch.no_grad():
        found = graph.as_module()(x)
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # any other batch, too
        assert torch.allclose(
            graph.as_module()(x.repeat(3, *(1,) * (x.ndim - 1))), found.repeat(3, *(1,) * (found.ndim - 1)), atol=1e-5
        )


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
        ([N("Erf", ["x"], ["y"])], "Erf"),
        ([N("Mul", ["x", "x"], ["y"])], "product"),
        ([N("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3])], "batch"),
        ([N("Flatten", ["x"], ["y"], axis=0)], "axis 0"),
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


@pytest.mark.shared
def test_competition_networks(shared_data):
    paths = sorted((shared_data / "verification" / "dev").glob("*/onnx/*.onnx"))
    read = 0
    for path in paths:
        if "acasxu" in path.name.lower() and "_1_1_" not in path.name:
            continue
        if path.parts[-3] in ("vit", "ml4acopf_14"):
            with pytest.raises(UnsupportedError):
                read_onnx(path)
            continue
        _agrees(path)
        read += 1
    assert read >= 20
