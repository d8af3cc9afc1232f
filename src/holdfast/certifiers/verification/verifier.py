"""The verifier: decides queries about a model by the cheapest means that will do.

Attacks first, then bounds of the whole set, then a complete method that fits the model. It fails closed: whatever goes
wrong inside, the answer is UNKNOWN with its reason, and nothing is called broken but by a witness that was run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.operation import node_size
from holdfast.certifiers.propagation.propagation import check_constants
from holdfast.certifiers.proved import numbers
from holdfast.certifiers.verification.edge import exact_rows
from holdfast.certifiers.verification.query import EDGE, Query
from holdfast.certifiers.verification.solver import Answer, Decision, Progress, SearchLimit, Solver
from holdfast.certifiers.verification.tree import Tree
from holdfast.core import registry
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph, Node
from holdfast.numerics.distance import contains

__all__ = ["Falsify", "broken", "representable", "verify", "whole_points"]

Falsify = Callable[[Query, float], Tensor | None]
"""An attack: gets a query and seconds, returns a witness (1, \\*features) or None."""

# parts of the time: the attack before the bounds, before the solver, while it runs, and the pause between those
_QUICK, _SECOND, _LONGER, _PAUSE = 0.01, 0.02, 0.1, 0.25
_TOUCH = 1e-9  # of the terms of a row: as near to 0 as rounding lets bounds come
_ON_THE_EDGE = (
    "an output meets the edge of what is unsafe, or an input that of the set, with equality, which is safe; bounds that pay "
    "for rounding cannot tell equality from less"
)
_FEW, _MANY = 20, 200  # inputs: up to there splitting them comes first, and at all


def verify(
    graph: Graph,
    queries: Sequence[Query],
    *,
    timeout: float = 60.0,
    falsify: Falsify | None = None,
    method: str | GraphCertifier = "auto",
    memory: int = 1 << 30,
    trees: Sequence[Tree] | None = None,
    deployed: torch.dtype | None = None,
    progress: Progress | None = None,
    believed: Callable[[Tensor], bool] | None = None,
) -> Answer:
    """Decides a disjunction of queries: BROKEN if any of them is, HOLDS only if all of them hold.

    Args:
        graph: the model, in the arithmetic in which it runs; outputs that are no vector are flattened.
        queries: what is asked, at least one; they share the time.
        timeout: seconds, above 0; an answer that comes later is a TIMEOUT.
        falsify: an attack, which is tried first and now and then (`certify` knows none of its own).
        method: ``auto``, or a certifier of graphs or its name: it then decides alone (after the attack, if given).
        memory: bytes for tensors of one pass and for domains that wait, together.
        trees: one for each query, still empty: where the proof is recorded; each is complete if the answer is HOLDS.
        deployed: certify the network as computed in this type rather than in real numbers.
        progress: told domains done, domains open and the bound so far.
        believed: what else a witness (1, \\*features) must pass, beside two runs of the model; one that does not is no
            witness, and the search goes on.

    Returns:
        The answer. ``bound`` and ``rows`` are about the query that decided, ``domains`` about all.

    Raises:
        UsageError: shapes that do not agree, no time, a method that does not exist.
        UnsupportedError: an operation without bounds, or a method that does not serve the model or the set.
    """
    deadline = monotonic() + timeout
    graph = _flat(graph if deployed is None else replace(graph, deployed=deployed))
    _check(graph, queries, timeout, trees)
    run = _Run(
        graph=graph,
        queries=list(queries),
        deadline=deadline,
        timeout=timeout,
        falsify=falsify,
        method=method,
        memory=memory,
        trees=trees,
        progress=progress,
        believed=believed,
    )
    try:
        answer = run.decide()
    except UsageError:
        raise
    except Exception as error:  # out of memory, numerical failures, an attack's own: nothing is known then
        reason = f"{type(error).__name__}: {error}"
        name = method if isinstance(method, str) else registry.name_of(method)
        answer = Answer(decision=Decision.UNKNOWN, bound=-inf, domains=run.domains, method=name, reason=reason)
    if answer.decision in (Decision.UNKNOWN, Decision.TIMEOUT) and run.failures:
        answer = replace(answer, reason="; ".join(r for r in (answer.reason, *run.failures) if r))
    if answer.decision is not Decision.TIMEOUT and monotonic() > deadline:
        return replace(answer, decision=Decision.TIMEOUT, reason=f"{answer.decision} came after {timeout:g} s")
    return answer


def _check(graph: Graph, queries: Sequence[Query], timeout: float, trees: Sequence[Tree] | None) -> None:
    """Refuses what cannot be asked."""
    if not queries or timeout <= 0:
        raise UsageError("a verdict needs a query and time: give at least one query and a timeout above 0")
    if trees is not None and len(trees) != len(queries):
        raise UsageError(f"{len(trees)} trees for {len(queries)} queries")
    check_constants(graph)
    for query in queries:
        if query.x.shape[1:] != graph.input_shape or query.c.shape[1] != graph.output_shape[0]:
            raise UsageError(
                f"a query about inputs {tuple(query.x.shape[1:])} and {query.c.shape[1]} outputs for a model of "
                f"{graph.input_shape} and {graph.output_shape}"
            )


class _BrokenError(Exception):
    """Stops a solver from within its progress report: an attack has found a witness."""

    def __init__(self, witness: Tensor) -> None:
        super().__init__("broken")
        self.witness = witness


class _EdgeError(Exception):
    """Stops a solver: what it has left to prove is decided by equality, which bounds that pay for rounding never reach."""


@dataclass(kw_only=True)
class _Run:
    """One verification: what was asked, and how many parts were bounded so far."""

    graph: Graph
    queries: list[Query]
    deadline: float
    timeout: float
    falsify: Falsify | None
    method: str | GraphCertifier
    memory: int
    trees: Sequence[Tree] | None
    progress: Progress | None
    believed: Callable[[Tensor], bool] | None = None
    domains: int = 0
    edge: float = -inf  # a bound above it tells nothing: the query is met on the edge of its set or of its strict rows
    failures: dict[str, None] = field(default_factory=dict[str, None])  # of parts, in words, each once

    def decide(self) -> Answer:
        """Attack, bounds, a longer attack on what is open, then a complete method on each, the worst first."""
        for query in self.queries:
            witness = self._attack(query, _QUICK * self.timeout / len(self.queries))
            if witness is not None:
                return self._is_broken(query, witness, "attack")
        answers = [self._bounds(i) for i in range(len(self.queries))]
        open_ = [i for i, answer in enumerate(answers) if answer.decision is not Decision.HOLDS]
        open_.sort(key=lambda i: answers[i].bound)
        for i in open_ if self.method == "auto" else []:
            witness = self._attack(self.queries[i], _SECOND * self.timeout / len(open_))
            if witness is not None:
                return self._is_broken(self.queries[i], witness, "attack")
        for i in open_:
            if self.method == "auto":
                answers[i] = self._solve(i, answers[i])
            if answers[i].decision is Decision.BROKEN:
                return replace(answers[i], domains=self.domains)
        decided = [answers[i] for i in open_ if answers[i].decision is not Decision.HOLDS] or answers
        return replace(min(decided, key=lambda answer: answer.bound), domains=self.domains)

    def _attack(self, query: Query, seconds: float) -> Tensor | None:
        seconds = min(max(seconds, 0.2), self.deadline - monotonic())
        if self.falsify is None or seconds <= 0:
            return None
        try:
            found = self.falsify(query, seconds)
            if found is None:
                return None
            whole = (whole_points(query, found),) if self.graph.whole else ()
            for x in (*whole, found.double(), representable(query, found, self.graph.dtype)):
                if self._breaks(query, x):
                    return x
        except Exception as error:  # whatever an attack meets, the bounds have their turn
            self.failures[f"the attack failed ({type(error).__name__}: {error})"] = None
        return None

    def _breaks(self, query: Query, x: Tensor) -> bool:
        return broken(self.graph, query, x) and (self.believed is None or self.believed(x))

    def _is_broken(self, query: Query, witness: Tensor, by: str) -> Answer:
        arithmetic = f"f as run in {str(self.graph.dtype).removeprefix('torch.')} and in float64"
        return Answer(
            decision=Decision.BROKEN,
            bound=-inf,
            witness=witness,
            domains=self.domains,
            method=by,
            arithmetic=arithmetic,
        )

    def _bounds(self, i: int) -> Answer:
        """The named method, or intervals and CROWN over the whole set; with a proof to record solvers do that."""
        done = self._at_the_edge(i)
        if done is not None:
            return done
        query, tree = self.queries[i], None if self.trees is None else self.trees[i]
        if self.method != "auto" and monotonic() < self.deadline:
            return self._by(self.method, query, tree)
        answer = Answer(decision=Decision.UNKNOWN, bound=-inf)
        if tree is None and monotonic() < self.deadline:
            for name in ("ibp", "crown"):
                try:
                    more = self._by(name, query, None)
                except UsageError:
                    raise
                except Exception as error:  # memory, say: the methods after it have their turn
                    self.failures[f"{name} failed ({type(error).__name__}: {error})"] = None
                    continue
                answer = more if more.bound >= answer.bound else answer
                if answer.decision is Decision.HOLDS:
                    break
        return answer

    def _at_the_edge(self, i: int) -> Answer | None:
        """Groups of query i with a strict row that is at least 0 throughout are done with: the answer if all are.

        Methods pay for rounding, so none of them ever reaches 0; see `holdfast.certifiers.verification.edge`.
        """
        query = self.queries[i]
        if query.strict is None or self.trees is not None or not bool(query.strict.any()):
            return None
        rows = exact_rows(self.graph, query)
        safe = [
            bool(query.select(g).score(rows[None, query.groups == g]) > 0) for g in range(int(query.groups[-1]) + 1)
        ]
        if all(safe):
            words = "f in real numbers on its stored weights, exact at the edge of a strict row"
            return Answer(decision=Decision.HOLDS, bound=EDGE, rows=rows, domains=1, method="ibp", arithmetic=words)
        self.queries[i] = query.keep(~torch.tensor(safe)[query.groups])
        return None

    def _by(self, method: str | GraphCertifier, query: Query, tree: Tree | None) -> Answer:
        """What a certifier of graphs, or a solver, says."""
        certifier: Any = registry.method(method)() if isinstance(method, str) else method
        name = registry.name_of(certifier)
        if not isinstance(certifier, GraphCertifier):
            raise UsageError(f"'{name}' gives no bounds on a graph; methods that do: crown, alpha_crown, ...")
        certifier.check_deployed(self.graph)
        limit = SearchLimit(self.deadline, self.memory)
        if isinstance(certifier, Solver):
            try:
                answer = certifier.solve(self.graph, query, limit, tree=tree, progress=self._watch(query))
            except _BrokenError as error:
                return self._is_broken(query, error.witness, f"{name}, attack")
            except _EdgeError:
                return Answer(decision=Decision.UNKNOWN, bound=0.0, domains=1, method=name, reason=_ON_THE_EDGE)
            self.domains += answer.domains
            return self._checked(query, answer)
        if tree is not None:
            raise UsageError(f"{name} records no proof; use neuron_splitting, input_splitting or auto")
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
            rows = certifier.bounds(self.graph, query.ball, query.x, query.c.unsqueeze(0), query.d.unsqueeze(0))
        rows = numbers(rows)
        bound = float(query.score(rows))
        self.domains += 1
        decision = Decision.HOLDS if bound > 0 else Decision.UNKNOWN
        if bound > 0:
            reason = ""
        elif bound > -inf:
            reason = f"the bound {bound:.4g} of {name} is not positive"
        else:
            reason = f"{name} knows no bound: a value of the network overflows or is not defined everywhere in the box"
        return Answer(
            decision=decision,
            bound=bound,
            rows=rows[0],
            domains=1,
            method=name,
            arithmetic=certifier.arithmetic(self.graph),
            reason=reason,
        )

    def _watch(self, query: Query) -> Progress:
        """Passes progress on, and interrupts now and then for another attack."""
        due = monotonic() + _PAUSE * self.timeout

        def report(done: int, waiting: int, bound: float) -> None:
            nonlocal due
            if self.progress is not None:
                self.progress(done, waiting, bound)
            if self.edge > -inf and bound > self.edge:
                raise _EdgeError
            if monotonic() > due:
                witness = self._attack(query, _LONGER * self.timeout)
                due = monotonic() + _PAUSE * self.timeout
                if witness is not None:
                    raise _BrokenError(witness)

        return report

    def _solve(self, i: int, before: Answer) -> Answer:
        """The complete methods that fit, one after another, until one decides."""
        answer = before
        self.edge = self._edge(self.queries[i])
        tree = None if self.trees is None else self.trees[i]
        for name in self._solvers(i):
            if monotonic() >= self.deadline:
                break
            one = self._try(name, self.queries[i], tree)
            if one.decision in (Decision.HOLDS, Decision.BROKEN):
                return one
            reasons = "; ".join(r for r in (answer.reason if answer is not before else "", one.reason) if r)
            answer = replace(one if one.bound >= answer.bound else answer, decision=one.decision, reason=reasons)
            if (tree is not None and tree.begun) or one.decision is Decision.TIMEOUT or one.reason == _ON_THE_EDGE:
                break  # another method cannot go on with a tree that this one began, nor has it time
        return replace(answer, decision=Decision.TIMEOUT) if monotonic() >= self.deadline else answer

    def _try(self, name: str, query: Query, tree: Tree | None) -> Answer:
        """What a method says; its failure is an answer too."""
        try:
            return self._by(name, query, tree)
        except UnsupportedError as error:
            reason = str(error)
        except UsageError:
            raise
        except Exception as error:  # one method's failure leaves the others their turn
            reason = f"{type(error).__name__}: {error}"
        return Answer(decision=Decision.UNKNOWN, bound=-inf, method=name, reason=reason)

    def _edge(self, query: Query) -> float:
        """How near to 0 rounding lets bounds come, where strict bounds and rows are broken if they are taken as if they
        were not strict: no bound proves such a query. -inf elsewhere."""
        if self.falsify is None or (query.strict is None and query.outside is None):
            return -inf
        closed = replace(query, strict=None, outside=None)
        found = self.falsify(closed, min(max(_SECOND * self.timeout, 0.2), max(self.deadline - monotonic(), 0.01)))
        if found is None or not broken(self.graph, closed, found.double()):
            return -inf
        with torch.no_grad():
            y = self.graph.to(torch.float64).as_module()(found.double()).flatten(1)
        return -_TOUCH * (1 + float((y.abs() @ query.c.abs().T + query.d.abs()).amax()))

    def _solvers(self, i: int) -> list[str]:
        """Few inputs: split them; otherwise split neurons. If that gives up: slopes alone, integer programs, the other."""
        query = self.queries[i]
        free = int((query.upper > query.lower).sum())
        names = ["neuron_splitting"] if self.trees is not None else ["neuron_splitting", "alpha_crown", "milp"]
        if free <= _MANY and query.ball.norm is Norm.LINF:
            names.insert(0 if free <= _FEW else len(names), "input_splitting")
        return names

    def _checked(self, query: Query, answer: Answer) -> Answer:
        """A solver's answer; a witness counts only if it breaks the property here too."""
        if answer.decision is Decision.BROKEN and (answer.witness is None or not self._breaks(query, answer.witness)):
            reason = f"the witness of {answer.method} did not break the property when it was run again"
            return replace(answer, decision=Decision.UNKNOWN, witness=None, reason=reason)
        return answer


