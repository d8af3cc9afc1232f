"""Commands of the command line, as a person uses them."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from holdfast.audits.plan import Plan
from holdfast.audits.suites import suite_names
from holdfast.cli import single_options
from holdfast.cli.main import app
from holdfast.core.registry import names
from holdfast.models.load import load_model
from holdfast.training.hooks import Hooks

ARCH = "holdfast.models.zoo:digits_mlp"


def test_attack_saves_what_the_referee_upheld(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("attack", "pgd", *on, "--samples", 30, "--norm", "linf", "--eps", "1/10", "--set", "steps=10",
                    "--out", tmp_path / "a", "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    told = json.loads(said.out)
    found = np.load(tmp_path / "a" / "adversarial.npz")
    assert told["samples"] == 30
    assert told["broken"] == int((found["found"] & (found["distance"] > 0)).sum()) > 5
    assert told["median_distance"] <= 0.1
    assert told["forwards"] > told["backwards"] > 0
    model = load_model(on[1], arch=ARCH).module
    answer = model(torch.from_numpy(found["x_adv"])).argmax(1).numpy()
    assert ((answer != found["y"]) == found["found"]).all()
    moved = np.abs(found["x_adv"].astype(np.float64) - found["x"]).max((1, 2, 3))
    assert moved.max() <= 0.1
    np.testing.assert_allclose(moved[found["found"]], found["distance"][found["found"]], rtol=1e-12)
    assert len(list((tmp_path / "a" / "pictures").glob("*.png"))) == min(12, told["broken"])


def test_attack_without_eps_is_for_minimal_distortion_only(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("attack", "deepfool", *on, "--samples", 20, "--norm", "l2", "--out", tmp_path)
    assert said.code == 0, said.err
    assert "l2 unbounded" in said.out
    said = holdfast("attack", "pgd", *on, "--norm", "linf", "--out", tmp_path)
    assert said.code == 2
    assert "give --eps" in said.err


def test_a_targeted_attack_reaches_the_next_class(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("attack", "pgd", *on, "--samples", 30, "--eps", "0.3", "--goal", "targeted", "--out", tmp_path)
    assert said.code == 0, said.err
    found = np.load(tmp_path / "adversarial.npz")
    model = load_model(on[1], arch=ARCH).module
    answer = model(torch.from_numpy(found["x_adv"])).argmax(1).numpy()
    assert found["found"].sum() > 5
    assert (answer == (found["y"] + 1) % 10)[found["found"]].all()


def test_a_query_budget_holds(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("attack", "square", *on, "--samples", 10, "--eps", "0.1", "--queries", 20, "--out", tmp_path,
                    "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    assert json.loads(said.out)["queries"] <= 200


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "stps=3"), "Did you mean steps"),
        (("--set", "steps"), "KEY=VALUE"),
        (("--set", "steps=few"), "valid integer"),
        (("--norm", "linf", "--eps", "8"), "8/255"),
        (("--eps", "-1"), "cannot be negative"),
        (("--eps", "much"), "8/255 or 0.03"),
        (("--device", "gpu"), "take cpu"),
    ],
)
def test_wrong_arguments_name_the_fix_in_one_line(holdfast, on, tmp_path: Path, arguments, told: str) -> None:
    given = ("--eps", "0.1") if "--eps" not in arguments else ()
    said = holdfast("attack", "pgd", *on, *given, *arguments, "--out", tmp_path / "x")
    assert said.code == 2
    assert told in said.err
    assert "Traceback" not in said.err
    assert said.err.strip().count("\n") == 0
    assert not (tmp_path / "x").exists()


def test_certify_writes_a_radius_for_each_sample(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("certify", "ibp", "crown", "clever", *on, "--samples", 6, "--norm", "linf", "--eps", "0.02",
                    "--out", tmp_path, "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    ibp, crown, clever = json.loads(said.out)
    assert (ibp["guarantee"], crown["guarantee"], clever["guarantee"]) == ("sound", "sound", "estimate")
    assert 0 < ibp["median_radius"] <= crown["median_radius"] <= 0.04
    radius = np.load(tmp_path / "crown.npz")["radius"]
    assert radius.shape == (6,)
    assert crown["at_eps"] == pytest.approx((radius >= 0.02).mean())
    assert (crown["held_against"], clever["held_against"]) == ("the module itself", None)


def test_certificates_stand_beside_an_attack_and_an_estimate(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("certify", "crown", "clever", *on, "--samples", 4, "--eps", "0.02", "--attack", "fmn",
                    "--set", "batches=10", "--set", "points=8", "--out", tmp_path, "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    crown, clever, fmn = json.loads(said.out)
    assert fmn["guarantee"] == "witness"
    assert 0 <= clever["fit_rejected"] <= 1
    rows = [line.split(",") for line in (tmp_path / "radii.csv").read_text().splitlines()]
    assert rows[0] == ["id", "label", "crown", "clever", "fmn"]
    assert all(float(r[2]) <= float(r[4]) for r in rows[1:] if "nan" not in r)
    page = (tmp_path / "radii.html").read_text()
    assert "upper bound" in page
    assert crown["arithmetic"] in page


def test_certificates_of_the_model_as_it_runs_say_so(holdfast, on, tmp_path: Path) -> None:
    both = []
    for more in ((), ("--deployed", "bfloat16")):
        said = holdfast(
            "certify", "crown", *on, "--samples", 4, "--eps", "0.02", *more, "--out", tmp_path, "--format", "json"
        )
        assert said.code == 0, said.err
        both.append(json.loads(said.out)[0])
    real, ran = both
    assert "as it runs in bfloat16" in ran["arithmetic"]
    assert ran["median_radius"] <= real["median_radius"]
    assert "real numbers and with exact weights only" in holdfast(
        "certify", "forward", *on, "--samples", 2, "--deployed", "float32", "--out", tmp_path
    ).err  # fmt: skip


def test_certificates_over_other_sets(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("certify", "weight_perturbation", *on, "--samples", 3, "--set", "layers=0,1", "--out", tmp_path,
                    "--format", "json")  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads(said.out)[0]
    assert 0 < found["median_reach"] < 0.1
    assert json.loads((tmp_path / "weight_perturbation.json").read_text())["ranges"] == found["ranges"]
    said = holdfast("certify", "semantify_nn", *on, "--samples", 2, "--set", "change=brightness", "--set", "parts=2",
                    "--set", "cuts=2", "--set", "searches=3", "--out", tmp_path)  # fmt: skip
    assert "shift of brightness" in said.out
    assert "run them alone" in holdfast("certify", "patch_anywhere", "crown", *on, "--out", tmp_path).err


def test_an_attack_is_no_certifier_nor_the_other_way_round(holdfast, on, tmp_path: Path) -> None:
    assert "is no certifier" in holdfast("certify", "pgd", *on, "--out", tmp_path).err
    assert "is no attack" in holdfast("attack", "crown", *on, "--out", tmp_path).err


def test_harden_writes_weights_that_the_architecture_reads(holdfast, on, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "hard.safetensors"
    said = holdfast("harden", "--model", on[1], "--arch", ARCH, "--data", place / "train.npz", "--norm", "linf",
                    "--eps", "0.1", "--epochs", 2, "--set", "steps=2", "--normalise", "0.5/0.5",
                    "--out", out)  # fmt: skip
    assert said.code == 0, said.err
    assert "robust on 10 held-out samples" in said.out
    load_model(out, arch=ARCH)
    assert [p.name for p in out.parent.iterdir()] == ["hard.safetensors"], "the checkpoint is gone in the end"


def test_an_interrupted_hardening_resumes(holdfast, place: Path, tmp_path: Path, monkeypatch) -> None:
    def arguments(name: str) -> list[object]:
        return ["harden", "--arch", ARCH, "--data", place / "train.npz", "--eps", "0.1", "--epochs", 3, "--set",
                "steps=1", "--out", tmp_path / name]  # fmt: skip

    def killed(hooks, model, epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    assert holdfast(*arguments("whole")).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Hooks, "after_epoch", killed)
        said = holdfast(*arguments("again"))
    assert said.code == 130
    assert "--resume goes on" in said.err
    assert holdfast(*arguments("again"), "--resume").code == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_unsafe_file_is_refused_with_its_own_code(holdfast, on, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    said = holdfast("doctor", "--model", tmp_path / "whole.pt", "--data", on[-1])
    assert said.code == 4
    assert "--trust" in said.err


def test_doctor_says_what_is_wrong(holdfast, on, place: Path, tmp_path: Path) -> None:
    said = holdfast("doctor", *on)
    assert said.code == 0, said.err
    assert "an audit can start" in said.out
    assert "crown know every operation" in said.out
    data = np.load(place / "test.npz")
    np.savez(tmp_path / "wide.npz", x=data["x"] * 255, y=data["y"])
    said = holdfast("doctor", *on[:-1], tmp_path / "wide.npz", "--format", "json")
    assert said.code == 2
    assert "data.range" in [f["code"] for f in json.loads(said.out)["findings"]]


def test_methods_lists_finds_and_shows(holdfast) -> None:
    lines = holdfast("methods").out.splitlines()
    assert lines[0].split("\t")[:2] == ["name", "title"]
    assert [line.split("\t")[0] for line in lines[1:]] == names()
    assert [line.split("\t")[0] for line in holdfast("methods", "apgd*").out.splitlines()[1:]] == names(pattern="apgd*")
    shown = holdfast("methods", "pgd-training").out
    assert "Madry" in shown
    assert "relative_step = 0.25" in shown
    assert json.loads(holdfast("methods", "pgd", "--format", "json").out)["rows"] == ["E03", "E10", "T01", "T02", "T03"]
    said = holdfast("methods", "pdg")
    assert said.code == 2
    assert "pgd?" in said.err


def test_what_is_missing_is_asked_for(holdfast, on, tmp_path: Path) -> None:
    assert "give --model" in holdfast("doctor", "--data", on[-1]).err
    assert "give --data" in holdfast("doctor", *on[:4]).err
    assert holdfast("audit", "--out", tmp_path / "r").code == 2
    assert holdfast("nothing").code == 2


def test_shown_defaults_and_choices_are_the_plan_s() -> None:
    """The flags show the plan's defaults without importing it: they must not drift apart."""
    audit = typer.main.get_command(app).commands["audit"]  # type: ignore[attr-defined]
    shown = {p.name: p for p in audit.params}
    default = Plan().model_dump(mode="json")
    for name in ("norm", "eps", "suite", "certify", "seed", "device", "sigma", "goal", "answers"):
        assert str(shown[name].show_default) == str(default[name]), name
    assert all(name in shown["suite"].help and Plan.of(suite=name) for name in suite_names())
    words, _ = typing.get_args(typing.get_args(single_options.Answers)[0])
    assert set(typing.get_args(words)) == set(typing.get_args(Plan.model_fields["answers"].annotation))
    for name in ("crown", "alpha-crown", "ibp", "smoothing", "none"):
        assert name in shown["certify"].help
        assert Plan.of(certify=name).certify == name
    typed = {option.lstrip("-").replace("-", "_") for p in audit.params for option in p.opts}
    flags = typed | {"chunk", "slots", "low", "high", "schema_version", "smoothing_samples"}
    assert set(Plan.model_fields) <= flags, set(Plan.model_fields) - flags


