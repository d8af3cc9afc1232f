"""(d) Incomplete methods on real networks: bounds, CPU seconds and memory, beside the figures of auto_LiRPA.

The settings of `../shared/research/verification.md`, section 6: two MNIST networks (one trained by Wong and Kolter, one
adversarially), the first images of ERAN's list, linf balls cut by [0, 1], lower bounds of nine margins an image. The
seconds of auto_LiRPA 0.7.1 were measured there, on a loaded machine and another day; ours are CPU seconds of one run,
each method in a process of its own. Memory is what the process's peak rose by.

    python benchmarks/bounds.py [--samples 8] [--methods crown alpha_crown]
    python benchmarks/bounds.py --wong-kolter [--samples 10000]      # the published certified accuracy, 94.2 % at 0.1
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _common import SHARED, mnist, parse, parser, report, table
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph

FOLDER = SHARED / "verification"
NETWORKS = {
    "kw_mnist": "convex_adversarial/models/mnist.pth",
    "mnist_a_adv": "auto_LiRPA/examples/vision/pretrained/mnist_a_adv.pth",
}
SETTINGS = (("kw_mnist", 0.1), ("mnist_a_adv", 0.1), ("mnist_a_adv", 0.3))
METHODS = (
    "ibp",
    "crown_ibp",
    "forward",
    "fast_lin",
    "wong_kolter",
    "cnn_cert",
    "crown",
    "alpha_crown",
    "dvijotham",
)
THEIRS = {
    "ibp": "IBP",
    "crown_ibp": "IBP+backward",
    "forward": "forward",
    "crown": "backward",
    "alpha_crown": "CROWN-Optimized",
}
"""Of our methods, those that auto_LiRPA has: its figures by batch, network and eps, (mean least margin, CPU seconds)."""
LIRPA: dict[tuple[int, str, float], dict[str, tuple[float, float]]] = {
    (8, "kw_mnist", 0.1): {"ibp": (-84.694, 0.0), "crown_ibp": (-22.543, 0.01), "forward": (1.8711, 1.2),
                           "crown": (5.795, 0.18), "alpha_crown": (6.06516, 28.1)},
    (8, "mnist_a_adv", 0.1): {"ibp": (-17.252, 0.0), "crown_ibp": (-0.49367, 0.01), "forward": (2.8178, 1.2),
                              "crown": (3.67991, 0.10), "alpha_crown": (3.82283, 15.1)},
    (8, "mnist_a_adv", 0.3): {"ibp": (-73.132, 0.0), "crown_ibp": (-35.599, 0.01), "forward": (-20.463, 1.2),
                              "crown": (-5.72352, 0.28), "alpha_crown": (-1.79229, 5.7)},
    (32, "kw_mnist", 0.1): {"crown_ibp": (-20.73, 0.01), "forward": (2.0458, 5.7), "crown": (5.7591, 1.7),
                            "alpha_crown": (6.005, 88.0)},
    (32, "mnist_a_adv", 0.1): {"crown_ibp": (-0.66, 0.04), "forward": (2.3783, 6.0), "crown": (3.2752, 2.4),
                               "alpha_crown": (3.4257, 229.0)},
}  # fmt: skip


def network(name: str) -> nn.Module:
    """One of the two networks, in eval mode."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    state: Any = torch.load(FOLDER / "dev" / "torch" / NETWORKS[name], weights_only=True, map_location="cpu")
    state = state.get("state_dict", state)
    net.load_state_dict(state[0] if isinstance(state, list) else state)
    return net.eval()


def images(count: int) -> tuple[Tensor, Tensor]:
    """The first images of ERAN's list and their labels."""
    rows = np.loadtxt(FOLDER / "dev" / "mnist_test_eran100.csv", delimiter=",")[:count]
    return torch.tensor(rows[:, 1:] / 255, dtype=torch.float32).view(-1, 1, 28, 28), torch.tensor(rows[:, 0]).long()


