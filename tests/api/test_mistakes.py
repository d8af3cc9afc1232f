"""What people give by mistake: each is refused with a sentence that names the fix."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import holdfast as hf
from holdfast.api.harden import defence_of
from holdfast.api.verify import run_verifier
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.defences.adversarial_training.pgd_training import PGDTraining
from holdfast.models import QueriesOnly
from holdfast.models.serve import serve
from holdfast.verification.decide import Effort

LINF = hf.ThreatModel.of("linf", "8/255")
X, Y = torch.rand(6, 1, 8, 8), torch.arange(6)


class Estimator:
    """What scikit-learn's classifiers are like."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(len(x))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "got None. The order is model, data, method, threat"),
        (X, r"data are \(x, y\) as tensors or arrays, .*got a Tensor"),
        ([X, Y], "got a list"),
        ({"x": X, "y": Y}, "got a dict"),
        (TensorDataset(X, Y), "got a TensorDataset"),
        (nn.Linear(2, 2), "got a Linear. The order"),
        ((X, Y, Y), r"data are \(x, y\), got 3"),
        ((X, Y[0]), r"one sample is a batch of one: x\[None\], \[y\]"),
        ((X, np.array(["cat", "dog"] * 3)), r"number them: np.unique\(y, return_inverse=True\)\[1\]"),
        (([[0.5, 0.5], [0.5]], [0, 1]), "save it as one array of numbers, each sample of the same shape"),
    ],
)
def test_what_is_no_data(model: nn.Module, given, why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=why):
        hf.attack(model, given, "pgd", LINF)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda x: x, "derive from holdfast.models.QueriesOnly, or write predict.py:function"),
        (Estimator(), r"wrap it: holdfast.models.FromSklearn\(estimator\)"),
        (nn.Linear(2, 2).state_dict(), "load them into their module with load_state_dict"),
        ((X, Y), "a model is a module, .*got a tuple. The order is model, data, method, threat"),
    ],
)
def test_what_is_no_model(given, why: str, tmp_path) -> None:
    verbs = [
        lambda: hf.attack(given, (X, Y), "pgd", LINF),
        lambda: hf.certify(given, (X, Y), "crown", LINF),
        lambda: hf.harden(given, (X, Y), "pgd_training", LINF),
        lambda: hf.audit(given, (X, Y), LINF, out=tmp_path / "run"),
    ]
    for verb in verbs:
        with pytest.raises(hf.HoldfastError, match=why):
            verb()
    with pytest.raises(hf.HoldfastError, match="a network is an ONNX file, a module or weights with arch"):
        hf.verify(given, "property.vnnlib", shape=(2,))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [None, nn.Linear, 3, LINF])
def test_what_is_no_method(model: nn.Module, data: hf.Dataset, given) -> None:
    for verb in (hf.attack, hf.certify, hf.harden):
        with pytest.raises(hf.HoldfastError, match="a method is its name, its class or its object"):
            verb(model, data, given, LINF)


def test_a_method_of_another_kind(model: nn.Module, data: hf.Dataset) -> None:
    with pytest.raises(hf.HoldfastError, match="crown is no attack"):
        hf.attack(model, data, "crown", LINF)
    with pytest.raises(hf.HoldfastError, match="pgd is no certifier"):
        hf.certify(model, data, "pgd", LINF)
    with pytest.raises(hf.HoldfastError, match=r"pgd is no defence that trains.*These train: .*pgd_training"):
        hf.harden(model, data, "pgd", LINF)
    with pytest.raises(hf.HoldfastError, match=r"there is no defence 'pgd_trainin'. Did you mean pgd_training"):
        hf.harden(model, data, "pgd_trainin", LINF)


