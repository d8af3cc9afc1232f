"""The command line in this process, and a small trained model with data to use it on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from holdfast.cli.main import main
from holdfast.data.load import load_data
from holdfast.models.zoo import digits_mlp
from holdfast.training.checkpoint import save_weights
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

ARCH = "holdfast.models.zoo:digits_mlp"


class Said(NamedTuple):
    code: int
    out: str
    err: str


Holdfast = Callable[..., Said]


@pytest.fixture
def holdfast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Holdfast:
    """Runs ``holdfast ARGUMENTS`` and returns its exit code and what it said."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model.safetensors``, ``test.npz`` and ``train.npz``."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model = digits_mlp()
    fit(model, load_data("digits:train"), lambda model, batch: F.cross_entropy(model(batch.x), batch.y),
        settings=TrainingSettings(epochs=4))  # fmt: skip
    save_weights(model, folder / "model.safetensors")
    for name in ("train", "test"):
        data = load_data(f"digits:{name}").head(100)
        np.savez(folder / f"{name}.npz", x=data.x.numpy(), y=data.y.numpy())
    return folder


@pytest.fixture(scope="session")
def on(place: Path) -> list[object]:
    """The flags that name them."""
    return ["--model", place / "model.safetensors", "--arch", ARCH, "--data", place / "test.npz"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A linear model of three columns in ranges of their own, with the data that it was made for."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    units = torch.rand(60, 3)
    own = units * torch.tensor([80.0, 1e5, 1.0]) + torch.tensor([18.0, 0.0, 0.0])
    own[:, 0].round_()
    with torch.no_grad():
        model.weight /= torch.tensor([80.0, 1e5, 1.0])
        model.bias -= model(own).mean(0)
    save_file(model.state_dict(), "net.safetensors")
    Path("net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(3, 2)\n")
    Path("t.yaml").write_text(
        "columns:\n  age: {low: 18, high: 98, type: integer}\n  pay: {high: 100000}\n  sex: {immutable: true}\n"
    )
    y = ["yes" if k == 0 else "no" for k in model(own).argmax(1).tolist()]
    rows = [",".join([*map(repr, map(float, row)), label]) for row, label in zip(own.tolist(), y, strict=True)]
    Path("t.csv").write_text("age,pay,sex,label\n" + "\n".join(rows) + "\n")
    return tmp_path