def _resident() -> float:
    """Megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _measure(name: str, setting: tuple[str, float], samples: int, threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    x, y = images(samples)
    graph, ball = Graph.from_module(network(setting[0]), x[:1]), LpBall.uniform(Norm.LINF, setting[1], len(x))
    certifier = method(name)()
    certifier.margins(
        graph, x[:1], y[:1], ball.select(torch.tensor([0]))
    )  # once before: what is loaded or compiled first
    before, start = _resident(), time.process_time()
    margins = certifier.margins(graph, x, y, ball)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put((margins.amin(1).mean().item(), int((margins > 0).all(1).sum()), seconds, max(peak - before, 0.0)))


def measured(name: str, setting: tuple[str, float], samples: int, threads: int) -> tuple[float, int, float, float]:
    """Mean least margin, certified images, CPU seconds and megabytes, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_measure, args=(name, setting, samples, threads, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def wong_kolter(arguments: Any) -> None:
    """Certified accuracy of the published network on MNIST's test set, with the method and the ball of the paper."""
    x, y = mnist(arguments.samples or 10_000)
    graph = Graph.from_module(network("kw_mnist"), x[:1])
    rows: list[list[object]] = []
    free = torch.tensor(torch.inf)
    for name, edges in (("whole ball, as published", (-free, free)), ("ball cut by [0, 1]", (0.0, 1.0))):
        if name.startswith("ball") and not arguments.both:
            continue
        lower, upper = (torch.as_tensor(e) for e in edges)
        start, held = time.process_time(), 0
        certifier = method("wong_kolter")()
        for i in torch.split(torch.arange(len(x)), 250):
            ball = LpBall(Norm.LINF, torch.full((len(i),), 0.1, dtype=torch.float64), lower, upper)
            held += int(certifier.certify(graph, x[i], y[i], ball).sum())
        rows.append([len(x), name, f"{100 * held / len(x):.2f} %", "94.2 %", f"{time.process_time() - start:.0f}"])
    head = ["images", "set", "certified accuracy", "published", "CPU seconds"]
    report("bounds_wong_kolter", "Wong-Kolter's MNIST network at 0.1", [table(head, rows)], arguments)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--samples", type=int, help="images: 8 (and 32 for the fast ones) by default")
    made.add_argument("--methods", nargs="+", default=METHODS)
    made.add_argument("--wong-kolter", action="store_true", help="the published certified accuracy instead")
    made.add_argument("--both", action="store_true", help="with --wong-kolter: also with the ball cut by [0, 1]")
    arguments = parse(made)
    if not FOLDER.is_dir():
        print("`../shared/data` is not here: nothing to measure")
        return
    if arguments.wong_kolter:
        wong_kolter(arguments)
        return
    rows: list[list[object]] = []
    for samples in [arguments.samples] if arguments.samples else [8, 32]:
        for setting in SETTINGS:
            theirs = LIRPA.get((samples, *setting), {})
            for name in arguments.methods:
                if samples > 8 and name not in theirs:
                    continue
                mean, held, seconds, memory = measured(name, setting, samples, arguments.threads)
                peer, cost = theirs.get(name, (None, None))
                rows.append([
                    samples, setting[0], f"{setting[1]:g}", name, held, f"{mean:.4f}",
                    "" if peer is None else f"{peer:.4f}", f"{seconds:.2f}", "" if cost is None else f"{cost:g}",
                    f"{seconds / cost:.2f}" if cost else "", f"{memory:.0f}",
                ])  # fmt: skip
                print(rows[-1], flush=True)
    head = [
        "images", "network", "eps", "method", "certified", "mean least margin", "auto_LiRPA's", "CPU seconds",
        "auto_LiRPA's, as listed", "ratio", "MB",
    ]  # fmt: skip
    report("bounds", "Incomplete methods: bounds, seconds, memory", [table(head, rows)], arguments)


if __name__ == "__main__":
    main()
