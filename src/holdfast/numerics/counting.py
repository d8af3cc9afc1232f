"""Counts what goes through a module, whoever sends it: for work whose passes nobody else keeps a ledger of."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from holdfast.core.cost import Cost

__all__ = ["PassCounter", "counting"]


@dataclass
class PassCounter:
    """What went through a module so far.

    Attributes:
        forwards: rows that it was given.
        backwards: rows whose answer was differentiated.
    """

    forwards: int = 0
    backwards: int = 0

    @property
    def cost(self) -> Cost:
        """As a cost; the module is one's own, so that no row is a query."""
        return Cost(forwards=self.forwards, backwards=self.backwards)

    def watch(self, module: nn.Module) -> RemovableHandle:
        """Counts what goes through a module until the handle is removed."""
        return module.register_forward_hook(self._forwards)

    def _forwards(self, _: nn.Module, given: tuple[Any, ...], answer: object) -> None:
        rows = len(given[0])
        self.forwards += rows
        if isinstance(answer, Tensor) and answer.requires_grad:

            def came_back(_: Tensor) -> None:
                self.backwards += rows

            answer.register_hook(came_back)  # pyright: ignore[reportUnknownMemberType]  # the stubs leave its type open


@contextmanager
def counting(module: nn.Module) -> Generator[PassCounter, None, None]:
    """Counts the rows of a module's first argument for the time being, and those that a gradient comes back through.

    Only calls of the module itself are seen, not those of its parts; copies that are made meanwhile are counted with it.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 3)
        >>> with counting(net) as passes:
        ...     net(torch.zeros(5, 2)).sum().backward()
        ...     _ = net(torch.zeros(4, 2))
        >>> passes.cost
        Cost(forwards=9, backwards=5, queries=0)
    """
    passes = PassCounter()
    handle = passes.watch(module)
    try:
        yield passes
    finally:
        handle.remove()
