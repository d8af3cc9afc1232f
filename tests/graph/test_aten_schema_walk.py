"""Every setting of every ATen call that the graph serves is the module's function, or it is refused in a sentence."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import suppress

import pytest
import torch
from aten_settings import SIZE, Setting, settings
from torch import Tensor, nn

from holdfast.core.errors import HoldfastError, ModelError, UnsupportedError
from holdfast.graph import Graph, trace
from holdfast.graph.aten import CALLS
from holdfast.graph.rounding import differing
from holdfast.graph.tracing import exported, read

_GROUP = 30


class _Calls(nn.Module):
    def __init__(self, chosen: list[Setting]) -> None:
        super().__init__()
        self.chosen = chosen

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(itertools.chain.from_iterable(_tensors(s(x)) for s in self.chosen))


def _tensors(value: object) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]  # type: ignore[attr-defined]


def _points(n: int) -> Tensor:
    """(k * n, SIZE): small, negative and large numbers, and whole ones."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6, n, SIZE, generator=g) * torch.tensor([0.3, 1.0, 3.0, 30.0, 300.0, 3.0])[:, None, None]
    x[5] = x[5].round()
    return x


def _runs(setting: Setting, n: int = 3) -> list[Tensor] | None:
    """What PyTorch itself gives for a batch, or None where it refuses."""
    try:
        return _tensors(setting(_points(n)[1]))
    except Exception:  # whatever PyTorch raises for a setting that it does not have
        return None


def _same(found: Tensor, expected: Tensor) -> bool:
    rows = len(expected) if expected.ndim else 1
    found, expected = found.reshape(rows, -1).double(), expected.reshape(rows, -1).double()
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax(1, keepdim=True)
    near = (found - expected).abs() <= 1e-5 * expected.abs() + 1e-6 * scale + 1e-9
    return bool((near | (found == expected) | (found.isnan() & expected.isnan())).all())


def _held(graph: Graph, setting: Setting, place: int) -> str | None:
    """What is wrong with a graph of one result of a call, or None.

    In float64 it is the call in float64, or, where that is another function (its eps, a jump at a threshold that float32
    holds otherwise), the call as it was captured; to what is small beside everything, or to the rounding that the graph
    accounts for.
    """
    fine = graph.to(torch.float64)
    module = fine.as_module()
    for x in _points(3):
        truths = [_tensors(setting(x))[place]]
        with suppress(RuntimeError):  # a type that float64 would have to be narrowed to
            truths.insert(0, _tensors(setting(x.double()))[place])
        with torch.no_grad():
            found = module(x.double())
        if all(found.numel() != expected.numel() for expected in truths):
            return f"{tuple(found.shape)} instead of {tuple(truths[0].shape)}"
        numbers = [t for t in truths if t.dtype.is_floating_point and found.numel() == t.numel()]
        if any(_same(found, t) for t in numbers):
            continue
        rows = numbers[-1].reshape(found.shape).split(1) if numbers else []
        if not rows or any(differing(fine, graph.dtype, x[i : i + 1].double(), [(-1, t)]) for i, t in enumerate(rows)):
            at = f"at inputs of size {float(x.abs().max()):.3g}"
            return f"another value {at}: {found.flatten()[:4]} for {truths[0].flatten()[:4]}"
    return None


def _walk(chosen: list[Setting], counts: Counter[str], wrong: list[str]) -> None:
    """Captures calls together and reads each result by itself."""
    example = _points(3)[1]
    try:
        program = exported(_Calls(chosen), example, batch_dims=1)
    except ModelError as error:
        if len(chosen) == 1:
            counts["refused by PyTorch's capture"] += 1
            if len(str(error).splitlines()) != 1:
                wrong.append(f"{chosen[0]}: refused in several lines")
            return
        for half in (chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]):
            _walk(half, counts, wrong)
        return
    at = 0
    for setting in chosen:
        told: set[str] = set()
        # the program was recorded with two samples, and of shapes alone
        for place in range(len(_runs(setting, 2) or _runs(setting) or [])):
            try:
                _, graph = read(program, example, 1, at)
            except (UnsupportedError, ModelError) as error:
                told.add("refused")
                if not str(error) or len(str(error).splitlines()) != 1:
                    wrong.append(f"{setting}: refused as {str(error)!r}")
            except Exception as error:  # anything else is what the walk is to find
                wrong.append(f"{setting}: {type(error).__name__}: {error}")
            else:
                told.add("equal")
                fault = _held(graph, setting, place)
                if fault:
                    wrong.append(f"{setting}, result {place}: {fault}")
            at += 1
        counts["equal" if "equal" in told else "refused"] += 1


def _all(limit: int, of: list[str]) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    ready = [s for name in of for s in settings(name, limit) if _runs(s)]
    for in_place in (False, True):
        part = [s for s in ready if s.name.endswith("_") is in_place]
        for group in (part[i : i + _GROUP] for i in range(0, len(part), _GROUP)):
            _walk(group, counts, wrong)
    return counts, wrong


def test_a_slice_of_the_settings_is_equal_or_refused():
    counts, wrong = _all(2, sorted(CALLS)[::4])
    assert not wrong, "\n".join(wrong)
    assert counts.total() >= 60
    assert counts["equal"] >= 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_setting_of_every_call_is_equal_or_refused(capsys):
    counts, wrong = _all(60, sorted(CALLS))
    with capsys.disabled():
        print(f"\nATen: {counts.total()} settings of {len(CALLS)} calls: {dict(counts)}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
    assert counts.total() >= 2500


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_single_settings_through_the_whole_capture_are_equal_or_refused(capsys):
    counts: Counter[str] = Counter()
    for name in sorted(CALLS):
        for setting in [s for s in settings(name, 2, seed=1) if _runs(s)]:
            try:
                graph = trace(_One(setting), _points(3)[1])
            except HoldfastError:
                counts["refused"] += 1
            else:
                counts["equal"] += 1
                assert _held(graph, setting, 0) is None, str(setting)
    with capsys.disabled():
        print(f"\nATen through the capture: {dict(counts)}")
    assert counts["equal"] >= 100


class _One(_Calls):
    def __init__(self, setting: Setting) -> None:
        super().__init__([setting])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]
