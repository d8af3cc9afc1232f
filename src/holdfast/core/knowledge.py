"""What an attacker on the training phase knows: as access is a type for the deployment phase, so is knowledge here.

A card names what its method asks for, and the method gets that and nothing else. What a defence sees stands in the
signature of its contract: a scanner gets a model and clean data, and no way to a manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import nn

from holdfast.core.cards import Card, Knows
from holdfast.core.errors import UsageError
from holdfast.core.manifest import Samples

__all__ = ["Knowledge"]


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is known beside the data set that is poisoned; None where it is not.

    Attributes:
        surrogate: a clean model of the attacker's own for the same task, x (n, \\*features) -> scores (n, K).
        targets: inputs that the poisoned model shall answer wrongly, with the labels that the attacker wants.
        clean: clean samples of the same distribution that are not poisoned.

    Example:
        >>> knowledge = Knowledge(surrogate=nn.Identity())
        >>> card = Card(title="Toy", rows=(), paper="", section="", summary="")
        >>> knowledge.narrowed(card).surrogate is None
        True
    """

    surrogate: nn.Module | None = None
    targets: Samples | None = None
    clean: Samples | None = None

    def narrowed(self, card: Card) -> Knowledge:
        """What the card asks for, and nothing else.

        Raises:
            UsageError: something that it asks for is not known; the message names it.
        """
        asked = {str(what) for what in card.knows}
        missing = sorted(name for name in asked if getattr(self, name) is None)
        if missing:
            raise UsageError(f"{card.title} must know {' and '.join(_WORDS[Knows(name)] for name in missing)}; give it")
        return replace(self, **{f.name: None for f in fields(self) if f.name not in asked})

    def known_surrogate(self) -> nn.Module:
        """The surrogate, for a method whose card asks for it.

        Raises:
            UsageError: it is not known: the card does not ask for it.
        """
        if self.surrogate is None:
            raise UsageError(
                "no surrogate is known; a method that uses one says so on its card: knows=(Knows.SURROGATE,)"
            )
        return self.surrogate


_WORDS = {
    Knows.SURROGATE: "a clean model of the same task",
    Knows.TARGETS: "the inputs that it is after",
    Knows.CLEAN: "clean samples",
}
