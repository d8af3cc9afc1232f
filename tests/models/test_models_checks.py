"""Every finding about a model, by one that deserves it; a good pair has none; nothing is changed by looking."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import DataError
from holdfast.core.findings import Severity
from holdfast.core.threat import Norm, ThreatModel, parse_eps
from holdfast.data import Dataset, load_digits
from holdfast.models import FromHF, HttpModel, OneLogit, fingerprint, preflight, serve
from holdfast.models.checks import admitted
from holdfast.models.queries_only import QueriesOnly
from holdfast.models.zoo import digits_cnn

THREAT = ThreatModel(norm=Norm.LINF, eps=parse_eps("0.1"))
TEST = load_digits("test")


@pytest.fixture(scope="module")
def trained():
    """A digits network of a few seconds' training, left in eval mode."""
    torch.manual_seed(0)
    data, model = load_digits("train"), digits_cnn()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(120):
        rows = torch.arange(step * 64, step * 64 + 64) % len(data)
        loss = nn.functional.cross_entropy(model(data.x[rows]), data.y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def codes(model, x=TEST.x, y=TEST.y):
    return {f.code: f for f in preflight(model, Dataset.of(x, y), THREAT)}


def the_slip(found):
    return found.get("model.chance") or found["model.preprocessing"]


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


class BatchCentred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Answer:
    def __init__(self, logits):
        self.logits = logits


class Hf(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixel_values):
        return Answer(self.net(pixel_values))


def test_a_good_pair_has_no_findings(trained):
    assert codes(trained) == {}


def test_looking_changes_nothing(trained):
    model = nn.Sequential(nn.Dropout(0.5), trained)
    model.train()
    trained.eval()
    before, state = fingerprint(model), torch.get_rng_state()
    assert set(codes(model)) == {"model.train_mode"}
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model[0].training, trained.training) == (True, True, False)
    assert all(p.grad is None or p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        (nn.Softmax(1), "model.probabilities", Severity.WARNING),
        (nn.LogSoftmax(1), "model.log_probabilities", Severity.NOTE),
        (Noisy(), "model.randomised", Severity.WARNING),
        (BatchCentred(), "model.batch_dependent", Severity.WARNING),
        (nn.BatchNorm1d(10, track_running_stats=False), "model.batch_dependent", Severity.ERROR),
        (nn.Linear(10, 1), "model.one_logit", Severity.ERROR),
        (nn.Flatten(0), "model.one_logit", Severity.ERROR),
        (nn.Unflatten(1, (2, 5)), "model.output", Severity.ERROR),
    ],
)
def test_outputs(trained, change, code, severity):
    torch.manual_seed(0)
    found = codes(nn.Sequential(trained, change).eval())
    assert code in found
    assert found[code].severity is severity


def test_nan_logits(trained):
    broken = digits_cnn().eval()
    broken.load_state_dict(trained.state_dict())
    with torch.no_grad():
        broken[7].bias[3] = torch.nan
    assert codes(broken)["model.nan"].data["samples"] == 200


def test_low_precision(trained):
    class Half(nn.Module):
        def forward(self, x):
            return trained(x).bfloat16()

    assert "model.dtype" in codes(Half())


def test_answers_that_are_objects(trained):
    assert "FromHF" in codes(Hf(trained))["model.output"].remedy
    assert codes(FromHF(Hf(trained))) == {}


def test_one_logit_wrapped():
    torch.manual_seed(0)
    x = torch.rand(100, 4)
    y = (x[:, 0] > 0.5).long()
    inner = nn.Linear(4, 1)
    with torch.no_grad():
        inner.weight[:] = torch.tensor([[9.0, 0, 0, 0]])
        inner.bias[:] = -4.5
    assert codes(OneLogit(inner), x, y) == {}


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (TEST.x.permute(0, 2, 3, 1), "channels first"),
        (TEST.x[:, 0], "channel axis"),
    ],
)
def test_layout(trained, x, words):
    found = codes(trained, x)["model.call"]
    assert found.severity is Severity.ERROR
    assert words in found.remedy


def test_missing_channels():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    assert "repeated" in codes(model)["model.call"].remedy


