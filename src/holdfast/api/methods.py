"""What there is: the methods by name, and the card of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

from typing_extensions import override

from holdfast.api.results import Block, Rows
from holdfast.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from holdfast.core.cards import Card

__all__ = ["MethodPage", "Methods", "card_as_dict", "method", "methods"]

_PAPER = 40
_KEYS = ("kind", "paper", "section", "rows", "phase", "access", "knows", "formulation", "goals", "norms", "guarantee")


@dataclass(frozen=True, kw_only=True)
class MethodPage:
    """A method as its card has it.

    Attributes:
        name: what the verbs take.
        kind: ``attack``, ``certifier``, ``training defence``, ...
        card: what it is, where it comes from and what it needs.
        cls: its class: parameters are its fields.
    """

    name: str
    kind: str
    card: Card
    cls: type

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the method's parameters."""
        return {"name": self.name, "kind": self.kind, **card_as_dict(self.card, self.cls)}

    def blocks(self) -> list[Block]:
        """What a reader sees."""
        c = self.to_dict()
        lines: list[Block] = [f"{c['name']}: {c['title']}", c["summary"], ""]
        for key in _KEYS:
            value = ", ".join(c[key]) if isinstance(c[key], list) else c[key]
            lines += [f"{key:<14}{value}"] if value else []
        if c["parameters"]:
            lines += ["", "parameters"]
            lines += [f"  {p['name']} = {p['default']}: {p['meaning']} ({p['source']})" for p in c["parameters"]]
        if c["failure_modes"]:
            lines += ["", "known failure modes", *(f"  {mode}" for mode in c["failure_modes"])]
        return [*lines, *(["", f"checked by: {c['checked_by']}"] if c["checked_by"] else [])]

    @override
    def __str__(self) -> str:
        return "\n".join(map(str, self.blocks()))


class Methods(Sequence[MethodPage]):
    """The methods that were asked for, in the order of their names."""

    def __init__(self, pages: Sequence[MethodPage]) -> None:
        """Takes them."""
        self._pages = tuple(pages)

    @overload
    def __getitem__(self, key: int) -> MethodPage: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[MethodPage, ...]: ...
    @override
    def __getitem__(self, key: int | slice) -> MethodPage | tuple[MethodPage, ...]:
        return self._pages[key]

    @override
    def __len__(self) -> int:
        return len(self._pages)

    def names(self) -> list[str]:
        """What the verbs take."""
        return [page.name for page in self._pages]

    def rows(self) -> Rows:
        """A row for each."""
        return Rows(("name", "title", "access", "norms", "rows", "paper"), tuple(_row(p) for p in self._pages))

    @override
    def __str__(self) -> str:
        return self.rows().text()

    @override
    def __repr__(self) -> str:
        return f"<Methods: {', '.join(self.names())}>"

    def _repr_html_(self) -> str:
        return self.rows().html()


def methods(pattern: str = "*", *, kind: str | None = None) -> Methods:
    """The methods whose name matches a pattern.

    Args:
        pattern: a name, or a pattern such as ``apgd*``.
        kind: of which kind; None: of all.

    Raises:
        UsageError: none matches; the message names the near ones.

    Example:
        >>> methods("apgd*").names()
        ['apgd_ce', 'apgd_dlr', 'apgd_t']
    """
    from holdfast.core.registry import KINDS, names
    from holdfast.core.registry import method as registered

    if kind is not None and kind not in KINDS:
        raise UsageError(f"there are no methods of the kind '{kind}'. {did_you_mean(kind, KINDS)}")
    key = pattern.replace("-", "_").lower()
    found = names(kind, key)
    if not found:
        raise UsageError(f"no method matches '{pattern}'. {did_you_mean(key, names(kind))}")
    return Methods([_page(registered(name)) for name in found])


def method(given: str | object) -> MethodPage:
    """The card of a method, with its parameters.

    Args:
        given: its name, its class or its object.

    Raises:
        UsageError: there is none of that name; the message names the near ones.

    Example:
        >>> method("pgd").card.title
        'PGD'
    """
    from holdfast.api.keywords import kind_of

    return _page(kind_of(given))


def _page(cls: Any) -> MethodPage:
    from holdfast.core.registry import kind, name_of

    return MethodPage(name=name_of(cls), kind=kind(cls), card=cls.card, cls=cls)


def _row(page: MethodPage) -> tuple[object, ...]:
    c = page.to_dict()
    paper = c["paper"].split(",")[0] if len(c["paper"]) < _PAPER else c["paper"][:_PAPER] + "..."
    able = c["access"] or c["guarantee"] or c["phase"]
    return page.name, c["title"], able, " ".join(c["norms"]), " ".join(c["rows"]), paper


def card_as_dict(card: Card, method: type) -> dict[str, Any]:
    """A card in plain values, with the method's parameters."""
    from holdfast.core.cards import parameters_of

    return {
        "title": card.title,
        "rows": list(card.rows),
        "paper": card.paper,
        "section": card.section,
        "summary": card.summary,
        "phase": str(card.phase),
        "access": None if card.access is None else card.access.label,
        "goals": [str(g) for g in card.goals],
        "formulation": None if card.formulation is None else str(card.formulation),
        "norms": [str(n) for n in card.norms],
        "modality": list(card.modality),
        "guarantee": None if card.guarantee is None else str(card.guarantee),
        "knows": [str(k) for k in card.knows],
        "parameters": [asdict(p) for p in parameters_of(method)],
        "failure_modes": list(card.failure_modes),
        "checked_by": card.checked_by,
    }
