"""A small trained network and a few digits, for the facade."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holdfast as hf
from holdfast.models.zoo import digits_mlp
from holdfast.training.checkpoint import save_weights
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings


@pytest.fixture(scope="session")
def model() -> nn.Module:
    torch.manual_seed(0)
    module = digits_mlp()
    fit(module, hf.load_data("digits:train"), lambda model, batch: F.cross_entropy(model(batch.x), batch.y),
        settings=TrainingSettings(epochs=4))  # fmt: skip
    return module.eval()


@pytest.fixture(scope="session")
def data() -> hf.Dataset:
    return hf.load_data("digits:test").head(12)


@pytest.fixture(scope="session")
def weights(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("api") / "model.safetensors"
    save_weights(model, file)
    return file


@pytest.fixture
def threat() -> hf.ThreatModel:
    return hf.ThreatModel.of("linf", "0.1")
