"""What is opened is what was named: nothing that a caller said of model, data and device is lost on the way."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from holdfast.attacks.common.ensemble import Ensemble
from holdfast.core.errors import BudgetError, DataError, ModelError, UnsafeFileError, UsageError
from holdfast.core.threat import ThreatModel
from holdfast.data.dataset import Dataset
from holdfast.data.table import Table
from holdfast.models.http import HttpModel
from holdfast.models.load import load_model
from holdfast.models.paid import PaidAnswers
from holdfast.models.queries_only import QueriesOnly
from holdfast.models.serve import serve
from holdfast.models.wrap import Normalisation, Ranged
from holdfast.models.zoo import digits_mlp
from holdfast.session import ModelSpec, Surrogates, open_session
from holdfast.session.opening import check_radius_max
from holdfast.session.reading import as_device, device_of, open_data, open_spec, open_surrogates
from holdfast.training.checkpoint import save_weights

CPU = torch.device("cpu")
THREAT = ThreatModel.of("linf", "0.1")
X, Y = torch.tensor([[0.0, 0.5], [1.0, 0.25], [0.5, 0.5]]), [0, 1, 0]
COLUMNS = Table.of({"columns": {"age": {"low": 20, "high": 60}, "pay": {"high": 1000}}})
NORMALISED = Normalisation((0.5,), (0.25,))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 2)


class Silent(QueriesOnly):
    """Scores that are the inputs, and a note."""

    notes = ("it said something",)

    def __init__(self) -> None:
        super().__init__("00" * 32, "a function", "it is one")

    def ask(self, x):
        return x


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_weights(digits_mlp(), path)
    return path


def test_everything_that_was_said_stands_in_the_session():
    mine = Surrogates(models=(linear(),))
    session = open_session(
        Silent(), Dataset.of(X, torch.tensor(Y), notes=("it was cut",)), THREAT, samples=2, surrogates=mine,
        radius_max="3/10", queries=7, seed=5, slots=3, device="meta",
    )  # fmt: skip
    assert len(session.data) == 2
    assert (session.surrogates, session.queries, session.seed, session.slots) == (mine, 7, 5, 3)
    assert session.settings.slots == 3
    assert session.radius_max == session.largest_radius == Fraction(3, 10)
    assert session.notes == ("it said something", "it was cut")
    assert session.device == torch.device("meta")
    elsewhere = Silent()
    elsewhere.register_buffer("scale", torch.zeros(1, device="meta"))
    assert open_session(elsewhere, (X, Y), THREAT).device == torch.device("meta")  # where the model is
    assert open_session(Silent(), (X, Y), THREAT).device == CPU
    assert open_session(linear(), (X, Y), THREAT).largest_radius == Fraction(1, 5)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"samples": 0}, "--samples starts at 1, got 0"),
        ({"queries": 0}, "--queries starts at 1, got 0"),
        ({"seed": -1}, "--seed starts at 0, got -1"),
        ({"radius_max": "1/20"}, r"--radius-max 0\.05 is below --eps 0\.1"),
        ({"device": "nonsense"}, "the device nonsense cannot be used here, take cpu"),
        ({"device": "cuda:99"}, "the device cuda:99 cannot be used here, take cpu"),
    ],
)
def test_a_number_or_a_device_that_cannot_be_is_refused_by_its_flag(given, why):
    with pytest.raises(UsageError, match=why):
        open_session(linear(), (X, Y), THREAT, **given)


def test_certificates_may_be_searched_for_up_to_the_very_size_that_is_asked_about():
    check_radius_max(Fraction(1, 10), Fraction(1, 10))
    with pytest.raises(UsageError, match="raise the one or lower the other"):
        check_radius_max(Fraction(99, 1000), Fraction(1, 10))


def test_names_of_classes_reach_data_of_every_kind(tmp_path):
    names = ("left", "right")
    np.savez(tmp_path / "d.npz", x=X.numpy(), y=np.array(Y))
    for data in ((X, Y), tmp_path / "d.npz"):
        session = open_session(ModelSpec(model=linear(), class_names=names), data, THREAT)
        assert session.data.classes == names
        assert session.problem_of(data).x.shape == (3, 2)


def test_labels_that_are_names_are_numbered_as_the_caller_orders_them(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,label\n0.0,0.5,left\n1.0,0.25,right\n0.5,0.5,right\n")
    for names, y in ((("right", "left"), [1, 0, 0]), (("left", "right"), [0, 1, 1])):
        session = open_session(ModelSpec(model=linear(), class_names=names), rows, THREAT)
        assert session.data.y.tolist() == session.problem_of(rows).y.tolist() == y


def test_columns_are_put_in_units_of_their_ranges_and_the_model_gets_their_own_values_back():
    own = torch.tensor([[20.0, 500.0], [60.0, 0.0], [30.0, 1000.0]])
    model = linear()
    session = open_session(ModelSpec(model=model, table=COLUMNS), (own, Y), THREAT)
    units = torch.tensor([[0.0, 0.5], [1.0, 0.0], [0.25, 1.0]])
    torch.testing.assert_close(session.data.x, units)
    torch.testing.assert_close(session.model(session.data.x), model(own))
    torch.testing.assert_close(session.problem_of((own, Y)).x, units)
    assert session.subject.sha256 != open_session(model, (X, Y), THREAT).subject.sha256


@pytest.mark.parametrize("given", [{"grid": "1/4"}, {"high": 255.0}, {"low": -1.0}])
def test_a_table_has_ranges_of_its_own(given):
    with pytest.raises(UsageError, match="a table has ranges and whole numbers by column; leave out --grid, low and"):
        open_session(ModelSpec(model=linear(), table=COLUMNS), (X, Y), ThreatModel.of("linf", "0.1", **given))


@pytest.mark.parametrize("data", [(X,), (X, Y, Y)])
def test_data_are_a_pair(data):
    with pytest.raises(UsageError, match=r"data are \(x, y\), got \d of them"):
        open_data(data)


def test_images_whose_channels_come_last_are_refused():
    with pytest.raises(DataError, match="the data: x has the shape"):
        open_data((torch.zeros(2, 8, 8, 3), [0, 1]))


def test_a_module_is_normalised_and_given_its_second_class_in_that_order():
    one = nn.Linear(2, 1)
    base = open_spec(ModelSpec(model=one, binary="logit", normalise=NORMALISED), CPU).base
    logit = one((X - 0.5) / 0.25)
    torch.testing.assert_close(base(X).softmax(1)[:, 1:], logit.sigmoid())
    columns = open_spec(ModelSpec(model=linear(), normalise=NORMALISED, table=COLUMNS), CPU).base
    own = X * torch.tensor([40.0, 1000.0]) + torch.tensor([20.0, 0.0])
    torch.testing.assert_close(columns(X), linear()((own - 0.5) / 0.25))  # of the columns' own values


def test_what_is_said_of_the_reading_is_part_of_what_verdicts_are_about():
    said = [{}, {"normalise": NORMALISED}, {"table": COLUMNS}]
    specs = [ModelSpec(model=linear(), **more) for more in said]
    assert len({open_spec(spec, CPU).subject.sha256 for spec in specs}) == 3


def test_a_model_that_can_only_be_asked_is_asked_as_it_is_unless_its_inputs_are_to_be_changed():
    model = Silent()
    plain = open_spec(ModelSpec(model=model), CPU)
    assert plain.base is model
    assert (plain.source, plain.notes, plain.subject) == ("a function", model.notes, model.subject)
    changed = open_spec(ModelSpec(model=model, normalise=NORMALISED), CPU)
    torch.testing.assert_close(changed.base(X), (X - 0.5) / 0.25)
    assert changed.subject != model.subject


def test_a_loaded_model_keeps_its_source_and_is_read_as_is_said_now(file):
    loaded = load_model(file, arch="holdfast.models.zoo:digits_mlp")
    x = torch.rand(2, 1, 8, 8)
    loaded = replace(loaded, notes=("it was found so",))
    plain = open_spec(ModelSpec(model=loaded), CPU)
    assert (plain.subject, plain.source, plain.notes) == (loaded.subject, loaded.source, loaded.notes)
    changed = open_spec(ModelSpec(model=loaded, normalise=NORMALISED), CPU)
    torch.testing.assert_close(changed.base(x), loaded.module((x - 0.5) / 0.25))
    assert (changed.source, changed.notes) == (loaded.source, loaded.notes)
    assert changed.subject != loaded.subject
    in_columns = open_spec(ModelSpec(model=loaded, table=COLUMNS), CPU)
    assert in_columns.subject not in (loaded.subject, changed.subject)
    from_file = ModelSpec(model=file, arch="holdfast.models.zoo:digits_mlp", normalise=NORMALISED)
    torch.testing.assert_close(open_spec(from_file, CPU).base(x), changed.base(x))


def test_a_pickle_is_not_opened_unless_it_is_trusted(tmp_path):
    torch.save(linear(), tmp_path / "m.pt")
    with pytest.raises(UnsafeFileError):
        open_spec(ModelSpec(model=tmp_path / "m.pt"), CPU)
    with pytest.raises(UnsafeFileError):
        open_surrogates(Surrogates(models=(tmp_path / "m.pt",)), CPU)
    trusted = open_spec(ModelSpec(model=tmp_path / "m.pt", trust=True), CPU).base
    torch.testing.assert_close(trusted(X), linear()(X))
    own = open_surrogates(Surrogates(models=(tmp_path / "m.pt",), trust=True), CPU)
    torch.testing.assert_close(own(X), linear()(X))


@pytest.mark.parametrize("loaded", [False, True])
def test_a_file_with_one_output_is_read_as_the_caller_says_it_is_meant(tmp_path, loaded):
    one = nn.Linear(2, 1)
    torch.save(one, tmp_path / "m.pt")
    s = one(X)
    model = load_model(tmp_path / "m.pt", trust=True) if loaded else tmp_path / "m.pt"
    for binary, wanted in (("logit", [torch.zeros_like(s), s]), ("probability", [1 - s, s])):
        base = open_spec(ModelSpec(model=model, trust=True, binary=binary), CPU).base
        torch.testing.assert_close(base(X), torch.cat(wanted, 1))


def test_answers_that_were_paid_for_are_not_asked_again(tmp_path):
    with serve(linear()) as served:
        answers = []
        for _ in range(2):
            paid = PaidAnswers(tmp_path / "paid.sqlite", "a run", lambda: True)
            api = open_spec(ModelSpec(model=served.url, classes=2, max_queries=9), CPU, paid=paid).base
            assert isinstance(api, HttpModel)
            api.begin("a unit")
            answers.append(api(X))
        assert torch.equal(*answers)
        assert served.rows == len(X)


def test_no_model_is_refused_with_what_to_give():
    with pytest.raises(UsageError, match="no model: give --model FILE"):
        open_session(None, (X, Y), THREAT)


def test_surrogates_are_one_model_or_the_ensemble_of_all_each_with_its_architecture(tmp_path, file):
    arch = "holdfast.models.zoo:digits_mlp"
    module = digits_mlp()
    assert open_surrogates(Surrogates(models=(module,)), CPU) is module
    one = open_surrogates(Surrogates(models=(file, file), archs=(arch,)), CPU)
    assert isinstance(one, Ensemble)
    each = Surrogates(models=(file, file), archs=(arch, "holdfast.models.zoo:no_such_model"))
    with pytest.raises((ModelError, UsageError), match="no_such_model"):
        open_surrogates(each, CPU)


def test_a_module_is_where_its_weights_are_or_else_its_buffers(file):
    assert device_of(nn.Linear(2, 2).to("meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False).to("meta")) == torch.device("meta")
    loaded = load_model(file, arch="holdfast.models.zoo:digits_mlp")
    loaded.module.to("meta")
    assert device_of(loaded) == torch.device("meta")
    assert device_of(nn.ReLU()) == device_of("model.onnx") == CPU
    assert as_device(torch.device("meta")) == torch.device("meta")


def test_an_api_gets_rows_normalised_and_columns_in_their_own_values():
    with serve(linear()) as served:

        def answers(x, **more):
            return open_spec(ModelSpec(model=served.url, classes=2, max_queries=9, **more), CPU).base(x)

        torch.testing.assert_close(answers(X, normalise=NORMALISED), answers((X - 0.5) / 0.25))
        own = X * torch.tensor([40.0, 1000.0]) + torch.tensor([20.0, 0.0])
        torch.testing.assert_close(answers(X, table=COLUMNS), answers(own))
        torch.testing.assert_close(answers(X), linear()(X).log_softmax(1).detach())


def test_what_an_api_answers_is_as_the_caller_says():
    url = "https://here.example/predict"
    spec = ModelSpec(model=url, class_names=("a", "b", "c"), max_queries=9, top_k=2, scores="logits")
    api = open_spec(spec, CPU).base
    assert isinstance(api, HttpModel)
    assert (api.classes, api.max_queries) == (3, 9)
    assert (api.answers.names, api.answers.top_k, api.answers.scores) == (("a", "b", "c"), 2, "logits")
    labels = open_spec(ModelSpec(model=url, classes=4, max_queries=1, answers="labels"), CPU).base
    assert isinstance(labels, HttpModel)
    assert (labels.classes, labels.answers.access) == (4, "labels")
    with pytest.raises(BudgetError, match="say how many rows at most with --max-queries"):
        open_spec(ModelSpec(model=url, classes=4), CPU)


def test_an_api_that_was_opened_before_says_itself_what_it_answers():
    url = "https://here.example/predict"
    api = HttpModel(url, classes=3, max_queries=1, top_k=2, scores="logits")
    spec = open_session(api, (X, Y), THREAT).spec
    assert (spec.answers, spec.top_k, spec.scores) == ("scores", 2, "logits")
    assert (
        open_session(HttpModel(url, classes=3, max_queries=1, access="labels"), (X, Y), THREAT).spec.answers == "labels"
    )


@pytest.mark.parametrize(("more", "said"), [({"table": COLUMNS}, "a table"), ({"normalise": NORMALISED}, "a norm")])
def test_an_api_that_is_open_already_is_not_sent_what_it_was_not_opened_for(more, said):
    """It would be asked about shares of ranges where it takes ages, and every figure would be of another model."""
    with serve(linear()) as served:
        api = HttpModel(served.url, classes=2, max_queries=9)
        with pytest.raises(UsageError, match=f"with nothing done to its rows, and {said}.*name its URL"):
            open_spec(ModelSpec(model=api, **more), CPU)
        own = Ranged.of(nn.Identity(), COLUMNS)
        prepared = HttpModel(served.url, classes=2, max_queries=9, before=own)
        base = open_spec(ModelSpec(model=prepared, **more), CPU).base
        torch.testing.assert_close(base(X), linear()(own(X)).log_softmax(1).detach())


def test_the_token_goes_to_a_host_that_the_caller_named_himself_alone(monkeypatch):
    """It is not sent over a line that is not encrypted, so that a plain URL is refused where it would be."""
    monkeypatch.setenv("HOLDFAST_API_TOKEN", "secret")
    url = "http://elsewhere.example/predict"
    with pytest.raises(UsageError, match="not encrypted"):
        open_spec(ModelSpec(model=url, classes=2, max_queries=1), CPU)
    assert open_spec(ModelSpec(model=url, classes=2, max_queries=1, token=False), CPU).source == url
    monkeypatch.delenv("HOLDFAST_API_TOKEN")
    assert open_spec(ModelSpec(model=url, classes=2, max_queries=1), CPU).source == url


@pytest.mark.parametrize(
    ("low", "high", "levels"), [(0.0, 1.0, 255.0), (0.0, 255.0, 1.0), (0.0, 5.0, 51.0), (-1.0, 3.0, 255.0)]
)
def test_a_file_of_pixels_gets_levels_and_answers_by_the_output_that_is_asked_for(tmp_path, low, high, levels):
    h, t = onnx.helper, onnx.TensorProto
    kinds = {"x": t.UINT8, "a": t.FLOAT, "b": t.FLOAT}
    infos = [h.make_tensor_value_info(name, kind, ["n", 2]) for name, kind in kinds.items()]
    nodes = [h.make_node("Cast", ["x"], ["a"], to=t.FLOAT), h.make_node("Neg", ["a"], ["b"])]
    graph = h.make_graph(nodes, "g", infos[:1], infos[1:])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    x = torch.tensor([[0.0, 255.0], [51.0, 102.0]]) / levels
    threat = ThreatModel.of("linf", "0.1", low=low, high=high)
    for output, sign in (("a", 1.0), ("b", -1.0)):
        session = open_session(ModelSpec(model=tmp_path / "m.onnx", output=output), (x, [0, 1]), threat)
        torch.testing.assert_close(session.model(x), sign * (levels * x))
