"""Every setting of every ONNX operation that is served equals onnxruntime, or is refused in a sentence."""

import warnings
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_walk import NP, Setting, settings

from holdfast.core.errors import ModelError, UnsupportedError
from holdfast.graph.onnx import CALLS, read_onnx
from holdfast.graph.onnx_truth import believe, session

FLOATS = {1: 2e-5, 10: 2e-2, 11: 1e-11}  # by element type: the relative difference that is left to rounding


@dataclass
class Walk:
    """What became of the settings."""

    counts: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    refusals: Counter = field(default_factory=Counter)

    def take(self, setting: Setting, folder) -> None:
        path = folder / f"m{sum(self.counts.values())}.onnx"
        try:
            path.write_bytes(setting.model().SerializeToString())
            run = session(path)
            (one,) = run.get_inputs()
            shape = [s for s in one.shape if isinstance(s, int)]
            xs = [_inputs(setting, seed).reshape(shape) for seed in range(3)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = [run.run(None, {one.name: x})[0] for x in xs]
            if any(not y.size for y in expected):
                raise ValueError("no output")
        except Exception:  # onnxruntime's errors have no common type; what it does not run is no setting
            self.counts["not a setting"] += 1
            return
        try:
            graph = read_onnx(path)
        except (ModelError, UnsupportedError) as error:
            self.counts["refused"] += 1
            self.refusals[f"{setting.op}: {error}"] += 1
            if len(str(error)) < 20 or "Error" in str(error):
                self.wrong.append(f"{setting}: refused by no sentence: {error}")
            return
        except Exception as error:  # whatever it is, it is what this test looks for
            self.wrong.append(f"{setting}: {type(error).__name__}: {error}")
            return
        self.counts["served"] += 1
        said = _different(graph, setting, xs, expected)
        if said:
            self.wrong.append(f"{setting}: {said}")
            return
        low, high = torch.full(graph.input_shape, -2.0), torch.full(graph.input_shape, 2.0)
        if setting.kind == 2 or (setting.op == "Gather" and setting.inputs[-1] == "x"):
            low = torch.zeros(graph.input_shape)
        if setting.op == "ReduceLogSumExp" and len(graph.nodes) == 1:
            return  # over one entry nothing is left to compute, of which onnxruntime rounds an exponential and a logarithm
        try:
            assert believe(path, graph, low, high).startswith("onnxruntime")
        except ModelError as error:
            self.wrong.append(f"{setting}: compared: {error}")
        path.unlink()


def _inputs(setting: Setting, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    dtype = NP[setting.kind]
    if np.issubdtype(dtype, np.floating):
        return (draw.normal(size=setting.shape) * 2).astype(dtype)
    return draw.integers(0, 2, setting.shape).astype(dtype)


def _different(graph, setting, xs, expected) -> str:
    for x, y in zip(xs, expected, strict=True):
        whole = np.issubdtype(x.dtype, np.integer)
        given = torch.from_numpy(x.astype(np.int64 if whole else np.float64))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = graph.to(torch.float64).as_module()(given.reshape(-1, *graph.input_shape)).numpy()
            except Exception as error:
                return f"the graph does not run: {type(error).__name__}: {error}"
        if found.size != y.size:
            return f"shape {found.shape} where onnxruntime gives {y.shape}"
        found, y = found.reshape(-1), y.astype(np.float64).reshape(-1)
        near = FLOATS.get(setting.kind, 2e-5)
        scale = np.abs(y[np.isfinite(y)]).max(initial=1.0)
        if not np.allclose(found, y, rtol=near, atol=near * scale, equal_nan=True):
            i = int(np.nanargmax(np.abs(found - y))) if np.isfinite(found - y).any() else 0
            return f"{found[i]} where onnxruntime gives {y[i]} (entry {i}), {found[:6]} and {y[:6]}"
    return ""


def _walk(folder, step: int) -> Walk:
    walk = Walk()
    for i, setting in enumerate(settings(list(CALLS))):
        if i % step == 0:
            walk.take(setting, folder)
    print(f"{walk.counts['served'] + walk.counts['refused']} settings of {len(CALLS)} operations: {dict(walk.counts)}")
    return walk


def test_a_slice_of_all_settings_equals_onnxruntime_or_is_refused(tmp_path):
    walk = _walk(tmp_path, step=29)
    assert not walk.wrong, "\n".join(walk.wrong)
    assert walk.counts["served"] > 100
    assert walk.counts["refused"] > 30


def test_a_variance_in_one_pass_is_no_other_function(tmp_path):
    """onnxruntime takes it as E x^2 - (E x)^2: of groups that hardly vary, what the squares round is most of it."""
    walk = Walk()
    for setting in settings(["GroupNormalization"]):
        if "'num_groups': 4" in str(setting):
            walk.take(setting, tmp_path)
    assert not walk.wrong, "\n".join(walk.wrong)
    assert walk.counts["served"] >= 6


@pytest.mark.slow
def test_every_setting_equals_onnxruntime_or_is_refused(tmp_path):
    walk = _walk(tmp_path, step=1)
    assert not walk.wrong, "\n".join(walk.wrong)
    assert walk.counts["served"] + walk.counts["refused"] >= 3500


def test_every_operation_is_walked():
    assert {s.op for s in settings(list(CALLS))} == set(CALLS)
