"""Checks a branch tree: every leaf must prove its part of the set.

Vertices stand in preorder, a split's first child next and its second child after the first one's subtree, so a list of
vertices that comes out even is a tree, and its leaves cover the set: at each split one child has the entry at most the
point and the other at least, and no vertex can be missing or stand twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import numpy as np

from holdfast.checker.network import Network
from holdfast.checker.propagation import NodeBounds, Term
from holdfast.checker.rounding import Rejected, gamma, length

__all__ = ["Proof", "check_tree"]

Array = Any
Path = tuple["Path", int, int] | None  # what leads to a vertex: the path to its parent, the parent, and the side


@dataclass(eq=False, kw_only=True)
class Proof:
    """One query of a file, as arrays.

    Attributes:
        c: (rows, outputs).
        d: (rows,).
        groups: (rows,).
        node: (vertices,): -1 at a leaf, 0 where an input is split, k where the input of the k-th activation is.
        index: (vertices,): the entry of the flattened value.
        point: (vertices,): where it is split.
        rows: (leaves, groups): the row of each group that is positive throughout.
        weighted: (leaves,): whether it has multipliers.
        multipliers: one after another, for each such leaf (groups, splits above it, from the root).
        slopes: by activation: which leaves have slopes for it, and those, (groups, entries, such leaves).
        root: slopes in the passes that find the root's boxes, by activation whose input is bounded, then by activation.
    """

    c: Array
    d: Array
    groups: Array
    node: Array
    index: Array
    point: Array
    rows: Array
    weighted: Array
    multipliers: Array
    slopes: dict[int, tuple[Array, Array]] = field(default_factory=dict[int, tuple[Array, Array]])
    root: dict[int, dict[int, Array]] = field(default_factory=dict[int, dict[int, Array]])


def check_tree(network: Network, lower: Array, upper: Array, proof: Proof) -> int:
    """Checks that in the box one row of each group is positive in every leaf; returns the number of leaves.

    Raises:
        Rejected: it is not shown.
    """
    paths = _leaves(network, proof)
    _check_shapes(network, proof, len(paths))
    lower, upper = (end.reshape(1, *network.shape) for end in (lower, upper))
    root = NodeBounds(network, lower, upper).run({})
    if proof.root:
        at = [0, *network.activations]
        inputs = {k: network.read_by(at[k]) for k in proof.root}
        slopes = {
            inputs[k]: {at[j]: s.reshape(network.shape_of(at[j])) for j, s in of.items()}
            for k, of in proof.root.items()
        }
        root = NodeBounds(network, lower, upper).run(slopes, root)
    sizes = [prod(network.shape_of(i)) for i in range(len(network.nodes))]
    step = max(min((1 << 20) // (max(sizes) * proof.rows.shape[1]), (1 << 21) // sum(sizes)), 1)
    starts = np.cumsum(
        [0, *(proof.rows.shape[1] * n for n in np.where(proof.weighted != 0, [len(p) for p in paths], 0))]
    )
    if starts[-1] != len(proof.multipliers):
        raise Rejected(f"{len(proof.multipliers)} multipliers where the tree needs {starts[-1]}")
    boxed = np.array([any(proof.node[v] == 0 for v, _ in path) for path in paths])
    for kind in (False, True):
        leaves = np.nonzero(boxed == kind)[0]
        for i in range(0, len(leaves), step):
            _Batch(network, proof, root, leaves[i : i + step], paths, starts).check(kind)
    return len(paths)


def _leaves(network: Network, proof: Proof) -> list[list[tuple[int, int]]]:
    """The leaves in order: for each the splits above it from the root, as (vertex, side)."""
    sizes = [prod(network.shape), *(prod(network.shape_of(k)) for k in network.activations)]
    open_: list[Path] = [None]
    found: list[list[tuple[int, int]]] = []
    for v, (node, index, point) in enumerate(zip(proof.node, proof.index, proof.point, strict=True)):
        if not open_:
            raise Rejected("the tree has vertices beyond its end")
        path = open_.pop()
        if node == -1:
            above: list[tuple[int, int]] = []
            while path is not None:
                path, *split = path
                above.append((split[0], split[1]))
            found.append(above[::-1])
        elif 0 <= node < len(sizes) and 0 <= index < sizes[node] and abs(point) < np.inf:
            open_ += [(path, v, 1), (path, v, -1)]
        else:
            raise Rejected(f"vertex {v} splits what does not exist")
    if open_:
        raise Rejected("the tree lacks leaves")
    return found


def _check_shapes(network: Network, proof: Proof, leaves: int) -> None:
    count = proof.groups[-1] + 1 if len(proof.groups) else 0
    if proof.rows.shape != (leaves, count) or proof.weighted.shape != (leaves,) or not count:
        raise Rejected(f"{leaves} leaves, {count} groups, but rows of shape {proof.rows.shape}")
    known = (proof.rows >= 0) & (proof.rows < len(proof.groups))
    every = cast("Array", np.arange(count))
    if not (known & (proof.groups[np.where(known, proof.rows, 0)] == every)).all():
        raise Rejected("a leaf's rows do not belong to its groups")
    if not ((proof.multipliers >= 0) & (proof.multipliers < np.inf)).all():
        raise Rejected("a multiplier is negative")
    _check_leaf_slopes(network, proof, leaves, count)
    _check_root_slopes(network, proof)
    for slopes in [*(s for _, s in proof.slopes.values()), *(s for of in proof.root.values() for s in of.values())]:
        if not ((slopes >= 0) & (slopes <= 1)).all():
            raise Rejected("a slope lies outside [0, 1]")


def _entries(network: Network, k: int) -> int:
    """Of the k-th activation; -1 where there is none."""
    at = [0, *network.activations]
    return prod(network.shape_of(at[k])) if 0 < k < len(at) else -1


def _check_leaf_slopes(network: Network, proof: Proof, leaves: int, count: int) -> None:
    for k, (of, slopes) in proof.slopes.items():
        expected = (count, _entries(network, k), len(of))
        ascending = (of[:-1] < of[1:]).all() and (of >= 0).all() and (of < leaves).all()
        if slopes.shape != expected or not ascending:
            raise Rejected(f"slopes of activation {k} of shape {slopes.shape}, not {expected}")


def _check_root_slopes(network: Network, proof: Proof) -> None:
    for k, slopes in [(j, s) for of in proof.root.values() for j, s in of.items()]:
        if slopes.size != _entries(network, k):
            raise Rejected(f"slopes of activation {k} of shape {slopes.shape}")
    if any(_entries(network, k) < 0 for k in proof.root):
        raise Rejected("slopes for what is no activation")


def _different(numbers: Array) -> list[int]:
    return cast("list[int]", np.unique(numbers).tolist())


class _Batch:
    """Some leaves, bounded together: all with boxes of their own, or all with the root's."""

    def __init__(
        self, network: Network, proof: Proof, root: NodeBounds, leaves: Array, paths: list[Any], starts: Array
    ) -> None:
        self.network, self.proof, self.root, self.leaves = network, proof, root, leaves
        self.at = [0, *network.activations]
        self.place = [0, *map(network.read_by, network.activations)]
        splits = [(i, j, v, side) for i, n in enumerate(leaves) for j, (v, side) in enumerate(paths[n])]
        self.leaf, self.depth, self.vertex, self.side = np.array(splits, int).reshape(-1, 4).T
        self.starts, self.depths = starts[leaves], np.array([len(paths[n]) for n in leaves])

    def check(self, boxed: bool) -> None:
        """Raises: Rejected: a leaf of which a bound is not positive."""
        n, groups = len(self.leaves), self.proof.rows.shape[1]
        found = self.root
        if boxed:
            lower, upper = self._cut(0, self.root.lower[0], self.root.upper[0])
            empty = (lower > upper).reshape(n, -1).any(1)
            upper = np.maximum(lower, upper)  # an empty part is bounded for nothing
            found = NodeBounds(self.network, lower, upper).run({})  # as a search finds it: no box of the root's
        else:
            empty = np.zeros(n, bool)
        boxes = list(zip(found.lower, found.upper, strict=True))
        for k in _different(self.proof.node[self.vertex]):
            i = self.place[k]
            boxes[i] = self._cut(k, *boxes[i])
            empty |= (boxes[i][0] > boxes[i][1]).reshape(n, -1).any(1)
        rows = self.proof.rows[self.leaves].ravel()
        who, c, d = np.repeat(np.arange(n), groups), self.proof.c[rows], self.proof.d[rows]
        extra, constant, error = self._multipliers(groups)
        last = len(self.network.nodes) - 1
        bound = found.minimum(last, c.reshape(-1, *self.network.shape_of(last)), who, self._slopes(), extra, boxes)
        error += gamma(8) * length(c) * length(found.reach[last]).max() + gamma(8) * (np.abs(d) + np.abs(bound))
        bound = bound + d + constant - error
        shown = (bound > 0).reshape(n, groups).all(1) | empty
        if not shown.all():
            bad = int(np.argmin(shown))
            raise Rejected(
                f"leaf {self.leaves[bad]} is not proved: {bound.reshape(n, groups)[bad].min():.6g} is no bound above 0"
            )

    def _cut(self, k: int, lower: Array, upper: Array) -> tuple[Array, Array]:
        """The box of a value that is split, for each leaf."""
        here = self.proof.node[self.vertex] == k
        entry, point = self.proof.index[self.vertex[here]], self.proof.point[self.vertex[here]]
        n, shape = len(self.leaves), lower.shape[1:]
        lower, upper = (np.broadcast_to(z, (n, *shape)).reshape(n, -1).copy() for z in (lower, upper))
        below, leaf = self.side[here] < 0, self.leaf[here]
        np.minimum.at(upper, (leaf[below], entry[below]), point[below])
        np.maximum.at(lower, (leaf[~below], entry[~below]), point[~below])
        return lower.reshape(n, *shape), upper.reshape(n, *shape)

    def _multipliers(self, groups: int) -> tuple[dict[int, Term], Array, Array]:
        """By value the coefficients that its splits add to rows; each row's constant and a bound of its rounding.

        For m >= 0, ``m (z - p) <= 0`` where z is at most p, and ``-m (z - p) <= 0`` where it is at least p: a bound of
        the sum with these is one without them.
        """
        use = (self.proof.weighted != 0)[self.leaves[self.leaf]]
        leaf, vertex, side, depth = self.leaf[use], self.vertex[use], self.side[use], self.depth[use]
        extra: dict[int, Term] = {}
        constant, size = np.zeros((2, len(self.leaves) * groups))
        for g in range(groups):
            m = self.proof.multipliers[self.starts[leaf] + g * self.depths[leaf] + depth].astype(np.float64)
            row, signed, point = leaf * groups + g, -side * m, self.proof.point[vertex]
            np.add.at(constant, row, -signed * point)
            np.add.at(size, row, np.abs(signed * point))
            for k in _different(self.proof.node[vertex]):
                here = self.proof.node[vertex] == k
                term = (row[here], self.proof.index[vertex[here]], signed[here])
                old = extra.get(self.place[k])
                extra[self.place[k]] = term if old is None else tuple(map(np.concatenate, zip(old, term, strict=True)))
        most = self.depths.max(initial=0)
        return extra, constant, gamma(most + 4) * size

    def _slopes(self) -> Mapping[int, Array]:
        """By activation (rows, \\*shape); NaN where a leaf has none."""
        found: dict[int, Array] = {}
        for k, (of, slopes) in self.proof.slopes.items():
            shape = self.network.shape_of(self.at[k])
            place = cast("Array", np.searchsorted(of, self.leaves))
            there = (place < len(of)) & (of[np.minimum(place, len(of) - 1)] == self.leaves) if len(of) else place < 0
            mine = np.full((len(self.leaves), *slopes.shape[:2]), np.nan)
            mine[there] = slopes[:, :, place[there]].transpose(2, 0, 1)
            found[self.at[k]] = mine.reshape(-1, *shape)
        return found
