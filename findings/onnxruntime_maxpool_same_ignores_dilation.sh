#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2: MaxPool with auto_pad=SAME_UPPER and dilations gives an output of another size.
#
# Version:  onnxruntime 1.32.0 (CPU), onnx 1.23.2, numpy 2.4.0
# Expected: the operator's text has output size ceil(input / stride) for SAME_UPPER, whatever the dilation is: 6x6 here,
#           and onnx's own shape inference says so.
# Seen:     6x5. The padding is worked out as if the dilation were 1, then the dilated window is moved over it.
# Fails (exit 1) if that changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.0
"$place/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], dilations=[1, 2], strides=[1, 1], auto_pad="SAME_UPPER")
graph = helper.make_graph(
    [pool], "pool", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 6, 6])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
declared = [d.dim_value for d in inferred]
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
y = session.run(None, {"x": np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)})[0]
print("onnx", onnx.__version__, "onnxruntime", ort.__version__, "numpy", np.__version__)
print("expected (shape inference):", declared, "seen:", list(y.shape))
sys.exit(0 if declared == [1, 1, 6, 6] and list(y.shape) == [1, 1, 6, 5] else 1)
PYTHON
