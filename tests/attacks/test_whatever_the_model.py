"""Attacks do not look away: whatever the scale of inputs and logits, the type of labels, the mode and the manners of a model."""

import copy
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.attacks.attack import Attack
from holdfast.attacks.common.space import Decoder
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.soft.square import Square
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.attacks.shared import fit
from holdfast.core.criterion import Misclassified, RegressionMargin, Targeted, WithDetector, usable
from holdfast.core.errors import DataError, ModelError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import cards, method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Formulation, Norm
from holdfast.judge.ledger import Budget
from holdfast.numerics.distance import contains

N = 6
EPS = {Norm.L0: 4.0, Norm.L1: 2.0, Norm.L2: 0.6, Norm.LINF: 0.2}
SMALL = {"steps": 12, "queries": 250, "restarts": 1, "searches": 3, "targets": 2, "neighbours": 2, "draws": 3}
ATTACKS = sorted(n for n, c in cards("attack") if issubclass(method(n), Attack))
UNBOUNDED = (Formulation.PENALTY, Formulation.MINIMAL_DISTORTION)
WALKS_TO_THE_BOUNDARY = [
    n for n in ATTACKS if method(n).card.formulation in UNBOUNDED and method(n).card.access is Access.WHITE_BOX
]


class Net(nn.Module):
    """A smooth net of 16 features whose inputs and logits can be put on other scales."""

    def __init__(self, unit=1.0, shift=0.0, times=1.0, plus=0.0, more=()):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)).double()
            x = points()
            with torch.no_grad():
                self.body[3].weight *= 3
                self.body[3].bias -= self.body(x).mean(0)
        self.unit, self.shift, self.times, self.plus, self.more = unit, shift, times, plus, more

    def forward(self, x):
        s = self.body((x - self.shift) / self.unit) * self.times + self.plus
        return torch.cat([s, *(torch.full_like(s[:, :1], m) for m in self.more)], 1)


def points():
    g = torch.Generator().manual_seed(1)
    return torch.rand(N, 1, 4, 4, generator=g, dtype=torch.float64) * 0.6 + 0.2


def labels():
    with torch.no_grad():
        return Net()(points()).argmax(1)


def small(name):
    tool = method(name)()
    names = {f.name for f in fields(tool)}
    return replace(tool, **{k: min(v, getattr(tool, k)) for k, v in SMALL.items() if k in names})


def outcome(name, model, unit=1.0, shift=0.0):
    tool = small(name)
    norm = Norm.LINF if Norm.LINF in tool.card.norms else tool.card.norms[0]
    unbounded = tool.card.formulation in UNBOUNDED
    eps = float("inf") if unbounded else EPS[norm] * (1 if norm is Norm.L0 else unit)
    ball = LpBall.uniform(norm, eps, N, shift, shift + unit, dtype=torch.float64)
    judge = model if tool.card.access is not Access.TRANSFER else copy.deepcopy(model)
    return run(tool, Problem.of(points() * unit + shift, labels(), ball), model, judge=judge)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_success_is_the_same_with_offsets_and_scales_of_logits(name):
    base = int(outcome(name, Net()).found.sum())
    for change in ({"plus": 1e4}, {"times": 100.0}):
        assert base - int(outcome(name, Net(**change)).found.sum()) <= 1, change


def problem(norm=Norm.LINF, eps=0.2, dtype=torch.float64, **more):
    return Problem.of(points().to(dtype), labels(), LpBall.uniform(norm, eps, N, dtype=dtype), **more)


