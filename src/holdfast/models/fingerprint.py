"""The identity of a model: what a witness or a certificate is about."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch
from torch import Tensor, nn

from holdfast.core.errors import ModelError

__all__ = ["fingerprint"]


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the architecture as printed and every parameter and buffer: name, type, shape, bytes.

    Buffers count even if a state dict leaves them out: a normalisation's mean is part of f. Device and mode do not
    count. What is invisible here is the code of ``forward`` and attributes that ``extra_repr`` does not print.

    Raises:
        ModelError: a tensor is on the meta device, which holds no numbers.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> fingerprint(a) == fingerprint(b), fingerprint(a) == fingerprint(a.eval())
        (False, True)
    """
    digest = hashlib.sha256(repr(module).encode())
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    for name, tensor in sorted(named, key=lambda item: item[0]):
        if tensor.is_meta:
            raise ModelError(
                f"'{name}' is on the meta device, which holds no numbers; load the weights first, for example with "
                "load_state_dict(weights, assign=True)"
            )
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()
