"""Weights from a file, and into a module: every key accounted for."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from holdfast.core.errors import ModelError, UnsafeFileError
from holdfast.models.guard import Format

__all__ = ["fill", "read_objects", "read_state", "state_in"]

_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = {
    "module.": "DataParallel",
    "_module.": "Opacus",
    "_orig_mod.": "torch.compile",
    "_forward_module.": "Lightning",
    "model.": "a wrapper",
    "net.": "a wrapper",
}


def read_state(path: Path, kind: Format) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights in a file of tensors, and what was noticed. Never unpickles anything but tensors.

    Raises:
        ModelError: damaged, or not a dictionary of tensors.
        UnsafeFileError: PyTorch's restricted unpickler refuses it.
    """
    if kind is Format.SAFETENSORS:
        from safetensors import SafetensorError
        from safetensors import torch as safetensors

        try:
            return cast(Any, safetensors).load_file(path), ()
        except (SafetensorError, OSError) as fault:
            raise ModelError(f"{path} is a damaged or truncated safetensors file ({fault}); fetch it again") from None
    return state_in(read_objects(path, trust=False), path)


def read_objects(path: Path, *, trust: bool) -> object:
    """What ``torch.save`` wrote; with ``trust`` any object, and its code runs.

    Raises:
        ModelError: damaged.
        UnsafeFileError: more than tensors, without trust.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():  # a file, since torch.load reads a path by its name
            warnings.simplefilter("ignore")  # about storage classes and source changes; nothing that a user can act on
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as fault:
        if trust:
            raise ModelError(f"{path} is damaged ({fault})") from None
        raise UnsafeFileError(
            f"{path} holds more than tensors: {str(fault).splitlines()[0]}; --trust opens it"
        ) from None
    except Exception as fault:  # a damaged archive raises what its parser meets
        raise ModelError(
            f"{path} cannot be opened; is it damaged or truncated? ({type(fault).__name__}: {fault})"
        ) from None


def state_in(objects: object, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The dictionary of tensors in a checkpoint, one level down if need be, and a note if so.

    Raises:
        ModelError: there is none.
    """
    if _is_state(objects):
        return dict(objects), ()
    if not isinstance(objects, Mapping):
        raise ModelError(f"{path} holds {type(objects).__name__}, not the state dict of a model")
    held = cast(Mapping[Any, Any], objects)
    for key in _NESTED:
        inner = held.get(key)
        if _is_state(inner):
            others = ", ".join(str(k) for k in held if k != key)
            return dict(inner), (f"weights were under '{key}' of a checkpoint; left aside: {others or 'nothing'}",)
    raise ModelError(f"{path} is a checkpoint without a state dict; its keys: {_some([str(k) for k in held])}")


def _is_state(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether it is tensors by name, at least one."""
    if not isinstance(value, Mapping):
        return False
    held = cast(Mapping[Any, Any], value)
    return bool(held) and all(isinstance(t, Tensor) for t in held.values())


def fill(module: nn.Module, state: Mapping[str, Tensor], *, what: str) -> tuple[str, ...]:
    """Load weights into a module so that every key of either finds its counterpart.

    A prefix that wrapping adds to all keys is taken off, with a note; batch norm's ``num_batches_tracked``, which no
    forward in eval mode reads, may be absent or extra. Tensors that the module shares (tied weights) need one of their
    names in the file.

    Args:
        module: what to fill.
        state: the weights.
        what: how to call the architecture in an error.

    Returns:
        what was noticed.

    Raises:
        ModelError: keys are missing or left over, shapes differ, or the file has two values for what the module
            shares; all are named.
    """
    own = {key: value for key, value in module.state_dict().items() if not _counter(key)}
    given = {key: value for key, value in state.items() if not _counter(key)}
    given, notes = _without_prefix(given, own)
    given, tied = _shared(given, own, what)
    notes += tied
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or extra:
        parts = [f"missing: {_some(missing)}"] * bool(missing) + [f"not in the architecture: {_some(extra)}"] * bool(
            extra
        )
        raise ModelError(f"the weights do not belong to {what}; {'; '.join(parts)}. Is it the right --arch?")
    odd = [
        f"{k}: {tuple(given[k].shape)} in the file, {tuple(own[k].shape)} wanted"
        for k in own
        if given[k].shape != own[k].shape
    ]
    if odd:
        unfit = {k: (given[k].shape, own[k].shape) for k in own if given[k].shape != own[k].shape}
        raise ModelError(f"the weights do not fit {what}; {_some(odd)}. {_resized(unfit, what)}")
    module.load_state_dict(given, strict=False)
    kinds = sorted({_plain(v) for v in given.values() if v.is_floating_point() and v.dtype != torch.float32})
    return (*notes, *(f"some weights are stored as {kind}; the model runs in float32" for kind in kinds))


def _shared(given: dict[str, Tensor], own: Mapping[str, Tensor], what: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights with every name of a shared tensor; safetensors keeps one name for it, PyTorch all."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for key, tensor in own.items():
        if tensor.numel():
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.stride())
            groups.setdefault((*place, tensor.shape), []).append(key)
    filled, notes = dict(given), list[str]()
    for names in groups.values():
        there = [name for name in names if name in given]
        odd = [name for name in there if not _same(given[name], given[there[0]])]
        if odd:
            raise ModelError(
                f"{what} shares one tensor under {_some(names)}, and the file has different values for {there[0]} and "
                f"{odd[0]}; an architecture that does not tie them is needed"
            )
        absent = [name for name in names if name not in given]
        if there and absent:
            filled |= dict.fromkeys(absent, given[there[0]])
            notes.append(f"{_some(absent)} is tied to {there[0]}, which the file holds")
    return filled, notes


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _without_prefix(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    notes: list[str] = []
    found = True
    while found and given.keys() != own.keys():
        found = False
        for prefix, source in _PREFIXES.items():
            if all(k.startswith(prefix) for k in given) and not any(k.startswith(prefix) for k in own):
                given = {k.removeprefix(prefix): v for k, v in given.items()}
                notes.append(f"the prefix '{prefix}' of all weights, which {source} adds, was taken off")
                found = True
    return given, notes


def _counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _plain(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _resized(unfit: Mapping[str, tuple[Sequence[int], Sequence[int]]], what: str) -> str:
    """What to do about shapes that differ: a head of another number of classes has a usual remedy."""
    heads = {(there[0], here[0]) for there, here in unfit.values() if len(there) and there[1:] == here[1:]}
    if len(heads) != 1 or any(there[1:] != here[1:] for there, here in unfit.values()):
        return "Is it the right --arch, built with the right sizes?"
    (classes, built), source, name = heads.pop(), *what.rpartition(":")[::2]
    code = f"def build(): return {name or 'the_network'}(num_classes={classes})"
    where = f"with 'from {source} import {name}' before it " if source and not source.endswith(".py") else ""
    return (
        f"It has {built} classes where the file has {classes}: write '{code}' in a file net.py {where}and give "
        "--arch net.py:build"
    )
