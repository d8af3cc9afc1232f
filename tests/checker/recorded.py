"""Small networks as ONNX files, properties about them, and two simple solvers that record trees."""

import itertools

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.tree import Leaf, Tree


def save(path, nodes, constants, shape, outputs, opset=13):
    """An ONNX file; nodes are (op, inputs, output, attributes), the first input is "x" and the last output the model's."""
    protos = [helper.make_node(op, list(given), [out], **attributes) for op, given, out, attributes in nodes]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        protos,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, [1, outputs])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def dense(path, *layers, slope=None):
    """Layers are (weight (out, in), bias), with a ReLU (or a leaky one) between them."""
    nodes, constants, at = [], {}, "x"
    for i, (weight, bias) in enumerate(layers):
        constants |= {f"w{i}": np.asarray(weight, np.float32), f"b{i}": np.asarray(bias, np.float32)}
        nodes.append(("Gemm", (at, f"w{i}", f"b{i}"), f"z{i}", {"transB": 1}))
        at = f"z{i}"
        if i < len(layers) - 1:
            nodes.append(
                ("Relu", (at,), f"a{i}", {}) if slope is None else ("LeakyRelu", (at,), f"a{i}", {"alpha": slope})
            )
            at = f"a{i}"
    return save(path, nodes, constants, np.shape(layers[0][0])[1:], len(layers[-1][1]))


def random_dense(path, seed, sizes=(3, 8, 8, 2), slope=None):
    """A random network."""
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(sizes)
    return dense(
        path, *((rng.normal(size=(m, n)) / np.sqrt(n), 0.3 * rng.normal(size=m)) for n, m in pairs), slope=slope
    )


def declared(inputs, outputs):
    """The declarations of a property."""
    return "".join(f"(declare-const {v}_{i} Real)\n" for v, n in (("X", inputs), ("Y", outputs)) for i in range(n))


def boxed(lower, upper):
    """A box of inputs."""
    bounds = zip(lower, upper, strict=True)
    return "".join(f"(assert (>= X_{i} {a!r}))\n(assert (<= X_{i} {b!r}))\n" for i, (a, b) in enumerate(bounds))


