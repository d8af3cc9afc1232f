"""The branch tree of a proof, recorded while a solver works.

All solvers speak of splits in one way: an entry of a node's value is at most a point, or at least that point. Node 0 is
the input, so input splitting and neuron splitting differ by the node alone; a ReLU is split where its input is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Leaf", "Split", "Tree"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """An inner vertex: its first child has the entry at most ``point``, its second child at least."""

    node: int
    index: int
    point: float
    children: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Leaf:
    """A part of the set that is proved.

    Attributes:
        rows: one row of the query for each of its groups: the row that is positive throughout.
        slopes: lower slopes of activations in the last backward pass, node -> (len(rows), \\*shape) float32; activations
            that are missing have the default slopes.
        multipliers: for the splits above the leaf, in the order from the root: (len(rows), splits) float32, at least 0;
            empty where none are used.
    """

    rows: tuple[int, ...]
    slopes: Mapping[int, NDArray[np.float32]] = field(default_factory=dict[int, NDArray[np.float32]])
    multipliers: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))


class Tree:
    """Vertices by number; 0 is the root, the whole set of the query.

    Boxes of inner values are not stored, only how to find them again. With neuron splits they are those of the root,
    cut at the splits; with input splits each leaf computes its own. Either way they come from CROWN with the default
    slopes, intersected with intervals, unless ``slopes`` holds others for the root.

    Attributes:
        vertices: split, leaf, or None while it is open.
        slopes: for a node whose box was tightened with slopes of its own: node -> activation -> (\\*shape) float32.
    """

    def __init__(self) -> None:
        self.vertices: list[Split | Leaf | None] = [None]
        self.slopes: dict[int, dict[int, NDArray[np.float32]]] = {}

    def split(self, vertices: Sequence[int], node: Sequence[int], index: Sequence[int], point: Sequence[float]) -> Ints:
        """Splits open vertices; index counts the entries of the flattened value.

        Returns:
            (len(vertices), 2): the numbers of the children.
        """
        children: list[tuple[int, int]] = []
        for v, n, i, p in zip(vertices, node, index, point, strict=True):
            pair = (len(self.vertices), len(self.vertices) + 1)
            self.vertices += [None, None]
            self.vertices[v] = Split(node=int(n), index=int(i), point=float(p), children=pair)
            children.append(pair)
        return np.array(children, np.int64).reshape(-1, 2)

    def close(self, vertex: int, leaf: Leaf) -> None:
        """Says that a vertex is proved."""
        self.vertices[vertex] = leaf

    @property
    def begun(self) -> bool:
        """Whether anything is recorded."""
        return len(self.vertices) > 1 or self.vertices[0] is not None

    @property
    def complete(self) -> bool:
        """Whether no vertex is open."""
        return all(v is not None for v in self.vertices)
