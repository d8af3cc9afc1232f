"""``certify``, ``verify``, ``audit``, ``recheck``, ``resume``, ``harden``, ``methods``: each verb, its errors and its face."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.certifiers.complete.input_splitting import InputSplitting
from holdfast.models.load import load_model
from holdfast.models.zoo import digits_mlp
from holdfast.training.checkpoint import save_weights

LINF = hf.ThreatModel.of("linf", "0.1")
L2 = hf.ThreatModel.of("l2", "0.3")


def test_radii_are_no_larger_than_what_breaks_the_model(model: nn.Module, data: hf.Dataset, tmp_path: Path) -> None:
    radii = hf.certify(model, data, "crown", L2, radius_max=1.0)
    nearest = hf.attack(model, data, "fmn", "l2", steps=50).distance.numpy()
    known = np.isfinite(radii.radius)
    assert known.any()
    assert bool((radii.radius[known] <= nearest[known] + 1e-6).all())
    assert radii.guarantee is hf.Guarantee.SOUND
    assert radii.certified_at(0.3) == radii.to_dict()["at_eps"] <= radii.certified_at(0.05)
    assert "certified at 0.3" in str(radii)
    assert {file.name for file in radii.save(tmp_path).files} == {"crown.npz", "radii.csv", "radii.html"}


def test_certify_refuses_what_is_no_certifier_or_has_no_such_norm(model: nn.Module, data: hf.Dataset) -> None:
    with pytest.raises(hf.HoldfastError, match="no certifier"):
        hf.certify(model, data, "pgd", L2)
    with pytest.raises(hf.HoldfastError, match="has no l2 form"):
        hf.certify(model, data, "sdp", L2)
    with pytest.raises(hf.HoldfastError, match="no deployment in float8"):
        hf.certify(model, data, "crown", L2, deployed="float8")  # type: ignore[arg-type]


def test_a_set_certifier_says_its_reach(model: nn.Module, data: hf.Dataset) -> None:
    ranges = hf.certify(model, data, _set_certifier(), L2, samples=2)
    assert len(ranges.radius) == 2
    assert ranges.guarantee is hf.Guarantee.SOUND
    assert "whole range proved" in str(ranges)


def _set_certifier() -> str:
    return hf.methods(kind="set certifier").names()[0]


@pytest.fixture(scope="module")
def prop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y0 <= y1 somewhere in the box is unsafe."""
    text = "".join(f"(declare-const {n} Real)\n" for n in ("X_0", "X_1", "Y_0", "Y_1"))
    text += "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))\n" for i in range(2))
    file = tmp_path_factory.mktemp("verify") / "p.vnnlib"
    file.write_text(text + "(assert (<= Y_0 Y_1))\n")
    return file


def _net(gap: float) -> nn.Module:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.1, 0.0], [0.0, 0.1]]))
        net.bias.copy_(torch.tensor([gap, 0.0]))
    return net


def test_a_property_holds_or_is_broken_by_a_witness(prop: Path, tmp_path: Path) -> None:
    holds = hf.verify(_net(1.0), prop, seconds=20, shape=(2,))
    assert holds.holds
    assert holds.witness is None
    assert str(holds).startswith("unsat: ")
    broken = hf.verify(_net(0.1), prop, seconds=20, shape=(2,))
    assert broken.decision == "sat"
    assert broken.witness is not None
    y = _net(0.1)(broken.witness.float())[0].tolist()
    assert y[0] <= y[1]
    broken.save(tmp_path / "c.txt")
    assert (tmp_path / "c.txt").read_text() == broken.counterexample
    broken.save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["verdict"] == "sat"
    with pytest.raises(hf.HoldfastError, match="no counterexample"):
        holds.save(tmp_path / "none.txt")
    with pytest.raises(hf.HoldfastError, match="does not tell the shape"):
        hf.verify(_net(1.0), prop)


def test_a_verifier_is_a_name_a_class_or_an_object_with_its_parameters(prop: Path) -> None:
    for method, own in ("input_splitting", {"chunk": 3}), (InputSplitting, {"chunk": 3}), (InputSplitting(chunk=3), {}):
        answer = hf.verify(_net(1.0), prop, method, seconds=20, shape=(2,), **own)
        assert (answer.decision, answer.to_dict()["method"]) == ("unsat", "input_splitting")


