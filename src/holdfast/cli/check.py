"""``holdfast check``: accepts or rejects a proof that ``holdfast verify --proof`` wrote."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import options as o
from holdfast.cli.console import say, say_json
from holdfast.cli.spread import spread
from holdfast.core.errors import UsageError

__all__ = ["check"]


@spread
def check(
    file: Annotated[Path, typer.Argument(help="The proof.", metavar="FILE")],
    net: Annotated[
        Path | None, typer.Argument(help="The network; where the proof says it was, if missing.", metavar="NET.onnx")
    ] = None,
    prop: Annotated[
        Path | None, typer.Argument(help="The property; likewise, packed or not.", metavar="PROP.vnnlib")
    ] = None,
    *,
    talk: o.TalkOptions,
) -> None:
    """Accept or reject a proof: exit code 0 or 1."""
    if net and not prop:
        raise UsageError("give the network and the property, or neither")
    for path in (file, net, prop):
        if path and not path.is_file():
            raise UsageError(f"no file {path}")
    from holdfast.checker import Rejected
    from holdfast.checker import check as checked

    try:
        found = asdict(checked(file, net, prop))
    except Rejected as reason:
        if talk.json:
            say_json({"accepted": False, "reason": str(reason)})
        else:
            say(f"rejected: {reason}", style="red")
        raise typer.Exit(1) from None
    if talk.json:
        say_json({"accepted": True, **found})
        return
    say(f"accepted: the property holds in {found['arithmetic']}", style="green")
    say(f"network   sha256 {found['network']}\nproperty  sha256 {found['property']}")
    say(f"{found['cases']} cases, {found['leaves']} leaves, {found['seconds']:.1f} s")
