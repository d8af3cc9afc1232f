"""A model that has no decision for inputs inside the set is not robust there, whatever no attack could show."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from functools import cache

import jsonschema
import numpy as np
import pytest
import torch
from forging import made_up, put_units, seconds_in, units_in
from safetensors.torch import save
from torch import nn

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.soft.square import Square
from holdfast.audits.clashes import contradictions
from holdfast.audits.document import schema
from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.run import audit, resume
from holdfast.core.errors import DataError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate, NoAnswer, Status

_EPS = 0.25


class Silent(nn.Module):
    """Decides by its second number, and has no answer where the first is large."""

    def __init__(self, bad=torch.nan, above=0.6, every=False):
        super().__init__()
        self.bad, self.above, self.every = bad, above, every
        self.line = nn.Linear(4, 2)
        self.line.weight.data = torch.tensor([[0.0, 1, 0, 0], [0, -1, 0, 0]])
        self.line.bias.data = torch.tensor([-0.5, 0.5])

    def forward(self, x):
        scores = self.line(x)
        bad = torch.full_like(scores, self.bad)
        if not self.every:  # one class alone
            bad = torch.cat([scores[:, :1], bad[:, 1:]], 1)
        return torch.where(x[:, :1] > self.above, bad, scores)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight samples far from the border, which nothing breaks, and two near it, which anything breaks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(10, 4, generator=generator) * 0.1 + 0.45
    x[:, 1] = torch.tensor([0.1, 0.9] * 4 + [0.45, 0.55])
    file = tmp_path_factory.mktemp("silent") / "d.npz"
    np.savez(file, x=x.numpy(), y=Silent()(x).argmax(1).numpy())
    return str(file)


def _plan(data, **given):
    return Plan.of(
        **{"data": data, "norm": "linf", "eps": "0.25", "certify": "none", "suite": "fast", "queries": 100} | given
    )


@pytest.fixture(scope="module")
def audited(data, tmp_path_factory):
    """Audits such a model once; gives the run's folder, which nobody changes, and the document."""

    @cache
    def of(bad, every):
        folder = tmp_path_factory.mktemp("audited") / "run"
        return folder, audit(_plan(data), folder, model=Silent(bad, every=every))

    return of


@pytest.mark.parametrize(
    ("bad", "every", "met"),
    [(torch.nan, False, "NaN"), (torch.inf, False, "+infinity"), (-torch.inf, True, "-infinity for every class")],
)
def test_samples_with_no_answer_in_their_set_are_not_judged(audited, bad, every, met):
    model = Silent(bad, every=every)
    folder, document = audited(bad, every)
    head = document.gated(0.1)
    assert [s.status for s in document.samples] == [Status.ERROR] * 8 + [Status.BROKEN] * 2
    assert all(s.no_answer is not None and s.no_answer.distance <= _EPS for s in document.samples[:8])
    assert (head.headline.empirical_robust_accuracy, head.complete, head.exit_code) == (0.0, False, 3)
    assert head.gate is not None
    assert not head.gate.passed
    (finding,) = [f for f in document.findings if f.code == "model.no_answer"]
    assert f"with {met}, the nearest at" in finding.message
    assert "samples 0, 1, 2" in finding.message
    assert all(p.accuracy == 0 for p in document.curves.eps if p.eps >= _EPS)
    jsonschema.Draft202012Validator(schema()).validate(json.loads(document.text()))
    assert recheck(folder, model=model).problems == []
    assert resume(folder, model=model) == document


@pytest.mark.parametrize("given", [{"suite": "black-box"}, {"suite": "minimal"}, {"suite": "standard"}])
def test_every_suite_notices(data, tmp_path, given):
    document = audit(_plan(data, **given), tmp_path / "run", model=Silent())
    assert {s.status for s in document.samples[:8]} == {Status.ERROR}
    for curve in document.curves.queries:
        assert curve.points[-1][1] == 0


def test_what_lies_beyond_eps_is_no_part_of_the_verdict(data, tmp_path):
    document = audit(_plan(data, suite="minimal", eps="0.05"), tmp_path / "run", model=Silent())
    assert document.complete
    assert {s.status for s in document.samples[:8]} == {Status.UNKNOWN}
    assert any(s.no_answer is not None and s.no_answer.distance > 0.05 for s in document.samples)
    assert not [f for f in document.findings if f.code == "model.no_answer"]