def test_a_verifier_s_own_parameters_decide(prop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = InputSplitting.solve
    monkeypatch.setattr(InputSplitting, "solve", lambda self, *a, **k: made.append(self.chunk) or real(self, *a, **k))
    hf.verify(_net(1.0), prop, "input_splitting", seconds=20, shape=(2,), chunk=3)
    assert made == [3]


@pytest.mark.parametrize(
    ("method", "own", "why"),
    [
        ("input_splitting", {"chunks": 3}, "Did you mean chunk?"),
        ("input_splitting", {"second": 3}, "Did you mean seconds?"),
        (
            "input_splitting",
            {"candidates": 0},
            "candidates of Input splitting must be a whole number of at least 1, got 0",
        ),
        ("auto", {"secnds": 3}, "Did you mean seconds?"),
        ("auto", {"chunk": 3}, "'auto' chooses that itself: name one"),
        (InputSplitting(), {"chunk": 3}, "leave out chunk"),
        ("pgd", {}, "gives no bounds on a graph"),
        (3, {}, "a method is its name"),
    ],
)
def test_what_a_verifier_lacks_is_refused_with_the_near_word(prop: Path, method, own, why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=re.escape(why)):
        hf.verify(_net(1.0), prop, method, seconds=20, shape=(2,), **own)


def test_an_api_is_not_verified(prop: Path) -> None:
    with pytest.raises(hf.HoldfastError, match=r"https://x\.example/predict can only be asked"):
        hf.verify("https://x.example/predict", prop)


@pytest.fixture(scope="module")
def run(model: nn.Module, data: hf.Dataset, tmp_path_factory: pytest.TempPathFactory) -> hf.Report:
    out = tmp_path_factory.mktemp("audit") / "run"
    return hf.audit(model, (data.x, data.y), LINF, queries=200, out=out, progress=False)


def test_an_audit_of_arrays_says_both_sides_and_stands_a_recheck(
    run: hf.Report, model: nn.Module, tmp_path: Path
) -> None:
    broken = [s for s in run.samples if s.status is hf.Status.BROKEN]
    assert "<= true robust accuracy <=" in run.headline.statement
    assert run.headline.statement in str(run)
    assert len(str(run).splitlines()) < 40
    assert run.complete
    assert run.cost.queries > 0
    assert len(run.columns()["id"]) == 12
    run.page(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert page.count("data:image/png") == 3 * min(12, len(broken)) > 0, "clean, adversarial and difference of each"
    again = hf.recheck(run.folder, model=model)
    assert again.ok, again.problems
    assert "judged anew: all hold" in str(again)
    assert again.to_dict()["witnesses"] >= len(broken)
    other = hf.recheck(run.folder, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert not other.ok
    assert str(other).startswith("FAILS: ")
    assert "judged anew: all hold" in repr(again)
    assert repr(other).endswith("1 fail>")


def test_a_module_that_was_saved_since_is_the_same_model(run: hf.Report, weights: Path, tmp_path: Path) -> None:
    again = hf.recheck(run.folder, model=weights, arch="holdfast.models.zoo:digits_mlp", trust=True)
    assert again.ok, again.problems
    assert any("what the model was called" in line for line in again.to_dict()["not_rederived"])
    torch.manual_seed(7)
    save_weights(digits_mlp(), tmp_path / "other.safetensors")
    other = hf.recheck(
        run.folder, model=tmp_path / "other.safetensors", arch="holdfast.models.zoo:digits_mlp", trust=True
    )
    assert not other.ok


def test_a_run_is_gone_on_with_compared_and_kept_apart(run: hf.Report, model: nn.Module, data: hf.Dataset) -> None:
    again = hf.resume(run.folder, model=model)
    assert again.document.samples == run.document.samples
    same = again.compare(run.folder)
    assert same.comparable
    assert "gained 0, lost 0" in str(same)
    assert hf.Report.load(run.folder).headline == run.headline
    with pytest.raises(hf.HoldfastError, match="holds a run on other data"):
        hf.audit(model, data.head(3), LINF, out=run.folder)
    with pytest.raises(hf.HoldfastError, match="a run of another plan"):
        hf.audit(model, data, L2, out=run.folder)
    with pytest.raises(hf.HoldfastError, match="nothing of a run is called 'modle'"):
        hf.resume(run.folder, modle="x")


def test_a_start_that_is_refused_leaves_nothing(model: nn.Module, data: hf.Dataset, tmp_path: Path) -> None:
    with pytest.raises(hf.HoldfastError, match="outside the declared range"):
        hf.audit(model, (data.x * 255, data.y), LINF, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(hf.HoldfastError, match=r"a plan has no 'suit'\. Did you mean suite"):
        hf.audit(model, data, LINF, out=tmp_path / "run", suit="fast")
    with pytest.raises(hf.HoldfastError, match="what may an attacker change"):
        hf.audit(model, data, out=tmp_path / "run")


def test_an_audit_takes_a_plan_and_files(weights: Path, tmp_path: Path) -> None:
    arch = "holdfast.models.zoo:digits_mlp"
    plan = hf.Plan.of(model=str(weights), arch=arch, data="digits:test", queries=200, certify="none")
    report = hf.audit(plan=plan, samples=4, out=tmp_path / "run", progress=False)
    assert report.headline.samples == 4
    assert report.headline.certified_robust_accuracy is None
    assert hf.recheck(tmp_path / "run").ok
    as_a_module = hf.recheck(tmp_path / "run", model=load_model(weights, arch=arch).module)
    assert as_a_module.ok, as_a_module.problems


def test_access_decides_the_suite(model: nn.Module, data: hf.Dataset, tmp_path: Path) -> None:
    hard = hf.ThreatModel.of("linf", "0.1", access="hard-label")
    report = hf.audit(model, data, hard, out=tmp_path / "run", samples=2, queries=20, progress=False)
    assert report.document.suite.name == "black-box"
    assert report.document.threat.access == "hard-label"
    with pytest.raises(hf.HoldfastError, match="for an attacker who cannot"):
        hf.audit(model, data, hf.ThreatModel.of("linf", "0.1", access="transfer"), out=tmp_path / "other")


def test_hardening_leaves_the_model_and_keeps_the_best_epoch(model: nn.Module, tmp_path: Path) -> None:
    train = hf.load_data("digits:train").head(300)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = hf.harden(model, train, "pgd_training", LINF, steps=2, epochs=3, out=tmp_path / "run")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert done.best.robust == max(e.robust or 0.0 for e in done.history)
    assert len(done.columns()["epoch"]) == 3
    assert done.weights == tmp_path / "run" / "hardened.safetensors"
    done.save(tmp_path / "copy.safetensors")
    again = load_model(tmp_path / "copy.safetensors", arch="holdfast.models.zoo:digits_mlp").module
    assert torch.equal(again(train.x), done.model(train.x))
    with pytest.raises(hf.HoldfastError, match="is there already"):
        hf.harden(model, train, "pgd_training", LINF, epochs=1, out=tmp_path / "run")
    with pytest.raises(hf.HoldfastError, match="no defence that trains"):
        hf.harden(model, train, "pgd", LINF)
    with pytest.raises(hf.HoldfastError, match="trains against a threat"):
        hf.harden(model, train)
    with pytest.raises(hf.HoldfastError, match="no parameter 'epoch'"):
        hf.harden(model, train, "pgd_training", LINF, epoch=1)


def test_methods_are_listed_by_pattern_and_kind() -> None:
    listed = hf.methods("apgd*")
    assert listed.names() == ["apgd_ce", "apgd_dlr", "apgd_t"]
    assert [page.name for page in listed] == listed.names()
    assert "APGD-CE" in str(listed)
    assert "<table>" in listed._repr_html_()
    assert hf.method("PGD").card.title == "PGD"
    assert "steps = 40" in str(hf.method("pgd"))
    for what, why in [("pgdd", "Did you mean"), ("nothing*", "no method matches")]:
        with pytest.raises(hf.HoldfastError, match=why):
            hf.methods(what)
    with pytest.raises(hf.HoldfastError, match="no methods of the kind 'atack'"):
        hf.methods(kind="atack")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"norm": "l3", "eps": 1}, "no norm 'l3'"),
        ({"norm": "l2", "eps": "much"}, "no perturbation size"),
        ({"norm": "l2", "eps": 1, "goal": "targetted"}, "Did you mean targeted"),
        ({"norm": "l2", "eps": 1, "access": "whitebox"}, "Did you mean white-box"),
        ({"norm": "linf", "eps": 8}, "if you meant 8/255, write it so"),
    ],
)
def test_a_threat_model_refuses_what_is_none(values: dict[str, object], why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=why):
        hf.ThreatModel.of(**values)  # type: ignore[arg-type]
