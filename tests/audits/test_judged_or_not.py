"""What could not be judged is never robust; what was judged says nothing that is not true."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.run import audit
from holdfast.core.registry import method
from holdfast.core.verdict import Status


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    """(data file, module): a small smooth network that is right on all of its 16 inputs."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4))
    x = torch.rand(16, 1, 4, 4) * 0.6 + 0.2
    with torch.no_grad():
        base[3].weight *= 3
        base[3].bias -= base(x).mean(0)
        y = base(x).argmax(1)
    file = tmp_path_factory.mktemp("smooth") / "d.npz"
    np.savez(file, x=x.numpy(), y=y.numpy())
    return str(file), base.eval()


class Wrapped(nn.Module):
    """A network with something done to its input and its scores."""

    def __init__(self, inner, before=lambda x: None, after=lambda s: s):
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x):
        self.before(x)
        return self.after(self.inner(x))


def _two_more(s):
    return torch.cat([s, torch.full_like(s[:, :2], -float("inf"))], 1)


@pytest.mark.parametrize("suite", ["fast", "minimal", "black-box"])
def test_classes_that_are_never_chosen_change_no_figure(smooth, tmp_path, suite):
    data, model = smooth
    plan = Plan.of(data=data, norm="linf", eps="0.05", suite=suite, certify="none", queries=200)
    plain = audit(plan, tmp_path / "a", model=model)
    masked = audit(plan, tmp_path / "b", model=Wrapped(model, after=_two_more))
    assert plain.headline.empirical_robust_accuracy < 1
    assert (masked.headline.errors, masked.complete) == (0, True)
    gap = masked.headline.empirical_robust_accuracy - plain.headline.empirical_robust_accuracy
    assert abs(gap) <= 1 / 16
    assert recheck(tmp_path / "b", model=Wrapped(model, after=_two_more)).ok


def _no_big_batch(x):
    if len(x) > 64:
        raise RuntimeError(f"cannot allocate memory for a batch of {len(x)}")


def _no_gradient(x):
    if x.requires_grad:
        raise ValueError("no gradients today")


@pytest.mark.parametrize(
    ("before", "given", "failed"),
    [
        (_no_gradient, {"suite": "fast", "norm": "linf", "eps": "0.02", "queries": 300}, "cosine_margin"),
        (_no_gradient, {"suite": "minimal", "norm": "l2", "eps": "0.1", "queries": 300}, "ddn"),
    ],
)
def test_a_stage_that_fails_is_named_and_the_rest_is_kept(smooth, tmp_path, before, given, failed):
    data, model = smooth
    document = audit(Plan.of(data=data, certify="none", **given), tmp_path, model=Wrapped(model, before=before))
    head, counts = document.headline, document.counts()
    assert not document.complete
    assert document.exit_code == 3
    assert any(f.code == "run.failed" and failed in f.message for f in document.findings)
    assert any(s.status == "failed" and failed in s.name for s in document.stages)
    lost = counts[Status.BROKEN] + counts[Status.MISCLASSIFIED] + counts[Status.ERROR]
    assert head.errors == counts[Status.ERROR] > 0
    assert head.empirical_robust_accuracy == (16 - lost) / 16
    assert "INCOMPLETE" in head.statement
    assert head.clean_accuracy == 1
    assert all(p.accuracy <= 1 - head.errors / 16 for p in document.curves.eps)


def test_a_model_that_takes_no_large_batch_is_judged_all_the_same(smooth, tmp_path):
    data, model = smooth
    plan = Plan.of(data=data, certify="none", suite="black-box", norm="l2", eps="0.15", queries=600)
    document = audit(plan, tmp_path, model=Wrapped(model, before=_no_big_batch))
    assert (document.complete, document.headline.errors) == (True, 0)