def test_where_witnesses_break_all_of_them_the_run_is_complete(data, tmp_path):
    with np.load(data) as held:
        np.savez(tmp_path / "d.npz", x=held["x"][8:], y=held["y"][8:])
    document = audit(_plan(str(tmp_path / "d.npz"), suite="minimal"), tmp_path / "run", model=Silent())
    assert (document.counts()[Status.BROKEN], document.complete) == (2, True)
    assert document.exit_code == 0


@pytest.mark.parametrize(("bad", "every"), [(torch.nan, False), (-torch.inf, True)])
def test_a_sample_with_no_answer_as_it_is_is_named(data, tmp_path, bad, every):
    """The look at the first 200 samples refuses such a model; one that comes later is found by the clean pass."""
    with np.load(data) as held:
        x, y = np.concatenate([held["x"][:8]] * 26), np.concatenate([held["y"][:8]] * 26)
    x[204, 0] = 0.7
    np.savez(tmp_path / "late.npz", x=x, y=y)
    np.savez(tmp_path / "early.npz", x=x[200:], y=y[200:])
    model = Silent(bad, every=every)
    with pytest.raises(DataError, match="1 of 8 rows"):
        audit(_plan(str(tmp_path / "early.npz")), tmp_path / "a", model=model)
    given = {"suite": "black-box", "queries": 4, "eps": "0.01"}
    document = audit(_plan(str(tmp_path / "late.npz"), **given), tmp_path / "b", model=model)
    assert [s.id for s in document.samples if s.status is Status.ERROR] == [204]
    (finding,) = [f for f in document.findings if f.code == "model.no_answer_as_it_is"]
    assert "samples 204: " in finding.message
    assert not document.complete


def test_a_proof_around_it_is_contradicted():
    lost, proof = (
        NoAnswer(distance=0.1, attack="pgd", sha256="ab", met="NaN"),
        Certificate(radius=0.2, guarantee=Guarantee.SOUND, method="crown"),
    )
    one = made_up(id=3, status=Status.ERROR, certificate=proof, no_answer=lost)
    (clash,) = contradictions([one])
    assert (clash.id, clash.sha256) == (3, "ab")
    assert "no decision" in clash.message
    assert not contradictions([replace(one, no_answer=replace(lost, distance=0.3))])


def _forged(run, change):
    units = units_in(run)
    for unit in units.values():
        change(unit)
    put_units(run, units, seconds_in(run))


def _ends(unit):
    """What a record says of inputs without an answer."""
    return unit.get("claims", unit).get("unanswered", {})


def _at_the_input(folder, x):
    content = save({"x": x})
    sha = hashlib.sha256(content).hexdigest()
    (folder / "witnesses" / f"{sha}.safetensors").write_bytes(content)

    def change(unit):
        for record in _ends(unit).values():
            record |= {"sha256": sha, "distance": 0.0}

    return change


def _nearer(unit):
    for record in _ends(unit).values():
        record["distance"] *= 0.5


def _otherwise(unit):
    for record in _ends(unit).values():
        record["met"] = "+infinity"


def _gone(unit):
    _ends(unit).clear()


@pytest.mark.parametrize("change", [_nearer, _otherwise, _gone, None])
def test_what_is_said_of_them_is_asked_anew(data, audited, tmp_path, change):
    folder = tmp_path / "run"
    shutil.copytree(audited(torch.nan, False)[0], folder)
    with np.load(data) as held:
        change = change or _at_the_input(folder, torch.from_numpy(held["x"][0]))
    _forged(folder, change)
    problems = recheck(folder, model=Silent()).problems
    words = "said to|no answer for|without an answer"
    assert any(any(word in p for word in words.split("|")) for p in problems), problems


def test_an_attack_keeps_the_nearest_input_without_an_answer():
    x, y = torch.full((2, 4), 0.5), torch.tensor([1, 1])
    x[:, 1] = 0.1
    x[1, 0] = 0.2
    found = run(Square(queries=60), Problem.of(x, y, LpBall.uniform(Norm.LINF, _EPS, 2)), Silent())
    assert found.no_answer is not None
    assert found.no_answer_at is not None
    assert 0.1 < found.no_answer_at[0] <= _EPS
    assert torch.equal((found.no_answer[0] - x[0]).abs().amax().double(), found.no_answer_at[0])
    assert found.no_answer_at[1] == torch.inf
    assert Silent()(found.no_answer[:1]).isnan().any()