def _flat(graph: Graph) -> Graph:
    """The graph with a vector as output."""
    if len(graph.output_shape) == 1:
        return graph
    shape = (node_size(graph.output_shape),)
    last = Node(op="reshape", inputs=(len(graph.nodes) - 1,), shape=shape, attributes={"shape": shape})
    return replace(graph, nodes=(*graph.nodes, last))


def representable(query: Query, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A point as a witness has to be: inside the box, every entry a number of the model's type.

    Args:
        query: the question; its box counts.
        x: (n, \\*features).
        dtype: the model's type.

    Returns:
        (n, \\*features) float64: x moved into the box and rounded, inward where that would leave it. Where the box has
        no number of the type it is the nearest point of the box.

    Example:
        >>> query = Query.of_box(torch.tensor([0.1]).double(), torch.ones(1).double(), torch.ones(1, 1), torch.zeros(1))
        >>> representable(query, torch.zeros(1, 1), torch.float32).item()  # 0.1 is no float32 and the next is larger
        0.10000000149011612
    """
    # an edge x - eps that was rounded outward is one unit outside a ball
    edges = query.inside
    far = [(e - query.x[0]).abs() > query.ball.eps for e in edges]
    lower, upper = (torch.where(f, torch.nextafter(e, query.x[0]), e) for e, f in zip(edges, far, strict=True))
    x = torch.clamp(x.double(), lower, upper)
    near = x.to(dtype)
    inward = torch.where(near.double() < lower, torch.inf, -torch.inf).to(near)
    near = torch.where((near.double() < lower) | (near.double() > upper), torch.nextafter(near, inward), near).double()
    return torch.where((near >= lower) & (near <= upper), near, x)


def whole_points(query: Query, x: Tensor) -> Tensor:
    """Points (n, \\*features) moved to the nearest whole numbers of the box, float64."""
    lower, upper = query.inside
    return torch.clamp(x.double().round(), lower.ceil(), upper.floor())


def broken(graph: Graph, query: Query, x: Tensor) -> bool:
    """Whether a witness breaks the property: it lies in the set, and both runs of the model say so.

    A model of whole numbers is broken by whole numbers only.

    The model runs on the witness alone (a batch of one), in its own type and in float64.

    Args:
        graph: the model, in the type in which it runs.
        query: the question.
        x: (1, \\*features).
    """
    x = x.detach().double()
    if graph.whole and bool((x != x.round()).any()):
        return False
    lower, upper = query.inside
    if x.shape != query.x.shape or not bool(((x >= lower) & (x <= upper)).all()):
        return False
    ball = query.ball
    if bool(ball.eps.isfinite()) and not bool(contains(replace(ball, grid=None), x, query.x)):
        return False
    with torch.no_grad():
        runs = (run.as_module()(x.to(run.dtype)).double().flatten(1) for run in (graph, graph.to(torch.float64)))
        rows = torch.cat([y @ query.c.T + query.d for y in runs])
    return bool(rows.isfinite().all()) and bool((query.score(rows) <= 0).all())
