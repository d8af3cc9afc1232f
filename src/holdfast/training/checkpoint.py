"""A training's state in one file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from holdfast.core.errors import JournalError
from holdfast.core.files import write_whole
from holdfast.training.hooks import Epoch, Hooks

__all__ = ["Checkpoint", "save_weights"]


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a module's state dict as safetensors; weights that share memory are written apart."""
    write_whole(path, save(_apart(module.state_dict()), dict(metadata or {})))


class Checkpoint:
    """The weights, the best weights so far, the optimiser's state and the history of one training.

    The history and what the training is of stand as JSON in the safetensors header, so that one file holds all and
    cannot disagree with itself.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        of: Mapping[str, object],
        hooks: Sequence[Hooks] = (),
    ) -> None:
        """Args:
        model: being trained.
        optimiser: of its parameters.
        of: what the training is of; a checkpoint of anything else is refused.
        hooks: whose state is kept along.
        """
        self.model, self.optimiser, self.hooks = model, optimiser, hooks
        self.of = {**of, "model": {k: list(v.shape) for k, v in model.state_dict().items()}}
        acting = [type(hook).__name__ for hook in hooks if type(hook) is not Hooks]
        if acting:
            self.of["hooks"] = acting
        self._best = _apart(model.state_dict())

    def keep(self) -> None:
        """Remembers the weights as the best so far."""
        self._best = _apart(self.model.state_dict())

    def restore_best(self) -> None:
        """Gives the model the best weights."""
        self.model.load_state_dict(self._best)

    def save(self, path: Path, history: Sequence[Epoch]) -> None:
        """Writes the state, and every epoch so far."""
        tensors = {f"model.{k}": v for k, v in _apart(self.model.state_dict()).items()}
        tensors |= {f"best.{k}": v for k, v in self._best.items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": v.contiguous() for name, v in slots.items() if v is not None}
        for k, hook in enumerate(self.hooks):
            tensors |= {f"hooks.{k}.{name}": v for name, v in _apart(hook.state()).items()}
        header = {
            "of": json.dumps(self.of, sort_keys=True),
            "history": json.dumps([asdict(epoch) for epoch in history]),
        }
        write_whole(path, save(tensors, header))

    def load(self, path: Path) -> list[Epoch]:
        """Reads the state into the model and the optimiser; returns the history.

        Raises:
            JournalError: the file is damaged, or of another training; the message names what differs.
        """
        try:
            opened: Any = safe_open(path, framework="pt")
            with opened as file:
                header: dict[str, str] = dict(file.metadata() or {})
                tensors: dict[str, Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            of, history = json.loads(header["of"]), [Epoch(**epoch) for epoch in json.loads(header["history"])]
        except (SafetensorError, KeyError, ValueError, TypeError) as fault:
            raise JournalError(f"{path} is no checkpoint of a training ({fault}); delete it to start anew") from None
        differs = [k for k in sorted({*of, *self.of}) if of.get(k) != json.loads(json.dumps(self.of.get(k)))]
        if differs:
            told = ", ".join(f"{k} was {of.get(k)}" if k != "model" else "another architecture" for k in differs)
            raise JournalError(f"{path} belongs to another training: {told}; repeat that, or delete it to start anew")
        self.model.load_state_dict(_under("model.", tensors))
        self._best = _under("best.", tensors)
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _under("optimiser.", tensors).items():
            index, _, name = key.partition(".")
            slots.setdefault(int(index), {})[name] = tensor
        self.optimiser.load_state_dict({"state": slots, "param_groups": self.optimiser.state_dict()["param_groups"]})
        for k, hook in enumerate(self.hooks):
            hook.load(_under(f"hooks.{k}.", tensors))
        return history


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors asks."""
    return {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in state.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
