#!/usr/bin/env bash
# onnxruntime 1.32.0: float32 Sigmoid is right to about 1e-7 of 1, not to a few units of its own small values.
#
# Version:  onnxruntime 1.32.0 (CPU), onnx 1.23.2, numpy 2.4.0
# Expected: as of exp and tanh in the usual libraries, an error of a few units in the last place: a relative error of
#           1e-6 or less, also where the value is small (sigmoid(-14) is 8.3e-7).
# Seen:     an absolute error of about 1.2e-7, which is several times the value itself near -18 (relative error 4.3).
#           Who multiplies by it (Swish) or bounds it by relative rounding gets a wrong bound.
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

graph = helper.make_graph(
    [helper.make_node("Sigmoid", ["x"], ["y"])], "sigmoid",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = np.linspace(-18, -10, 4001, dtype=np.float32)
y = session.run(None, {"x": x})[0].astype(np.float64)
exact = 1 / (1 + np.exp(-x.astype(np.float64)))
absolute, relative = np.abs(y - exact).max(), (np.abs(y - exact) / exact).max()
print("onnx", onnx.__version__, "onnxruntime", ort.__version__, "numpy", np.__version__)
print(f"expected: relative error <= 1e-6; seen: relative {relative:.2g}, absolute {absolute:.2g}")
sys.exit(0 if relative > 1e-2 and absolute < 5e-7 else 1)
PYTHON
