"""Writes proofs that the separate checker (`holdfast.checker`) accepts or rejects; `docs/proofs.md` has the format."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.tree import Leaf, Split, Tree
from holdfast.checker.file import FORMAT, VERSION, content, sha256
from holdfast.checker.network import Network, read_network
from holdfast.checker.property import read_property
from holdfast.checker.rounding import Rejected
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.graph.model import Graph

__all__ = ["check_supported", "write"]

_ACTIVATIONS = ("relu", "leaky_relu")
Arrays = dict[str, NDArray[Any]]


def check_supported(onnx_path: str | Path, vnnlib_path: str | Path) -> None:
    """Says at once, before time is spent on a proof, whether the checker can read the network and the property.

    Raises:
        UnsupportedError: it cannot; the message is the checker's.
    """
    _network(onnx_path, vnnlib_path)


def write(
    path: str | Path,
    onnx_path: str | Path,
    vnnlib_path: str | Path,
    graph: Graph,
    queries: Sequence[Query],
    trees: Sequence[Tree],
) -> None:
    """Writes a proof: slopes, multipliers and the branch tree of each query.

    Args:
        path: the file.
        onnx_path: the network.
        vnnlib_path: the property.
        graph: what `holdfast.graph.onnx.read_onnx` made of the network.
        queries: all queries of the property.
        trees: what a solver recorded for each, complete.

    Raises:
        UnsupportedError: an operation that the checker does not know, or a tree that splits something else than an
            input or the input of a ReLU.
        UsageError: a tree has open vertices.
    """
    network, hashes = _network(onnx_path, vnnlib_path)
    places = _places(graph, network)
    if len(queries) != len(trees) or not all(tree.complete for tree in trees):
        raise UsageError("a proof needs a complete tree for each query")
    arrays: Arrays = {}
    told: list[dict[str, Any]] = []
    for q, (query, tree) in enumerate(zip(queries, trees, strict=True)):
        found = _Recorder(graph, places, query, tree)
        arrays |= {f"{q}/{name}": value for name, value in found.arrays.items()}
        told.append({"slopes": found.with_slopes, "root": found.root})
    folder = Path(path).absolute().parent
    header = {
        "format": FORMAT, "version": VERSION,
        **{
            kind: {"path": os.path.relpath(Path(source).absolute(), folder), "sha256": digest}
            for kind, source, digest in zip(("network", "property"), (onnx_path, vnnlib_path), hashes, strict=True)
        },
        "activations": [prod(network.shape_of(k)) for k in network.activations],
        "queries": told,
    }  # fmt: skip
    temporary = Path(f"{path}.part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header, indent=1))
        for name, value in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.ascontiguousarray(value), allow_pickle=False)
            archive.writestr(f"{name}.npy", stream.getvalue())
    temporary.replace(path)


def _network(onnx_path: str | Path, vnnlib_path: str | Path) -> tuple[Network, tuple[str, str]]:
    net, text = content(onnx_path), content(vnnlib_path)
    try:
        network = read_network(net)
        outputs = network.shape_of(len(network.nodes) - 1)
        read_property(text.decode(), prod(network.shape), prod(outputs))
    except Rejected as reason:
        raise UnsupportedError(f"no proof can be written: {reason}") from None
    return network, (sha256(net), sha256(text))


def _places(graph: Graph, network: Network) -> list[int]:
    """The positions of the activations in the graph; the checker counts them in the same order."""
    places = [i for i, node in enumerate(graph.nodes) if node.op in _ACTIVATIONS]
    theirs = [(prod(network.shape_of(k)), network.nodes[k].slope) for k in network.activations]  # pyright: ignore
    if [(prod(graph.nodes[i].shape), float(graph.nodes[i].attributes.get("slope", 0.0))) for i in places] != theirs:
        raise UnsupportedError("no proof can be written: the checker reads other activations from the network's file")
    return places


class _Recorder:
    """One query's tree as arrays, vertices in preorder."""

    def __init__(self, graph: Graph, places: Sequence[int], query: Query, tree: Tree) -> None:
        self.ordinal = {place: k for k, place in enumerate(places, 1)}
        inputs = [0, *(graph.nodes[i].inputs[0] for i in places)]
        self.value = {node: k for k, node in reversed(list(enumerate(inputs)))}
        self.sizes = [prod(node.shape) for node in graph.nodes]
        self.groups = int(query.groups[-1]) + 1
        vertices = _preorder(tree)
        leaves = [v for v in vertices if isinstance(v, Leaf)]
        splits = [v if isinstance(v, Split) else None for v in vertices]
        weighted = [leaf.multipliers.size > 0 for leaf in leaves]
        multipliers = [leaf.multipliers.astype(np.float32).ravel() for leaf in leaves if leaf.multipliers.size]
        self.arrays: Arrays = {
            "lower": query.lower.double().flatten().cpu().numpy(),
            "upper": query.upper.double().flatten().cpu().numpy(),
            "c": query.c.double().cpu().numpy(),
            "d": query.d.double().cpu().numpy(),
            "groups": query.groups.cpu().numpy().astype(np.int32),
            "node": np.array([-1 if s is None else self.place(s.node) for s in splits], np.int32),
            "index": np.array([0 if s is None else s.index for s in splits], np.int32),
            "point": np.array([0.0 if s is None else s.point for s in splits], np.float64),
            "rows": np.array([leaf.rows for leaf in leaves], np.int32).reshape(len(leaves), -1),
            "weighted": np.array(weighted, np.int32),
            "multipliers": np.concatenate([np.zeros(0, np.float32), *multipliers]),
        }
        self.with_slopes = sorted({self.ordinal[i] for leaf in leaves for i in leaf.slopes})
        for k in self.with_slopes:
            self.record_slopes(k, places[k - 1], leaves)
        self.root = [
            [self.place(node), [self.ordinal[i] for i in slopes]] for node, slopes in sorted(tree.slopes.items())
        ]
        for node, slopes in tree.slopes.items():
            for i, values in slopes.items():
                self.arrays[f"root/{self.place(node)}/{self.ordinal[i]}"] = _clamped(values)

    def place(self, node: int) -> int:
        """0 for the input, k for the input of the k-th activation."""
        if node not in self.value:
            raise UnsupportedError(f"no proof can be written: node {node} is split, which no ReLU reads")
        return self.value[node]

    def record_slopes(self, k: int, node: int, leaves: Sequence[Leaf]) -> None:
        """Entry by entry over all leaves: entries that are the same everywhere then pack to nothing."""
        of = [n for n, leaf in enumerate(leaves) if node in leaf.slopes]
        stacked = np.empty((self.groups, self.sizes[node], len(of)), np.float32)
        for place, n in enumerate(of):
            stacked[:, :, place] = _clamped(leaves[n].slopes[node]).reshape(-1, self.sizes[node])
        self.arrays[f"slopes/{k}/leaves"] = np.array(of, np.int32)
        self.arrays[f"slopes/{k}"] = stacked


def _clamped(slopes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(slopes.astype(np.float32), 0, 1)


def _preorder(tree: Tree) -> list[Split | Leaf]:
    found: list[Split | Leaf] = []
    pending = [0]
    while pending:
        vertex = tree.vertices[pending.pop()]
        assert vertex is not None, "the tree is complete"
        found.append(vertex)
        if isinstance(vertex, Split):
            pending += reversed(vertex.children)
    return found
