"""Audit a model of your own from Python: ``python examples/own_model.py``, half a minute.

The same from the command line, once the weights are saved:

    holdfast audit --model runs/own/model.safetensors --arch examples/own_model.py:network --data digits:test \\
        --samples 50 --norm l2 --eps 0.3 --out runs/own/audit
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import holdfast as hf


def network() -> nn.Module:
    """Any module that returns logits will do."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))


def trained(epochs: int = 15) -> nn.Module:
    """Trained in any way you like; nothing here is Holdfast's."""
    torch.manual_seed(0)
    model, digits = network(), hf.load_data("digits:train")
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(digits)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(digits.x[rows]), digits.y[rows]).backward()
            optimiser.step()
    return model.eval()


def main() -> None:
    """Trains, attacks, audits, reads the verdicts and rechecks them."""
    model, folder = trained(), Path("runs/own")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")

    threat = hf.ThreatModel.of("l2", "0.3")
    report = hf.audit(model, "digits:test", threat, samples=50, certify="crown", out=folder / "python")
    print(report.headline.statement)
    for sample in report.samples:
        if sample.status is hf.Status.BROKEN and sample.witness and sample.certificate:
            safe, broken = sample.certificate.radius, sample.witness.distance
            print(f"sample {sample.id}: safe up to {safe:.3f}, broken at {broken:.3f}")
    print(hf.attack(model, hf.load_data("digits:test").head(50), "fmn", "l2"))
    print("recheck:", hf.recheck(folder / "python", model=model).ok)


if __name__ == "__main__":
    main()
