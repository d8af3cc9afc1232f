"""Writes proofs that the separate checker (`holdfast.checker`) accepts or rejects; `docs/proofs.md` has the format."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.tree import Leaf, Split, Tree
from holdfast.checker.file import FORMAT, VERSION, content, sha256
from holdfast.checker.network import ActivationNode, Network
from holdfast.checker.onnx_network import read_network
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
    recorders = [_Recorder.of(graph, places, query, tree) for query, tree in zip(queries, trees, strict=True)]
    arrays = {f"{q}/{name}": value for q, recorder in enumerate(recorders) for name, value in recorder.arrays.items()}
    folder = Path(path).absolute().parent
    header = {
        "format": FORMAT,
        "version": VERSION,
        **{
            kind: {"path": os.path.relpath(Path(source).absolute(), folder), "sha256": digest}
            for kind, source, digest in zip(("network", "property"), (onnx_path, vnnlib_path), hashes, strict=True)
        },
        "activations": [prod(network.shape_of(k)) for k in network.activations],
        "queries": [recorder.header for recorder in recorders],
    }
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
    read = enumerate(network.nodes)
    theirs = [(prod(network.shape_of(k)), node.slope) for k, node in read if isinstance(node, ActivationNode)]
    if [(prod(graph.nodes[i].shape), float(graph.nodes[i].attributes.get("slope", 0.0))) for i in places] != theirs:
        raise UnsupportedError("no proof can be written: the checker reads other activations from the network's file")
    return places


@dataclass(frozen=True, eq=False, kw_only=True)
class _Recorder:
    """One query's tree as arrays, vertices in preorder.

    Attributes:
        activations: their positions in the graph, in the order in which the checker counts them from 1.
        sizes: of the graph's values.
        sources: the input, then what each activation reads: how the checker counts values from 0.
        query: the question.
        tree: the proof.
        vertices: of the tree, in preorder.
        leaves: of the tree, in order.
    """

    activations: Sequence[int]
    sizes: Sequence[int]
    sources: Sequence[int]
    query: Query
    tree: Tree
    vertices: Sequence[Split | Leaf]
    leaves: Sequence[Leaf]

    @classmethod
    def of(cls, graph: Graph, activations: Sequence[int], query: Query, tree: Tree) -> _Recorder:
        """The recorder of one query."""
        vertices = _preorder(tree)
        return cls(
            activations=activations,
            sizes=[prod(node.shape) for node in graph.nodes],
            sources=[0, *(graph.nodes[i].inputs[0] for i in activations)],
            query=query,
            tree=tree,
            vertices=vertices,
            leaves=[v for v in vertices if isinstance(v, Leaf)],
        )

    @property
    def header(self) -> dict[str, Any]:
        """What the file's header says of the query: which activations have slopes, in leaves and at the root."""
        root = [
            [self.place(node), [self.ordinal(i) for i in slopes]] for node, slopes in sorted(self.tree.slopes.items())
        ]
        return {"slopes": self._with_slopes, "root": root}

    @property
    def arrays(self) -> Arrays:
        """The query, its tree and its leaves."""
        return self._question() | self._vertices() | self._leaf_slopes() | self._root_slopes()

    def place(self, node: int) -> int:
        """0 for the input, k for the input of the k-th activation."""
        if node not in self.sources:
            raise UnsupportedError(f"no proof can be written: node {node} is split, which no ReLU reads")
        return self.sources.index(node)

    def ordinal(self, activation: int) -> int:
        """The number of an activation, from 1."""
        return self.activations.index(activation) + 1

    def _question(self) -> Arrays:
        query = self.query
        return {
            "lower": query.lower.double().flatten().cpu().numpy(),
            "upper": query.upper.double().flatten().cpu().numpy(),
            "c": query.c.double().cpu().numpy(),
            "d": query.d.double().cpu().numpy(),
            "groups": query.groups.cpu().numpy().astype(np.int32),
        }

    def _vertices(self) -> Arrays:
        leaves, splits = self.leaves, [v if isinstance(v, Split) else None for v in self.vertices]
        multipliers = [leaf.multipliers.astype(np.float32).ravel() for leaf in leaves if leaf.multipliers.size]
        return {
            "node": np.array([-1 if s is None else self.place(s.node) for s in splits], np.int32),
            "index": np.array([0 if s is None else s.index for s in splits], np.int32),
            "point": np.array([0.0 if s is None else s.point for s in splits], np.float64),
            "rows": np.array([leaf.rows for leaf in leaves], np.int32).reshape(len(leaves), -1),
            "weighted": np.array([leaf.multipliers.size > 0 for leaf in leaves], np.int32),
            "multipliers": np.concatenate([np.zeros(0, np.float32), *multipliers]),
        }

    @property
    def _with_slopes(self) -> list[int]:
        return sorted({self.ordinal(i) for leaf in self.leaves for i in leaf.slopes})

    def _leaf_slopes(self) -> Arrays:
        """Entry by entry over all leaves: entries that are the same everywhere then pack to nothing."""
        arrays: Arrays = {}
        groups = int(self.query.groups[-1]) + 1
        for k in self._with_slopes:
            node = self.activations[k - 1]
            of = [n for n, leaf in enumerate(self.leaves) if node in leaf.slopes]
            stacked = np.empty((groups, self.sizes[node], len(of)), np.float32)
            for place, n in enumerate(of):
                stacked[:, :, place] = _clamped(self.leaves[n].slopes[node]).reshape(-1, self.sizes[node])
            arrays[f"slopes/{k}/leaves"] = np.array(of, np.int32)
            arrays[f"slopes/{k}"] = stacked
        return arrays

    def _root_slopes(self) -> Arrays:
        return {
            f"root/{self.place(node)}/{self.ordinal(i)}": _clamped(values)
            for node, slopes in self.tree.slopes.items()
            for i, values in slopes.items()
        }


def _clamped(slopes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(slopes.astype(np.float32), 0, 1)


def _preorder(tree: Tree) -> list[Split | Leaf]:
    vertices: list[Split | Leaf] = []
    pending = [0]
    while pending:
        vertex = tree.vertices[pending.pop()]
        assert vertex is not None, "the tree is complete"
        vertices.append(vertex)
        if isinstance(vertex, Split):
            pending += reversed(vertex.children)
    return vertices