def test_nothing_is_drawn_off_a_terminal_and_quiet_is_quiet(holdfast, on, tmp_path: Path) -> None:
    arguments = ("attack", "fgsm", *on, "--samples", 8, "--eps", "0.1", "--out", tmp_path)
    said = holdfast(*arguments)
    assert "\x1b" not in said.out + said.err
    assert "FGSM: 8 of 8" in said.err
    assert holdfast(*arguments, "-q").err == ""


def test_verbose_adds_the_traceback(holdfast, tmp_path: Path) -> None:
    assert "Traceback" in holdfast("doctor", "--model", tmp_path / "none", "--data", "digits", "-v").err
    assert "Traceback" not in holdfast("doctor", "--model", tmp_path / "none", "--data", "digits").err


def test_bench_attacks_prints_a_table_and_writes_a_page(holdfast, on, tmp_path: Path) -> None:
    said = holdfast(
        "bench", "attacks", "deepfool", "fab", *on, "--samples", 8, "--norm", "l2", "--passes", 60,
        "--out", tmp_path / "b", "--format", "json",
    )  # fmt: skip
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert {e["name"] for e in told["entries"]} == {"deepfool", "fab"}
    assert all(e["forwards"] + e["backwards"] <= 60 for e in told["entries"])
    assert "DeepFool" in (tmp_path / "b" / "comparison.html").read_text()
    assert json.loads((tmp_path / "b" / "comparison.json").read_text()) == told


