"""The attacker who knows the training data but may only query the model: surrogates trained on the same data.

One who has to ask for the labels trains a substitute: `holdfast.attacks.evasion.transfer.substitute`.
Survey, section 1 (known training data) and Liu et al. 2017 (an ensemble transfers better than one network).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.attacks.common.ensemble import Ensemble
from holdfast.audits.folder import RunFolder
from holdfast.audits.plan import Plan
from holdfast.data.load import load_data
from holdfast.models.zoo import substitute
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

__all__ = ["trained_surrogate"]

_MEMBERS, _EPOCHS, _SAMPLES = 2, 10, 10_000


def trained_surrogate(plan: Plan, folder: RunFolder, classes: int) -> nn.Module:
    """An ensemble trained on the plan's training data; kept in the run's folder, so that a resumed run has the same one."""
    data = load_data(plan.train_data or "").head(_SAMPLES)
    members: list[nn.Module] = []
    for k in range(_MEMBERS):
        seed = plan.seed + k
        member = substitute(tuple(data.x.shape[1:]), classes, seed)
        fit(
            member,
            data,
            _cross_entropy,
            settings=TrainingSettings(epochs=_EPOCHS, seed=seed),
            checkpoint=folder.path / f"surrogate{k}.safetensors",
            resume=True,
            device=plan.device,
        )
        members.append(member)
    return Ensemble(members)


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)
