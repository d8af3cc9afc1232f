"""``predict.py:function`` as a model: any code that turns an array into scores or labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from typing_extensions import override

from holdfast.core.errors import ModelError, UnsafeFileError, UsageError
from holdfast.core.kinds import is_list_or_tuple
from holdfast.models.arch import import_function, working_folder_on_path
from holdfast.models.queries_only import QueriesOnly

__all__ = ["PredictFunction", "function_of"]


def function_of(model: str) -> tuple[Path, str] | None:
    """File and function of ``predict.py:function``; None for any other name of a model.

    Example:
        >>> function_of("predict.py:scores")[1], function_of("net.onnx")
        ('scores', None)
    """
    file, colon, name = model.rpartition(":")
    return (Path(file), name) if colon and file.endswith(".py") and name else None


class PredictFunction(QueriesOnly):
    """A function of a Python file: numpy (n, \\*features) float32 -> scores (n, K) or labels (n,).

    Its subject is the hash of the file and the function's name; what the file imports or loads is not in it.
    """

    def __init__(self, spec: str, *, trust: bool, classes: int | Sequence[Any] | None = None) -> None:
        """Imports the file, which runs it.

        Raises:
            UnsafeFileError: without trust.
            UsageError: no such file or function.
            ModelError: the file fails to import.
        """
        found = function_of(spec)
        if found is None:
            raise UsageError(f"'{spec}' is no function of a file; write predict.py:function")
        path, name = found
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
        if not trust:
            raise UnsafeFileError(f"asking {spec} runs the code in {path}; if you trust it, pass --trust")
        with working_folder_on_path():
            function = import_function(spec, trust=True, flag="--model")
        digest = hashlib.sha256(path.read_bytes() + f"\x1f{name}".encode()).hexdigest()
        super().__init__(digest, f"{path.name}:{name}", "it is a function, which gives no gradients", classes)
        self._function = cast(Callable[[np.ndarray], Any], function)

    @override
    def ask(self, x: np.ndarray) -> np.ndarray:
        """(n, \\*features) float32 -> what the function gives."""
        try:
            answer = self._function(x)
        except (Exception, SystemExit) as fault:  # a user's function may raise anything, and end the program
            raise ModelError(
                f"{self.what} fails on {len(x)} rows, which it is given at once as an array {x.shape}: "
                f"{type(fault).__name__}: {str(fault)[:300]}"
            ) from fault
        if is_list_or_tuple(answer) and answer and isinstance(answer[0], dict):
            return self.by_class(answer, "return an array of scores (n, classes)")
        return np.asarray(answer)