def test_what_one_stage_found_stands_though_another_failed(smooth, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no walk today")

    data, model = smooth
    monkeypatch.setattr(method("hopskipjump"), "step", fail)
    plan = Plan.of(data=data, certify="none", suite="black-box", norm="l2", eps="0.15", queries=1500)
    document = audit(plan, tmp_path, model=model)
    assert any(s.status is Status.BROKEN and s.witness.attack == "square" for s in document.samples)
    assert not document.gated(0.0).gate.passed


def test_failed_certificates_leave_the_upper_bound_as_it_is(smooth, tmp_path, monkeypatch):
    from holdfast.certifiers.bounds.ibp import IBP

    def fail(*_, **__):
        raise RuntimeError("no bound today")

    monkeypatch.setattr(IBP, "bounds", fail)
    data, model = smooth
    plan = Plan.of(data=data, certify="ibp", suite="minimal", norm="linf", eps="0.02")
    document = audit(plan, tmp_path, model=model)
    assert not document.complete
    assert any(s.name == "certificates" and s.status == "failed" for s in document.stages)
    assert document.headline.errors == 0
    assert document.headline.certified_robust_accuracy == 0
    assert 0 < document.headline.empirical_robust_accuracy < 1


def test_a_smooth_network_does_not_jump(smooth, tmp_path):
    """At this eps the margins of random points lie around 0, so that their spread is large beside them."""
    data, model = smooth
    for eps in ("0.3", "0.8"):
        document = audit(Plan.of(data=data, norm="l2", eps=eps, certify="none"), tmp_path / eps, model=model)
        assert not [f.code for f in document.findings if f.code.startswith("masking.")]
        assert not document.headline.upper_bound_weak


class Hashed(nn.Module):
    """Scores with a deterministic noise of the input's bits added."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        s = self.inner(x)
        return s + 3 * torch.sin(1e7 * x.flatten(1).sum(1, keepdim=True) * torch.arange(1, 5))


def test_a_network_that_jumps_is_said_to(smooth, tmp_path):
    data, model = smooth
    with torch.no_grad():
        x = torch.from_numpy(np.load(data)["x"])
        right = Hashed(model)(x).argmax(1)
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=right.numpy())
    plan = Plan.of(data=str(tmp_path / "d.npz"), norm="linf", eps="0.1", certify="none")
    document = audit(plan, tmp_path / "run", model=Hashed(model).eval())
    assert "masking.unstable" in {f.code for f in document.findings}


@pytest.fixture(scope="module")
def undisturbed(smooth, tmp_path_factory):
    """A plan, and its document where the model raises on nothing."""
    data, model = smooth
    plan = Plan.of(data=data, norm="linf", eps="0.015", suite="fast", certify="none", queries=300)
    return plan, audit(plan, tmp_path_factory.mktemp("undisturbed") / "run", model=model)


@pytest.mark.parametrize("near", [1e-6, 0.02])  # on the clean input already; on points around it alone
def test_a_sample_that_the_model_raises_on_is_an_error_by_name_and_the_others_are_judged(
    smooth, undisturbed, tmp_path, near
):
    data, model = smooth
    third = torch.from_numpy(np.load(data)["x"])[3]

    def before(x):
        gap = (x - third).abs().amax((1, 2, 3))
        if bool((gap < near).any() if near < 1e-3 else ((gap > 0) & (gap < near)).any()):
            raise ValueError("no such input")

    plan, plain = undisturbed
    found = audit(plan, tmp_path / "run", model=Wrapped(model, before))
    assert found.samples[3].status is Status.ERROR
    assert [s.status for s in found.samples if s.id != 3] == [s.status for s in plain.samples if s.id != 3]
    assert (found.headline.errors, found.complete) == (1, False)
    assert any(f.code == "model.raised" and "samples 3: ValueError: no such input" in f.message for f in found.findings)


class Picky(nn.Module):
    """Which number is larger; it raises on a strip of inputs."""

    def forward(self, x):
        if bool(((x[:, 0] > 0.5) & (x[:, 0] < 0.52)).any()):
            raise ValueError("no such input")
        return torch.stack([x[:, 1], x[:, 0]], 1)


@pytest.mark.parametrize("chunk", [10, 30])
def test_samples_that_the_model_raises_on_are_lost_alone(tmp_path, chunk):
    x = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    y = Picky()(x).argmax(1)
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=y.numpy())
    plan = Plan.of(data=str(tmp_path / "d.npz"), eps="0.05", norm="linf", certify="none", queries=100, chunk=chunk)
    document = audit(plan, tmp_path / "run", model=Picky())
    near = {i for i in range(30) if 0.45 < x[i, 0] < 0.57}
    lost = {s.id for s in document.samples if s.status is Status.ERROR}
    assert 2 <= len(lost) <= len(near) < 10
    assert lost <= near
    assert [f.code for f in document.findings if f.severity == "error"] == ["model.raised"]
    assert recheck(tmp_path / "run", model=Picky()).problems == []


def test_a_stage_that_fails_loses_only_what_it_was_run_on(smooth, tmp_path, monkeypatch):
    """The last rung of `fast` is run on the few samples that came close."""

    def fail(*_, **__):
        raise RuntimeError("no walk today")

    monkeypatch.setattr(method("square"), "step", fail)
    data, model = smooth
    plan = Plan.of(data=data, certify="none", norm="linf", eps="0.03")
    document = audit(plan, tmp_path, model=model)
    assert any(f.code == "run.failed" and "square" in f.message for f in document.findings)
    assert 0 < document.headline.errors < document.counts()[Status.UNKNOWN]
    assert not document.complete
