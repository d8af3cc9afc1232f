"""Every block of docs/python.md runs, in order, in one folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import holdfast as hf
from holdfast.models.zoo import digits_mlp
from holdfast.training.checkpoint import save_weights
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

DOC = Path(__file__).parents[2] / "docs" / "python.md"

PROPERTY = """
(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)
(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (<= X_1 1))
(assert (<= Y_0 Y_1))
"""


def blocks(text: str) -> list[tuple[int, str]]:
    """(line, code) of each fenced block of Python."""
    return [(text.count("\n", 0, m.start(1)), m[1]) for m in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)]


def test_blocks_are_found_with_their_lines() -> None:
    assert blocks("a\n```python\nx = 1\n```\nb\n```text\nno\n```\n") == [(2, "x = 1\n")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page says is there."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = digits_mlp()
    fit(model, hf.load_data("digits:train"), lambda model, batch: F.cross_entropy(model(batch.x), batch.y),
        settings=TrainingSettings(epochs=3))  # fmt: skip
    save_weights(model, Path("model.safetensors"))
    for split in ("test", "train"):
        data = hf.load_data(f"digits:{split}")
        np.savez(f"{split}.npz", x=data.x.numpy(), y=data.y.numpy())
    _save_net(Path("net.onnx"))
    Path("property.vnnlib").write_text(PROPERTY)
    return tmp_path


def _save_net(path: Path) -> None:
    """y = |x0| + (0.5, 0) - 0.1 x1 as a small network of rectifiers."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "w0": np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]), "b0": np.zeros(4),
        "w1": np.array([[1, 1, -0.1, 0.1], [0.5, 0.5, 0, 0]]), "b1": np.array([0.5, 0.0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["a"]),
        helper.make_node("Gemm", ["a", "w1", "b1"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)


def test_every_block_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for line, code in blocks(DOC.read_text(encoding="utf-8")):
        exec(compile("\n" * line + code, str(DOC), "exec"), names)
    said = capsys.readouterr().out
    assert "Did you mean steps?" in said
    assert "<= true robust accuracy <=" in said
    assert "unsat None" in said
    assert (folder / "net.proof").is_file()
    assert (folder / "report.html").is_file()
    shutil.rmtree(folder / "runs")
