"""Holdfast: adversarial robustness of deep-learning models, from both sides."""

__version__ = "0.1.0"
__all__ = ["__version__"]
