"""Is the upper bound to be believed? Models that hide their gradients are found out, and honest ones are not accused."""

import pytest
import torch
from torch import nn

from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.run import audit
from holdfast.audits.suite import SuiteEntry


class Quantised(nn.Module):
    """Inputs are rounded to 16 levels without a gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 15).round().detach() / 15)


class Stairs(nn.Module):
    """Inputs are rounded, and a gradient of next to nothing is passed on beside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 15).round() / 15 + 1e-9 * x)


class Scaled(nn.Module):
    """Logits so large that a softmax of them is 0 or 1 in float32."""

    def __init__(self, inner, scale=1e4):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.inner(x) * self.scale


class Probabilities(nn.Module):
    """A saturated softmax as the last layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return (self.inner(x) * 1e4).softmax(1)


class Noisy(nn.Module):
    """Adds noise to its input at each call."""

    def __init__(self, inner, size=0.1):
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x):
        return self.inner(x + self.size * torch.randn_like(x))


@pytest.fixture(scope="module")
def told(trained, tmp_path_factory):
    """Audits the trained network in a wrapper once, and says what the document says."""
    _, data, model = trained
    known = {}

    def of(kind, **more):
        if kind not in known:
            plan = Plan.of(
                data=str(data), samples=24, norm="linf", eps="1/16", suite="fast", certify="none", queries=150, seed=1,
                **more,
            )  # fmt: skip
            folder = tmp_path_factory.mktemp("diagnostics") / "run"
            module = model if kind is None else kind(model)
            known[kind] = folder, audit(plan, folder, model=module.eval())
        return known[kind]

    return of


def _codes(document, severity=None):
    return {f.code for f in document.findings if severity is None or f.severity == severity}


def _masking(document):
    return {c for c in _codes(document, "warning") if c.startswith("masking.")}


def test_an_honest_model_is_not_accused(told):
    _, document = told(None)
    assert not _masking(document)
    assert not document.headline.upper_bound_weak
    assert document.headline.upper_bound_note is None
    assert "report.scope" in _codes(document)
    assert document.cost.by_stage["diagnostics"].backwards > 0


@pytest.mark.parametrize("kind", [Quantised, Stairs])
def test_rounding_in_the_model_is_found_out(told, kind):
    _, document = told(kind)
    masking = _masking(document)
    assert masking & {"masking.zero_gradient", "masking.gradient_mismatch", "masking.flat_path"}, _codes(document)
    assert document.headline.upper_bound_weak
    assert document.headline.upper_bound_note
    for finding in document.findings:
        if finding.code in masking:
            assert finding.remedy
            assert "BPDA" in finding.remedy or "black-box" in finding.remedy or "masked" in finding.remedy


def test_the_kind_of_rounding_is_told(told):
    assert {"masking.zero_gradient", "masking.flat_path", "masking.unconstrained"} <= _masking(told(Quantised)[1])
    assert "masking.gradient_mismatch" in _masking(told(Stairs)[1])


def test_a_huge_scale_of_logits_stops_no_attack(told):
    """Cross-entropy is flat there; the suites do not use it alone, so this is a note and the figure stands."""
    _, honest = told(None)
    _, document = told(Scaled)
    assert "gradients.saturated" in _codes(document, "note")
    assert not _masking(document)
    assert not document.headline.upper_bound_weak
    assert document.headline.empirical_robust_accuracy == honest.headline.empirical_robust_accuracy


class Tiny(Scaled):
    """Logits that differ by a millionth."""

    def __init__(self, inner):
        super().__init__(inner, 2.0**-20)


def test_a_tiny_scale_of_logits_stops_no_attack_and_is_not_accused(told):
    _, honest = told(None)
    _, document = told(Tiny)
    assert not _masking(document)
    assert not document.headline.upper_bound_weak
    assert document.headline.empirical_robust_accuracy == honest.headline.empirical_robust_accuracy


def test_a_saturated_softmax_is_no_robust_model(told):
    _, honest = told(None)
    _, document = told(Probabilities)
    assert "model.probabilities" in _codes(document, "warning")
    assert _masking(document)
    assert document.headline.upper_bound_weak
    assert document.headline.empirical_robust_accuracy >= honest.headline.empirical_robust_accuracy


def test_a_model_that_answers_at_random_is_said_to(told):
    folder, document = told(Noisy)
    assert "model.randomised" in _codes(document, "warning")
    randomised = next(f for f in document.findings if f.code == "masking.randomised")
    assert randomised.severity == "warning"
    assert "Eot" in randomised.remedy
    assert document.headline.upper_bound_weak
    assert "at random" in document.headline.upper_bound_note
    assert document.cost.by_stage["referee"].forwards > 25  # each claim by the majority of 25 draws
    assert (folder / "report.json").exists()


def test_findings_outlast_the_run(told, trained):
    """What the diagnostics found is in the journal: a second audit of the folder says the same."""
    folder, document = told(Quantised)
    module = Quantised(trained[2]).eval()
    again = audit(Plan.read(folder / "plan.yaml"), folder, model=module)
    assert _codes(again) == _codes(document)
    assert recheck(folder, model=module).ok


def test_a_plain_ascent_that_beats_the_suite_is_told(trained, tmp_path, monkeypatch):
    """A suite that does nothing leaves samples standing that one walk, or one step, breaks."""
    from holdfast.audits.suites.fast import Fast

    idle = SuiteEntry(
        name="idle",
        method="cosine_margin",
        parameters={"steps": 1, "targets": 1},
        wants=lambda known: known.ids < 0,
    )
    monkeypatch.setattr(Fast, "composition", lambda self, request: (idle,))  # nor does anything take over
    _, data, model = trained
    plan = Plan.of(data=str(data), samples=24, norm="linf", eps="1/16", suite="fast", certify="none", seed=1)
    document = audit(plan, tmp_path / "run", model=model)
    assert _masking(document) & {"masking.probe_wins", "masking.suite_missed"}
    assert document.headline.upper_bound_weak