@pytest.mark.parametrize(
    ("labels", "code"), [(TEST.y + 1, "labels.one_based"), (TEST.y + 7, "labels.range"), (TEST.y * 0, "labels.single")]
)
def test_labels(trained, labels, code):
    assert code in codes(trained, y=labels)


def test_nan_inputs_are_left_out_of_the_questions(trained):
    x = TEST.x.clone()
    x[3] = torch.nan
    assert set(codes(trained, x)) == {"data.nan"}
    assert set(codes(trained, x * torch.nan)) == {"data.nan"}


class Forest(QueriesOnly):
    """Trees of depth one: few different answers."""

    def __init__(self, steps=2, names=None):
        super().__init__("0" * 64, "a forest", "it is a forest", names)
        self.steps = steps

    def ask(self, x):
        share = np.floor(x.reshape(len(x), -1)[:, :1] * self.steps) / self.steps
        return np.concatenate([1 - share, share], 1)


class TestProbabilitiesOfWhatIsOnlyAsked:
    def test_they_are_no_softmax_to_leave_out(self):
        x = torch.linspace(0, 0.99, 20)[:, None]
        found = codes(Forest(), x, (x[:, 0] > 0.5).long())["model.probabilities"]
        assert found.severity is Severity.NOTE
        assert "softmax" not in found.message + found.remedy
        assert "--suite black-box" in found.remedy
        assert "20 rows got 2 different answers" in found.message

    def test_scores_that_move_are_not_said_to_tie(self):
        x = torch.linspace(0, 0.99, 20)[:, None]
        assert "different" not in codes(Forest(1000), x, (x[:, 0] > 0.5).long())["model.probabilities"].message

    def test_classes_in_another_order_than_the_models_are_named(self):
        data = Dataset.of(torch.rand(20, 1), torch.arange(20) % 2, classes=("no", "yes"))
        found = {f.code: f for f in preflight(Forest(names=("yes", "no")), data, THREAT)}["labels.order"]
        assert found.data["flags"] == "--class-names yes,no"


class TestAccuracy:
    def test_an_untrained_model_is_guessing(self):
        torch.manual_seed(0)
        found = codes(digits_cnn().eval())["model.chance"]
        assert found.severity is Severity.WARNING
        assert "No usual slip" in found.message

    @pytest.mark.parametrize(
        ("classes", "right", "rows", "severity"),
        [
            (2, 16, 20, None),  # 80 % of two classes on 20 rows
            (2, 10, 20, Severity.WARNING),
            (10, 0, 1, Severity.WARNING),
            (2, 5, 5, None),  # so few rows cannot show that it does better, nor that it does not
            (2, 4, 5, None),
            (2, 3, 4, None),
            (10, 1, 3, None),
            (10, 2, 20, Severity.WARNING),
            (2, 2, 20, Severity.ERROR),
            (10, 0, 200, Severity.ERROR),
        ],
    )
    def test_only_what_is_worse_than_one_answer_for_all_is_an_error(self, classes, right, rows, severity):
        y = torch.arange(rows) % classes
        said = torch.where(torch.arange(rows) < right, y, (y + 1) % classes)
        x = nn.functional.one_hot(said, classes).float()
        found = codes(nn.Identity(), x, y).get("model.chance")
        assert (found.severity if found else None) is severity
        if severity is Severity.ERROR:
            with pytest.raises(DataError, match="--anyway"):
                admitted([found])
            assert admitted([found], anyway=True)[0].severity is Severity.WARNING

    def test_labels_shifted_within_the_range(self, trained):
        found = codes(trained, y=(TEST.y + 1).clamp(max=9))["model.chance"]
        assert found.data["slip"] == "labels+1"

    @pytest.mark.parametrize(
        ("front", "slip"),
        [
            (lambda x: x / 255, "scale-255"),
            (lambda x: 1 - x, "inverted"),
            (lambda x: x.transpose(2, 3), "transposed"),
        ],
    )
    def test_preprocessing(self, trained, front, slip):
        class Expecting(nn.Module):
            def forward(self, x):
                return trained(front(x))

        finding = the_slip(codes(Expecting()))
        assert finding.data["slip"] == slip
        assert finding.data["accuracy_then"] > 0.9
        assert finding.remedy

    def test_missing_normalisation(self):
        x = torch.rand(200, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 1, 4, 4)

        class Bright(nn.Module):
            def forward(self, x):  # decides at 0.5 of inputs that went through MNIST's normalisation
                s = 50 * (x.mean((1, 2, 3)) - (0.5 - 0.1307) / 0.3081)
                return torch.stack([-s, s], 1)

        finding = the_slip(codes(Bright(), x, (x.mean((1, 2, 3)) > 0.5).long()))
        assert finding.data["slip"] == "normalisation-MNIST's"
        assert "0.1307/0.3081" in finding.remedy

    def test_a_model_that_refuses_the_changes(self, trained):
        class Strict(nn.Module):
            def forward(self, x):
                if float(x.max()) > 1:
                    raise ValueError("x must be in [0, 1]")
                return trained(x)

        assert codes(Strict()) == {}

    def test_channel_order(self):
        torch.manual_seed(0)
        x = torch.rand(200, 3, 4, 4) * torch.tensor([1.0, 0.6, 0.3]).view(1, 3, 1, 1)
        y = (x[:, 0].mean((1, 2)) > 0.5).long()

        class Red(nn.Module):
            def forward(self, x):
                s = 50 * (x[:, 2].mean((1, 2)) - 0.5)
                return torch.stack([-s, s], 1)

        finding = the_slip(codes(Red(), x, y))
        assert finding.data["slip"] == "channel-order"
        assert finding.data["accuracy_then"] == 1.0