def test_bench_attacks_refuses_names_that_serve_nothing(holdfast, on, tmp_path: Path) -> None:
    said = holdfast("bench", "attacks", "deepfool", *on, "--norm", "l0", "--out", tmp_path)
    assert said.code == 2
    assert "no attack of that name serves l0" in said.err


@pytest.mark.parametrize(("name", "pair"), [("autozoom", "space=tiles"), ("hopskipjump", "starts=file.npz")])
def test_a_parameter_that_is_no_text_is_refused_in_words(holdfast, on, tmp_path: Path, name: str, pair: str) -> None:
    said = holdfast("attack", name, *on, "--norm", "l2", "--set", pair, "--out", tmp_path)
    assert said.code == 2
    assert "give it from Python" in said.err


def test_a_wrong_size_is_refused_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys\nfrom holdfast.cli.main import main\n"
        "sys.argv = ['holdfast', 'attack', 'pgd', '--eps', 'abc', '--out', 'x']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 2, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'abc' is no perturbation size" in done.stderr


@pytest.mark.parametrize("option", ["--eps", "--radius-max", "--grid", "--eps-grid"])
def test_a_size_beyond_all_numbers_is_refused(option: str, holdfast, on, tmp_path: Path) -> None:
    said = holdfast("audit", *on, option, "1e999", "--out", tmp_path / "run")
    assert said.code == 2
    assert "1e999 is larger than any input" in said.err
    assert not (tmp_path / "run").exists()


