"""Proofs of instances of the verification competition, found by our solvers."""

import pytest
from test_checker import accepted, packed, unpacked

from holdfast.certifiers.complete.input_splitting import InputSplitting
from holdfast.certifiers.complete.neuron_splitting import NeuronSplitting
from holdfast.certifiers.verification import proof
from holdfast.certifiers.verification.solver import Decision, SearchLimit
from holdfast.certifiers.verification.tree import Tree
from holdfast.certifiers.verification.vnnlib import read_vnnlib
from holdfast.checker import check
from holdfast.graph.onnx import read_onnx

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("solver", "net", "prop"),
    [
        (InputSplitting(), "acasxu/onnx/ACASXU_run2a_2_1_batch_2000.onnx", "acasxu/vnnlib/prop_3.vnnlib.gz"),
        (NeuronSplitting(), "mnist_fc/onnx/mnist-net_256x2.onnx", "mnist_fc/vnnlib/prop_0_0.03.vnnlib.gz"),
    ],
    ids=["acasxu", "mnist_fc"],
)
def test_a_real_instance(shared_data, tmp_path, solver, net, prop):
    net, prop = (shared_data / "verification" / "dev" / name for name in (net, prop))
    proof.check_supported(net, prop)
    graph = read_onnx(net)
    queries = read_vnnlib(prop, graph)
    trees = [Tree() for _ in queries]
    for query, tree in zip(queries, trees, strict=True):
        assert solver.solve(graph, query, SearchLimit.seconds(300), tree=tree).decision is Decision.HOLDS
    file = tmp_path / "real.proof"
    proof.write(file, net, prop, graph, queries, trees)
    assert check(file).leaves == sum(len(tree.vertices) + 1 for tree in trees) // 2
    assert file.stat().st_size < 200_000
    header, arrays = unpacked(file)
    root = {k: v for k, v in arrays.items() if "slopes" not in k}
    root |= {f"0/{k}.npy": arrays[f"0/{k}.npy"][-1:] for k in ("node", "index", "point")}  # a leaf alone
    root |= {f"0/{k}.npy": arrays[f"0/{k}.npy"][:1] for k in ("rows",)}
    root |= {"0/weighted.npy": arrays["0/weighted.npy"][:1] * 0, "0/multipliers.npy": arrays["0/multipliers.npy"][:0]}
    header["queries"][0] = {"slopes": [], "root": []}
    assert not accepted(packed(tmp_path / "bad", header, root), net, prop)