@pytest.mark.parametrize("given", ["linf", 8 / 255, ("linf", "8/255"), "8/255"])
def test_what_is_no_threat(model: nn.Module, data: hf.Dataset, given, tmp_path) -> None:
    verbs = [
        lambda: hf.attack(model, data, "pgd", given),
        lambda: hf.certify(model, data, "crown", given),
        lambda: hf.harden(model, data, "pgd_training", given),
        lambda: hf.audit(model, data, given, out=tmp_path / "run"),
    ]
    for verb in verbs:
        with pytest.raises(hf.HoldfastError, match=r'ThreatModel.of\("linf", "8/255"\)'):
            verb()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sed", "Did you mean seed"),
        ("sample", "Did you mean samples"),
        ("eps", r'The threat says it: ThreatModel.of\("linf", "8/255"\)'),
        ("norm", "The threat says it"),
    ],
)
def test_a_keyword_that_is_none(model: nn.Module, data: hf.Dataset, name: str, why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=f"PGD has no parameter '{name}'. {why}"):
        hf.attack(model, data, PGD, LINF, **{name: 1})


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"epoch": 1}, "PGDTraining has no parameter 'epoch'. Did you mean epochs?"),
        ({"step": 1}, "PGDTraining has no parameter 'step'. Did you mean steps"),
        ({"eps": 0.2}, "eps is said by the threat"),
        ({"norm": "l2"}, "norm is said by the threat"),
    ],
)
def test_a_keyword_that_no_training_has(model: nn.Module, data: hf.Dataset, more, why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=re.escape(why)):
        hf.harden(model, data, "pgd_training", LINF, **more)


def test_a_defence_is_made_for_one_threat(model: nn.Module, data: hf.Dataset) -> None:
    made = PGDTraining(norm=hf.Norm.L2, eps=Fraction(1, 2))
    with pytest.raises(hf.HoldfastError, match="which trains against eps 1/2, and the threat says 8/255; make it"):
        hf.harden(model, data, made, LINF)
    with pytest.raises(hf.HoldfastError, match="which trains against norm l2, and the threat says linf"):
        hf.harden(model, data, made, hf.ThreatModel.of("linf", "1/2"))
    hf.harden(model, data, PGDTraining(eps=0.1, steps=1), hf.ThreatModel.of("linf", "0.1"), epochs=1)  # type: ignore[arg-type]


def test_a_training_keeps_to_the_range_of_the_threat(data: hf.Dataset) -> None:
    wide = hf.ThreatModel.of("l2", "1/2", low=-1.0, high=2.0)
    tool, _ = defence_of("pgd_training", wide, nn.Linear(2, 2), {})
    assert isinstance(tool, PGDTraining)
    assert (tool.norm, tool.eps, tool.low, tool.high) == (hf.Norm.L2, Fraction(1, 2), -1.0, 2.0)


def test_a_threat_is_said_once(model: nn.Module, data: hf.Dataset, tmp_path) -> None:
    for name, value in (("eps", "0.1"), ("norm", "l2"), ("goal", "targeted"), ("low", -1.0), ("grid", "1/255")):
        with pytest.raises(hf.HoldfastError, match=f"{name} is said by the threat, linf <= 8/255"):
            hf.audit(model, data, LINF, out=tmp_path / "run", **{name: value})
    with pytest.raises(hf.HoldfastError, match=r"plan: suite: there is no suite 'fats'. Did you mean fast\?"):
        hf.audit(model, data, LINF, out=tmp_path / "run", suite="fats")
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_there_is_not_loaded(model: nn.Module) -> None:
    with pytest.raises(hf.HoldfastError, match="a Sequential is a model already: give it to the verb as it is"):
        hf.load_model(model)  # type: ignore[arg-type]


def test_a_device_that_is_not_there(model: nn.Module, data: hf.Dataset, tmp_path) -> None:
    train = hf.load_data("digits:train").head(40)
    verbs = [
        lambda: hf.attack(model, data, "pgd", LINF, device="gpu"),
        lambda: hf.certify(model, data, "crown", LINF, device="cuda:99"),
        lambda: hf.harden(model, train, "pgd_training", LINF, device="gpu"),
        lambda: hf.audit(model, data, LINF, device="cuda:99", out=tmp_path / "run"),
    ]
    for verb in verbs:
        with pytest.raises(hf.HoldfastError, match=r"the device .* cannot be used here, take cpu"):
            verb()
    assert not (tmp_path / "run").exists()


