"""``holdfast.attack``: every kind of attack, judged, with friendly doors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.judge.referee import Referee
from holdfast.models.serve import serve
from holdfast.models.zoo import digits_mlp
from holdfast.session import ModelSpec

LINF = hf.ThreatModel.of("linf", "0.1")


def test_what_counts_as_broken_is_wrong_inside_the_set_and_was_right(model: nn.Module, data: hf.Dataset) -> None:
    result = hf.attack(model, (data.x, data.y), "apgd_ce", LINF, steps=20, seed=0)
    said = model(result.x).argmax(1)
    assert bool(result.broken.any())
    assert bool((said[result.broken] != data.y[result.broken]).all())
    assert float((result.x - data.x).abs().max()) <= 0.1 + 1e-6
    assert bool((model(data.x).argmax(1)[result.broken] == data.y[result.broken]).all())
    assert result.success == pytest.approx(int(result.broken.sum()) / int((model(data.x).argmax(1) == data.y).sum()))
    assert result.cost.queries > 0
    assert result.x[result.broken].shape[1:] == data.x.shape[1:]


def test_the_same_seed_gives_the_same_and_arrays_are_tensors(model: nn.Module, data: hf.Dataset) -> None:
    one = hf.attack(model, (data.x.numpy(), data.y.tolist()), "pgd", LINF, steps=5, seed=3)
    again = hf.attack(model, data, PGD(steps=5), LINF, seed=3)
    assert torch.equal(one.x, again.x)
    assert not torch.equal(one.x, hf.attack(model, data, "pgd", LINF, steps=5, seed=4).x)


def test_the_model_is_left_as_it_was(data: hf.Dataset) -> None:
    model = digits_mlp().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hf.attack(model, data, "fgsm", LINF, anyway=True)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_norm_alone_asks_for_the_least_distortion(model: nn.Module, data: hf.Dataset) -> None:
    result = hf.attack(model, data, "fmn", "l2", steps=20)
    assert float(result.distance[result.broken].max()) < 8
    assert "l2 unbounded" in str(result)
    with pytest.raises(hf.HoldfastError, match="searches inside a budget"):
        hf.attack(model, data, "pgd", "l2")


def test_shared_and_semantic_attacks_answer_alike(model: nn.Module, data: hf.Dataset, tmp_path: Path) -> None:
    shared = hf.attack(model, data, "uap", LINF, passes=1)
    semantic = hf.attack(model, data, "brightness_contrast", steps=3)
    for result in (shared, semantic):
        assert 0 <= result.success <= 1
        assert result.x[result.broken].shape[1:] == data.x.shape[1:]
        assert result.to_dict()["attack"] == result.method
        assert result.save(tmp_path / result.method).files
    with pytest.raises(hf.HoldfastError, match="has ranges, no --norm and --eps"):
        hf.attack(model, data, "brightness_contrast", LINF)


@pytest.mark.parametrize(
    ("method", "more", "why"),
    [
        ("pgdd", {}, "Did you mean .*pgd"),
        ("crown", {}, "is no attack"),
        ("pgd", {"step": 3}, "PGD has no parameter 'step'. Did you mean steps"),
        ("pgd", {"steps": "many"}, "steps=many: input should be a valid integer"),
        ("pgd", {"arhc": "net.py:build"}, "Did you mean arch"),
        (PGD(), {"steps": 3}, "was given as an object"),
    ],
)
def test_what_a_method_lacks_is_refused_with_the_near_word(model, data, method, more, why) -> None:
    with pytest.raises(hf.HoldfastError, match=why):
        hf.attack(model, data, method, LINF, **more)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (255.0, None, "inputs outside the declared range"),
        (1.0, "one-hot", "look one-hot"),
        (1.0, "short", "12 samples but 3 labels"),
        ("nhwc", None, "channels last"),
        ("flat", None, "the model"),
    ],
)
def test_doors_are_those_of_the_command_line(model, data, x, y, why) -> None:
    images = data.x * x if isinstance(x, float) else data.x
    images = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1) if x == "nhwc" else images
    images = torch.rand(12, 5, 5) if x == "flat" else images
    labels = {None: data.y, "one-hot": nn.functional.one_hot(data.y, 10), "short": data.y[:3]}[y]
    with pytest.raises(hf.HoldfastError, match=why):
        hf.attack(model, (images, labels), "pgd", LINF)


def test_a_file_is_read_as_its_keywords_say(model: nn.Module, weights: Path, data: hf.Dataset) -> None:
    arch = "holdfast.models.zoo:digits_mlp"
    of_file = hf.attack(weights, data, "fgsm", LINF, arch=arch)
    loaded = hf.attack(hf.load_model(weights, arch=arch), data, "fgsm", LINF)
    assert torch.equal(of_file.x, loaded.x)
    assert torch.equal(of_file.x, hf.attack(model, data, "fgsm", LINF).x)
    with pytest.raises(hf.HoldfastError, match="a ModelSpec says how the model is read"):
        hf.attack(ModelSpec(model=weights), data, "fgsm", LINF, arch=arch)
    with pytest.raises(hf.HoldfastError, match="is a prediction API, not a file"):
        hf.load_model("https://here.example/")


def test_an_api_is_asked_with_consent_and_no_more_than_it_allows(model: nn.Module, data: hf.Dataset) -> None:
    with serve(model) as api:
        result = hf.attack(api.url, data, "square", LINF, samples=2, queries=20, classes=10, max_queries=200)
        assert result.cost.queries <= 40
        assert api.rows <= 200
        with pytest.raises(hf.HoldfastError, match="white-box"):
            hf.attack(api.url, data, "pgd", LINF, classes=10, max_queries=200)
        with pytest.raises(hf.HoldfastError, match="max-queries"):
            hf.attack(api.url, data, "square", LINF, classes=10)


def test_a_result_shows_itself_in_print_in_a_notebook_and_in_files(model, data, tmp_path: Path) -> None:
    result = hf.attack(model, data, "fgsm", LINF)
    assert len(str(result).splitlines()) < 40
    assert str(result).startswith("FGSM: linf <= 0.1, seed 0")
    assert repr(result) == "<SampleAttackResult: FGSM: linf <= 0.1, seed 0>"
    assert "<pre>FGSM: linf &lt;= 0.1" in result._repr_html_()
    result.save(tmp_path)
    assert json.loads((tmp_path / "attack.json").read_text()) == result.to_dict()
    with np.load(tmp_path / "adversarial.npz") as saved:
        assert np.array_equal(saved["x_adv"], result.x.numpy())
    assert len(result.columns()["id"]) == len(data)


def test_pandas_is_asked_for_only_where_it_is_there(model, data, monkeypatch: pytest.MonkeyPatch) -> None:
    result = hf.attack(model, data, "fgsm", LINF)
    monkeypatch.setattr("holdfast.api.results.import_module", _absent)
    with pytest.raises(hf.HoldfastError, match="pip install pandas"):
        result.to_pandas()

    class Frame(dict):
        """What pandas would make."""

    monkeypatch.setattr("holdfast.api.results.import_module", lambda name: type("pandas", (), {"DataFrame": Frame}))
    assert result.to_pandas()["broken"] == result.broken.tolist()


def _absent(name: str) -> None:
    raise ImportError(name)


def test_nobody_is_told_of_progress_but_who_asks(model, data, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    hf.attack(model, data, "fgsm", LINF, progress=lambda *given: told.append(given))
    assert told
    assert {stage for stage, _, _ in told} == {"FGSM"}
    hf.attack(model, data, "fgsm", LINF, progress=False)
    hf.attack(model, data, "fgsm", LINF)
    assert capsys.readouterr() == ("", "")


def test_where_a_person_looks_there_are_bars_unless_they_are_not_wanted(
    model, data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("holdfast.api.voice.shown", lambda: True)
    hf.attack(model, data, "fgsm", LINF, progress=False)
    assert capsys.readouterr().err == ""
    hf.attack(model, data, "fgsm", LINF)
    said = capsys.readouterr().err
    assert "FGSM" in said
    assert "12/12" in said
    assert "left" in said


def test_a_transfer_attack_takes_the_attacker_s_own_models(model: nn.Module, data: hf.Dataset) -> None:
    result = hf.attack(model, data, "surrogate_transfer", LINF, surrogate=[model, digits_mlp()])
    assert int(result.broken.sum()) > 0
    with pytest.raises(hf.HoldfastError, match="needs a surrogate"):
        hf.attack(model, data, "surrogate_transfer", LINF)


def test_the_referee_and_not_the_search_says_what_is_broken(model, data, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Referee.judge
    monkeypatch.setattr(Referee, "judge", lambda self, problem, x: judge(self, problem, problem.x))
    assert hf.attack(model, data, "fgsm", LINF).success == 0.0
