"""Fills a template: one HTML file that opens offline, prints, and loads nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from holdfast.core.words import counted
from holdfast.report import markup

__all__ = ["embed", "fill"]


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("holdfast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": markup.percent,
        "interval": markup.interval,
        "count": markup.count,
        "counted": _counted,
        "measure": markup.measure,
        "span": markup.span,
        "instant": markup.instant,
        "prose": markup.prose,
    }
    templates.filters.update(filters)  # pyright: ignore[reportUnknownMemberType]
    return templates


@cache
def _own(name: str) -> str:
    """A style sheet or script of ours, as shipped."""
    return files("holdfast.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _counted(value: int, noun: str) -> str:
    return counted(value, noun).replace(f"{value:,}", markup.count(value))


def _allow(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def embed(values: object) -> Markup:
    """Values as JSON that is safe inside a script element: no ``<``, ``>`` or ``&`` is left in it."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def fill(template: str, **values: object) -> str:
    """A page from a template, with our style and script inlined and everything else forbidden by its policy."""
    style, script = _own("style.css"), _own("page.js")
    own = f"style-src {_allow(style)}; script-src {_allow(script)}"
    policy = f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"
    page = _templates().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values)
