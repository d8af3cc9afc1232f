"""The referee: out of the set by one unit, on the edge, at random, and models that answer one way and another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.referee import Referee, Ruling
from holdfast.numerics.distance import contains


class Threshold(nn.Module):
    """Class 1 where the first feature exceeds 0.5, by ``slope`` times how much."""

    def __init__(self, slope=1.0, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([slope], dtype=dtype))

    def forward(self, x):
        value = (x.flatten(1)[:, 0] - 0.5) * self.weight
        return torch.stack([torch.zeros_like(value), value], 1)


def _problem(n=1, eps=0.2, norm=Norm.LINF, start=0.4, dtype=torch.float32, **more):
    x = torch.full((n, 4), start, dtype=dtype)
    return Problem.of(x, torch.zeros(n, dtype=torch.int64), LpBall.uniform(norm, eps, n, dtype=dtype, **more))


def _at(problem, *values):
    x = problem.x.clone()
    x[:, 0] = torch.tensor(values, dtype=torch.float64).to(x.dtype)
    return x


def test_a_plain_witness_holds():
    problem = _problem(3)
    x = _at(problem, 0.55, 0.45, 0.59)
    out = Referee(Threshold()).judge(problem, x)
    assert out.ruling == (Ruling.HOLDS, Ruling.MARGINAL, Ruling.HOLDS)
    assert torch.equal(out.x[[0, 2]], x[[0, 2]])  # not moved without need
    assert out.margin[0] == pytest.approx(-0.05, abs=1e-6)
    assert out.distance[0] == pytest.approx(0.15, abs=1e-6)
    assert out.share.tolist() == [1, 0, 1]
    assert out.interval.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert torch.equal(problem.x, torch.full((3, 4), 0.4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["linf", "l2", "l1", "l0", "upper", "lower", "mask", "grid", "nan"])
def test_a_claim_out_of_the_set_is_rejected_by_one_unit(side, dtype):
    up = torch.tensor(1.0, dtype=dtype)
    x0, good = torch.tensor([[0.25, 0.5, 0.5]], dtype=dtype), torch.tensor([[0.75, 0.5, 0.5]], dtype=dtype)
    norm, eps, more = Norm.LINF, 0.5, {}
    bad = good.clone()
    bad[0, 0] = torch.nextafter(good[0, 0], up)
    if side in ("l2", "l1"):
        norm = Norm(side)
    elif side == "l0":
        norm, eps = Norm.L0, 1.0
        bad = good.clone()
        bad[0, 1] = torch.nextafter(good[0, 1], up)
    elif side == "upper":
        eps, more = 1.0, {"high": 0.75}
    elif side == "lower":
        eps, more, good = 1.0, {"low": 0.25}, torch.tensor([[0.75, 0.25, 0.5]], dtype=dtype)
        bad = good.clone()
        bad[0, 1] = torch.nextafter(good[0, 1], -up)
    elif side == "mask":
        more = {"mask": torch.tensor([[True, False, True]])}
        bad = good.clone()
        bad[0, 1] = torch.nextafter(good[0, 1], up)
    elif side == "grid":
        from fractions import Fraction

        more = {"grid": Fraction(1, 4)}
        bad[0, 0] = torch.nextafter(good[0, 0], -up)
    elif side == "nan":
        bad[0, 2] = float("nan")
    problem = Problem.of(x0, torch.tensor([0]), LpBall.uniform(norm, eps, 1, dtype=dtype, **more))
    referee = Referee(Threshold(dtype=dtype))
    assert referee.judge(problem, good).ruling == (Ruling.HOLDS,)
    out = referee.judge(problem, bad)
    assert out.ruling == (Ruling.REJECTED,)
    assert out.share.tolist() == [0]
    assert torch.equal(out.x.nan_to_num(7), bad.nan_to_num(7))  # nobody mends a false claim


@pytest.mark.parametrize("norm", list(Norm))
def test_a_witness_on_the_edge_is_moved_outward(norm):
    problem = _problem(eps=3.0 if norm is Norm.L0 else 0.2, norm=norm)
    x = _at(problem, 0.5)
    out = Referee(Threshold()).judge(problem, x)
    assert out.ruling == (Ruling.HOLDS,)
    assert 0.5 < float(out.x[0, 0]) < 0.503
    assert torch.equal(out.x[:, 1:], x[:, 1:])  # along its own direction
    assert contains(problem.set, out.x, problem.x).all()
    assert out.margin[0] < 0
    want = 1.0 if norm is Norm.L0 else pytest.approx(float(out.x[0, 0]) - 0.4, abs=1e-6)
    assert out.distance[0] == want
    assert torch.equal(x, _at(problem, 0.5))  # the claim itself is left alone


def test_the_edge_of_the_set_stops_it():
    """At 0.5 the classes tie, and there the ball, or the box, ends."""
    tied = torch.tensor([[0.5, 0.3]])
    for ball in (LpBall.uniform(Norm.LINF, 0.25, 1), LpBall.uniform(Norm.LINF, 0.9, 1, high=0.5)):
        problem = Problem.of(torch.tensor([[0.25, 0.3]]), torch.tensor([0]), ball)
        out = Referee(Threshold()).judge(problem, tied)
        assert out.ruling == (Ruling.MARGINAL,)
        assert out.margin.tolist() == [0]
        assert torch.equal(out.x, tied)


def test_what_is_no_witness_is_moved_no_further_than_a_little():
    problem = _problem(2)
    out = Referee(Threshold()).judge(problem, _at(problem, 0.45, 0.4))
    assert out.ruling == (Ruling.MARGINAL,) * 2
    assert (out.margin > 0).all()


class Doubled(Threshold):
    """Breaks in float32 alone."""

    def forward(self, x):
        scores = super().forward(x)
        return scores if x.dtype is torch.float32 else scores - torch.tensor([0.0, 1.0])


def test_float64_must_agree():
    problem = _problem()
    x = _at(problem, 0.55)
    out = Referee(Doubled()).judge(problem, x)
    assert out.ruling == (Ruling.MARGINAL,)
    assert out.margin[0] > 0.5
    assert out.rounding[0] == pytest.approx(out.margin[0] - out.margin.new_tensor(-0.05), abs=1.0)
    assert Referee(Doubled(), exact=False).judge(problem, x).ruling == (Ruling.HOLDS,)


def test_what_float32_rounds_up_does_not_hold():
    """0.5 + 2^-26 and a huge offset: the float32 model says class 1, the network in real numbers says 0."""

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([2.0**22, 2.0**22 + 0.5]))

        def forward(self, x):
            return torch.stack([x[:, 0] + self.bias[0], self.bias[1].expand(len(x)) + 0 * x[:, 1]], 1)

    model = Offset()
    x0, x = torch.tensor([[0.9, 0.5]]), torch.tensor([[0.6, 0.5]])
    problem = Problem.of(x0, torch.tensor([0]), LpBall.uniform(Norm.LINF, 0.5, 1))
    with torch.no_grad():
        assert model(x).argmax(1) == 0
    assert Referee(model).judge(problem, x).ruling == (Ruling.MARGINAL,)
    low = torch.tensor([[0.45, 0.5]])  # float32 rounds 2^22 + 0.45 to 2^22 + 0.5: a tie
    out = Referee(model).judge(problem, low)
    assert out.ruling == (Ruling.MARGINAL,)
    assert out.rounding[0] > 0.04


class Crowded(Threshold):
    """Breaks in company only."""

    def forward(self, x):
        scores = super().forward(x)
        return scores if len(x) > 1 else scores - torch.tensor([0.0, 1.0], dtype=x.dtype)


def test_batch_1_must_agree():
    problem = _problem(3)
    out = Referee(Crowded(), batch=8).judge(problem, _at(problem, 0.55, 0.56, 0.59))
    assert out.ruling == (Ruling.MARGINAL,) * 3
    assert (out.margin > 0.8).all()
    assert (out.rounding > 0.9).all()


def test_the_batch_is_always_full():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return Threshold()(x)

    problem = _problem(11)
    referee = Referee(model, batch=4)
    out = referee.judge(problem, _at(problem, *[0.55] * 11))
    assert sizes == [4] * 3 + [1] * 11
    assert out.forwards == 22
    assert referee.judge(problem, _at(problem, *[0.55] * 11)).forwards == 22  # its own, not those of all its calls
    assert referee.forwards == 44


@pytest.mark.filterwarnings("ignore:std")
def test_no_claims_at_all():
    problem = _problem(2).select(np.zeros(0, dtype=np.int64))
    for draws in (0, 3):
        out = Referee(Threshold(), draws=draws).judge(problem, problem.x)
        assert out.ruling == ()
        assert out.forwards == 0


def test_a_single_draw_has_no_spread():
    problem = _problem()
    out = Referee(Threshold(), draws=1).judge(problem, _at(problem, 0.55))
    assert out.ruling == (Ruling.HOLDS,)
    assert out.rounding.tolist() == [0]


def test_not_a_number_is_no_witness():
    class Nan(Threshold):
        def forward(self, x):
            return super().forward(x) * float("nan")

    problem = _problem()
    for draws in (0, 5):
        out = Referee(Nan(), draws=draws).judge(problem, _at(problem, 0.55))
        assert out.ruling == (Ruling.MARGINAL,)
        assert out.share[0] == 0


def test_a_model_in_training_mode_is_judged_in_evaluation_mode():
    model = nn.Sequential(Threshold(), nn.Dropout(0.99))
    model.train()
    problem = _problem()
    assert Referee(model).judge(problem, _at(problem, 0.55)).ruling == (Ruling.HOLDS,)
    assert model.training
    assert model[1].training


class Coin(Threshold):
    """Adds noise of this size to its threshold; answers differ from call to call."""

    def forward(self, x):
        scores = super().forward(x)
        noise = torch.randn(len(x), dtype=x.dtype)
        return scores + torch.stack([torch.zeros_like(noise), 0.1 * noise], 1)


def test_a_randomised_model_is_judged_by_the_majority():
    problem = _problem(4, eps=0.5, start=0.2)
    x = _at(problem, 0.68, 0.55, 0.45, 0.3)
    x[3, 0] = 0.75  # beyond eps
    model, state = Coin(), torch.get_rng_state()
    referee = Referee(model, draws=200)
    out = referee.judge(problem, x)
    assert out.ruling == (Ruling.HOLDS, Ruling.HOLDS, Ruling.MARGINAL, Ruling.REJECTED)
    assert out.share[0] > 0.9
    assert out.share[1] == pytest.approx(0.69, abs=0.1)  # Phi(0.5)
    assert out.share[2] == pytest.approx(0.31, abs=0.1)
    low, high = out.interval.unbind(1)
    assert ((low < out.share) & (out.share < high))[:3].all()
    assert (high - low < 0.15).all()
    assert out.rounding[1] == pytest.approx(0.1, abs=0.03)
    assert torch.equal(out.x, x)
    assert out.forwards == 800
    assert torch.equal(state, torch.get_rng_state())
    again = Referee(model, draws=200).judge(problem, x)
    assert torch.equal(again.share, out.share)


def test_a_targeted_claim_must_reach_its_own_target():
    class Three(nn.Module):
        def forward(self, x):
            return x[:, :3]

    x0 = torch.tensor([[0.6, 0.3, 0.3]]).expand(2, 3)
    problem = Problem.of(
        x0, torch.zeros(2, dtype=torch.int64), LpBall.uniform(Norm.LINF, 0.4, 2), target=torch.tensor([1, 2])
    )
    x = torch.tensor([[0.5, 0.6, 0.3]]).expand(2, 3)
    out = Referee(Three()).judge(problem, x)
    assert out.ruling == (Ruling.HOLDS, Ruling.MARGINAL)


def test_a_tie_for_a_later_class_does_not_count():
    problem = replace(_problem(), y=torch.tensor([1]))  # at a tie the model says 0: broken, by nothing
    out = Referee(Threshold(slope=0.0)).judge(problem, _at(problem, 0.5))
    assert out.margin.tolist() == [0]
    assert out.ruling == (Ruling.MARGINAL,)


class Narrow(Threshold):
    """Its forward insists on float32, whatever it is given."""

    def forward(self, x):
        return super().forward(torch.nn.functional.linear(x.float(), torch.eye(4)).to(self.weight.dtype)).float()


class InFloat32(Narrow):
    """A plain float32 tensor as a kernel: in float64 the product of two types raises."""

    def forward(self, x):
        return Threshold.forward(self, x @ torch.eye(4))


class Uncopied(Threshold):
    """Cannot be copied, as compiled and exported modules."""

    def __deepcopy__(self, memo):
        raise NotImplementedError("no copies")


class Fussy(Threshold):
    """Raises an error of its own in float64."""

    def forward(self, x):
        if x.dtype is torch.float64:
            raise KeyError("float64")
        return super().forward(x)


@pytest.mark.parametrize("model", [InFloat32(), Uncopied(), Fussy(), nn.Sequential(Threshold()).half()])
def test_a_model_that_has_no_float64_is_judged_in_its_own_type_and_it_is_said(model):
    dtype = next(model.parameters()).dtype
    problem = _problem(2, dtype=dtype)
    referee = Referee(model, batch=4)
    assert "float64" in referee.finding(problem.x).message
    out = referee.judge(problem, _at(problem, 0.55, 0.45))
    assert out.ruling == (Ruling.HOLDS, Ruling.MARGINAL)
    assert out.runs == ("batch 4", "batch 1")
    again = Referee(model, batch=4)  # without a word beforehand
    assert again.judge(problem, _at(problem, 0.55, 0.45)).runs == ("batch 4", "batch 1")
    assert "float" in again.without_double or "copies" in again.without_double


def test_a_model_that_has_float64_is_judged_there_too_and_nothing_is_said():
    problem = _problem()
    for model in (Threshold(), Threshold(dtype=torch.float64), Narrow()):
        held = _problem(dtype=next(model.parameters()).dtype)
        referee = Referee(model)
        assert referee.finding(held.x) is None
        assert referee.judge(held, _at(held, 0.55)).runs == ("batch 64", "batch 1", "float64")
    assert Referee(Coin(), draws=5).judge(problem, _at(problem, 0.55)).runs == ("5 fresh draws at batch 64",)


def test_a_half_precision_model_is_broken_where_it_is_as_it_runs():
    """1 + 2^-12 rounds to 1 in float16: the witness is one of the model that runs, not of the one in real numbers."""

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.tensor([1.0, 1.0]).half())

        def forward(self, x):
            grown = self.one[0] + x[:, 0] * 2.0**-12  # 1 in float16 up to x = 2
            return torch.stack([grown - 1, x[:, 1] * 2.0**-14], 1)

    x0, x = torch.tensor([[1.0, 0.0]]).half(), torch.tensor([[1.0, 0.5]]).half()
    problem = Problem.of(x0, torch.tensor([0]), LpBall.uniform(Norm.LINF, 0.5, 1, dtype=torch.float16))
    assert Referee(Rounded()).judge(problem, x).ruling == (Ruling.HOLDS,)


def test_a_model_that_writes_into_its_input_moves_no_witness():
    class Clamping(Threshold):
        def forward(self, x):
            with torch.no_grad():
                x.clamp_(0.45, 0.5)
            return super().forward(x)

    for dtype in (torch.float32, torch.float64):
        problem = _problem(dtype=dtype)
        x = _at(problem, 0.55)
        out = Referee(Clamping(dtype=dtype)).judge(problem, x)
        assert torch.equal(out.x, _at(problem, 0.55))
        assert out.ruling == (Ruling.MARGINAL,)


def test_a_model_that_takes_no_empty_batch_is_not_given_one():
    class Proud(Threshold):
        def forward(self, x):
            assert len(x)
            return super().forward(x)

    problem = _problem(2).select(np.zeros(0, dtype=np.int64))
    assert Referee(Proud()).judge(problem, problem.x).margin.shape == (0,)
