"""The verifier: witnesses are run again, whatever fails is unknown, and all queries count."""

import pytest
import torch

from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Answer, Decision
from holdfast.certifiers.verification.verifier import broken, representable, verify
from holdfast.core import registry
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.graph.model import Graph, Node


def _line(shape=(1,)):
    """f(x) = x for one input in float32; the output may have another shape."""
    nodes = [
        Node(op="input", inputs=(), shape=(1,)),
        Node(op="linear", inputs=(0,), shape=(1,), tensors={"weight": torch.ones(1, 1)}),
    ]
    if shape != (1,):
        nodes.append(Node(op="reshape", inputs=(1,), shape=shape, attributes={"shape": shape}))
    return Graph(tuple(nodes))


def _box(low, high, offset, sign=1.0):
    low, high = torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    return Query.of_box(low, high, torch.tensor([[sign]]), torch.tensor([offset], dtype=torch.float64))


def test_all_queries_count():
    holds, breaks = _box(0.0, 1.0, 0.5), _box(0.0, 1.0, -0.5)
    assert verify(_line(), [holds, holds], timeout=20).decision is Decision.HOLDS
    for queries in ([holds, breaks], [breaks, holds]):
        answer = verify(_line(), queries, timeout=20)
        assert answer.decision is Decision.BROKEN
        assert broken(_line(), breaks, answer.witness)


def test_outputs_of_any_shape():
    assert verify(_line((1, 1)), [_box(0.0, 1.0, 0.5)], timeout=20).decision is Decision.HOLDS


@pytest.mark.parametrize("lie", [2.0, -0.2, float("nan"), 0.9])
def test_a_false_witness_is_not_believed(lie):
    answer = verify(_line(), [_box(0.0, 1.0, 0.5)], timeout=20, falsify=lambda q, s: torch.full((1, 1), lie).double())
    assert answer.decision is Decision.HOLDS


def test_an_attack_that_fails_neither_ends_the_run_nor_hides():
    def attack(query, seconds):
        raise MemoryError("no more")

    assert verify(_line(), [_box(0.0, 1.0, 0.5)], timeout=20, falsify=attack).decision is Decision.HOLDS
    answer = verify(_line(), [_box(0.0, 1.0, -0.5)], timeout=20, falsify=attack, method="ibp")
    assert answer.decision is Decision.UNKNOWN
    assert "the attack failed (MemoryError: no more)" in answer.reason
    assert "ibp" in answer.reason


@pytest.mark.parametrize("method", ["auto", "crown", "neuron_splitting", "input_splitting", "milp"])
def test_a_method_that_fails_neither_ends_the_run_nor_proves(method, monkeypatch):
    for name in ("crown", "ibp", "alpha_crown", "neuron_splitting", "input_splitting", "milp"):
        kind = registry.method(name)
        part = "solve" if hasattr(kind, "solve") else "bounds"
        monkeypatch.setattr(kind, part, lambda *args, name=name, **more: (_ for _ in ()).throw(MemoryError(name)))
    answer = verify(_line(), [_box(0.0, 1.0, 0.5)], timeout=20, method=method)
    assert answer.decision is Decision.UNKNOWN
    assert "MemoryError" in answer.reason


def test_late_answers_are_timeouts():
    assert verify(_line(), [_box(0.0, 1.0, 0.5)], timeout=1e-9).decision is Decision.TIMEOUT


def test_named_methods_and_bad_requests():
    assert verify(_line(), [_box(0.0, 1.0, 0.5)], timeout=20, method="ibp").method == "ibp"
    with pytest.raises(UsageError, match="no method"):
        verify(_line(), [_box(0.0, 1.0, 0.5)], timeout=20, method="nonsense")
    with pytest.raises(UsageError, match="at least one query"):
        verify(_line(), [], timeout=20)


def test_witnesses_are_numbers_of_the_models_type():
    low = 0.1 + 1e-12
    query = _box(low, 1.0, -0.1)
    x = representable(query, torch.tensor([[low]]), torch.float32)
    assert x.item() >= low
    assert x.float().double().equal(x)
    point = _box(0.1, 0.1, -0.2)  # 0.1 is no float32: the box has none
    assert representable(point, torch.zeros(1, 1), torch.float32).item() == 0.1
    assert broken(_line(), point, torch.tensor([[0.1]], dtype=torch.float64))
    assert not broken(_line(), point, torch.tensor([[0.1000001]], dtype=torch.float64))


def test_a_score_that_is_not_a_number_breaks_nothing():
    graph = Graph(
        (
            Node(op="input", inputs=(), shape=(1,)),
            Node(op="linear", inputs=(0,), shape=(1,), tensors={"weight": torch.full((1, 1), torch.nan)}),
        )
    )
    query = _box(0.0, 1.0, 0.5)
    assert not broken(graph, query, query.x)
    with pytest.raises(UnsupportedError, match="weight of operation 1"):
        verify(graph, [query], timeout=2)


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), 0.0, -1.0])
def test_an_answer_that_holds_without_a_number_above_0_is_unknown(bound):
    answer = Answer(decision=Decision.HOLDS, bound=bound, method="somebody")
    assert answer.decision is Decision.UNKNOWN
    assert "somebody" in answer.reason
