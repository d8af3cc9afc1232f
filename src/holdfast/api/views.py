"""What is drawn of the random changes of the input that a model is put behind (EOT), as people write it."""

from __future__ import annotations

from holdfast.core.errors import UsageError, did_you_mean

__all__ = ["ranges"]


def ranges(text: str) -> dict[str, float]:
    """``rotation=20,noise=0.05`` as numbers.

    Raises:
        UsageError: not of that form, or no such range.

    Example:
        >>> ranges("rotation=20, noise=0.05")
        {'rotation': 20.0, 'noise': 0.05}
    """
    from holdfast.transforms.random_transform import RANGES

    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in RANGES:
            raise UsageError(f"--views has no range '{name}'. {did_you_mean(name, RANGES)}")
        try:
            found[name] = float(value) if equals else float("nan")
        except ValueError:
            found[name] = float("nan")
        if not found[name] > 0:
            raise UsageError(f"--views {part.strip()}: write {name}=NUMBER, above 0")
    return found
