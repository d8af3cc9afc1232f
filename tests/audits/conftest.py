"""A small trained network and its data, saved as files, for whole audits."""

import numpy as np
import pytest
import torch
from forging import proves_everything
from safetensors.torch import save_file
from torch import nn

from holdfast.audits.plan import Plan
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.data.load import load_data
from holdfast.models.zoo import digits_mlp


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(weights file, data file, module): an MLP on the digits, trained in a second."""
    folder = tmp_path_factory.mktemp("model")
    train, test = load_data("digits:train"), load_data("digits:test")
    torch.manual_seed(0)
    model = digits_mlp()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(train.x), train.y).backward()
        optimiser.step()
    weights, data = folder / "mlp.safetensors", folder / "digits.npz"
    save_file(model.state_dict(), weights)
    np.savez(data, x=test.x[:60].numpy(), y=test.y[:60].numpy())
    return weights, data, model.eval()


@pytest.fixture
def plan(trained):
    """A plan with several chunks and every stage."""
    weights, data, _ = trained
    return Plan.of(
        model=str(weights), arch="holdfast.models.zoo:digits_mlp", data=str(data), samples=30, norm="linf", eps="1/16",
        suite="fast", certify="crown", chunk=10, grid="1/16", eps_grid=("1/32",), seed=3, queries=150,
    )  # fmt: skip


@pytest.fixture
def credulous(monkeypatch):
    """Certifiers of graphs say yes to everything."""
    monkeypatch.setattr(GraphCertifier, "certify", proves_everything)
