"""What a method says of itself: its card, and its parameters with meaning and source."""

from holdfast.core.cards import Card as Card
from holdfast.core.cards import Parameter as Parameter
from holdfast.core.cards import parameter as parameter

__all__ = ["Card", "Parameter", "parameter"]