def test_bytes_for_a_model_that_takes_bytes_are_told_of(model: nn.Module, data: hf.Dataset) -> None:
    wide = hf.ThreatModel.of("linf", "8", high=255)
    pixels = (data.x * 255).to(torch.uint8)
    result = hf.attack(model, (pixels, data.y), "fgsm", wide, normalise=([0.0], [255.0]))
    assert "Arrays of type uint8 are divided by 255 when they are read" in str(result)
    quiet = hf.attack(model, (pixels.float(), data.y), "fgsm", wide, normalise=([0.0], [255.0]))
    assert quiet.success == pytest.approx(hf.attack(model, data, "fgsm", LINF).success, abs=0.1)
    assert not quiet.notes


def test_warnings_are_read_where_the_result_is_read(model: nn.Module, data: hf.Dataset) -> None:
    shuffled = (data.x, (data.y + 1) % 10)
    result = hf.attack(model, shuffled, "fgsm", LINF, anyway=True)
    (warning,) = [note for note in result.notes if note.startswith("warning")]
    assert warning in str(result)
    assert "warning" in result._repr_html_()
    assert not [block for block in result.blocks() if "warning" in str(block)]


def test_a_surrogate_that_would_not_be_used_is_refused(model: nn.Module, data: hf.Dataset) -> None:
    for method, why in [("square", "searches on the attacked model itself"), ("fmn", "inside a budget, such as pgd")]:
        with pytest.raises(hf.HoldfastError, match=why):
            hf.attack(model, data, method, LINF, surrogate=model)


