"""Semantic attacks: what each finds, and what it must not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.common.generator import learned_vae, off_manifold
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.semantic.brightness_contrast import LightShift
from holdfast.attacks.evasion.semantic.hue_saturation import ColourShift
from holdfast.attacks.evasion.semantic.on_manifold import OnManifold
from holdfast.attacks.evasion.semantic.rotation_translation import Pose
from holdfast.attacks.evasion.semantic.semantic_gradient import SemanticGradient
from holdfast.attacks.evasion.semantic.unrestricted import BesideJudge, Unrestricted
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.attacks.families.parameter_search import GridSearch, WorstOfK
from holdfast.attacks.semantic import run_semantic
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.data.load import load_data
from holdfast.judge.ledger import Budget
from holdfast.models.vae import Decoded, Vae
from holdfast.models.zoo import digits_mlp
from holdfast.numerics.evaluation import evaluating
from holdfast.testing._semantic_case import SemanticCase, colour_digits, colour_net
from holdfast.testing.toys import digits, net
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings
from holdfast.transforms.lifted import lift


class _Hidden(nn.Module):
    """Wrong only near a planted theta of lifted samples (n, 1 + k); elsewhere flat, but for a slope that leads away."""

    def __init__(self, planted: tuple[float, ...], radius: float) -> None:
        super().__init__()
        self.planted, self.radius = planted, radius

    def forward(self, z: Tensor) -> Tensor:
        theta = z[:, 1:]
        inside = (theta - theta.new_tensor(self.planted)).abs().amax(1) < self.radius
        away = 10 + theta @ theta.new_tensor(self.planted)
        return torch.stack([torch.where(inside, -1.0, away), torch.zeros_like(away)], 1)


def lifted(n: int, axes: int, norm: Norm = Norm.LINF, eps: float = 1.0) -> Problem:
    return lift(torch.rand(n, 1).double(), torch.zeros(n, dtype=torch.int64), axes, norm, eps)


def test_the_grid_asks_every_cell_once_and_finds_a_planted_one() -> None:
    seen: list[Tensor] = []

    class Watched(_Hidden):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(z[:, 1:])
            return super().forward(z)

    out = run(GridSearch(cells=(5, 3), block=4), lifted(1, 2), Watched((2.0, 2.0), 0.1))
    assert not out.found.any()
    asked = torch.cat(seen)[1:]  # the first is the clean one
    wanted = torch.cartesian_prod(torch.linspace(-1, 1, 5).double(), torch.linspace(-1, 1, 3).double())
    assert len(asked) == 15
    assert {tuple(r) for r in asked.tolist()} == {tuple(r) for r in wanted.tolist()}
    assert int(out.ledger.queries) == 16
    assert run(GridSearch(cells=(5, 3), block=4), lifted(3, 2), _Hidden((-0.5, 1.0), 0.1)).found.all()


def test_the_grid_finds_a_planted_angle_that_a_gradient_from_0_does_not() -> None:
    """A square that a planted turn makes a bar: the loss is flat around 0, and its slope there says nothing."""
    model = _Planted()
    x = model.image()
    y = torch.zeros(1, dtype=torch.int64)
    grid = run_semantic(Pose(translation=0.0), x, y, model)
    gradient = run_semantic(Pose(translation=0.0, search_by="gradient"), x, y, model)
    assert grid.found.all()
    assert 19 < abs(float(grid.natural["rotation"])) < 25
    assert not gradient.found.any()


class _Planted(nn.Module):
    """Class 1 where an upright bar was turned by 19 to 25 degrees either way: there a probe beside it lights up."""

    def image(self) -> Tensor:
        x = torch.zeros(1, 1, 33, 33).double()
        x[..., 15:18] = 1.0
        return x

    def forward(self, x: Tensor) -> Tensor:
        probe = x[:, 0, 2, [16 - 6, 16 + 6]].amax(1)  # 14 above the middle and 6 aside: atan(6 / 14) = 23 degrees
        return torch.stack([torch.full_like(probe, 0.9), probe], 1)


@pytest.mark.parametrize("norm", list(Norm))
def test_a_search_stays_in_balls_of_every_norm(norm: Norm) -> None:
    for attack in (GridSearch(cells=(5, 5, 5)), WorstOfK(trials=20)):
        out = run(attack, lifted(2, 3, norm, 1.0), _Hidden((0.9, 0.9, 0.9), 0.05))
        assert not out.found.any()  # l0 moves one parameter, l1 and l2 reach no corner; linf: no cell is there
        assert (out.ledger.queries > 20).all()


def test_random_trials_are_uniform_and_those_of_growing_axes_widen() -> None:
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(z[:, 1:])
            return torch.stack([torch.ones(len(z)), torch.zeros(len(z))], 1)

    run(WorstOfK(trials=400, growing=(1,), block=7), lifted(1, 2), Watched())
    theta = torch.cat(seen)[1:]
    assert len(theta) == 400
    limit = torch.arange(400) / 400
    assert (theta[:, 1].abs() <= limit).all()
    assert (theta[:, 1].abs() > 0.9 * limit)[50:].any()
    assert abs(float(theta[:, 0].mean())) < 0.1
    assert float(theta[:, 0].abs().mean()) == pytest.approx(0.5, abs=0.05)


def test_searches_serve_ordinary_problems_of_few_features_and_refuse_others() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.full((len(x),), 1.5).double(), x.sum(1)], 1)

    x = torch.tensor([[0.5, 0.5], [0.1, 0.1]]).double()
    ball = LpBall.uniform(Norm.LINF, 0.3, 2, dtype=torch.float64)
    out = run(GridSearch(cells=(3, 3)), Problem.of(x, torch.tensor([0, 0]), ball), Corner())
    assert out.found.tolist() == [True, False]
    wide = Problem.of(torch.rand(1, 64), torch.tensor([0]), LpBall.uniform(Norm.LINF, 0.1, 1))
    with pytest.raises(UnsupportedError, match="free features"):
        run(WorstOfK(), wide, Corner())
    with pytest.raises(UsageError, match="as many numbers"):
        run(GridSearch(cells=(3, 3, 3)), Problem.of(x, torch.tensor([0, 0]), ball), Corner())


def test_a_budget_cuts_a_search() -> None:
    out = run(GridSearch(cells=(50,)), lifted(2, 1), _Hidden((2.0,), 0.1), budget=Budget(queries=20))
    assert out.ledger.queries.tolist() == [20, 20]


def test_the_colour_shift_breaks_what_hue_tells_and_nothing_in_no_range() -> None:
    x, y = colour_digits(30, 1000)
    whole = run_semantic(ColourShift(trials=100), x, y, colour_net())
    narrow = run_semantic(ColourShift(trials=100, hue=1.0, saturation=0.01), x, y, colour_net())
    assert whole.success > 0.9
    assert narrow.success < 0.1
    assert (whole.natural["hue"][whole.found & whole.right].abs() > 18).double().mean() > 0.5  # half a class apart
    with pytest.raises(UnsupportedError, match="3 channels"):
        run_semantic(ColourShift(), x[:, :1], y, colour_net())


def test_gradients_break_what_the_grid_breaks_in_light() -> None:
    x, y = colour_digits(30, 1000)
    ranges = {"brightness": 0.5, "contrast": 0.9}
    grid = run_semantic(LightShift(**ranges, search_by="grid"), x, y, colour_net())
    found = run_semantic(LightShift(**ranges), x, y, colour_net())
    assert found.success >= grid.success - 0.1
    assert found.success > 0.1


def test_the_composition_is_at_least_as_strong_as_its_parts() -> None:
    x, y = colour_digits(30, 1000)
    ranges = {"brightness": 0.1, "contrast": 0.1, "rotation": 5.0, "translation": 0.02}
    parts = [{k: v if k == kept else 0.0 for k, v in ranges.items()} for kept in ranges]
    each = [run_semantic(SemanticGradient(**p, restarts=2), x, y, colour_net()).success for p in parts]
    whole = run_semantic(SemanticGradient(**ranges, restarts=2), x, y, colour_net()).success
    assert whole >= max(each)


@pytest.mark.parametrize(("attack", "norm"), [("apgd_ce", Norm.L1), ("fmn", Norm.L2), ("square", Norm.LINF)])
def test_other_attacks_of_the_house_search_theta(attack: str, norm: Norm) -> None:
    x, y = colour_digits(8, 1000)
    out = run_semantic(SemanticGradient(attack=attack, p=norm, hue=180.0, size=1.0, steps=30), x, y, colour_net())
    assert out.success > 0.5
    assert (out.distance[out.found] <= 1.0).all()


@pytest.mark.shared
def test_poses_break_a_cifar_network_the_grid_most(shared_data: Path) -> None:
    """Engstrom et al. 2019, CIFAR-10, a standard network: 92.62 % right, 8.08 % under the grid; worst of 10 in between."""
    sys.path.insert(0, str(shared_data))
    zoo = __import__("zoo")
    model, (x, y) = zoo.load("cifar10_resnet20"), zoo.images("cifar10", "test")
    x, y = x[:16], y[:16]
    model.eval()
    with torch.no_grad():
        clean = float((model(x).argmax(1) != y).double().mean())
    ten, grid = (
        float(run_semantic(tool, x, y, model).found.double().mean())
        for tool in (Pose(search_by="random"), Pose(angles=11))
    )
    assert clean < ten < grid
    assert grid > 0.7


# Learned manifolds. The autoencoder is trained once.


@pytest.fixture(scope="module")
def learned() -> tuple[Vae, Tensor, Tensor]:
    """A decoder of digits, and digits that it was not trained on."""
    data = load_data("digits:train").head(800)
    vae = learned_vae(data, latent=10, classes=10, epochs=15)
    x, y = digits(1500, torch.float32)
    return vae, x[1400:1440], y[1400:1440]


def test_the_decoder_explains_digits_and_codes_are_found_again(learned: tuple[Vae, Tensor, Tensor]) -> None:
    vae, x, y = learned
    error = off_manifold(vae, x, y)
    assert float(error.square().mean()) < 0.5 * float((x - x.mean(0)).square().mean())
    with torch.no_grad():
        code = torch.randn(20, 10, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
        pictures = vae.decode(code, vae.one_hot(y[:20]))
    assert float(off_manifold(vae, pictures, y[:20], steps=200).median()) < 0.01  # on the manifold, and found to be
    rough, fine = (off_manifold(vae, x, y, steps=k) for k in (0, 50))
    assert (fine <= rough + 1e-7).all()


@pytest.fixture(scope="module")
def careless() -> nn.Module:
    """A network of few training digits: it generalises less well than what it is attacked with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits_mlp()
    data = load_data("digits:train").head(150)
    fit(model, data, lambda model, batch: F.cross_entropy(model(batch.x), batch.y),
        settings=TrainingSettings(epochs=20, batch=32, validation=0.0))  # fmt: skip
    return model.double()


