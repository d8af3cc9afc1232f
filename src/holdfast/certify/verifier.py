"""The verifier: decides queries about a model by the cheapest means that will do.

Attacks first, then bounds of the whole set, then a complete method that fits the model. It fails closed: whatever goes
wrong inside, the answer is UNKNOWN with its reason, and nothing is called broken but by a witness that was run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from holdfast.certify.query import Query
from holdfast.certify.solver import Answer, Progress
from holdfast.certify.tree import Tree
from holdfast.graph.model import Graph

__all__ = ["Falsify", "broken", "representable", "verify"]

Falsify = Callable[[Query, float], Tensor | None]
"""An attack: gets a query and seconds, returns a witness (1, \\*features) or None."""


def verify(
    graph: Graph,
    queries: Sequence[Query],
    *,
    timeout: float = 60.0,
    falsify: Falsify | None = None,
    method: str = "auto",
    memory: int = 1 << 30,
    trees: Sequence[Tree] | None = None,
    deployed: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Decides a disjunction of queries: BROKEN if any of them is, HOLDS only if all of them hold.

    Args:
        graph: the model, in the arithmetic in which it runs; outputs that are no vector are flattened.
        queries: what is asked, at least one; they share the time.
        timeout: seconds, above 0; an answer that comes later is a TIMEOUT.
        falsify: an attack, which is tried first and now and then (`certify` knows none of its own).
        method: ``auto``, or the name of a certifier of graphs, which then decides alone (after the attack, if given).
        memory: bytes for tensors of one pass and for domains that wait, together.
        trees: one for each query, still empty: where the proof is recorded; each is complete if the answer is HOLDS.
        deployed: certify the network as computed in this type rather than in real numbers.
        progress: told domains done, domains open and the bound so far.

    Returns:
        The answer. ``bound`` and ``rows`` are about the query that decided, ``domains`` about all.

    Raises:
        UsageError: shapes that do not agree, no time, a method that does not exist.
        UnsupportedError: an operation without bounds, or a method that does not serve the model or the set.
    """
    raise NotImplementedError


def representable(query: Query, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A point as a witness has to be: inside the box, every entry a number of the model's type.

    Args:
        query: the question; its box counts.
        x: (n, \\*features).
        dtype: the model's type.

    Returns:
        (n, \\*features) float64: x moved into the box and rounded, inward where that would leave it. Where the box has
        no number of the type it is the nearest point of the box.
    """
    raise NotImplementedError


def broken(graph: Graph, query: Query, x: Tensor) -> bool:
    """Whether a witness breaks the property: it lies in the set, and both runs of the model say so.

    The model runs on the witness alone (a batch of one), in its own type and in float64.

    Args:
        graph: the model, in the type in which it runs.
        query: the question.
        x: (1, \\*features).
    """
    raise NotImplementedError
