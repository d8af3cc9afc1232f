"""Where a fit stands, in a file: its state, what it cost and the units of its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save

from holdfast.attacks.shared.artefact import read_tensors
from holdfast.attacks.shared.contract import SharedState
from holdfast.core.errors import JournalError
from holdfast.core.files import write_whole
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Ledger

__all__ = ["resumed", "total", "write"]

_FORM = "2"  # of a checkpoint; 1 held the state by names of its own and did not say so


def write(
    path: Path, of: str, step: int, state: SharedState, inquiries: Sequence[Inquiry], spent: Ledger | None
) -> None:
    """Writes where a fit stands, whole or not at all.

    Args:
        path: the file.
        of: says which fit it is.
        step: steps made.
        state: after them.
        inquiries: of its models; they know what was asked, and in which units scores are told.
        spent: what was asked before a resume.
    """
    # cloned, for a state may hold one tensor twice and a file may not
    tensors = {f"state.{k}": v.detach().cpu().contiguous().clone() for k, v in state.tensors().items()}
    tensors["ledger"] = total(inquiries, spent).stacked.cpu()
    tensors["units"] = torch.stack([one.units.values for one in inquiries]).cpu()
    write_whole(path, save(tensors, {"form": _FORM, "of": of, "step": str(step)}))


def resumed(
    path: Path | None, of: str, kind: type[SharedState], inquiries: Sequence[Inquiry]
) -> tuple[int, SharedState | None, Ledger | None]:
    """Steps made, the state after them and what they cost, where there is a checkpoint; the units of scores go on as well.

    Raises:
        JournalError: the file is of another fit, or of another version of Holdfast.
    """
    if path is None or not path.exists():
        return 0, None, None
    tensors, header = read_tensors(path, inquiries[0].units.values.device)
    form = header.get("form", "1")
    if "of" in header and form != _FORM:
        raise JournalError(
            f"{path} is a checkpoint of form {form}, and this version of Holdfast reads form {_FORM}; remove it to start "
            "anew, or finish the fit with the version that began it"
        )
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    if header.get("of") != of or "units" not in tensors or set(state) != {f.name for f in fields(kind)}:
        raise JournalError(f"{path} is the checkpoint of another fit; remove it or name another file")
    for inquiry, values in zip(inquiries, tensors["units"], strict=True):
        inquiry.units.resume(values)
    return int(header["step"]), kind(**state), Ledger.of(tensors["ledger"])


def total(inquiries: Sequence[Inquiry], before: Ledger | None) -> Ledger:
    """What all inquiries charged, and what was charged before a resume."""
    ledgers = [inquiry.ledger for inquiry in inquiries] + ([] if before is None else [before])
    return sum(ledgers[1:], ledgers[0])
