"""What a pickle would call, read from its instructions without carrying out any of them."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import IO

__all__ = ["LEGACY_MAGIC", "callables"]

LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number with which PyTorch's format from before the zip archives begins, as pickle writes it."""

_HARMLESS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.storage.UntypedStorage",
    *(
        f"torch.{kind}Storage"
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
    *(
        f"torch.{kind}"
        for kind in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    ),
}
_TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_NO_EFFECT = {"PROTO", "FRAME", "MEMOIZE", *_PUT}


def callables(file: IO[bytes], count: int) -> list[str]:
    """Dotted names of what ``count`` pickles in a row would import, without those that only rebuild tensors.

    A name that is computed or a program that is damaged is listed in words: whoever cannot be read is not harmless.
    PyTorch's own restricted unpickler remains the gate; this says beforehand, and in words, what it would refuse.

    Example:
        >>> import io, os, pickle
        >>> class Trap:
        ...     def __reduce__(self):
        ...         return os.system, ("touch /tmp/owned",)
        >>> callables(io.BytesIO(pickle.dumps(Trap())), 1)
        ['posix.system']
    """
    found: list[str] = []
    for number in range(count):
        try:
            for name in _names(file):  # one by one, so that what stands before a damage is known too
                if name not in _HARMLESS and name not in found:
                    found.append(name)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as fault:
            if number == 0 or not str(fault).startswith("pickle exhausted"):
                found.append(f"damaged instructions ({str(fault)[:80]})")
            break
    return found


def _names(file: IO[bytes]) -> Iterator[str]:
    """Each global that one pickle names.

    STACK_GLOBAL takes the two values on top of the stack. ``pushed`` follows only strings and puts None for every other
    instruction, so its last two entries are the stack's top if and only if both are strings.
    """
    pushed: list[str | None] = [None, None]
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        kind = opcode.name
        if kind in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif kind == "STACK_GLOBAL":
            module, name = pushed[-2:]
            yield "a computed name" if module is None or name is None else f"{module}.{name}"
        elif kind.startswith("EXT"):
            yield f"extension {argument}"
        if kind == "MEMOIZE":
            memo[len(memo)] = pushed[-1]
        elif kind in _PUT:
            memo[int(argument or 0)] = pushed[-1]
        elif kind in _TEXT:
            pushed.append(str(argument))
        elif kind in _GET:
            pushed.append(memo.get(int(argument or 0)))
        if kind not in _NO_EFFECT | _TEXT | _GET:
            pushed.append(None)
        del pushed[:-2]
