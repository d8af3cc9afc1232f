"""Which operations of a model do what their nodes in the graph do, so that the nodes say how the model rounds as it runs."""

from __future__ import annotations

__all__ = ["STEPWISE"]

STEPWISE = {
    "", "input", "linear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm", "add", "sub", "rsub", "mul", "div",
    "neg", "leaky_relu", "sigmoid", "tanh", "silu", "erf", "exp", "log", "sin", "cos", "sqrt", "reciprocal", "rsqrt",
    "square", "pow", "gelu", "elu", "selu", "celu", "softplus", "softsign", "tanhshrink", "glu", "prelu", "maximum",
    "fmax", "minimum", "fmin", "max", "min", "amax", "amin", "clamp", "clip", "clamp_min", "clamp_max", "hardtanh",
    "relu6", "where", "masked_fill", "mean", "sum", "cumsum", "cat", "concat", "stack", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "embedding", "sign",
    "Add", "AveragePool", "BatchNormalization", "Celu", "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "CumSum",
    "Div", "Elu", "Erf", "Exp", "Gelu", "Gemm", "GlobalAveragePool", "Gather", "LeakyRelu", "Log", "MatMul", "Max",
    "Mean", "Min", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "ReduceSumSquare", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Swish", "Tanh", "Where",
}  # fmt: skip
"""ATen's names, then ONNX's, of what computes its nodes step by step or in finer steps; ``""`` are nodes made by hand."""