class TestWhatIsGiven:
    @pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.float32, np.int16, np.uint32, object, list])
    def test_labels_of_every_type_are_the_same_labels(self, kind):
        if kind is list:
            y = labels().tolist()
        else:
            y = labels().to(kind) if isinstance(kind, torch.dtype) else labels().numpy().astype(kind)
        given = Problem.of(points(), y, LpBall.uniform("Linf", "1/5", N, dtype=torch.float64))
        assert given.y.dtype is torch.int64
        assert torch.equal(given.y, labels())
        assert given.set.norm is Norm.LINF

    @pytest.mark.parametrize("y", [None, [0.5] * N, [-1] * N, [[0, 1]] * N, [0]])
    def test_what_is_no_label_is_refused(self, y):
        y = y if y is None else torch.tensor(y)
        with pytest.raises(DataError, match="labels"):
            Problem.of(points(), y, LpBall.uniform(Norm.LINF, 0.1, N, dtype=torch.float64))

    @pytest.mark.parametrize("kind", [str, bytes, object])
    def test_names_are_no_labels(self, kind):
        y = np.array([f"class {k}" for k in labels().tolist()]).astype(kind)
        with pytest.raises(DataError, match=r"np\.unique"):
            Problem.of(points(), y, LpBall.uniform(Norm.LINF, 0.1, N, dtype=torch.float64))

    def test_sparse_inputs_are_filled_up(self):
        x = points().where(points() > 0.4, 0.0)
        ball = LpBall.uniform(Norm.LINF, 0.1, N, dtype=torch.float64)
        assert torch.equal(Problem.of(x.to_sparse(), labels(), ball).x, x)

    def test_labels_from_one_are_named(self):
        p = problem()
        with pytest.raises(DataError, match="count from 1"):
            run(PGD(), replace(p, y=torch.tensor([1, 2, 3, 4, 1, 2])), Net())

    def test_inputs_outside_the_box_are_refused_but_for_features_that_cannot_change(self):
        x = points()
        x[0, 0, 0, 0] = 1.5
        with pytest.raises(DataError, match="outside the box"):
            Problem.of(x, labels(), LpBall.uniform(Norm.LINF, 0.1, N, dtype=torch.float64))
        fixed = x == x
        fixed[0, 0, 0, 0] = False
        assert len(Problem.of(x, labels(), LpBall.uniform(Norm.LINF, 0.1, N, mask=fixed, dtype=torch.float64))) == N

    def test_targets_are_complete_and_aimed(self):
        for target, criterion in ((None, Targeted()), (labels(), None), ((labels() + 1) % 4, Misclassified())):
            with pytest.raises(UsageError, match="target"):
                problem(target=target, criterion=criterion)
        with pytest.raises(DataError, match="targets"):
            problem(target=((labels() + 1) % 4).unsqueeze(1))
        with pytest.raises(DataError, match="beyond"):
            run(PGD(), problem(target=torch.full((N,), 9)), Net())

    @pytest.mark.parametrize("eps", [-1, float("nan"), "much", "-1/255"])
    def test_what_is_no_radius_is_refused(self, eps):
        with pytest.raises(UsageError):
            LpBall.uniform(Norm.L2, eps, N)

    def test_norms_have_many_names(self):
        assert [Norm(n) for n in ("Linf", "l_inf", "inf", float("inf"), 2, "2", 1.0, 0, "L1")] == [
            *[Norm.LINF] * 4, Norm.L2, Norm.L2, Norm.L1, Norm.L0, Norm.L1,
        ]  # fmt: skip
        with pytest.raises(UsageError, match="no norm"):
            Norm("l3")


class Writes(Net):
    def forward(self, x):
        x.sub_(0.25).div_(0.5)
        return super().forward(x * 0.5 + 0.25)


class WritesUnseen(Net):
    def forward(self, x):
        x.data.clamp_(0.1, 0.9)
        return super().forward(x)


class NeverEmpty(Net):
    def forward(self, x):
        assert len(x)
        return super().forward(x)


class AtMostFour(Net):
    def forward(self, x):
        if len(x) > 4:
            raise RuntimeError("cannot allocate memory")
        return super().forward(x)


class SwitchesInTrain(Net):
    noisy = True

    def train(self, mode=True):
        self.noisy = mode
        return super().train(mode)

    def forward(self, x):
        s = super().forward(x)
        return s + 100 * torch.randn_like(s) if self.noisy else s


