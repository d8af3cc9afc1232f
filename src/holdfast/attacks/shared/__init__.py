"""Shared attacks: one artefact for many samples, fitted once, applied to inputs it has not seen.

A universal perturbation, a patch, a texture and a substitute model are artefacts. `fit` drives the attack's steps, keeps
checkpoints and charges what is asked to the sample that caused it; `evaluate` lets the referee judge `apply` on held-out
samples with fresh draws.
"""

from holdfast.attacks.shared.artefact import Applied, Artefact
from holdfast.attacks.shared.contract import SharedAttack, SharedState
from holdfast.attacks.shared.evaluation import Evaluation, evaluate
from holdfast.attacks.shared.fitting import Fitted, fit

__all__ = ["Applied", "Artefact", "Evaluation", "Fitted", "SharedAttack", "SharedState", "evaluate", "fit"]
