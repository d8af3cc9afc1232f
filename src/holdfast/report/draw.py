"""A small plotting surface that writes SVG: colours come from the page's style sheet, so dark mode and print follow.

Own SVG rather than a plotting library's: the same document gives the same bytes, curves stay text, and a chart is a few
kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, log10

from markupsafe import Markup

from holdfast.report.markup import tag

__all__ = ["Plot", "Point", "after", "before", "legend", "nice", "svg"]

Point = tuple[float, float]


def svg(width: float, height: float, *inside: Markup, title: str, class_: str = "chart") -> Markup:
    """An inline SVG that scales with its column; ``title`` is what a screen reader says."""
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", *inside, viewBox=box, role="img", aria_label=title, class_=class_, width=width, height=height)


def nice(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round tick values that cover [low, high].

    Example:
        >>> nice(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / wanted or 1.0
    power = 10 ** floor(log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [round(k * step, 12) for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def after(points: Sequence[Point]) -> list[Point]:
    """Corners of the step curve that keeps each value until the next point."""
    out = list(points[:1])
    for (_, y), (x, z) in pairwise(points):
        out += [(x, y), (x, z)]
    return out


def before(points: Sequence[Point]) -> list[Point]:
    """Corners of the step curve that takes each value from the point before on."""
    out = list(points[:1])
    for (x, _), (w, y) in pairwise(points):
        out += [(x, y), (w, y)]
    return out


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Keys of a chart: (classes of the mark, text); ``dot`` draws a marker, ``area`` a filled box, else a line."""
    rows: list[Markup] = []
    for mark, text in entries:
        if "dot" in mark:
            key = tag("circle", cx=14, cy=6, r=4.5, class_=mark)
        elif "area" in mark:
            key = tag("rect", x=2, y=1, width=24, height=10, class_=mark)
        else:
            key = tag("path", d="M1 6H27", class_=mark)
        rows.append(tag("li", tag("svg", key, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true"), text))
    return tag("ul", *rows, class_="legend")


@dataclass(kw_only=True)
class Plot:
    """One pair of axes; data coordinates in, markup out."""

    x_range: Point
    y_range: Point = (0.0, 1.0)
    width: float = 720
    height: float = 320
    margin: tuple[float, float, float, float] = (14, 30, 46, 66)
    warp: Callable[[float], float] = float
    parts: list[Markup] = field(default_factory=list[Markup])

    def x(self, value: float) -> float:
        """Pixel of an abscissa."""
        low, high = self.warp(self.x_range[0]), self.warp(self.x_range[1])
        _, right, _, left = self.margin
        return left + (self.warp(value) - low) / (high - low or 1.0) * (self.width - left - right)

    def y(self, value: float) -> float:
        """Pixel of an ordinate."""
        low, high = self.y_range
        top, _, bottom, _ = self.margin
        return top + (high - value) / (high - low or 1.0) * (self.height - top - bottom)

    def axes(
        self,
        x_ticks: Sequence[tuple[float, str]],
        x_label: str,
        y_label: str,
        y_text: Callable[[float], str] = lambda share: f"{100 * share:.0f} %",
    ) -> None:
        """The frame: pale lines across at each ordinate tick, labels below and at the left."""
        top, right, bottom, left = self.margin
        base, end = self.height - bottom, self.width - right
        for value in nice(*self.y_range):
            self.parts.append(tag("path", d=f"M{left:g} {self.y(value):.1f}H{end:g}", class_="grid"))
            self.label(left - 8, self.y(value) + 4, y_text(value), "tick end")
        for value, text in x_ticks:
            self.parts.append(tag("path", d=f"M{self.x(value):.1f} {base:g}v5", class_="axis"))
            self.label(self.x(value), base + 19, text, "tick mid")
        self.parts.append(tag("path", d=f"M{left:g} {base:g}H{end:g}", class_="axis"))
        self.label((left + end) / 2, self.height - 6, x_label, "axis-name mid")
        turned = f"translate(13 {(top + base) / 2:g}) rotate(-90)"
        self.parts.append(tag("text", y_label, transform=turned, class_="axis-name mid"))

    def label(self, x: float, y: float, text: str, class_: str = "") -> None:
        """Text at a pixel."""
        self.parts.append(tag("text", text, x=x, y=y, class_=class_ or None))

    def _path(self, points: Sequence[Point]) -> str:
        out: list[str] = []
        for px, py in ((self.x(a), self.y(b)) for a, b in points):
            step = f"{px:.1f} {py:.1f}"
            if not out or out[-1] != step:
                out.append(step)
        return "M" + "L".join(out)

    def line(self, points: Sequence[Point], class_: str) -> None:
        """A polyline."""
        if points:
            self.parts.append(tag("path", d=self._path(points), class_=f"line {class_}"))

    def between(self, upper: Sequence[Point], lower: Sequence[Point], class_: str) -> None:
        """The area between two curves that run from left to right."""
        if upper and lower:
            self.parts.append(tag("path", d=self._path([*upper, *reversed(lower)]) + "Z", class_=class_))

    def dot(self, x: float, y: float, class_: str, note: str, radius: float = 4.5) -> None:
        """A marker that says ``note`` when pointed at."""
        self.parts.append(tag("circle", tag("title", note), cx=self.x(x), cy=self.y(y), r=radius, class_=class_))

    def upright(self, x: float, text: str) -> None:
        """A dashed line at an abscissa with its name at the top."""
        top, _, bottom, _ = self.margin
        self.parts.append(tag("path", d=f"M{self.x(x):.1f} {top:g}V{self.height - bottom:g}", class_="mark"))
        self.label(self.x(x) + 6, top + 11, text, "mark-name")

    def whisker(self, x: float, low: float, high: float, class_: str, cap: float = 4) -> None:
        """A vertical interval with caps."""
        px, a, b = self.x(x), self.y(low), self.y(high)
        path = f"M{px:.1f} {a:.1f}V{b:.1f}M{px - cap:.1f} {a:.1f}h{2 * cap:g}M{px - cap:.1f} {b:.1f}h{2 * cap:g}"
        self.parts.append(tag("path", d=path, class_=f"whisker {class_}"))

    def render(self, title: str) -> Markup:
        """The chart."""
        return svg(self.width, self.height, *self.parts, title=title)