class TestModels:
    @pytest.mark.parametrize("kind", [Writes, WritesUnseen, NeverEmpty, AtMostFour, SwitchesInTrain])
    @pytest.mark.parametrize("name", ["pgd", "square", "rays", "deepfool", "simba"])
    def test_their_manners_change_nothing(self, kind, name):
        p, x = problem(), points()
        tool = small(name)
        for budget in (None, Budget(queries=37)):
            assert torch.equal(run(tool, p, Net(), budget=budget).found, run(tool, p, kind(), budget=budget).found)
        assert torch.equal(p.x, x)

    @pytest.mark.parametrize("name", ["pgd", "apgd_ce", "fmn", "square"])
    def test_inference_mode_no_grad_and_compiled_wrappers(self, name):
        base = run(small(name), problem(), Net())
        with torch.inference_mode():
            assert torch.equal(run(small(name), problem(), Net()).found, base.found)  # parameters made in it, too
        with torch.no_grad():
            assert torch.equal(run(small(name), problem(), Net()).found, base.found)
        for wrapped in (
            nn.DataParallel(Net()),
            torch.compile(Net(), backend="eager"),
            torch.jit.trace(Net(), points()),
            torch.jit.freeze(torch.jit.trace(Net().eval(), points())),
        ):
            assert torch.equal(run(small(name), problem(), wrapped).found, base.found)

    def test_an_exported_module_runs(self):
        made = torch.export.export(Net().eval(), (points()[:3],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
        assert torch.equal(run(PGD(), problem(), made).found, run(PGD(), problem(), Net()).found)

    def test_inputs_that_require_a_gradient_are_taken_as_they_are(self):
        p = Problem.of(points().requires_grad_(), labels(), LpBall.uniform(Norm.L2, 0.6, N, dtype=torch.float64))
        assert torch.equal(run(PGD(), p, Net()).found, run(PGD(), problem(Norm.L2, 0.6), Net()).found)

    def test_a_sample_that_a_model_fails_on_leaves_the_others_their_results(self):
        class Fails(Net):
            def forward(self, x):
                if bool(((x - points()[2]).abs().amax((1, 2, 3)) < 0.3).any()):
                    raise ValueError("no such input")
                return super().forward(x)

        out, base = run(PGD(), problem(eps=0.15), Fails()), run(PGD(), problem(eps=0.15), Net())
        assert out.failed is not None
        assert out.failed.tolist() == [k == 2 for k in range(N)]
        assert "no such input" in str(out.fault)
        assert torch.equal(out.found[out.failed.logical_not()], base.found[out.failed.logical_not()])

    def test_a_model_that_always_fails_is_named(self):
        with pytest.raises(ModelError, match="raise RuntimeError"):
            run(PGD(), problem(), nn.Sequential(nn.Unflatten(1, (7, 7))))

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (lambda s: (s, s), "not with a tensor"),
            (lambda s: s[:, :1], "OneLogit"),
            (lambda s: s[:, 0], "OneLogit"),
            (lambda s: s[:2], "must answer"),
            (lambda s: s.unsqueeze(2), "must answer"),
        ],
    )
    @pytest.mark.parametrize("name", ["pgd", "square", "hopskipjump", "deepfool"])
    def test_answers_that_are_no_scores_are_refused(self, answer, words, name):
        net = Net()
        with pytest.raises(ModelError, match=words):
            run(small(name), problem(), lambda x: answer(net(x)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda s: s.to_sparse(),
            lambda s: s.float().to(torch.float8_e4m3fn),
            lambda s: torch.quantize_per_tensor(s.detach().float(), 0.05, 0, torch.qint8),
        ],
    )
    def test_answers_that_hold_their_numbers_otherwise_are_read(self, change):
        net = Net()
        assert run(small("square"), problem(), lambda x: change(net(x))).found.any()

    @pytest.mark.parametrize("name", ["pgd", "square"])
    def test_a_model_whose_classes_change_is_refused(self, name):
        net = Net()
        with pytest.raises(ModelError, match=r"classes are always the same|must answer|labels go up"):
            run(small(name), problem(), lambda x: net(x)[:, : 4 if len(x) == N else 3])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_is_served(self, dtype):
        for name, norm in (("apgd_ce", Norm.L1), ("apgd_t", Norm.L1), ("square", Norm.L1), ("square", Norm.L2)):
            out = run(small(name), problem(norm, 1.5, dtype), Net().to(dtype))
            assert out.x.dtype is dtype


