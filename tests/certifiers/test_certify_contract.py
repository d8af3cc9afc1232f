"""The contract of a graph certifier: margins, radii, certificates, and the methods' cards."""

import pytest
import torch
from torch import nn

from holdfast.certifiers.bounds.alpha_crown import AlphaCROWN
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.core.cards import parameters_of
from holdfast.core.errors import UsageError
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph import trace


def _linear():
    """f_0 - f_1 = x_0 + x_1 - 1: the radius of a sample is known in each norm."""
    net = nn.Linear(2, 2, bias=True)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        net.bias.copy_(torch.tensor([-1.0, 0.0]))
    return trace(net, torch.zeros(1, 2))


@pytest.mark.parametrize("kind", [IBP, CROWN, AlphaCROWN])
@pytest.mark.parametrize(("norm", "radius"), [(Norm.LINF, 0.15), (Norm.L2, 0.3 / 2**0.5), (Norm.L1, 0.3)])
@pytest.mark.parametrize("start", [0.01, 0.2, 5.0])
def test_radii_of_a_linear_model(kind, norm, radius, start):
    x = torch.tensor([[0.7, 0.6], [0.3, 0.3], [0.5, 0.45], [0.9, 0.9]])
    y = torch.tensor([0, 1, 0, 0])  # the third is misclassified
    found = kind().radius(_linear(), x, y, LpBall.uniform(norm, start, 4), radius_max=0.35, tolerance=1e-3)
    assert found[0] <= radius + 1e-8  # 0.7 and 0.6 are no float32
    assert found[0] == pytest.approx(radius, abs=4e-4)
    assert found[1] == pytest.approx(min(0.4 * radius / 0.3, 0.35), abs=4e-4)
    assert found[2].isnan()
    assert found[3] == pytest.approx(min(0.8 * radius / 0.3, 0.35), abs=4e-4)


def test_radii_count_pixels_for_l0():
    net = nn.Linear(6, 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([torch.ones(6), torch.zeros(6)]))
        net.bias.copy_(torch.tensor([-2.5, 0.0]))
    graph = trace(net, torch.zeros(1, 6))
    ball = LpBall.uniform(Norm.L0, 1.0, 1)
    assert CROWN().radius(graph, torch.ones(1, 6), torch.tensor([0]), ball, radius_max=6).tolist() == [3.0]


def test_certificates_name_what_they_are_worth():
    x, y = torch.tensor([[0.7, 0.6], [0.5, 0.45]]), torch.tensor([0, 0])
    first, second = CROWN().certificates(_linear(), x, y, LpBall.uniform(Norm.LINF, 0.1, 2), radius_max=0.2)
    assert first.guarantee is Guarantee.SOUND
    assert first.method == "crown"
    assert "float64" in first.arithmetic
    assert second is None


def test_a_radius_is_itself_proved_and_the_next_one_is_not():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.rand(20, 4)
    graph, y = trace(net, x), net(x).argmax(1)
    ball = LpBall.uniform(Norm.LINF, 0.02, 20)
    crown = CROWN(batch=7)
    found = crown.radius(graph, x, y, ball, radius_max=0.5, tolerance=0.01)
    assert crown.certify(graph, x, y, ball.with_eps(found)).all()
    inside = found < 0.5
    assert not crown.certify(
        graph, x[inside], y[inside], ball.with_eps(found + 0.005).select(inside.nonzero().flatten())
    ).any()


def test_the_batch_does_not_change_a_verdict():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    x = torch.rand(9, 1, 6, 6)
    graph, y = trace(net, x), net(x).argmax(1)
    ball = LpBall.uniform(Norm.L2, 0.2, 9)
    whole, one = (CROWN(batch=b).margins(graph, x, y, ball) for b in (9, 1))
    small = CROWN(memory=1).margins(graph, x, y, ball)
    torch.testing.assert_close(whole, one, rtol=0, atol=1e-10)
    torch.testing.assert_close(whole, small, rtol=0, atol=1e-10)


def test_a_softmax_at_the_end_keeps_the_order():
    net = nn.Sequential(nn.Linear(2, 3), nn.Softmax(1))
    x = torch.rand(3, 2)
    ball = LpBall.uniform(Norm.LINF, 0.01, 3)
    with_it, without = (trace(m, x) for m in (net, net[0]))
    y = net(x).argmax(1)
    assert torch.equal(CROWN().margins(with_it, x, y, ball), CROWN().margins(without, x, y, ball))


def test_what_does_not_fit_is_refused():
    ball = LpBall.uniform(Norm.LINF, 0.1, 1)
    with pytest.raises(UsageError, match="shape"):
        CROWN().margins(_linear(), torch.zeros(1, 3), torch.tensor([0]), ball)
    with pytest.raises(UsageError, match="samples"):
        CROWN().margins(_linear(), torch.zeros(2, 2), torch.tensor([0, 1]), ball.select(torch.tensor([0])))
    with pytest.raises(UsageError, match="scores"):
        CROWN().margins(trace(nn.Linear(2, 1), torch.zeros(1, 2)), torch.zeros(1, 2), torch.tensor([0]), ball)


@pytest.mark.parametrize(("name", "kind"), [("ibp", IBP), ("crown", CROWN), ("alpha_crown", AlphaCROWN)])
def test_methods_are_registered_with_their_cards(name, kind):
    assert method(name) is kind
    assert kind.card.guarantee is Guarantee.SOUND
    assert all(p.meaning and p.source for p in parameters_of(kind))
