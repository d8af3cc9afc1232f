"""Before and after an adjustment, and known against unseen attacks."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks.evasion.transfer.surrogate_transfer import SurrogateTransfer
from holdfast.attacks.evasion.white.fgsm import FGSM
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.cards import parameters_of
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import create, names
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm, ThreatModel, parse_eps
from holdfast.models.compressed import adjusted
from holdfast.numerics.evaluation import evaluate
from holdfast.report.studies import page
from holdfast.session import Session, open_session
from holdfast.session.look import answers_vary
from holdfast.studies.common.trials import UnseenTrial, matched_eps, unseen_attacks
from holdfast.studies.posthoc import Posthoc, compare_adjusted
from holdfast.studies.radii import RadiiStudy
from holdfast.studies.study import Study
from holdfast.studies.unseen import Unseen, against_unseen
from holdfast.testing.toys import affine_digits, digits, net


def problem_of(n: int, eps: float, norm: Norm = Norm.LINF) -> Problem:
    x, y = digits(n)
    return Problem.of(x, y, LpBall.uniform(norm, eps, n, dtype=x.dtype))


def held(n: int) -> tuple[Tensor, Tensor]:
    x, y = digits(1797)
    return x[-n:], y[-n:]


def _linear(model: nn.Module) -> nn.Linear:
    made = nn.Linear(64, 10).double()
    made.weight.data, made.bias.data = model.weight.data.clone(), model.bias.data.clone()
    return made


class TestPosthoc:
    def test_the_table(self):
        problem = problem_of(40, 0.08)
        names = ("prune:0.7", "int8", "temperature", "bf16")
        found = compare_adjusted(net(), problem, held(100), {"pgd": PGD(steps=10)}, adjustments=names, eps="0.08")
        rows = {r.name: r for r in found.rows}
        assert list(rows) == ["original", *names]
        original, cool = rows["original"], rows["temperature"]
        assert original.from_original is None
        assert original.robust == original.robust_to_both
        assert cool.accuracy == original.accuracy, "a temperature moves no label"
        assert cool.from_original == pytest.approx(rows["int8"].from_original, abs=0.1)
        for r in rows.values():
            assert r.robust is not None
            assert r.robust_to_both <= r.robust <= r.accuracy
            assert r.interval[0] <= r.robust <= r.interval[1]
        assert page(found, "net, digits", "holdfast study posthoc").count("<tr>") == 6

    def test_a_model_without_a_gradient_is_judged_on_the_originals_examples(self):
        x, y = digits(30, torch.float32)
        problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.1, 30))
        model = nn.Sequential(nn.Flatten(), _linear(affine_digits())).float()
        found = compare_adjusted(model, problem, (x, y), {"pgd": PGD(steps=5)}, adjustments=("dynamic-int8",))
        if found.refused:
            assert "dynamic-int8" in found.refused
            return
        row = found.rows[1]
        assert row.robust is None
        assert row.passes == 0
        assert row.from_original > 0.3

    def test_what_cannot_be_had_is_told(self):
        found = compare_adjusted(nn.Flatten(), problem_of(2, 0.1), held(4), {}, adjustments=("prune:0.5",))
        assert "no linear or convolutional layer" in found.refused["prune:0.5"]
        with pytest.raises(UsageError, match="no adjustment 'prun'"):
            adjusted("prun", net(), *held(4))


class TestUnseen:
    @pytest.mark.parametrize(("norm", "p"), [(Norm.L1, 1.0), (Norm.L2, 2.0)])
    def test_matched_sets_have_one_volume(self, norm, p):
        d, eps = 3, 0.3
        radius = matched_eps(Norm.LINF, eps, norm, d)
        unit = {1.0: 8 / 6, 2.0: 4 / 3 * math.pi}[p]
        assert math.isclose(unit * radius**d, (2 * eps) ** d)
        assert math.isclose(matched_eps(norm, radius, Norm.LINF, d), eps)

    def test_the_study(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)).double()
        torch.manual_seed(0)
        x, y = digits(1797)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        problem = problem_of(10, 0.03)
        known = UnseenTrial(attack=PGD(steps=1, random_start=False), kind="known", norm=Norm.LINF)
        trials = unseen_attacks(Norm.LINF, known, transfer=True, queries=60)
        found = against_unseen(model, problem, known, trials, surrogate=affine_digits())
        assert not found.refused
        same = [r for r in found.rows if r.norm == "linf"]
        assert found.known == found.rows[0].robust
        assert found.unseen <= min(r.robust for r in same[1:])
        assert found.worst <= found.unseen
        first = found.bounds[0]
        assert first.certified <= first.worst <= found.known <= found.accuracy
        assert [b.norm for b in found.bounds] == ["linf", "l2", "l1"]
        assert not any(b.contradictions for b in found.bounds)
        assert {r.kind for r in found.rows} >= {"transfer", "black-box", "other norm"}
        assert "Proved (CROWN)" in page(found, "net")

    def test_transfer_without_a_surrogate_is_told(self):
        known = UnseenTrial(attack=PGD(steps=2), kind="known", norm=Norm.LINF)
        transfer = UnseenTrial(attack=SurrogateTransfer(), kind="transfer", norm=Norm.LINF)
        found = against_unseen(net(), problem_of(4, 0.02), known, (transfer,))
        assert "needs a surrogate" in found.refused["surrogate_transfer"]
        fgsm = UnseenTrial(attack=FGSM(), kind="known", norm=Norm.L0)
        with pytest.raises(UnsupportedError, match="no l0 form"):
            against_unseen(net(), problem_of(4, 2, Norm.L0), fgsm, ())
        with pytest.raises(UsageError, match="no volume"):
            matched_eps(Norm.LINF, 0.1, Norm.L0, 64)


class _Writes(nn.Module):
    """Shifts its input in place, as a transform with ``inplace=True`` does."""

    def forward(self, x):
        with torch.no_grad():
            x.sub_(0.5)
        return torch.stack([x[:, 0], -x[:, 0]], 1)


def test_studies_hand_out_copies_of_their_samples():
    x = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    first = evaluate(_Writes(), x)
    assert torch.equal(evaluate(_Writes(), x), first)
    assert not answers_vary(_Writes(), x)
    assert torch.equal(x, before)


def session_of(n: int, eps: str = "0.08", *, seed: int = 0) -> Session:
    x, y = digits(n, torch.float32)
    return open_session(net(torch.float32), (x, y), ThreatModel(norm=Norm.LINF, eps=parse_eps(eps)), seed=seed)


class TestStudiesOfASession:
    def test_every_study_is_a_method_with_a_card_and_is_made_of_its_defaults(self):
        assert set(names("study")) >= {
            "comparison", "manifold", "posthoc", "radii", "scalability", "transfer", "unseen",
        }  # fmt: skip
        for name in names("study"):
            made = create(name, Study)
            assert made.card.rows, name
            declared = {p.name for p in parameters_of(type(made))}
            assert declared == {f.name for f in fields(made)} <= get_type_hints(type(made)).keys(), name

    def test_posthoc_judges_the_first_half_and_fits_on_the_second(self):
        result = Posthoc(adjustments=("temperature",), attacks=("fgsm",)).run(session_of(21))
        assert (result.samples, result.fitted_on, result.eps, result.attacks) == (10, 11, "0.08", ("fgsm",))
        given = Posthoc(adjustments=(), attacks=("fgsm",), held_out=digits(5, torch.float32)).run(session_of(6))
        assert (given.samples, given.fitted_on, len(given.rows)) == (6, 5, 1)

    def test_the_known_attack_and_the_sessions_seed_are_those_that_are_used(self):
        result = Unseen(known=PGD(steps=1), queries=10).run(session_of(4, "0.01", seed=3))
        assert (result.rows[0].method, result.rows[0].kind, result.seed) == ("pgd", "known", 3)
        assert result.to_dict()["certified"] == result.bounds[0].certified
        assert not result.contradicts_itself

    def test_a_model_that_can_only_be_asked_has_no_study_that_differentiates_it(self):
        class Asked(nn.Module):
            differentiable = False

            def forward(self, x):
                return x.flatten(1)[:, :10]

        x, y = digits(4, torch.float32)
        asked = open_session(Asked(), (x, y), ThreatModel(norm=Norm.LINF, eps=parse_eps("0.1")))
        for study in (Posthoc(), Unseen()):
            with pytest.raises(UsageError, match="its gradient"):
                study.run(asked)

    def test_radii_cross_no_witness_and_the_table_names_every_method(self):
        result = RadiiStudy(methods=("ibp", "crown"), attack="fgsm").run(session_of(4, "0.02"))
        assert [c.name for c in result.columns] == ["ibp", "crown", "fgsm"]
        assert result.crossings == ()
        assert [c["at_eps"] for c in result.to_dict()["columns"]] == [c.at_least(0.02) for c in result.columns]
        with pytest.raises(UsageError, match="no certifier of radii"):
            RadiiStudy(methods=("pgd",)).run(session_of(2))