class TestScores:
    def test_the_rounding_of_a_margin_is_that_of_its_two_scores(self):
        y, none = torch.tensor([0]), torch.tensor([-1])
        close = torch.tensor([[1.0, 1.0 + 1e-3, -1e9, -torch.inf]])
        assert Misclassified().certain(close, y, none).item()
        assert not Misclassified().certain(close + 1e5, y, none).item()
        assert Targeted().certain(close, y, torch.tensor([1])).item()
        masked = torch.tensor([[-torch.inf, 1.0]])
        assert Misclassified().certain(masked, y, none).item()

    @pytest.mark.parametrize("name", WALKS_TO_THE_BOUNDARY)
    def test_a_search_for_the_boundary_does_not_stop_at_a_tie(self, name):
        class Coarse(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = Net().float()

            def forward(self, x):
                return self.net(x).bfloat16()

        x = points().float()
        for model in (Coarse(), Net(plus=-1e5).float()):
            y = model(x).argmax(1)
            norm = method(name).card.norms[0]
            ball = LpBall.uniform(norm, float("inf"), N)
            plain = int(run(small(name), Problem.of(x, Net().float()(x).argmax(1), ball), Net().float()).found.sum())
            assert plain - int(run(small(name), Problem.of(x, y, ball), model).found.sum()) <= 1

    def test_a_criterion_without_a_closed_form_asks_its_margin(self):
        class Own(Misclassified):
            rounding = Misclassified.__mro__[1].rounding

        close = torch.tensor([[1.0, 1.001, -1e9]])
        assert Own().rounding(close, torch.tensor([0]), torch.tensor([-1])).item() == pytest.approx(2.001)
        assert RegressionMargin(0.5).certain(torch.tensor([[2.0]]), torch.tensor([1.0]), torch.tensor([-1])).item()

    @pytest.mark.parametrize("bad", [torch.inf, torch.nan])
    def test_what_cannot_be_judged_is_no_witness_and_is_counted(self, bad):
        class Bad(Net):
            def forward(self, x):
                s = super().forward(x)
                return torch.where(torch.arange(4) == (labels()[0] + 1) % 4, torch.full_like(s, bad), s)

        out = run(PGD(), problem(), Bad())
        assert not out.found.any()
        assert out.unusable is not None
        assert (out.unusable > 0).all()
        assert not usable(torch.tensor([[bad, 0.0]])).item()

    @pytest.mark.parametrize("score", [-1.0, -1e4, -1e8])
    def test_the_scale_of_a_detector_does_not_matter(self, score):
        p = problem(criterion=WithDetector(Misclassified()))
        assert torch.equal(
            run(PGD(loss="joint"), p, Net(more=(score,))).found, run(PGD(loss="margin"), problem(), Net()).found
        )


class TestGradients:
    @pytest.mark.parametrize("name", ["pgd", "fgsm", "apgd_ce", "deepfool", "carlini_wagner", "fab_t"])
    def test_a_hidden_gradient_is_a_finding(self, name):
        class Hidden(Net):
            def forward(self, x):
                return super().forward(x.detach())

        assert run(small(name), problem(Norm.LINF, 0.02), Hidden()).blind.all()
        assert not run(small(name), problem(Norm.LINF, 0.02), Net()).blind.any()

    def test_attacks_without_gradients_are_not_blind(self):
        assert not run(Square(queries=50), problem(), Net()).blind.any()


INPUTS_OF_CLASSES = ("boundary", "geoda", "hopskipjump", "nes", "nes_label_only", "opt", "sign_opt", "surfree")


class TestWhatIsGivenInRealUnits:
    """What somebody gives as the data are: the same inputs on another scale are the same search."""

    def of(self, tool, unit, shift=0.0, *, targeted=False):
        norm = Norm.L2 if Norm.L2 in tool.card.norms else Norm.LINF
        eps = float("inf") if tool.card.formulation in UNBOUNDED else EPS[norm] * unit
        ball = LpBall.uniform(norm, eps, N, shift, shift + unit, dtype=torch.float64)
        target = (labels() + 1) % 4 if targeted else None
        return run(tool, Problem.of(points() * unit + shift, labels(), ball, target=target), Net(unit, shift))

    def starts(self):
        g = torch.Generator().manual_seed(3)
        many = torch.rand(400, 1, 4, 4, generator=g, dtype=torch.float64)
        with torch.no_grad():
            label = Net()(many).argmax(1)
        return torch.stack([many[label == k][0] for k in range(4)])

    @pytest.mark.parametrize("name", INPUTS_OF_CLASSES)
    def test_inputs_to_start_from(self, name):
        base = self.of(replace(small(name), starts=self.starts()), 1.0, targeted=True)
        assert base.found.any() or name == "nes"  # which has to come a long way with few queries
        many = self.of(replace(small(name), starts=self.starts() * 256), 256.0, targeted=True)
        assert torch.equal(base.x * 256, many.x)
        assert torch.equal(base.low_margin, many.low_margin)
        for unit, shift in ((255.0, 0.0), (2.0, -1.0)):
            there = self.of(replace(small(name), starts=self.starts() * unit + shift), unit, shift, targeted=True)
            assert base.found.sum() - there.found.sum() <= 1

    @pytest.mark.parametrize("width", [None, 0.3])
    def test_references_and_the_width_of_their_kernel(self, width):
        def tool(unit):
            size = None if width is None else width * unit
            return replace(small("gradient_evasion"), reference=self.starts() * unit, width=size, mimicry=3.0)

        base = self.of(tool(1.0), 1.0)
        assert torch.equal(base.x * 256, self.of(tool(256.0), 256.0).x)
        assert not torch.equal(base.x, self.of(replace(tool(1.0), mimicry=0.0), 1.0).x)

    def test_a_decoder_makes_perturbations_of_the_data(self):
        def tool(unit):
            spread = torch.randn(4, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            return replace(small("autozoom"), space=Decoder(lambda u: (u @ spread * unit).view(-1, 1, 4, 4), (4,)))

        base = self.of(tool(1.0), 1.0)
        assert base.found.any()
        assert torch.equal(base.x * 256, self.of(tool(256.0), 256.0).x)

    @pytest.mark.parametrize("name", ["uap", "sgd_uap", "min_max_universal"])
    def test_shared_artefacts(self, name):
        def made(unit):
            tool = method(name)()
            tool = replace(tool, **{k: v for k, v in {"steps": 8, "passes": 2}.items() if hasattr(tool, k)})
            ball = LpBall.uniform(Norm.LINF, 0.2 * unit, N, 0, unit, dtype=torch.float64)
            return fit(tool, Problem.of(points() * unit, labels(), ball), Net(unit)).artefact.tensors

        one, many = made(1.0), made(256.0)
        assert torch.equal(one["v"] * 256, many["v"])


GREY = (points().float() * 255).round()
ROUNDED = {
    "x / 255": (GREY / 255, 0.0),
    "x * (1 / 255)": (GREY * (1 / 255), 0.0),
    "x / 255 * 2 - 1": (GREY / 255 * 2 - 1, -1.0),
    "x / 127.5 - 1": (GREY / 127.5 - 1, -1.0),
    "(x / 255 - 0.5) / 0.5": ((GREY / 255 - 0.5) / 0.5, -1.0),
}


class TestGreyLevels:
    @pytest.mark.parametrize("how", ROUNDED)
    @pytest.mark.parametrize(("name", "norm", "levels"), [("sigma_zero", Norm.L0, 3), ("rays", Norm.LINF, 8)])
    def test_a_level_that_was_rounded_on_its_way_is_that_level(self, how, name, norm, levels):
        x, low = ROUNDED[how]
        width = 1 - low
        step = Fraction(int(width), 255)
        model = Net(unit=width, shift=low).float()
        y = Net().float()(GREY / 255).argmax(1)
        ball = LpBall.uniform(norm, levels if norm is Norm.L0 else levels * step, N, low, 1.0, grid=step)
        asked = Problem.of(x, y, ball)
        assert bool(contains(ball, asked.x, asked.x).all())
        assert float((asked.x - x).abs().max()) < 1e-6
        exact = Problem.of(
            GREY / 255,
            y,
            LpBall.uniform(norm, float(ball.eps[0]) / (1 if norm is Norm.L0 else width), N, grid=Fraction(1, 255)),
        )
        base = run(small(name), exact, Net().float()).found
        assert int(base.sum()) - int(run(small(name), asked, model).found.sum()) <= 1
        assert base.any()

    def test_what_is_off_the_levels_by_more_is_left_as_it_is(self):
        x = GREY / 255 + 2e-4
        assert torch.equal(Problem.of(x, labels(), LpBall.uniform(Norm.LINF, 0.1, N, grid=Fraction(1, 255))).x, x)
