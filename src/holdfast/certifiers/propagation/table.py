"""The one table: what every method of bounds knows about each operation of the graph."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.certifiers.propagation.operation import Operation
from holdfast.certifiers.propagation.operations.activations import Abs, LeakyRelu, Sigmoid, Sign, Tanh
from holdfast.certifiers.propagation.operations.curves import Erf, Exp, Log, Power, Reciprocal, Sqrt, Wave
from holdfast.certifiers.propagation.operations.embedding import Embedding
from holdfast.certifiers.propagation.operations.gates import Elu, Gelu, Silu, Softplus
from holdfast.certifiers.propagation.operations.linear import Add, Affine, Conv, ConvTranspose, Linear, Mean
from holdfast.certifiers.propagation.operations.pool import MaxPool
from holdfast.certifiers.propagation.operations.products import MatMul, Mul
from holdfast.certifiers.propagation.operations.shape import Concat, Pad, Permute, Reshape, Select
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import definition

__all__ = ["TABLE", "covered", "define_bounds", "entry", "operation"]

TABLE: dict[str, Operation] = {
    "linear": Linear(),
    "conv": Conv(),
    "conv_transpose": ConvTranspose(),
    "affine": Affine(),
    "relu": LeakyRelu(),
    "leaky_relu": LeakyRelu(),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "silu": Silu(),
    "gelu": Gelu(),
    "elu": Elu(),
    "softplus": Softplus(),
    "erf": Erf(),
    "exp": Exp(),
    "log": Log(),
    "sin": Wave(),
    "cos": Wave(cosine=True),
    "sqrt": Sqrt(),
    "reciprocal": Reciprocal(),
    "power": Power(),
    "abs": Abs(),
    "sign": Sign(),
    "mul": Mul(),
    "matmul": MatMul(),
    "embedding": Embedding(),
    "add": Add(1),
    "sub": Add(-1),
    "reshape": Reshape(),
    "permute": Permute(),
    "select": Select(),
    "pad": Pad(),
    "concat": Concat(),
    "max_pool": MaxPool(),
    "mean": Mean(),
}


_WRITTEN_OUT = frozenset(("softmax",))  # see `holdfast.certifiers.propagation.lowering`


def define_bounds(name: str, bounds: Operation) -> None:
    """Adds what bounds know about an operation of the graph, for a plug-in.

    The operation itself is defined by `holdfast.graph.operations.define`.

    Args:
        name: what nodes call it.
        bounds: boxes forwards, linear functions backwards; a `Curve` or an `Activation` for a function of one variable.

    Raises:
        UsageError: the graph has no such operation, or its bounds are known.

    Example:
        >>> define_bounds("relu", LeakyRelu())
        Traceback (most recent call last):
        ...
        holdfast.core.errors.UsageError: bounds of 'relu' are known; give an operation of your own another name
    """
    definition(name)
    if name in TABLE:
        raise UsageError(f"bounds of '{name}' are known; give an operation of your own another name")
    TABLE[name] = bounds


def operation(name: str) -> Operation:
    """The entry of an operation.

    Raises:
        UnsupportedError: there is none; a bound that nobody proved is never given.

    Example:
        >>> operation("quantum_gate")
        Traceback (most recent call last):
        ...
        holdfast.core.errors.UnsupportedError: no bound is known for 'quantum_gate'
    """
    if name not in TABLE:
        raise UnsupportedError(f"no bound is known for '{name}'")
    return TABLE[name]


def entry(node: Node, lines: Mapping[str, Operation] | None = None) -> Operation:
    """The entry of a node, or what stands in for it among a method's own ``lines``; its parameters are checked.

    Raises:
        UnsupportedError: there is none, or it does not serve the node's parameters.
    """
    found = lines[node.op] if lines and node.op in lines else operation(node.op)
    found.check(node)
    return found


def covered(graph: Graph) -> dict[str, bool]:
    """For each operation of a graph, in the order in which they appear, whether its bounds are known.

    A softmax is one of them: it is written out before bounds are computed.

    Example:
        >>> from holdfast.graph.model import Node
        >>> given = Node(op="input", inputs=(), shape=(2,))
        >>> covered(Graph((given, Node(op="softmax", inputs=(0,), shape=(2,), attributes={"dim": 0}))))
        {'softmax': True}
    """
    bounded = _WRITTEN_OUT | TABLE.keys()
    return {node.op: node.op in bounded for node in graph.nodes[1:]}
