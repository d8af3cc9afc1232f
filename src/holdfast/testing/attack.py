"""The contract of an attack, as checks that anyone can run on a method of their own.

    from holdfast.testing import check_attack
    check_attack("pgd")                 # a registered name, a class or an instance
    check_attack(MyAttack, only=["inside", "affine"])

A check is a function of a case; it raises `ContractError` with what is wrong and, where it helps, how to mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Run, Settings, run
from holdfast.core.draws import Draws
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.asking import Model
from holdfast.judge.ledger import Budget
from holdfast.numerics.affine import affine_optimum
from holdfast.numerics.distance import between, contains
from holdfast.numerics.sampling import uniform_in_ball
from holdfast.testing._attack_case import (
    EPS,
    FEW_STEPS,
    SAMPLES,
    AttackCase,
    breaks,
    clean_right,
    of_digits,
    same,
)
from holdfast.testing._attack_manners import MANNERS
from holdfast.testing._manners import declared_parameters, leaving_alone, under_two_states
from holdfast.testing.contract import ContractError, reduced, refuses, require, run_checks
from holdfast.testing.toys import AffineModel, Counting, Queried, affine_digits, digits, net

__all__ = ["ATTACK_CHECKS", "ContractError", "check_attack"]

_BLACK_BOX_QUERIES = 4000
_NOISE_QUERIES = 1000
_AFFINE_N = 60
_REFILLED = 6  # samples: one slot is filled anew five times, three are once each


# what a witness must be


def _inside(case: AttackCase) -> None:
    for norm in case.card.norms:
        problem = of_digits(case, norm=norm)
        for keep in (Keep.FIRST, Keep.NEAREST):
            out = case.run(problem, keep=keep)
            hit = out.found
            ball = problem.set.select(hit.nonzero().squeeze(-1))
            require(
                contains(ball, out.x[hit], problem.x[hit]).all(),
                f"{norm}: a witness lies outside its set; every point asked must come from `project` or be clamped",
            )
            kept = torch.equal(out.x[~hit], problem.x[~hit])
            require(kept, f"{norm}: a sample without witness must keep its clean input")
            wrong = ~clean_right(net(), out.x[hit], problem.y[hit])
            require(wrong.all(), f"{norm}: a witness does not break the model when it is asked anew")
            real = between(norm, out.x[hit], problem.x[hit])
            require(torch.equal(real, out.distance[hit]), f"{norm}: the distance told is not that of the witness")
            require(breaks(out), f"{norm}: nothing found at eps {EPS[norm]} on a network that is easily broken")


def _eps_zero(case: AttackCase) -> None:
    problem = of_digits(case, eps=0.0)
    out = case.run(problem)
    require(torch.equal(out.x, problem.x), "at eps = 0 the clean input must come back")
    right = clean_right(net(), problem.x, problem.y)
    require(not (out.found & right).any(), "at eps = 0 a correctly classified sample cannot be broken")


def _monotone(case: AttackCase) -> None:
    counts = [int(case.run(of_digits(case, eps=EPS[case.norm] * k)).found.sum()) for k in (0.25, 0.5, 1, 2, 4)]
    require(all(b >= a - 1 for a, b in pairwise(counts)), f"success must grow with eps, one sample of slack: {counts}")
    require(counts[-1] > counts[0], f"success does not grow with eps at all: {counts}")


def _per_sample_eps(case: AttackCase) -> None:
    x, y = digits(SAMPLES)
    eps = torch.where(torch.arange(SAMPLES) % 2 == 0, 0.0, EPS[case.norm]).double()
    problem = Problem.of(x, y, case.ball(SAMPLES).with_eps(eps))
    out = case.run(problem)
    require(contains(problem.set, out.x, x).all(), "with an eps for each sample, one left its own ball")
    require(((out.distance > 0) & out.found)[1::2].any(), "with an eps for each sample, no large one broke")


def _mask_and_bounds(case: AttackCase) -> None:
    x, y = digits(SAMPLES)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:] = True
    lower, upper = (x - 0.2).clamp_min(0), (x + 0.3).clamp_max(0.9).maximum(x)
    wide = torch.full((SAMPLES,), 2 * EPS[case.norm]).double()
    for low, high in ((torch.zeros(()).double(), torch.ones(()).double()), (lower, upper)):
        ball = LpBall(norm=case.norm, eps=wide, lower=low, upper=high, mask=mask)
        out = case.run(Problem.of(x, y, ball))
        require(torch.equal(out.x[..., :2], x[..., :2]), "a feature outside the mask was changed")
        require(contains(ball, out.x, x).all(), "a feature left its own bounds; see `numerics.distance.box`")
        require(breaks(out), "nothing found with three quarters of the features free")


def _already_wrong(case: AttackCase) -> None:
    x, _ = digits(SAMPLES)
    with torch.no_grad():
        wrong = (net().eval()(x).argmax(1) + 1) % 10
    net().train()
    out = case.run(Problem.of(x, wrong, case.ball(SAMPLES)))
    require(out.found.all() and (out.distance == 0).all(), "a misclassified sample must come back with distance 0")
    require(torch.equal(out.x, x), "a misclassified sample must be left untouched")
    cost = (out.ledger.forwards <= case.small.votes).all()
    require(cost, "a misclassified sample must cost no more than its clean pass")


def _targeted(case: AttackCase) -> None:
    if Goal.TARGETED not in case.card.goals:
        return
    x, y = digits(SAMPLES)
    target = (y + 1 + torch.arange(SAMPLES) % 8) % 10
    out = case.run(Problem.of(x, y, case.ball(SAMPLES, 4 * EPS[case.norm]), target=target))
    with torch.no_grad():
        label = net().eval()(out.x).argmax(1)
    net().train()
    require(torch.equal(label[out.found], target[out.found]), "a targeted witness is not of its own sample's target")
    black = case.card.access is Access.HARD_LABEL
    hits = int((out.found & (out.distance > 0)).sum())
    what = f"{hits} of {SAMPLES} targets are reached at eps {4 * EPS[case.norm]}"
    require(black or hits >= SAMPLES // 4, f"{what}, as many as an attack meets that only flees the label")


# what must not matter


def _slots(case: AttackCase) -> None:
    problem = of_digits(case).select(np.arange(_REFILLED))
    for keep in (Keep.FIRST, Keep.NEAREST):
        base = case.run(problem, keep=keep)
        others = Settings(slots=1), Settings(slots=3), Settings(slots=3, check_every=4), Settings(micro_batch=5)
        for settings in others:
            same(base, case.run(problem, keep=keep, settings=settings), f"with {settings}")


def _order(case: AttackCase) -> None:
    order = torch.tensor([(5 * k + 3) % SAMPLES for k in range(SAMPLES)])
    problem = of_digits(case)
    moved = replace(problem.select(order.numpy()), rows=problem.rows)
    same(case.run(problem), case.run(moved), "with the samples in another order and their ids kept", order)


def _seeds(case: AttackCase) -> None:
    problem = of_digits(case)
    one, two = under_two_states(lambda: case.run(problem, seed=3))
    require(torch.equal(one.x, two.x), "the same seed gave another result: draw from `problem.keyed`")
    again = case.run(replace(problem, ids=problem.ids + 1000), seed=3)
    if torch.equal(one.x, again.x):  # no draw depends on the sample, so none may depend on the seed
        require(torch.equal(case.run(problem, seed=4).x, one.x), "the seed matters but the sample's id does not")


def _form_of_x(case: AttackCase) -> None:
    x, y = digits(SAMPLES)
    base = case.run(Problem.of(x, y, case.ball(SAMPLES)))
    alone = case.run(Problem.of(x[:1], y[:1], case.ball(1)))
    require(torch.equal(alone.found, base.found[:1]), "a batch of 1 gives another answer than a larger one")
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    same(base, case.run(Problem.of(strided, y, case.ball(SAMPLES))), "with an input that is not contiguous")
    x32, model = x.float(), net(torch.float32)
    out = case.run(Problem.of(x32, y, LpBall.uniform(case.norm, EPS[case.norm], SAMPLES)), model)
    require(out.x.dtype is torch.float32, f"float32 inputs came back as {out.x.dtype}")
    require(contains(LpBall.uniform(case.norm, EPS[case.norm], SAMPLES), out.x, x32).all(), "float32: outside the set")
    require(breaks(out), "float32: nothing found")
    flat = case.run(Problem.of(x.flatten(1), y, case.ball(SAMPLES)))
    require(breaks(flat), "inputs of shape (n, 64) that are no images: nothing found")
    empty = case.run(Problem.of(x[:0], y[:0], case.ball(0)))
    require(len(empty.x) == 0, "an empty batch must come back empty")


def _few(case: AttackCase) -> None:
    """One feature; two and three classes."""
    for weight, bias in (
        (torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, -0.7])),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.1, 0.0])),
        (torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([0.0, -0.4, -0.7])),
    ):
        model = AffineModel(weight.double(), bias.double())
        x = torch.full((4, weight.shape[1]), 0.3, dtype=torch.float64) + torch.arange(4).view(-1, 1) * 0.01
        with torch.no_grad():
            y = model(x).argmax(1)
        eps = float(weight.shape[1]) if case.norm is Norm.L0 else 0.5
        out = case.run(Problem.of(x, y, case.ball(4, eps)), model)
        what = f"{weight.shape[1]} features and {weight.shape[0]} classes"
        require(out.x.isfinite().all(), f"not a number with {what}")
        require(breaks(out), f"nothing found with {what}, where half of the set is adversarial")


class _Constant(AffineModel):
    """Says class 3 to everything, and whether it was asked about what is no number: the archive keeps no such row."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(10, 64).double(), torch.eye(10)[3].double())
        self.finite = True

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, 10) scores."""
        self.finite &= bool(x.isfinite().all())
        return super().forward(x)


def _no_gradient(case: AttackCase) -> None:
    x, y = digits(4)
    constant = _Constant()
    out = case.run(Problem.of(x, y, case.ball(4)), constant)
    require(constant.finite, "a constant model (zero gradient) was asked about values that are not finite")
    require(torch.equal(out.found, y != 3), "a constant model: only samples that it misclassifies are adversarial")
    broken = AffineModel(torch.full((10, 64), float("nan")).double(), torch.zeros(10).double())
    out = case.run(Problem.of(x, y, case.ball(4)), broken)
    require(not out.found.any() and torch.equal(out.x, x), "an answer that is not a number is never adversarial")


# what must not be touched, and what it may cost


def _untouched(case: AttackCase) -> None:
    problem = of_digits(case)
    with leaving_alone(net(), problem.x, problem.y, problem.set.eps, problem.set.lower, problem.set.upper):
        case.run(problem, keep=Keep.NEAREST)
        case.run(problem)


def _ledger(case: AttackCase) -> None:
    for budget in (None, Budget(queries=1), Budget(queries=37), Budget(passes=41)):
        for keep in (Keep.FIRST, Keep.NEAREST):
            _one_ledger(case, budget, keep)


def _one_ledger(case: AttackCase, budget: Budget | None, keep: Keep) -> None:
    x, y = digits(SAMPLES)
    x = Counting.mark(x)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[0, 0, 0, 0] = False
    problem = Problem.of(x, y, case.ball(SAMPLES, mask=mask))
    model, judge = Counting(net(), SAMPLES), None
    with torch.no_grad():
        clean = net().eval()(x)
    net().train()
    if case.transfers:
        judge = Counting(net(), SAMPLES)
    out = case.run(problem, model, judge, budget=budget, keep=keep, clean=clean)
    asked = model.rows if judge is None else judge.rows
    what = f"with {budget or 'no budget'}, keep={keep}"
    spent = out.ledger.forwards
    open_ = ~out.found if keep is Keep.FIRST else torch.ones_like(out.found)
    if judge is None:
        told = f"rows through the model {model.rows.numpy()}, forwards charged {spent.numpy()}"
        require(torch.equal(model.rows[open_], spent[open_]), f"{what}: {told}")
    else:  # what is asked of a surrogate may be resized or darkened, and then shows no longer whose it is
        mine = int((spent - out.ledger.queries).sum())
        require(model.total == mine, f"{what}: {model.total} rows through the surrogate, {mine} charged")
    require((asked[open_] == out.ledger.queries[open_]).all(), f"{what}: queries charged are not the queries made")
    if budget is not None and budget.queries is not None:
        require((asked <= budget.queries).all(), f"{what}: the attacked model was asked {asked.numpy()} times")
    if budget is not None and budget.passes is not None and not case.transfers:
        total = out.ledger.passes
        require((total <= budget.passes).all(), f"{what}: {total.numpy()} passes were made")


_TELLS: dict[Access, Callable[[Tensor], Tensor]] = {
    Access.HARD_LABEL: lambda s: torch.nn.functional.one_hot(s.argmax(-1), s.shape[-1]).to(s),
    Access.SOFT_LABEL: lambda s: s.log_softmax(-1),
    Access.TRANSFER: lambda s: s,
}


def _access(case: AttackCase) -> None:
    access = case.card.access
    if access is None or access is Access.WHITE_BOX:
        return
    problem, base = of_digits(case), case.run(of_digits(case))
    tells = _TELLS[access]
    if case.transfers:
        out = case.run(problem, net(), Queried(net(), tells))
        limit = 1 + case.small.rounds
        asked = out.ledger.queries
        require((asked <= limit).all(), f"a transfer attack may ask once a round, but asked {asked.numpy()}")
    else:
        out = case.run(problem, Queried(net(), tells))
        job = Run(case.small, problem, Queried(net(), tells))
        ask = job.oracle.on(job.problem)
        more = [name for name in _MORE[access] if hasattr(job.oracle, name) or hasattr(ask, name)]
        require(not more, f"the oracle of {access.label} access must not have {more}")
    same(base, out, f"through an interface that shows no more than {access.label} access")


_MORE = {
    Access.HARD_LABEL: ("log_probs", "clean", "scores", "losses", "logits", "gradient", "jacobian", "features"),
    Access.SOFT_LABEL: ("logits", "gradient", "jacobian", "features"),
}


# how strong it must be


def _beats_noise(case: AttackCase) -> None:
    problem = of_digits(case)
    if case.card.access in (Access.HARD_LABEL, Access.SOFT_LABEL):  # those spend a share of their queries on a start
        case = replace(case, small=reduced(case.whole, {"queries": _NOISE_QUERIES}))
    out = case.run(problem)
    asked = int(out.ledger.forwards.clamp_max(_NOISE_QUERIES).max())
    draws = Draws(0, "noise").of(problem.ids)
    broken = torch.zeros(SAMPLES, dtype=torch.bool)
    for k in range(asked):
        broken |= ~clean_right(net(), uniform_in_ball(problem.set, problem.x, draws, "noise", k), problem.y)
    require(
        out.found.sum() > broken.sum() or broken.all(),
        f"random noise breaks {int(broken.sum())} of {SAMPLES} with {asked} queries, the attack {int(out.found.sum())}",
    )


def _affine(case: AttackCase) -> None:
    """Against the exact optimum. Minimal distortion: the median ratio; budget: half break at ratio times it."""
    model = affine_digits()
    x, y = digits(_AFFINE_N)
    edges = torch.zeros(()).double(), torch.ones(()).double()
    keep = clean_right(model, x, y)
    x, y = x[keep], y[keep]
    attack = case.whole
    if case.card.access in (Access.HARD_LABEL, Access.SOFT_LABEL):
        attack = reduced(attack, {"queries": _BLACK_BOX_QUERIES})
    budgeted = case.card.formulation is Formulation.BUDGET
    for norm, ratio in case.card.affine_ratio.items():
        best = affine_optimum(norm, model.weight.detach(), model.bias.detach(), x, y, *edges).distance
        eps = best * ratio if budgeted else torch.full_like(best, float("inf"))
        ball = LpBall(norm=norm, eps=eps, lower=edges[0], upper=edges[1])
        out = run(attack, Problem.of(x, y, ball), model, judge=_judge_of(case, model))
        factor = out.distance / best
        require(
            (factor >= 1 - 1e-6).all(),
            f"{norm}: a distance of {float(factor.min())} times the optimum: set, distance or label is wrong",
        )
        if budgeted:
            share = float(out.found.double().mean())
            require(share >= 0.5, f"{norm}: at {ratio} times the optimum {share:.0%} break; the card promises half")
            continue
        median, success = float(factor.median()), float(out.found.double().mean())
        require(median <= ratio, f"{norm}: median ratio to the optimum {median:.4f}, the card promises {ratio}")
        require(success == 1, f"{norm}: {success:.0%} success on an affine model without a budget")


def _judge_of(case: AttackCase, model: nn.Module) -> Model | None:
    return Queried(model, lambda scores: scores) if case.transfers else None


# what it must say of itself


def _card(case: AttackCase) -> None:
    card = case.card
    small: Any = case.small
    require(card.access is not None and card.formulation and card.norms, "card: access, formulation or norms missing")
    require(card.title and card.paper and card.summary and card.section, "card: title, paper or summary missing")
    require(card.failure_modes, "card: an attack says when it is known to fail")
    declared_parameters(small)
    for norm in set(Norm) - set(card.norms):
        x, y = digits(1)
        problem = Problem.of(x, y, LpBall.uniform(norm, 1.0, 1, dtype=torch.float64))
        refuses(lambda p=problem: case.small.check(p), UnsupportedError, f"{norm}, which is not on its card")
    for name in ("steps", "queries", "restarts"):
        if hasattr(small, name):
            none = replace(small, **{name: 0})
            refuses(lambda a=none: a.check(of_digits(case)), UsageError, f"{name} = 0")


_CHECKS: dict[str, Callable[[AttackCase], None]] = {
    "card": _card,
    "inside": _inside,
    "eps-zero": _eps_zero,
    "monotone": _monotone,
    "per-sample-eps": _per_sample_eps,
    "mask-and-bounds": _mask_and_bounds,
    "already-wrong": _already_wrong,
    "targeted": _targeted,
    "slots": _slots,
    "order": _order,
    "seeds": _seeds,
    "form-of-x": _form_of_x,
    "few": _few,
    "no-gradient": _no_gradient,
    "untouched": _untouched,
    "ledger": _ledger,
    "access": _access,
    "beats-noise": _beats_noise,
    "affine": _affine,
    **MANNERS,
}

ATTACK_CHECKS = tuple(_CHECKS)
"""Names of the checks, in the order in which they run."""


def check_attack(attack: str | type[Attack[Any, Any]] | Attack[Any, Any], *, only: Iterable[str] | None = None) -> None:
    """Runs the contract of an attack; each check is made, and all that fail are told together.

    Args:
        attack: a registered name, a class that needs no arguments, or an instance.
        only: names of `ATTACK_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_attack("pgd", only=["card", "eps-zero"])
    """
    given: Any = method(attack, Attack) if isinstance(attack, str) else attack
    whole: Attack[Any, Any] = given() if isinstance(given, type) else given
    norm = Norm.LINF if Norm.LINF in whole.card.norms else whole.card.norms[0]
    case = AttackCase(whole, reduced(whole, FEW_STEPS), norm)
    run_checks(f"{whole.card.title} breaks the contract of an attack", _CHECKS, case, only)
