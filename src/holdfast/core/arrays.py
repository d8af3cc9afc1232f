"""Host arrays on the device: step counters and choices of rows are NumPy on the host, what is computed with is not.

Sorting is the exception: on a CPU NumPy sorts with vector instructions, several times faster than PyTorch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import DataError, ModelError

__all__ = [
    "dense",
    "distinct",
    "falling_order",
    "fingerprint_arrays",
    "listed",
    "on_device",
    "outside_inference_mode",
    "plain",
    "rising",
    "tensor_of",
    "whole_numbers",
]


@contextmanager
def outside_inference_mode() -> Generator[None, None, None]:
    """Where callers are in `torch.inference_mode`, whose tensors no gradient passes, tensors are made as under `no_grad`."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():  # leaving inference mode alone would switch gradients on
        yield


def plain(values: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Values as a tensor of its own: no gradient leads out of it, and autograd may use it.

    A tensor that was made under `torch.inference_mode` is copied, for no gradient can be taken through it; one that is
    sparse is filled up.

    Raises:
        DataError: the values are no numbers.

    Example:
        >>> plain(np.zeros(2)).dtype, plain(torch.ones(1, requires_grad=True)).requires_grad
        (torch.float64, False)
    """
    with outside_inference_mode():
        tensor = values if isinstance(values, Tensor) else _numbers(values)
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def _numbers(values: np.ndarray[Any, Any]) -> Tensor:
    given: Any = values
    kind: Any = getattr(given, "dtype", type(given).__name__)
    try:
        if str(kind) == "object":  # as pandas has columns of mixed types
            given = np.asarray(given.tolist())
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"values of type {kind} where numbers were expected; names of classes are numbered by "
            "np.unique(names, return_inverse=True)[1]"
        ) from None


def dense(answer: Tensor) -> Tensor:
    """A model's answer as ordinary numbers: sparse, quantised and 8-bit floating tensors hold them otherwise, and PyTorch can
    hardly calculate with those; yes and no are 1 and 0.

    Raises:
        ModelError: it holds no numbers at all (a tensor on the device ``meta``).

    Example:
        >>> dense(torch.tensor([0.0, 2.0]).to_sparse()), dense(torch.tensor([True]))
        (tensor([0., 2.]), tensor([1.]))
    """
    if answer.is_meta:
        raise ModelError(
            "the model answers with a tensor without numbers (device meta); load its weights onto a device"
        )
    if answer.layout is not torch.strided:
        answer = answer.to_dense()
    if answer.is_quantized:
        answer = answer.dequantize()
    eighth = answer.is_floating_point() and answer.itemsize == 1
    return answer.float() if eighth or answer.dtype is torch.bool else answer


def whole_numbers(values: Tensor | np.ndarray[Any, Any], n: int, what: str) -> Tensor:
    """(n,) int64 from any type that holds whole numbers.

    Args:
        values: integers of any width, bool, or floats that are whole.
        n: how many there must be.
        what: their name, for the refusal: ``labels``.

    Raises:
        DataError: another shape, or no whole numbers.

    Example:
        >>> whole_numbers(np.array([1.0, 0.0]), 2, "labels"), whole_numbers(torch.tensor([True]), 1, "labels")
        (tensor([1, 0]), tensor([1]))
    """
    given: Any = values
    if given is None:
        raise DataError(f"no {what}; give {n} integers, one for each sample")
    with outside_inference_mode():
        tensor = plain(given)
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.shape != (n,):
            hint = "; one-hot? use argmax(1)" if tensor.ndim == 2 and len(tensor) == n and tensor.shape[1] > 1 else ""
            shape = tuple(tensor.shape)
            raise DataError(
                f"{what} must be integers of shape ({n},), one for each sample, got {kind} of shape {shape}{hint}"
            )
        if tensor.is_complex() or (tensor.is_floating_point() and not bool((tensor == tensor.round()).all())):
            raise DataError(f"{what} must be whole numbers, got {kind} values that are none")
        return tensor.to(torch.int64)


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """A NumPy array as a tensor on the CPU that shares its memory.

    Example:
        >>> tensor_of(np.arange(3)).tolist()
        [0, 1, 2]
    """
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]  # torch leaves its argument open


def on_device(array: np.ndarray[Any, Any], device: torch.device | str) -> Tensor:
    """A NumPy array as a tensor on a device, without waiting for the copy.

    Example:
        >>> on_device(np.arange(3), "cpu").tolist()
        [0, 1, 2]
    """
    whole = np.ascontiguousarray(array)
    return tensor_of(whole).to(device, non_blocking=True)


def listed(values: Tensor) -> list[Any]:
    """The entries as Python numbers, in lists as deep as the tensor.

    Example:
        >>> listed(torch.tensor([True, False]))
        [True, False]
    """
    return values.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # torch leaves it open


def distinct(values: Tensor, dim: int | None = None) -> Tensor:
    """The values without repetition, (k,), the least first; with ``dim``, what lies along it without repetition.

    Example:
        >>> distinct(torch.tensor([[3, 1], [1, 2]])).tolist()
        [1, 2, 3]
        >>> distinct(torch.tensor([[1, 2], [1, 2]]), dim=0).tolist()
        [[1, 2]]
    """
    return values.unique(dim=dim)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # untyped


def rising(values: Tensor) -> Tensor:
    """The values of each row, the least first.

    Example:
        >>> rising(torch.tensor([[3.0, 1.0, 2.0]])).tolist()
        [[1.0, 2.0, 3.0]]
    """
    if values.device.type != "cpu" or values.dtype == torch.bfloat16:  # which NumPy has not
        return values.sort(dim=-1).values
    return tensor_of(np.sort(values.detach().numpy(), axis=-1))


def falling_order(values: Tensor) -> Tensor:
    """int64 indices that put each row in falling order; equal values come in an order that their row alone decides.

    Example:
        >>> falling_order(torch.tensor([[3.0, 1.0, 2.0]])).tolist()
        [[0, 2, 1]]
    """
    if values.device.type != "cpu" or values.dtype == torch.bfloat16:
        return values.argsort(dim=-1, descending=True, stable=True)
    return tensor_of(np.argsort(-values.detach().numpy(), axis=-1))


def fingerprint_arrays(*arrays: np.ndarray | Tensor) -> str:
    """SHA-256 over the element type, shape and bytes of arrays, in order.

    Example:
        >>> fingerprint_arrays(np.zeros(2, np.float32)) == fingerprint_arrays(torch.zeros(2))
        True
        >>> fingerprint_arrays(np.zeros((1, 2))) == fingerprint_arrays(np.zeros((2, 1)))
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)  # the same hash on every machine
        digest.update(f"{values.dtype.str} {values.shape}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()