def test_a_model_that_ends_the_program_passes_no_gate(holdfast, place: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ends = "    import sys\n    sys.exit(0)\n"
    Path("arch.py").write_text(f"from {ARCH.split(':')[0]} import digits_mlp\n\ndef builds():\n{ends}")
    Path("predict.py").write_text(f"def asked(x):\n{ends}")
    for model in (("predict.py:asked",), (place / "model.safetensors", "--arch", "arch.py:builds")):
        said = holdfast("audit", "--model", *model, "--trust", "--data", place / "test.npz", "--fail-under", "90%",
                        "--suite", "black-box", "--certify", "none", "--out", "run")  # fmt: skip
        assert said.code == 2, said.err
        assert "SystemExit" in said.err or "ended the program" in said.err


def test_an_artefact_is_never_judged_on_what_it_was_fitted_on(holdfast, on, place: Path, tmp_path: Path) -> None:
    few = ("--samples", "30", "--set", "steps=5", "--eps", "0.2")
    said = holdfast("attack", "sgd_uap", *on, "--train-data", place / "test.npz", *few, "--out", tmp_path / "same")
    assert said.code == 2
    assert "nothing is held out" in said.err
    with np.load(place / "train.npz") as train, np.load(place / "test.npz") as test:
        x, y = np.concatenate([train["x"], test["x"][:10]]), np.concatenate([train["y"], test["y"][:10]])
    np.savez(tmp_path / "mixed.npz", x=x, y=y)
    said = holdfast("attack", "sgd_uap", *on, "--train-data", tmp_path / "mixed.npz", *few, "--out", tmp_path / "part")
    assert said.code == 0, said.err
    assert "10 of 30 samples are in" in said.err
    assert "judged on 20 others" in said.out


def test_pictures_are_large_enough_to_look_at_and_say_what_they_show(holdfast, on, tmp_path: Path) -> None:
    from PIL import Image

    assert holdfast("attack", "pgd", *on, "--samples", "8", "--eps", "0.3", "--out", tmp_path / "a").code == 0
    picture = Image.open(next((tmp_path / "a" / "pictures").glob("*.png")))
    assert picture.width > 3 * 160
    heading = np.asarray(picture.convert("L"))[:22]
    assert (heading < 64).any(), "a caption stands over the panels"


def test_an_estimate_never_stands_under_what_is_certified():
    import numpy as np

    from holdfast.api.certify import radii_rows
    from holdfast.core.threat import Norm
    from holdfast.report.studies import page as page_of
    from holdfast.studies.common.columns import RadiiColumn
    from holdfast.studies.radii import RadiiResult

    columns = [
        RadiiColumn(name="crown", title="CROWN", guarantee="sound", radius=np.array([0.2, 0.05]), seconds=1.0),
        RadiiColumn(
            name="clever",
            title="CLEVER",
            guarantee="estimate",
            radius=np.array([0.3, 0.3]),
            seconds=1.0,
            fit=np.array([0.5, 0.5]),
        ),
        RadiiColumn(name="fmn", title="FMN", guarantee="witness", radius=np.array([0.4, 0.4]), seconds=1.0),
    ]
    answers = [{**c.summary().to_dict(), "eps": "1/10", "at_eps": c.at_least(0.1)} for c in columns]
    tables = [radii_rows(few, "1/10") for few in (answers, answers[:1], answers[1:2])]
    said = [[dict(zip(t.heads, row, strict=True)) for row in t.rows] for t in tables]
    crown, clever, fmn = said[0]
    assert [row["certified at 1/10"] for row in said[0]] == ["50.0%", "0.0%", "0.0%"]
    assert (clever["estimated >= 1/10"], fmn["not broken at 1/10"], crown["estimated >= 1/10"]) == (
        "100.0%",
        "100.0%",
        "",
    )
    assert "estimated >= 1/10" not in said[1][0]
    assert not any("certified" in word for word in said[2][0])
    result = RadiiResult(
        columns=tuple(columns),
        labels=(0, 1),
        norm=Norm.LINF,
        eps="1/10",
        eps_value=0.1,
        own={},
        crossings=(),
        refused={},
    )
    page = page_of(result, "x")
    certified, rest = page.split("<h3>Estimated</h3>")
    assert "CLEVER</th>" not in certified.split("<h3>Certified</h3>")[1]
    assert "Certified radii" not in page
    assert "CLEVER</th>" in rest
