"""What a shared attack makes, and inputs with it on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from holdfast.core.errors import UnsafeFileError
from holdfast.core.files import write_whole

__all__ = ["Applied", "Artefact", "read_tensors"]


@dataclass(frozen=True)
class Artefact:
    """What a fit made: tensors and facts, one safetensors file on disk.

    Attributes:
        method: name of the attack that made it and that applies it.
        tensors: by name.
        facts: plain values that `apply` or a reader needs.

    Example:
        >>> Artefact("uap", {"delta": torch.zeros(1, 8, 8)}).tensors["delta"].shape
        torch.Size([1, 8, 8])
    """

    method: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def save(self, path: Path) -> None:
        """Writes the artefact whole or not at all."""
        header = {"method": self.method, "facts": json.dumps(dict(self.facts), sort_keys=True)}
        write_whole(path, save({k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}, header))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Artefact:
        """Reads what `save` wrote.

        Raises:
            UnsafeFileError: the file is not such an artefact.
        """
        tensors, header = read_tensors(path, device)
        if "method" not in header or "facts" not in header:
            raise UnsafeFileError(
                f"{path} is no artefact of a shared attack; 'holdfast attack' writes artefact.safetensors"
            )
        return cls(header["method"], tensors, json.loads(header["facts"]))

    @property
    def sha256(self) -> str:
        """Hash of tensors and facts."""
        digest = hashlib.sha256(json.dumps([self.method, dict(self.facts)], sort_keys=True).encode())
        for name in sorted(self.tensors):
            value = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Applied:
    """Inputs with the artefact on them.

    Attributes:
        x: (n, \\*features).
        conditions: (n,) each, what was drawn for a sample, under names that people read (``angle``, ``scale``).
    """

    x: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def read_tensors(path: Path, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and its header.

    Raises:
        UnsafeFileError: the file is no safetensors file.
    """
    try:
        opened: Any = safe_open(path, framework="pt", device=str(device))
        with opened as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as fault:
        raise UnsafeFileError(f"{path} cannot be read as safetensors: {fault}") from None