def test_a_model_that_answers_no_gradients_is_broken_through_one_that_does(model: nn.Module, data: hf.Dataset) -> None:
    class Asked(QueriesOnly):
        def ask(self, x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return model(torch.from_numpy(x)).numpy()

    asked = Asked("0" * 64, "the deployment", "it is only asked")
    wide = hf.ThreatModel.of("linf", "0.15")
    with pytest.raises(hf.HoldfastError, match="white-box"):
        hf.attack(asked, data, "pgd", wide)
    result = hf.attack(asked, data, "pgd", wide, surrogate=model, steps=10)
    assert torch.equal(result.broken, hf.attack(model, data, "pgd", wide, steps=10).broken)
    assert result.broken.any()
    assert result.cost.queries == 2 * len(data) - int(result.wrong.sum()), "as they are, and where the search ended"


@pytest.mark.parametrize(
    ("keyword", "value", "why"),
    [
        ("normalise", [0.5, 0.5, 0.5], r"a normalisation is \(means, deviations\) by channel"),
        ("normalise", 0.5, "a normalisation is"),
        ("binary", "logits", "binary is no 'logits'. Did you mean logit"),
        ("answers", "label", "Did you mean labels"),
        ("scores", "softmax", "Known: logits, probabilities"),
        ("table", "nowhere.yaml", "there is no table at nowhere.yaml"),
    ],
)
def test_how_a_model_is_read_is_checked(model: nn.Module, data: hf.Dataset, keyword: str, value, why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=why):
        hf.attack(model, data, "fgsm", LINF, **{keyword: value})


def test_a_run_s_folder_is_a_folder_and_its_data_are_said(model: nn.Module, data: hf.Dataset, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(hf.HoldfastError, match="is a file; a run needs a folder"):
        hf.audit(model, data, LINF, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(hf.HoldfastError, match=r"what data\? give \(x, y\)"):
        hf.audit(model, None, LINF, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_reads_files_says_so() -> None:
    with pytest.raises(hf.HoldfastError, match=r"arrays are Dataset.of\(x, y\)"):
        hf.load_data((X, Y))  # type: ignore[arg-type]
    with pytest.raises(hf.HoldfastError, match="a model is a module, a loaded model, a path"):
        hf.load_model(None)  # type: ignore[arg-type]
    with pytest.raises(hf.HoldfastError, match="a method is its name, its class or its object"):
        hf.method(3)
    assert hf.method(PGD(steps=3)).name == hf.method(PGD).name == "pgd"


def test_a_size_is_written_the_same_everywhere(model: nn.Module, data: hf.Dataset) -> None:
    radii = hf.certify(model, data, "ibp", hf.ThreatModel.of("linf", "4/255"))
    assert radii.certified_at("1/255") == radii.certified_at(1 / 255) > radii.certified_at("8/255") == 0
    with pytest.raises(hf.HoldfastError, match="no perturbation size"):
        radii.certified_at("much")


def test_a_class_is_no_model_yet(data: hf.Dataset) -> None:
    with pytest.raises(hf.HoldfastError, match=r"Linear is a class; make the model with it, Linear\(\.\.\.\)"):
        hf.attack(nn.Linear, data, "pgd", LINF)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", ["a", 1.5, -1])
def test_a_seed_is_a_whole_number(model: nn.Module, data: hf.Dataset, seed) -> None:
    with pytest.raises(hf.HoldfastError, match=r"--seed (is a whole number|starts at 0), got"):
        hf.attack(model, data, "pgd", LINF, seed=seed)


def test_valid_values_have_a_distance() -> None:
    with pytest.raises(hf.HoldfastError, match="above 0; leave the grid out"):
        hf.ThreatModel.of("linf", "0.1", grid="0")


def test_an_attack_asks_no_more_than_the_threat_allows(model: nn.Module, data: hf.Dataset) -> None:
    labels = hf.ThreatModel.of("linf", "0.1", access="hard-label")
    with pytest.raises(
        hf.HoldfastError, match=r"PGD is white-box, and the threat allows hard-label; these work: .*rays"
    ):
        hf.attack(model, data, "pgd", labels)
    with pytest.raises(hf.HoldfastError, match="Square is soft-label, and the threat allows hard-label"):
        hf.attack(model, data, "square", labels)
    assert hf.attack(model, data, "rays", labels, samples=2, queries=20).cost.queries
    assert hf.attack(model, data, "pgd", labels, samples=2, steps=2, surrogate=model).cost.queries


def test_the_page_of_a_method_that_is_registered_nowhere() -> None:
    class OwnPGD(PGD):
        pass

    OwnPGD.__module__ = "__main__"
    page = hf.method(OwnPGD)
    assert (page.name, page.kind, page.cls) == ("own_pgd", "attack", OwnPGD)
    assert hf.method(OwnPGD(steps=3)).name == "own_pgd"


def test_a_data_set_is_shown_in_one_line() -> None:
    assert repr(hf.Dataset.of(X, Y, name="six.npz")) == "<Dataset six.npz: 6 samples of 1x8x8, 6 classes>"


def test_certificates_are_not_searched_for_below_the_size_that_is_asked_about(
    model: nn.Module, data: hf.Dataset, tmp_path
) -> None:
    with pytest.raises(hf.HoldfastError, match=r"--radius-max 0\.01 is below --eps 8/255"):
        hf.certify(model, data, "ibp", LINF, radius_max="0.01")
    with pytest.raises(hf.HoldfastError, match=r"--radius-max 0\.01 is below --eps 8/255"):
        hf.audit(model, data, LINF, radius_max="0.01", out=tmp_path / "run")
    assert hf.certify(model, data, "ibp", LINF, radius_max="8/255", samples=2).radius.max() <= 8 / 255


def test_a_proof_is_a_file(tmp_path) -> None:
    with pytest.raises(hf.HoldfastError, match="is a folder, and a proof is a file"):
        run_verifier(Path("net.onnx"), Path("property.vnnlib"), Effort(timeout=1.0), proof=tmp_path)


def test_an_audit_whose_budget_ends_says_that_no_attack_came_to_its_end(
    model: nn.Module, data: hf.Dataset, tmp_path
) -> None:
    right = data.x[model(data.x).argmax(1) == data.y][:2]
    with serve(model) as api:
        report = hf.audit(
            api.url, (right, model(right).argmax(1)), LINF, classes=10, max_queries=8, queries=50, out=tmp_path / "run"
        )
    assert not report.document.complete
    scope = next(f.message for f in report.document.findings if f.code == "report.scope")
    assert "no attack: none came to its end" in scope


def test_a_surrogate_s_weights_want_their_own_architecture(model: nn.Module, data: hf.Dataset, weights: Path) -> None:
    with pytest.raises(hf.HoldfastError, match=r"the surrogate: .* holds weights alone.*from Python give it loaded"):
        hf.attack(model, data, "di_fgsm", LINF, surrogate=weights)


@pytest.mark.parametrize(
    ("also", "why"),
    [
        ([nn.Linear(2, 2)], "more models are given by name: also={'second': module}; got a list"),
        ({"second": "model.onnx"}, "also: second is 'model.onnx', and must be a module"),
    ],
)
def test_more_models_are_modules_with_names(model: nn.Module, data: hf.Dataset, also, why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=re.escape(why)):
        hf.attack(model, data, "min_max", LINF, also=also)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"epochs": 1.5}, "epochs of a training is a whole number, got 1.5"),
        ({"rate": "fast"}, "rate of a training is a number, got 'fast'"),
        ({"epochs": 0}, "at least 1 epoch"),
        ({"seed": -1}, "a seed must be at least 0, got -1"),
    ],
)
def test_what_a_training_is_told_are_numbers(model: nn.Module, data: hf.Dataset, more, why: str) -> None:
    with pytest.raises(hf.HoldfastError, match=why):
        hf.harden(model, data, "pgd_training", LINF, **more)


