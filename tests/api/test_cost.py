"""``.cost`` of every result: what really went through the model, as a module that counts says itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import holdfast as hf
from holdfast.attacks.falsification import falsifier
from holdfast.certifiers.verification.query import Query
from holdfast.core.cost import Cost
from holdfast.core.registry import method as registered
from holdfast.judge.referee import Referee
from holdfast.session import Session
from holdfast.training import loop

LINF = hf.ThreatModel.of("linf", "0.05")
L2 = hf.ThreatModel.of("l2", "0.1")


class Count:
    """What went through every copy of a `Counted` while it was ``on``."""

    def __init__(self) -> None:
        self.on, self.rows, self.differentiated = False, 0, 0

    def during(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        """Counts while a function runs, and not in the looks at the model before it."""
        real = getattr(owner, name)

        def counted(*given, **named):
            self.on = True
            try:
                return real(*given, **named)
            finally:
                self.on = False

        monkeypatch.setattr(owner, name, counted)

    def differentiate(self, rows: int) -> None:
        self.differentiated += rows


class Counted(nn.Module):
    """A network that counts its rows, and those whose answer is differentiated."""

    count = Count()

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y, count = self.net(x), Counted.count
        if count.on:
            count.rows += len(x)
            if y.requires_grad:
                y.register_hook(lambda grad: count.differentiate(len(grad)))
        return y


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    monkeypatch.setattr(Counted, "count", Count())
    return Counted.count


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Counted(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.fixture
def data(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(1)


@pytest.mark.parametrize(("method", "more"), [("cohen", {"n": 100}), ("clever", {"batches": 10, "points": 8})])
def test_a_certifier_that_asks_tells_how_often(model, data, count: Count, monkeypatch, method: str, more) -> None:
    count.during(monkeypatch, registered(method), "_certify")
    cost = hf.certify(model, data, method, L2, samples=3, **more).cost
    assert cost.forwards > 100
    assert (cost.backwards > 0) == (method == "clever")
    assert (cost.forwards, cost.backwards, cost.queries) == (count.rows, count.differentiated, count.rows)


def test_bounds_of_a_graph_ask_nothing(model, data, count: Count, monkeypatch) -> None:
    count.during(monkeypatch, registered("crown"), "certificates")
    assert hf.certify(model, data, "crown", L2, samples=3).cost == Cost()
    assert count.rows == 0


def test_a_training_tells_what_the_adversary_the_loss_and_the_validation_sent(
    model, data, count: Count, monkeypatch
) -> None:
    count.during(monkeypatch, loop, "fit")
    cost = hf.harden(model, data, "pgd_training", LINF, steps=2, epochs=2, batch=5, validation=0.25).cost
    # 9 rows trained on: two steps and the loss; 3 held out: two steps, the clean and the attacked answer
    assert cost == Cost(forwards=2 * 3 * 9 + 2 * 4 * 3, backwards=2 * 3 * 9 + 2 * 2 * 3)
    assert (cost.forwards, cost.backwards) == (count.rows, count.differentiated)
    assert model._forward_hooks == {}


def test_a_recheck_tells_what_the_referee_asked(model, data, count: Count, monkeypatch, tmp_path: Path) -> None:
    wide = hf.ThreatModel.of("linf", "0.3")
    run = hf.audit(model, data, wide, suite="minimal", certify="none", out=tmp_path / "run", progress=False)
    assert any(s.status is hf.Status.BROKEN for s in run.samples)
    count.during(monkeypatch, Referee, "judge")
    # no batch is filled up with copies, which the model sees and nobody asked about
    monkeypatch.setattr(Session, "referee", lambda self: Referee(self.model, batch=1))
    again = hf.recheck(run.folder, model=model)
    assert again.cost.forwards == again.cost.queries > 0
    assert again.cost.forwards == count.rows


def test_a_recheck_counts_the_draws_of_smoothing(model, data, tmp_path: Path) -> None:
    run = hf.audit(
        model, data, L2, suite="fast", certify="smoothing", sigma=0.25, smoothing_samples=200, samples=1,
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    again = hf.recheck(run.folder, model=model)
    assert again.to_dict()["certificates"] > 0
    assert again.cost.forwards > 200 * again.to_dict()["certificates"]


def test_a_verifier_tells_what_its_search_sent_through_the_network(count: Count) -> None:
    net = Counted(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    search = falsifier(net)
    count.on = True
    assert search(Query.of_box(torch.zeros(2), torch.ones(2), torch.eye(1), torch.tensor([9.0])), 0.2) is None
    cost = search.passes.cost
    assert cost.forwards > 1000
    assert cost.backwards > 0
    assert (cost.forwards, cost.backwards) == (count.rows, count.differentiated)
