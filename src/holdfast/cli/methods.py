"""``holdfast methods``: what there is, and the card of a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options as o
from holdfast.cli.console import say, say_json, table
from holdfast.cli.spread import spread

if TYPE_CHECKING:
    from holdfast.core.cards import Card

__all__ = ["card_as_dict", "methods"]


@spread
def methods(
    pattern: Annotated[
        str, typer.Argument(help="A name for its card, or a pattern such as 'apgd*'.", metavar="[NAME|PATTERN]")
    ] = "*",
    *,
    talk: o.TalkOptions,
) -> None:
    """List methods, or show the card of one."""
    from holdfast.core.errors import UsageError, did_you_mean
    from holdfast.core.registry import card, kind, method, names

    key = pattern.replace("-", "_").lower()
    found = names(pattern=key)
    if not found:
        raise UsageError(f"no method matches '{pattern}'. {did_you_mean(key, names())}")
    if found == [key]:
        shown = {"name": key, "kind": kind(key), **card_as_dict(card(key), method(key))}
        if talk.json:
            say_json(shown)
        else:
            _show(shown)
        return
    cards = {name: card_as_dict(card(name), method(name)) for name in found}
    if talk.json:
        say_json([{"name": name, "kind": kind(name), **c} for name, c in cards.items()])
        return
    table(
        ("name", "title", "access", "norms", "rows", "paper"),
        [
            (name, c["title"], c["access"] or c["guarantee"] or c["phase"], " ".join(c["norms"]), " ".join(c["rows"]),
             c["paper"].split(",")[0] if len(c["paper"]) < 40 else c["paper"][:40] + "...")
            for name, c in cards.items()
        ],
    )  # fmt: skip


def card_as_dict(card: Card, method: type) -> dict[str, Any]:
    """A card in plain values, with the method's parameters."""
    from holdfast.core.cards import parameters_of

    return {
        "title": card.title, "rows": list(card.rows), "paper": card.paper, "section": card.section,
        "summary": card.summary, "phase": str(card.phase), "access": None if card.access is None else card.access.label,
        "goals": [str(g) for g in card.goals],
        "formulation": None if card.formulation is None else str(card.formulation),
        "norms": [str(n) for n in card.norms], "modality": list(card.modality),
        "guarantee": None if card.guarantee is None else str(card.guarantee),
        "parameters": [{"name": p.name, "default": p.default, "meaning": p.meaning, "source": p.source}
                       for p in parameters_of(method)],
        "failure_modes": list(card.failure_modes), "checked_by": card.checked_by,
    }  # fmt: skip


def _show(c: dict[str, Any]) -> None:
    say(f"{c['name']}: {c['title']}", style="bold")
    say(c["summary"])
    say("")
    for key in ("kind", "paper", "section", "rows", "phase", "access", "formulation", "goals", "norms", "guarantee"):
        value = ", ".join(c[key]) if isinstance(c[key], list) else c[key]
        if value:
            say(f"{key:<14}{value}")
    if c["parameters"]:
        say("")
        say("parameters", style="bold")
        for p in c["parameters"]:
            say(f"  {p['name']} = {p['default']}: {p['meaning']} ({p['source']})")
    if c["failure_modes"]:
        say("")
        say("known failure modes", style="bold")
        for mode in c["failure_modes"]:
            say(f"  {mode}")
    if c["checked_by"]:
        say("")
        say(f"checked by: {c['checked_by']}")