def least(graph, query, n=20000, seed=0):
    """The least score of random inputs and corners, and its input."""
    gen = torch.Generator().manual_seed(seed)
    u = torch.rand(n, *query.lower.shape, generator=gen, dtype=torch.float64)
    u[: n // 4] = u[: n // 4].round()
    x = query.lower + (query.upper - query.lower) * u
    with torch.no_grad():
        score = query.score(graph.to(torch.float64).as_module()(x) @ query.c.T + query.d)
    return float(score.min()), x[score.argmin()]


def propagated(graph, query):
    """CROWN with default slopes."""
    region = Region(query.ball, query.x)
    found = Propagation(graph, region)
    with torch.no_grad():
        found.run(lambda i: True)
    return found


def rows_of(found, query, slopes=None, extra=None):
    """Lower bounds of the query's rows, and the best row of each group."""
    bound = found.minimum(len(found.graph.nodes) - 1, query.c.unsqueeze(1), slopes, extra=extra)[:, 0] + query.d
    best = [
        int(np.argmax(np.where(query.groups.numpy() == g, bound.numpy(), -np.inf)))
        for g in range(int(query.groups[-1]) + 1)
    ]
    return best, bool((bound[best] > 0).all())


def by_inputs(graph, query, most=2000):
    """Splits the widest input in its middle until every part is proved."""
    graph, tree = graph.to(torch.float64), Tree()
    pending = [(0, query)]
    while pending:
        v, part = pending.pop()
        with torch.no_grad():
            best, shown = rows_of(propagated(graph, part), part)
        if shown:
            tree.close(v, Leaf(tuple(best)))
            continue
        if len(tree.vertices) > most:
            return None
        lower, upper = part.lower.flatten(), part.upper.flatten()
        i = int((upper - lower).argmax())
        middle = float((lower[i] + upper[i]) / 2)
        for (a, b), child in zip(((None, middle), (middle, None)), tree.split([v], [0], [i], [middle])[0], strict=True):
            low, high = lower.clone(), upper.clone()
            low[i], high[i] = lower[i] if a is None else a, upper[i] if b is None else b
            shape = query.lower.shape
            pending.append(
                (int(child), Query.of_box(low.view(shape), high.view(shape), query.c, query.d, query.groups))
            )
    return tree


def by_neurons(graph, query, most=400, steps=60):
    """Splits the widest open ReLU of the root's boxes; slopes and multipliers by projected gradient steps."""
    graph, tree = graph.to(torch.float64), Tree()
    root = propagated(graph, query)
    relus = [i for i, node in enumerate(graph.nodes) if node.op in ("relu", "leaky_relu")]
    values = [graph.nodes[i].inputs[0] for i in relus]
    pending = [(0, ())]
    while pending:
        v, splits = pending.pop()
        boxes = {}
        for node, index, side in splits:
            box = boxes.get(node, root.boxes[node])
            low, high = box.lower.clone().flatten(), box.upper.clone().flatten()
            if side < 0:
                high[index] = min(high[index], 0.0)
            else:
                low[index] = max(low[index], 0.0)
            boxes[node] = Box(low.view_as(box.lower), high.view_as(box.upper))
        found = root.parts(root.region, boxes)
        best, slopes, multipliers, shown = _tuned(found, query, relus, splits, steps)
        if any(bool((b.lower > b.upper).any()) for b in boxes.values()) or shown:
            tree.close(v, Leaf(tuple(best), slopes, multipliers))
            continue
        gaps = [(float(torch.minimum(-found.boxes[n].lower, found.boxes[n].upper).max()), n) for n in values]
        gap, node = max(gaps)
        if gap <= 0 or len(tree.vertices) > most:
            return None
        index = int(torch.minimum(-found.boxes[node].lower, found.boxes[node].upper).flatten().argmax())
        for child, side in zip(tree.split([v], [node], [index], [0.0])[0], (-1, 1), strict=True):
            pending.append((int(child), (*splits, (node, index, side))))
    return tree


def _tuned(found, query, relus, splits, steps):
    with torch.no_grad():
        best, _ = rows_of(found, query)
    c, d = query.c[best].unsqueeze(1), query.d[best]
    n = len(best)
    default = found.alphas(len(found.graph.nodes) - 1)
    slopes = {k: default[k].expand(n, *default[k].shape[1:]).clone().unsqueeze(1).requires_grad_() for k in relus}
    weights = torch.zeros(n, len(splits), dtype=torch.float64, requires_grad=True)

    def bound():
        extra = {}
        for j, (node, index, side) in enumerate(splits):
            unit = torch.zeros(found.boxes[node].lower[0].numel(), dtype=torch.float64)
            unit[index] = -side
            term = (weights[:, j, None] * unit).view(n, 1, *found.boxes[node].lower.shape[1:])
            extra[node] = extra[node] + term if node in extra else term
        return found.minimum(len(found.graph.nodes) - 1, c, slopes, extra=extra)[:, 0] + d

    leaves = [*slopes.values(), weights]
    descent = torch.optim.Adam(leaves, 0.2, maximize=True)
    for _ in range(steps):
        descent.zero_grad()
        value = bound()
        if bool((value > 1e-6).all()):
            break
        value.sum().backward()
        descent.step()
        with torch.no_grad():
            for leaf in leaves:
                leaf.clamp_(0, 1 if leaf is not weights else None)
        for group in descent.param_groups:
            group["lr"] *= 0.97
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(leaf.float())
        shown = bool((bound() > 0).all())
    held = {k: s.detach()[:, 0].float().numpy() for k, s in slopes.items()}
    return best, held, weights.detach().float().numpy(), shown
