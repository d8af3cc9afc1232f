"""Attacks: the engine that drives them and the methods. Here is what the file of a method needs.

A method is a frozen dataclass of its parameters with a `Card`, derived from `Attack` (an input for each sample) or
`SharedAttack` (one artefact for many), for an ask of the least power that it can do with.
"""

from holdfast.attacks.attack import Attack as Attack
from holdfast.attacks.attack import State as State
from holdfast.attacks.shared import Applied as Applied
from holdfast.attacks.shared import Artefact as Artefact
from holdfast.attacks.shared import SharedAttack as SharedAttack
from holdfast.attacks.shared import SharedState as SharedState
from holdfast.core.cards import Card as Card
from holdfast.core.cards import parameter as parameter
from holdfast.core.threat import Access as Access
from holdfast.core.threat import Formulation as Formulation
from holdfast.core.threat import Goal as Goal
from holdfast.core.threat import Norm as Norm
from holdfast.judge.asks import HardLabelAsk as HardLabelAsk
from holdfast.judge.asks import SoftLabelAsk as SoftLabelAsk
from holdfast.judge.asks import WhiteBoxAsk as WhiteBoxAsk

__all__ = [
    "Access",
    "Applied",
    "Artefact",
    "Attack",
    "Card",
    "Formulation",
    "Goal",
    "HardLabelAsk",
    "Norm",
    "SharedAttack",
    "SharedState",
    "SoftLabelAsk",
    "State",
    "WhiteBoxAsk",
    "parameter",
]
