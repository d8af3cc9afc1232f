"""Escaped markup and figures in words: what every drawing and page of the report is made of."""

from __future__ import annotations

from datetime import datetime
from math import floor, log10

from markupsafe import Markup, escape

__all__ = ["count", "instant", "interval", "measure", "percent", "printable", "prose", "span", "tag"]

_NBSP, _THIN = "\u00a0", "\u202f"


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """An element: contents and attributes are escaped unless they are markup; ``class_`` and ``stroke_width`` are
    written ``class`` and ``stroke-width``; attributes that are None are left out.

    Example:
        >>> str(tag("text", "a<b", x=1.50, class_="t"))
        '<text x="1.5" class="t">a&lt;b</text>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{''.join(str(escape(i)) for i in inside)}</{name}>")


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def printable(text: str) -> str:
    """Text without control characters, which could steer a terminal or break XML.

    Example:
        >>> printable("a\\x1b[31mb")
        'a?[31mb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def prose(text: str) -> Markup:
    """Text in which `` `words` `` in backticks become code; everything is escaped.

    Example:
        >>> str(prose("use `--seed <n>` again"))
        'use <code>--seed &lt;n&gt;</code> again'
    """
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    return Markup("").join(tag("code", piece) if k % 2 else escape(piece) for k, piece in enumerate(pieces))


def percent(share: float | None, digits: int = 1) -> str:
    """A share in per cent.

    Example:
        >>> percent(0.4125).replace("\\u00a0", " ")
        '41.2 %'
    """
    return "none" if share is None else f"{100 * share:.{digits}f}{_NBSP}%"


def interval(bounds: tuple[float, float] | None) -> str:
    """A 95 % interval in per cent."""
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}{_NBSP}%"


def count(value: float) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,.0f}".replace(",", _THIN)


def measure(value: float | None, digits: int = 4) -> str:
    """A measured number, to so many significant digits and without an exponent where it can be read without.

    Example:
        >>> measure(0.031372549), measure(12.0), measure(3e-7)
        ('0.03137', '12', '3e-07')
    """
    if value is None:
        return "none"
    if value and not -5 < floor(log10(abs(value))) < 6:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - floor(log10(abs(value)))) if value else 0
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def span(seconds: float) -> str:
    """A duration as people say it.

    Example:
        >>> span(0.42), span(75), span(7260)
        ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def instant(text: str) -> str:
    """An ISO 8601 instant as people read it; other text is left as it is."""
    try:
        return f"{datetime.fromisoformat(text):%d %B %Y, %H:%M} UTC".lstrip("0")
    except ValueError:
        return text
