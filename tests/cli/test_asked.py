"""Models that can only be asked, on the command line: every verb serves them, says what it may cost, and refuses in words."""

import json
import shlex

import numpy as np
import pytest
import torch

from holdfast.audits.plan import Plan
from holdfast.core.errors import UsageError
from holdfast.models.http import HttpModel
from holdfast.models.load import load_model
from holdfast.models.serve import serve

ARCH = "holdfast.models.zoo:digits_mlp"


@pytest.fixture(scope="module")
def module(place):
    return load_model(place / "model.safetensors", arch=ARCH).module


@pytest.fixture
def api(module):
    with serve(module) as served:
        yield served


@pytest.fixture
def asked(api, place):
    return ["--model", api.url, "--classes", 10, "--data", place / "test.npz", "--samples", 5]


class TestAudit:
    ATTACK = ("--eps", "0.2", "--queries", 40)

    def test_a_budget_that_ends_is_reported_and_a_larger_one_goes_on(self, holdfast, api, asked, tmp_path):
        out = tmp_path / "run"
        said = holdfast("audit", *asked, *self.ATTACK, "--max-queries", 60, "--out", out)
        assert said.code == 3
        assert "may end before the suite does" in said.err
        assert "INCOMPLETE" in said.out
        assert "larger --max-queries goes on" in " ".join(said.out.split())
        assert api.rows <= 60
        again = holdfast("audit", *asked, *self.ATTACK, "--max-queries", 60, "--out", out)
        assert again.code == 3
        assert api.rows <= 60, "the budget is kept over all starts"
        more = holdfast("resume", out, "--model", api.url, "--max-queries", 4000, "--format", "json")
        assert more.code == 0, more.err
        whole = tmp_path / "whole"
        before = api.rows
        at_once = holdfast("audit", *asked, *self.ATTACK, "--max-queries", 4000, "--out", whole, "--format", "json")
        assert before <= api.rows - before + 2, "answers that were paid for were asked again"
        for part in ("headline", "samples"):
            assert json.loads(more.out)[part] == json.loads(at_once.out)[part]

    def test_too_little_for_the_clean_predictions_is_refused_before_a_row_is_sent(self, holdfast, api, asked, tmp_path):
        said = holdfast("audit", *asked, *self.ATTACK, "--max-queries", 8, "--out", tmp_path / "run")
        assert said.code == 2
        assert "does not even pay for the clean predictions: 10 rows" in said.err
        none = holdfast("audit", *asked, *self.ATTACK, "--out", tmp_path / "run")
        assert "so say how many you allow: --max-queries N" in none.err
        assert api.rows == 0
        assert not (tmp_path / "run").exists()

    def test_other_json_is_mapped(self, holdfast, api, asked, tmp_path):
        said = holdfast("audit", *asked, *self.ATTACK, "--max-queries", 4000, "--request", '{"inputs": [$row]}',
                        "--answer", "scores[*]", "--out", tmp_path / "run")  # fmt: skip
        assert said.code == 0, said.err
        plan = Plan.read(tmp_path / "run" / "plan.yaml")
        assert (plan.request, plan.answer) == ('{"inputs": [$row]}', "scores[*]")

    def test_several_workers_do_not_multiply_the_budget(self, holdfast, asked, tmp_path):
        said = holdfast("audit", *asked, "--max-queries", 4000, "--workers", 2, "--out", tmp_path / "run")
        assert said.code == 2
        assert "--workers 1" in said.err

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"model": "net.onnx", "request": "$inputs"}, "--request is about the JSON of a prediction API"),
            ({"answer": "a..b"}, "no path"),
            ({"request": "{"}, "no JSON"),
            ({"binary": "logit"}, "--scores logits or probabilities"),
            ({"classes": None}, "--classes or --class-names"),
            ({"class_names": ("a", "b")}, "2 class names with --classes 10"),
        ],
    )
    def test_plans_that_cannot_be_had_are_refused(self, values, words):
        whole = {"model": "https://h/", "classes": 10, "suite": "black-box", "certify": "none"} | values
        with pytest.raises(UsageError, match=words):
            Plan.of(**whole)


