"""``holdfast verify``: each answer with its exit code, lists with journal and resume, and what is refused."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.certifiers.verification.vnnlib import parse_counterexample
from holdfast.verification.decide import Effort, rerun
from holdfast.verification.instances import read_instances
from holdfast.verification.record import InstanceRecord
from holdfast.verification.workers import InstanceWorkers

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def _write(path, layers, node="Relu"):
    """An ONNX file of linear layers with activations between them."""
    nodes, held, last = [], [], "x"
    for k, (weight, bias) in enumerate(layers):
        held += [numpy_helper.from_array(np.asarray(weight, np.float32), f"w{k}"),
                 numpy_helper.from_array(np.asarray(bias, np.float32), f"b{k}")]  # fmt: skip
        nodes.append(helper.make_node("Gemm", [last, f"w{k}", f"b{k}"], [f"z{k}"], transB=1))
        last = f"z{k}"
        if k + 1 < len(layers):
            nodes.append(helper.make_node(node, [last], [f"a{k}"]))
            last = f"a{k}"
    size, out = np.shape(layers[0][0])[1], np.shape(layers[-1][0])[0]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, size))],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, (1, out))], held,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def _property(unsafe, inputs=2, outputs=2):
    names = [*(f"X_{i}" for i in range(inputs)), *(f"Y_{j}" for j in range(outputs))]
    text = "".join(f"(declare-const {name} Real)\n" for name in names)
    text += "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))\n" for i in range(inputs))
    return text + f"(assert {unsafe})\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """|x0| + |x1| and |x0| - |x1| as a network, with properties that hold, that do not, and that are hard."""
    place = tmp_path_factory.mktemp("verify")
    (place / "toy" / "onnx").mkdir(parents=True)
    (place / "toy" / "vnnlib").mkdir()
    split = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    _write(place / "toy/onnx/net.onnx", [(split, np.zeros(4)), ([[1, 1, 1, 1], [1, 1, -1, -1]], np.zeros(2))])
    rng = np.random.default_rng(0)
    wide = [
        (rng.normal(size=(60, 20)), np.zeros(60)),
        *[(rng.normal(size=(60, 60)) / 5, np.zeros(60)) for _ in range(4)],
    ]
    _write(place / "toy/onnx/hard.onnx", [*wide, (rng.normal(size=(2, 60)), np.zeros(2))])
    for name, unsafe in (
        ("holds", "(or (>= Y_0 2.5) (<= Y_1 -1.5))"), ("broken", "(and (>= Y_0 1.5) (<= Y_1 0.1))"), ("bad", "(<= Y_7 0)")
    ):  # fmt: skip
        (place / f"toy/vnnlib/{name}.vnnlib").write_text(_property(unsafe))
    (place / "toy/vnnlib/hard.vnnlib").write_text(_property("(>= Y_0 1500)", 20))
    return place


@pytest.fixture
def net(folder):
    return folder / "toy/onnx/net.onnx"


@pytest.fixture
def prop(folder):
    return lambda name: folder / "toy/vnnlib" / f"{name}.vnnlib"


def test_what_holds(holdfast, net, prop):
    said = holdfast("verify", net, prop("holds"))
    assert (said.code, said.out) == (0, "unsat\n")
    assert "unsat: " in said.err
    quiet = holdfast("verify", net, prop("holds"), "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "unsat\n", "")


def test_what_is_broken_comes_with_a_counterexample(holdfast, net, prop, tmp_path):
    said = holdfast("verify", net, prop("broken"))
    assert said.code == 1
    assert said.out.startswith("sat\n((X_0 ")
    x = [float(v) for v in parse_counterexample(said.out, 2)]
    assert abs(x[0]) + abs(x[1]) >= 1.5
    assert abs(x[0]) - abs(x[1]) <= 0.1
    assert rerun(net, prop("broken"), said.out) == []
    assert rerun(net, prop("holds"), said.out)  # it shows nothing about another property
    kept = tmp_path / "deep" / "x.txt"
    assert holdfast("verify", net, prop("broken"), "--counterexample", kept).out == "sat\n"
    assert rerun(net, prop("broken"), kept.read_text()) == []


def test_what_takes_too_long(holdfast, folder, prop):
    begun = time.monotonic()
    said = holdfast("verify", folder / "toy/onnx/hard.onnx", prop("hard"), "--timeout", 0.5)
    assert said.code == 3
    assert said.out in ("timeout\n", "unknown\n")
    assert time.monotonic() - begun < 30


def test_json(holdfast, net, prop):
    said = holdfast("verify", net, prop("broken"), "--format", "json")
    told = json.loads(said.out)
    assert said.code == 1
    assert told["verdict"] == "sat"
    assert told["counterexample"].startswith("sat\n")
    told = json.loads(holdfast("verify", net, prop("holds"), "--format", "json").out)
    assert (told["verdict"], told["counterexample"]) == ("unsat", None)
    assert "float64" in told["arithmetic"]
    assert told["bound"] > 0
    assert told["held_against"].startswith(("onnxruntime", "our own second evaluation"))


def test_one_method_alone(holdfast, net, prop):
    assert holdfast("verify", net, prop("holds"), "--method", "ibp").out in ("unsat\n", "unknown\n")
    said = holdfast("verify", net, prop("holds"), "--method", "input_split")
    assert said.code == 2
    assert "input_split" in said.err


def test_weights_with_an_architecture(holdfast, prop, tmp_path):
    (tmp_path / "made.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(2, 2))\n")
    weights = tmp_path / "w.pt"
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data, model[0].bias.data = torch.eye(2), torch.zeros(2)
    torch.save(model.state_dict(), weights)
    flags = ["--arch", f"{tmp_path / 'made.py'}:net", "--trust"]
    said = holdfast("verify", weights, prop("holds"), *flags, "--shape", "2")
    assert said.out == "unsat\n", said.err
    said = holdfast("verify", weights, prop("holds"), *flags)
    assert said.code == 2
    assert "--shape" in said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{net}"], "what property"),
        ([], "what network"),
        (["{net}", "{bad}"], "Y_7 is used before it is declared"),
        (["{net}", "absent.vnnlib"], "cannot read absent.vnnlib"),
        (["absent.onnx", "{holds}"], "absent.onnx"),
        (["{holds}", "{holds}"], "vnnlib"),
        (["{hard}", "{holds}"], "X_0 to X_1, the network has 20 inputs"),
        (["{net}", "{holds}", "--timeout", "0"], "seconds above 0"),
        (["{net}", "{holds}", "--memory", "much"], "500M or 2G"),
        (["{net}", "{holds}", "--out", "x"], "--instances"),
        (["{net}", "{holds}", "--arch", "a:b"], "leave out --arch"),
        (["{net}", "--instances", "x.csv"], "leave out NET"),
        (["--instances", "absent.csv"], "cannot read absent.csv"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(holdfast, folder, net, prop, arguments, says):
    names = {
        "net": net, "holds": prop("holds"), "bad": prop("bad"), "hard": folder / "toy/onnx/hard.onnx",
    }  # fmt: skip
    said = holdfast("verify", *(a.format(**names) for a in arguments))
    assert said.code == 2, said
    assert says in said.err
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_operations(holdfast, net, tmp_path):
    said = holdfast("verify", "--operations", net)
    assert said.code == 0
    assert "Gemm\tfile\t2\tread" in said.out
    assert "relu\tgraph\t1\tbounded" in said.out
    _write(tmp_path / "odd.onnx", [(np.eye(2), np.zeros(2)), (np.eye(2), np.zeros(2))], node="Det")
    said = holdfast("verify", "--operations", tmp_path / "odd.onnx")
    assert said.code == 3
    assert "Det\tfile\t1\tnot known to the reader" in said.out
    assert holdfast("verify", tmp_path / "odd.onnx", tmp_path / "odd.onnx").code == 2


# --- lists ------------------------------------------------------------------------------------------------------------


def _list(folder, name, rows, head=True):
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if head:
            writer.writerow(["benchmark", "onnx", "vnnlib", "timeout_s", "verdict", "confidence"])
        writer.writerows(rows)
    return path


NET = "toy/onnx/net.onnx"
ROWS = [
    ("toy", NET, "toy/vnnlib/holds.vnnlib", "60", "unsat", "tools>=2"),
    ("toy", NET, "toy/vnnlib/broken.vnnlib", "60", "sat", "proved-by-counterexample"),
    ("toy", NET, "toy/vnnlib/bad.vnnlib", "60", "open", ""),
    ("other", NET, "toy/vnnlib/broken.vnnlib", "60", "unsat", "one-tool"),
]


def test_a_list_goes_on_after_errors_and_says_what_contradicts(holdfast, folder, tmp_path):
    listed, out = _list(folder, "a.csv", ROWS), tmp_path / "run"
    said = holdfast("verify", "--instances", listed, "--out", out, "--workers", 0)
    assert said.code == 3  # one instance failed
    rows = [line.split("\t") for line in said.out.splitlines()]
    table = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:3]}
    assert (table["toy"]["solved"], table["toy"]["sat"], table["toy"]["unsat"], table["toy"]["error"]) == (
        "2",
        "1",
        "1",
        "1",
    )
    assert table["other"]["wrong"] == "0"  # a single tool's claim, and our witness holds
    assert "other net broken: sat, but the list says unsat (one-tool); the witness holds, run again" in said.out
    assert "[1/4] toy net holds: unsat" in said.err
    assert "Y_7" in said.err
    told = json.loads((out / "verify.json").read_text())
    assert [i["verdict"] for i in told["instances"]] == ["unsat", "sat", "error", "sat"]
    assert "| toy | 3 | 2 |" in (out / "verify.md").read_text()
    (first, _) = sorted((out / "counterexamples").iterdir())
    assert rerun(folder / NET, folder / "toy/vnnlib/broken.vnnlib", first.read_text()) == []
    again = holdfast("verify", "--instances", listed, "--out", out, "--workers", 0)
    assert "/4]" not in again.err  # nothing is left to do
    assert again.out == said.out


def test_a_wrong_verdict_is_loud(holdfast, folder, tmp_path):
    listed = _list(folder, "b.csv", [(*ROWS[0][:4], "sat", "proved-by-counterexample")])
    said = holdfast("verify", "--instances", listed, "--out", tmp_path / "run", "--workers", 0)
    assert said.code == 3
    assert "contradiction: toy net holds: unsat, but the list says sat (proved-by-counterexample)" in said.err


def test_the_competitions_list(holdfast, folder, tmp_path):
    listed = _list(folder / "toy", "c.csv", [("onnx/net.onnx", "vnnlib/broken.vnnlib", "20")], head=False)
    said = holdfast("verify", "--instances", listed, "--out", tmp_path / "run", "--workers", 0, "--format", "json")
    assert said.code == 0
    (row,) = json.loads(said.out)["summary"]
    assert (row["benchmark"], row["sat"], row["known"]) == ("toy", 1, 0)


def test_only_some_benchmarks_and_then_the_others(holdfast, folder, tmp_path):
    listed, out = _list(folder, "d.csv", [ROWS[0], ROWS[3]]), tmp_path / "run"
    said = holdfast("verify", "--instances", listed, "--out", out, "--workers", 0, "--only", "other")
    assert "[1/1] other" in said.err
    said = holdfast("verify", "--instances", listed, "--out", out, "--workers", 0)
    assert "[2/2] toy" in said.err
    said = holdfast("verify", "--instances", listed, "--out", out, "--only", "toys")
    assert said.code == 2
    assert "Did you mean toy?" in said.err


def test_a_folder_belongs_to_one_list_and_one_way_of_deciding(holdfast, folder, tmp_path):
    listed, out = _list(folder, "e.csv", ROWS[:1]), tmp_path / "run"
    assert holdfast("verify", "--instances", listed, "--out", out, "--workers", 0).code == 0
    for flags in (["--timeout", "5"], ["--method", "ibp"], ["--deployed", "float32"]):
        said = holdfast("verify", "--instances", listed, "--out", out, "--workers", 0, *flags)
        assert said.code == 3
        assert "another settings" in said.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lists nothing"),
        ("a.onnx\n", "line 1: 1 columns"),
        ("a.onnx,b.vnnlib,soon\n", "'soon' is no number"),
        ("onnx,vnnlib\n\na.onnx,b.vnnlib,60\n", "line 3: 3 columns"),
    ],
)
def test_what_is_no_list(holdfast, tmp_path, text, says):
    listed = tmp_path / "list.csv"
    listed.write_text(text)
    said = holdfast("verify", "--instances", listed, "--out", tmp_path / "run")
    assert said.code == 2
    assert says in said.err


@pytest.mark.slow  # three processes that import everything
def test_a_run_that_was_killed_goes_on_where_it_was(folder, tmp_path):
    """The whole program in a process of its own with a worker, killed after its first instance."""
    rows = [ROWS[0], ("toy", "toy/onnx/hard.onnx", "toy/vnnlib/hard.vnnlib", "5", "", ""), ROWS[1]]
    listed, out = _list(folder, "f.csv", rows), tmp_path / "run"
    command = [sys.executable, "-c", "from holdfast.cli.main import main; main()", "verify", "--instances", str(listed),
               "--out", str(out)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert begun.stderr is not None
    assert "[1/3] toy net holds: unsat" in begun.stderr.readline()
    begun.send_signal(signal.SIGKILL)
    begun.communicate()
    db = sqlite3.connect(out / "journal.sqlite")
    assert db.execute("SELECT COUNT(*) FROM units").fetchone() == (1,)
    db.execute("INSERT INTO units SELECT stage, 1, payload, 'altered', seconds FROM units")
    db.commit()  # a unit whose hash does not match is done again
    db.close()
    listed_again = _list(folder, "f.csv", rows)
    assert listed_again == listed
    ended = subprocess.run(
        [*command, "--workers", "2", "--only", "toy"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert "[2/3]" in ended.stderr
    assert "[3/3]" in ended.stderr
    assert "[1/3]" not in ended.stderr


def test_a_worker_that_dies_or_hangs_is_replaced(folder):
    rows = [("toy", NET, f"{name}.vnnlib", "0.5", "", "") for name in ("dies", "hangs", "works")]
    tasks = [(instance, Effort(timeout=0.5)) for instance in read_instances(_list(folder, "g.csv", rows))]
    done = {i.prop.stem: record for i, record in InstanceWorkers(count=1, grace=2.0, serve=_dying).run(tasks)}
    assert {name: record.verdict for name, record in done.items()} == {
        "dies": "error", "hangs": "timeout", "works": "unsat",
    }  # fmt: skip
    assert "exit code 7" in done["dies"].reason
    assert "time limit" in done["hangs"].reason


def test_a_journal_of_the_former_form_is_refused_by_its_form(holdfast, folder, tmp_path):
    listed, out = _list(folder, "h.csv", ROWS[:1]), tmp_path / "run"
    assert holdfast("verify", "--instances", listed, "--out", out, "--workers", 0).code == 0
    db = sqlite3.connect(out / "journal.sqlite")
    db.execute("UPDATE identity SET value = '1' WHERE name = 'version'")
    db.commit()
    db.close()
    said = holdfast("verify", "--instances", listed, "--out", out, "--workers", 0)
    assert said.code == 3
    assert "records of form 1" in said.err
    assert "verify the list again" in said.err


def _dying(pipe, threads):
    while True:
        instance, _ = pipe.recv()
        pipe.send(None)
        if instance.prop.stem == "dies":
            os._exit(7)
        if instance.prop.stem == "hangs":
            time.sleep(60)
        pipe.send(InstanceRecord(verdict="unsat", seconds=0.1))