def test_an_api_is_asked_once_about_each_row(trained):
    with serve(trained) as api:
        model = HttpModel(api.url, classes=10, max_queries=200)
        found = {f.code for f in preflight(model, TEST, THREAT, samples=40)}
        model.close()
        assert found == {"model.log_probabilities"}
        assert api.rows == 40


def test_what_answers_queries_only_is_not_told_to_change_its_layers():
    class Queried(nn.Softmax):
        differentiable = False

    data = Dataset.of(torch.rand(30, 3), torch.arange(30) % 3)
    own, asked = (
        next(f for f in preflight(kind(1), data, THREAT) if f.code == "model.probabilities")
        for kind in (nn.Softmax, Queried)
    )
    assert "Leave the softmax out" in own.remedy
    assert "softmax" not in asked.message + asked.remedy
    assert "logits" in asked.remedy


def test_a_model_that_fails_on_some_rows_is_no_wall_and_one_that_fails_on_all_is():
    class Fails(nn.Linear):
        def forward(self, x):
            if bool((x[:, 0] > self.limit).any()):
                raise ValueError("no such input")
            return super().forward(x)

    data, model = Dataset.of(torch.arange(90).view(30, 3) / 90, torch.arange(30) % 3), Fails(3, 3)
    for limit, code, severity in ((0.9, "model.raises", Severity.WARNING), (-1.0, "model.call", Severity.ERROR)):
        model.limit = limit
        found = next(f for f in preflight(model, data, THREAT) if f.code.startswith(("model.raises", "model.call")))
        assert (found.code, found.severity) == (code, severity)
        assert "no such input" in found.message


class _Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), change

    def forward(self, x):
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s > 0, "strided tensor of bool"),
        (lambda s: s * 1j, "strided tensor of complex64"),
        (lambda s: s.to_sparse(), "sparse_coo tensor of float32"),
        (lambda s: s.to(torch.float8_e4m3fn), "strided tensor of float8_e4m3fn"),
        (lambda s: torch.quantize_per_tensor(s.detach(), 0.1, 0, torch.qint8), "strided tensor of qint8"),
        (lambda s: s[:, : 10 if len(s) > 3 else 9], r"in the shape \(8, 10\), and then, or one by one, in \(8, 9\)"),
    ],
)
def test_answers_that_hold_their_numbers_otherwise_are_refused_in_words(change, words):
    found = codes(_Changed(change))["model.output"]
    assert found.severity is Severity.ERROR
    assert re.search(words, found.message)
