"""Audit a model of your own from Python: ``python examples/own_model.py``, half a minute.

The same from the command line, once the weights are saved:

    holdfast audit --model runs/own/model.safetensors --arch examples/own_model.py:network --data digits:test \\
        --samples 50 --norm l2 --eps 0.3 --out runs/own/audit
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.audits.plan import Plan
from holdfast.audits.recheck import recheck
from holdfast.audits.run import audit
from holdfast.core.verdict import Status
from holdfast.data import load_data
from holdfast.training.batch import Batch
from holdfast.training.checkpoint import save_weights
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings


def network() -> nn.Module:
    """Any module that returns logits will do."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """What the training minimises."""
    return F.cross_entropy(model(batch.x), batch.y)


def main() -> None:
    """Trains, audits, reads the verdicts and rechecks them."""
    torch.manual_seed(0)
    model = network()
    fit(model, load_data("digits:train"), loss, settings=TrainingSettings(epochs=15))
    folder = Path("runs/own")
    save_weights(model, folder / "model.safetensors")

    plan = Plan.of(data="digits:test", samples=50, norm="l2", eps="0.3", certify="crown")
    document = audit(plan, folder / "python", model=model)
    print(document.headline.statement)
    for sample in document.samples:
        if sample.status is Status.BROKEN and sample.witness and sample.certificate:
            safe, broken = sample.certificate.radius, sample.witness.distance
            print(f"sample {sample.id}: safe up to {safe:.3f}, broken at {broken:.3f}")
    print("recheck:", recheck(folder / "python", model=model).ok)


if __name__ == "__main__":
    main()