class TestOneMethod:
    def test_an_attack_shares_the_budget_and_ends_well(self, holdfast, api, asked, tmp_path):
        said = holdfast(
            "attack", "square", *asked, "--eps", "0.2", "--max-queries", 150, "--out", tmp_path, "--format", "json"
        )
        assert said.code == 0, said.err
        assert "gives each of 5 samples 16 queries; Square would use up to 5,000" in said.err
        assert api.rows <= 150
        assert json.loads(said.out)["queries"] <= 5 * 16

    def test_an_attack_that_needs_more_is_refused_with_those_that_work(self, holdfast, api, asked, tmp_path):
        said = holdfast("attack", "pgd", *asked, "--eps", "0.2", "--max-queries", 150, "--out", tmp_path)
        assert said.code == 2
        assert "PGD is white-box" in said.err
        assert "these work:" in said.err
        assert "square" in said.err
        hard = holdfast(
            "attack", "square", *asked, "--answers", "labels", "--eps", "0.2", "--max-queries", 150, "--out", tmp_path
        )
        assert "Square is soft-label" in hard.err
        assert "hopskipjump" in hard.err
        assert api.rows == 0
        for told in (said.err, hard.err):
            assert "--suite" not in told

    def test_a_comparison_is_refused_before_it_begins_or_fits(self, holdfast, api, asked, tmp_path):
        bench = ("bench", "attacks", "square", "pgd", *asked, "--passes", 16, "--out", tmp_path)
        said = holdfast(*bench, "--max-queries", 100)
        assert said.code == 2
        assert "may send 150 rows, and --max-queries allows 100" in said.err
        assert api.rows == 0
        fits = holdfast(*bench, "--max-queries", 150, "--format", "json")
        assert fits.code == 0, fits.err
        assert "left out, since" in fits.err
        assert api.rows <= 150

    def test_doctor_asks_a_few_rows_and_says_how_many(self, holdfast, api, asked):
        said = holdfast("doctor", *asked, "--max-queries", 100)
        assert said.code == 0, said.err
        assert f"asks {api.url} 15 rows" in said.err
        assert "answers: scores of 10 classes" in said.out
        assert "an audit may send" in said.out
        assert api.rows == 15

    @pytest.mark.parametrize(
        ("budget", "code", "word"), [(8, 2, "does not pay for"), (100, 0, "may end an audit before its suite does")]
    )
    def test_doctor_says_what_the_audit_needs_and_prints_the_command_with_it(
        self, holdfast, api, asked, tmp_path, budget, code, word
    ):
        said = holdfast("doctor", *asked, "--max-queries", budget, "--format", "json")
        assert said.code == code
        told = json.loads(said.out)
        (found,) = [f for f in told["findings"] if f["code"].startswith("budget.")]
        assert word in found["message"]
        most = found["data"]["most"]
        assert f"--max-queries {most}" in found["remedy"]
        words = shlex.split(told["command"])
        assert words.count("--max-queries") == 1
        assert words[words.index("--max-queries") + 1] == str(most)
        before = api.rows
        enough = holdfast(*words[1:-2], "--eps", "0.3", "--out", tmp_path / "run")
        assert enough.code == 0, enough.err
        assert api.rows - before <= most

    def test_doctor_tells_why_an_api_does_not_answer(self, holdfast, asked, monkeypatch):
        monkeypatch.setitem(HttpModel.__init__.__kwdefaults__, "sleep", lambda _: None)
        down = ["--model", "http://127.0.0.1:9/", *asked[2:]]
        said = holdfast("doctor", *down, "--max-queries", 15)
        assert said.code == 2
        assert "Nobody listens there" in said.out
        assert "queries" not in said.err

    def test_doctor_names_json_that_is_not_there(self, holdfast, asked):
        said = holdfast("doctor", *asked, "--max-queries", 100, "--answer", "predictions")
        assert said.code == 2
        assert "no list 'predictions' (it has: scores)" in said.out
        assert "shape and type" not in said.out


CODE = """
import numpy as np
W = np.random.default_rng(0).normal(size=(64, 3))
def scores(x): return x.reshape(len(x), -1) @ W
def labels(x): return scores(x).argmax(1)
"""


class TestFunction:
    @pytest.fixture
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "predict.py").write_text(CODE)
        weights = np.random.default_rng(0).normal(size=(64, 3))
        x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
        np.savez(tmp_path / "test.npz", x=x, y=(x.reshape(6, -1) @ weights).argmax(1))
        return ["--trust", "--data", "test.npz", "--eps", "0.1"]

    def test_it_is_audited_and_rechecked(self, holdfast, here):
        box = ("--suite", "black-box", "--certify", "none", "--queries", 40, "--out", "run")
        assert holdfast("audit", "--model", "predict.py:scores", *here, *box).code == 0
        assert "predict.py:scores" in holdfast("recheck", "run").err, "a run folder grants no trust"
        again = holdfast("recheck", "run", "--trust")
        assert again.code == 0, again.out + again.err

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            (("audit", "--model", "predict.py:scores"), "--suite black-box --certify none"),
            (("attack", "pgd", "--model", "predict.py:scores"), "these work: "),
            (("certify", "crown", "--model", "predict.py:scores"), "no bound and no certificate"),
            (("attack", "square", "--model", "predict.py:labels", "--classes", 3), "say so with --answers labels"),
            (("attack", "square", "--model", "predict.py:labels"), "give --classes"),
            (("attack", "square", "--model", "predict.py:scores", "--views", "noise=0.1"), "can only be asked"),
        ],
    )
    def test_what_it_cannot_give_is_refused_by_name(self, holdfast, here, command, words):
        said = holdfast(*command, *here, "--out", "out")
        assert said.code == 2
        assert words in said.err

    def test_labels_alone_are_attacked(self, holdfast, here):
        said = holdfast("attack", "rays", "--model", "predict.py:labels", "--classes", 3, "--answers", "labels", *here,
                        "--queries", 60, "--out", "out", "--format", "json")  # fmt: skip
        assert said.code == 0, said.err
        assert json.loads(said.out)["not_upheld"] == 0
