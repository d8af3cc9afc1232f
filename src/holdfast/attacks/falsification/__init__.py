"""Searches a box for an input whose outputs meet linear constraints: the attack that a verifier is given.

Not a registered method: it answers a query about a region, not a problem about samples. Signed gradients with momentum
and halving steps (as in Auto-PGD, Croce & Hein 2020), from the centre, the corners that gradients point to, and random
points, for all groups of constraints at once. Where a network is flat, some rounds follow the gradient of one whose
ReLUs leak. With few inputs random points alone go a long way; the best are moved at random, less and less, and then by
linear programs.
"""

from holdfast.attacks.falsification.falsifier import falsifier
from holdfast.attacks.falsification.question import Question

__all__ = ["Question", "falsifier"]
