"""Holdfast: adversarial robustness of deep-learning models, from both sides."""

from holdfast.core.version import __version__

__all__ = ["__version__"]
