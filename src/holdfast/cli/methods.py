"""``holdfast methods``: what there is, and the card of a method."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli import options as o
from holdfast.cli.console import say, say_json, show
from holdfast.cli.spread import spread

__all__ = ["methods"]

_BOLD = ("parameters", "known failure modes")


@spread
def methods(
    pattern: Annotated[
        str, typer.Argument(help="A name for its card, or a pattern such as 'apgd*'.", metavar="[NAME|PATTERN]")
    ] = "*",
    *,
    talk: o.TalkOptions,
) -> None:
    """List methods, or show the card of one."""
    from holdfast.api.methods import methods as matching

    found = matching(pattern)
    named = found.names() == [pattern.replace("-", "_").lower()]
    if talk.json:
        pages = [page.to_dict() for page in found]
        say_json(pages[0] if named else pages)
    elif named:
        for k, line in enumerate(map(str, found[0].blocks())):
            say(line, style="bold" if k == 0 or line in _BOLD else None)
    else:
        show([found.rows()])
