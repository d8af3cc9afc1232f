"""A separate checker of proofs that a network has a property: numpy, and `onnx` to parse the network's file.

It shares no code with what finds proofs; `docs/proofs.md` says what exactly is checked. It can be run alone:

    python -m holdfast.checker FILE NET.onnx PROP.vnnlib
"""

from holdfast.checker.file import Checked, check
from holdfast.checker.rounding import Rejected

__all__ = ["Checked", "Rejected", "check"]