def test_workers_and_batches_start_at_one(model: nn.Module, data: hf.Dataset, tmp_path) -> None:
    with pytest.raises(hf.HoldfastError, match="--workers starts at 1, got 0"):
        hf.audit(model, data, LINF, workers=0, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for method in ("crown", "cnn_cert", "neuron_splitting"):
        with pytest.raises(hf.HoldfastError, match="at least 1 sample at once, got batch=0"):
            hf.certify(model, data, method, LINF, batch=0)


def test_results_go_where_no_run_and_no_other_thing_is(model: nn.Module, data: hf.Dataset, tmp_path) -> None:
    report = hf.audit(model, data, LINF, suite="fast", queries=10, samples=2, certify="none", out=tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    for method, more in (("crown", {}), ("weight_perturbation", {"bits": 8})):
        result = hf.certify(model, data, method, LINF, samples=2, **more)
        with pytest.raises(hf.HoldfastError, match=r"holds another run .*choose another --out"):
            result.save(report.folder)
        with pytest.raises(hf.HoldfastError, match="is a file; results need a folder"):
            result.save(tmp_path / "file")
    with pytest.raises(hf.HoldfastError, match="is a folder, and a file would be written"):
        report.save(report.folder)
    for verb in (hf.recheck, hf.resume):
        with pytest.raises(
            hf.HoldfastError, match=r"a run is the path of its folder, of a report \.folder; got a Report"
        ):
            verb(report)  # type: ignore[arg-type]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("alma", "every"),
        ("geoda", "each"),
        ("apgd_t", "targets"),
        ("zo_svrg", "period"),
        ("sgd_uap", "batch"),
        ("pgd", "steps"),
    ],
)
def test_counts_of_an_attack_start_at_one(model: nn.Module, data: hf.Dataset, method: str, name: str) -> None:
    with pytest.raises(hf.HoldfastError, match=f"{name} of .* must be a whole number of at least 1, got 0"):
        hf.attack(model, data, method, hf.ThreatModel.of("l2", "1"), **{name: 0})