def test_on_manifold_examples_are_on_it_and_regular_ones_are_not(careless: nn.Module) -> None:
    case = SemanticCase(OnManifold(), OnManifold(epochs=15, steps=15, restarts=2, size=1.0), n=30)
    out = case.run(careless)
    hit = out.found & out.right
    assert out.success > 0.2
    assert 0.3 < out.facts["variance_explained"] < 1
    x, y = case.samples()
    at = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.1, len(x), dtype=torch.float64))
    regular = run(PGD(steps=10), at, careless)
    with torch.no_grad():
        code = (out.problem.x[:, :10] + out.theta).clamp(-3, 3)
        same = out.lifted.transformed(torch.cat([code, out.problem.x[:, 10:20], 0 * out.theta], 1))
    torch.testing.assert_close(same[hit], out.x[hit])  # a decoded code, exactly
    pictures = out.lifted.transform
    assert isinstance(pictures, Decoded)
    off = off_manifold(pictures.vae, regular.x[regular.found], y[regular.found])
    on = off_manifold(pictures.vae, out.x[hit], y[hit], steps=200)
    assert on.median() < 0.3 * off.median()


def test_new_images_fool_the_model_and_not_the_judge(careless: nn.Module) -> None:
    case = SemanticCase(Unrestricted(), Unrestricted(epochs=15, judge_epochs=6, steps=20, restarts=2), n=20)
    out = case.run(careless)
    assert out.success > 0.1
    assert out.facts["judge_accuracy"] > 0.8
    _, y = case.samples()
    joint = out.lifted.model
    assert isinstance(joint, BesideJudge)
    with torch.no_grad(), evaluating(joint):
        told, right = joint(out.x[out.found]).chunk(2, 1)
    assert (told.argmax(1) != y[out.found]).all()
    assert (right.argmax(1) == y[out.found]).all()
    # A model that is the judge itself cannot be wrong where the judge is right.
    setting = case.setting(careless)
    setting = replace(setting, attacked=BesideJudge(joint.judge, joint.judge))
    assert not case.search(setting, 1.0)[0].found.any()


def test_methods_that_learn_need_data() -> None:
    x, y = digits(2)
    with pytest.raises(UsageError, match="learns"):
        run_semantic(OnManifold(), x, y, net())
