"""Wrappers and small networks."""

import pytest
import torch
from torch import nn

from holdfast.core.errors import ModelError, UsageError
from holdfast.models import (
    Bpda,
    Eot,
    FixedMode,
    InputTransform,
    Normalisation,
    Normalised,
    OneLogit,
    fingerprint,
    zoo,
)

X = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class TestNormalised:
    def test_by_channel(self):
        mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
        wrapped = Normalised(nn.Identity(), Normalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
        assert torch.equal(wrapped(X), (X - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        assert torch.equal(wrapped(X.flatten(2)), wrapped(X).flatten(2))

    def test_follows_the_type_and_leaves_the_state_dict_alone(self):
        wrapped = Normalised(nn.Linear(5, 2), Normalisation((0.0,), (1.0,)))
        assert wrapped.double()(X.double()).dtype == torch.float64
        assert set(wrapped.state_dict()) == {"module.weight", "module.bias"}

    @pytest.mark.parametrize("text", ["0.5", "a/b", "0.5,0.5/0.5", "0.5/0", "0.5/-1", "nan/1", "0.5/inf", "/", ""])
    def test_refused(self, text):
        with pytest.raises(UsageError, match="normalisation"):
            Normalisation.parse(text)

    def test_text_round_trip(self):
        n = Normalisation((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
        assert Normalisation.parse(str(n)) == n

    def test_it_is_part_of_the_fingerprint(self):
        a, b = (Normalised(nn.Identity(), Normalisation((m,), (1.0,))) for m in (0.0, 0.5))
        assert fingerprint(a) != fingerprint(b)


class TestOneLogit:
    @pytest.mark.parametrize("inner", [nn.Flatten(1), nn.Flatten(0)])
    def test_same_probabilities(self, inner):
        s = torch.tensor([[-2.0], [0.5]])
        out = OneLogit(inner)(s).softmax(1)[:, 1]
        assert torch.allclose(out, s.sigmoid()[:, 0])

    def test_refuses_more_outputs(self):
        with pytest.raises(ModelError, match="this one has 3"):
            OneLogit(nn.Identity())(torch.rand(2, 3))


class TestBpda:
    def test_value_to_the_bit_and_the_stand_ins_gradient(self):
        x = X.clone().requires_grad_()
        out = Bpda(lambda t: (t * 7).round() / 7, lambda t: t.sin())(x)
        assert torch.equal(out.detach(), (X * 7).round() / 7)
        out.sum().backward()
        assert torch.allclose(x.grad, X.cos())

    def test_in_front_of_a_model(self):
        model = InputTransform(Bpda(torch.round), nn.Sequential(nn.Flatten(), nn.Linear(75, 2)))
        x = X.clone().requires_grad_()
        model(x).sum().backward()
        assert bool((x.grad != 0).any())

    def test_shapes_must_agree(self):
        with pytest.raises(ModelError, match="stand-in"):
            Bpda(lambda t: t[:, :1])(X)

    def test_transforms_differ_in_the_fingerprint(self):
        assert fingerprint(InputTransform(torch.round, nn.Identity())) != fingerprint(
            InputTransform(torch.floor, nn.Identity())
        )


class TestEot:
    def test_is_the_mean_probability(self):
        torch.manual_seed(0)
        noisy = InputTransform(lambda t: t + torch.randn_like(t), nn.Identity())
        z = torch.tensor([[2.0, 0.0]])
        mean = torch.stack([noisy(z).softmax(1) for _ in range(4000)]).mean(0)
        out = Eot(noisy, 4000)(z)
        assert torch.allclose(out.exp(), mean, atol=0.02)
        assert float(out.exp().sum()) == pytest.approx(1, abs=1e-4)

    def test_of_a_fixed_model_changes_nothing(self):
        assert torch.allclose(Eot(nn.Identity(), 3)(X[:, :, 0, 0]), X[:, :, 0, 0].log_softmax(1), atol=1e-6)

    def test_needs_a_draw(self):
        with pytest.raises(UsageError):
            Eot(nn.Identity(), 0)


def test_fixed_mode_ignores_train():
    inner = nn.Dropout()
    inner.train()
    wrapped = FixedMode(inner)
    wrapped.eval()
    assert inner.training
    assert not wrapped.train().training


@pytest.mark.parametrize(("name", "size"), [("digits_cnn", 8), ("digits_mlp", 8), ("mnist_cnn", 28)])
def test_zoo(name, size):
    model = getattr(zoo, name)()
    assert model(torch.rand(2, 1, size, size)).shape == (2, 10)
    assert all(not isinstance(m, (nn.BatchNorm2d, nn.Dropout)) for m in model.modules())
    assert f"{sum(p.numel() for p in model.parameters()):,}" in getattr(zoo, name).__doc__
