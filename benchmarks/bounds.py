"""(d) Incomplete methods on real networks: bounds, CPU seconds and memory, beside the figures of auto_LiRPA.

The settings of `../shared/research/verification.md`, section 6: two MNIST networks (one trained by Wong and Kolter, one
adversarially), the first images of ERAN's list, linf balls cut by [0, 1], lower bounds of nine margins an image. The
seconds of auto_LiRPA 0.7.1 were listed there: another machine, loaded, another day. Ours are CPU seconds of one run in
float64 with rounding paid for, each method in a process of its own; memory is what its peak rose by. Theirs are in
float32.

    python benchmarks/bounds.py [--samples 8] [--methods crown alpha_crown forward] [--limit 240]
    python benchmarks/bounds.py --wong-kolter 10000        # the published certified accuracy on so many images; 0: not
"""

from __future__ import annotations

import multiprocessing
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
from holdfast.graph import trace

FOLDER = SHARED / "verification"
NETWORKS = {
    "kw_mnist": "convex_adversarial/models/mnist.pth",
    "mnist_a_adv": "auto_LiRPA/examples/vision/pretrained/mnist_a_adv.pth",
}
SETTINGS = (("kw_mnist", 0.1), ("mnist_a_adv", 0.1), ("mnist_a_adv", 0.3))
METHODS = (
    "ibp",
    "crown_ibp",
    "fast_lip",
    "fast_lin",
    "wong_kolter",
    "cnn_cert",
    "crown",
    "forward",
    "alpha_crown",
    "dvijotham",
)
SLOW = ("alpha_crown", "dvijotham", "forward")  # a first run would cost more than it explains
# by batch, network and eps, of the methods that auto_LiRPA has too (IBP, IBP+backward, forward, backward,
# CROWN-Optimized): mean least margin, seconds
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


def _peak() -> float:
    """Megabytes that this process has held at most since `_forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _forget() -> float:
    """Sets the peak back to what the process holds now; that, in megabytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _measure(name: str, setting: tuple[str, float], samples: int, threads: int, answer: Any) -> None:
    torch.set_num_threads(threads)
    x, y = images(samples)
    graph, ball = trace(network(setting[0]), x[:1]), LpBall.uniform(Norm.LINF, setting[1], len(x))
    certifier = method(name)()
    if name not in SLOW:  # once before: what is loaded or compiled first
        certifier.margins(graph, x[:1], y[:1], ball.select(torch.tensor([0])))
    before, start = _forget(), time.process_time()
    margins = certifier.margins(graph, x, y, ball)
    seconds = time.process_time() - start
    answer.send((margins.amin(1).mean().item(), int((margins > 0).all(1).sum()), seconds, _peak() - before))


def measured(
    name: str, setting: tuple[str, float], samples: int, threads: int, limit: float
) -> tuple[float, int, float, float] | None:
    """Mean least margin, certified images, CPU seconds and megabytes, in a fresh process; None: over the limit."""
    context = multiprocessing.get_context("forkserver")  # a fresh process that has PyTorch loaded
    context.set_forkserver_preload(["torch", "holdfast.graph", "holdfast.certifiers.bounds.crown"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(name, setting, samples, threads, send))
    process.start()
    send.close()  # a child that dies then ends the wait
    found = receive.recv() if receive.poll(limit) else None
    process.terminate()
    process.join()
    return found


def compared(arguments: Any) -> str:
    """The table of all methods."""
    rows: list[list[object]] = []
    for samples in arguments.samples:
        for setting in SETTINGS:
            theirs = LIRPA.get((samples, *setting), {})
            for name in arguments.methods:
                peer, cost = theirs.get(name, (None, None))
                listed = "" if peer is None else f"{peer:.4f}"
                found = measured(name, setting, samples, arguments.threads, arguments.limit)
                row: list[object] = [samples, setting[0], f"{setting[1]:g}", name]
                if found is None:
                    rows.append([*row, "", f"over {arguments.limit:g} s", listed, "", "" if cost is None else cost, ""])
                else:
                    mean, held, seconds, memory = found
                    ours = [
                        held,
                        f"{mean:.4f}",
                        listed,
                        f"{seconds:.2f}",
                        "" if cost is None else cost,
                        f"{memory:.0f}",
                    ]
                    rows.append([*row, *ours])
                print(rows[-1], flush=True)
    head = [
        "images", "network", "eps", "method", "certified", "mean least margin", "auto_LiRPA's", "CPU seconds",
        "auto_LiRPA's seconds (listed, other machine)", "MB",
    ]  # fmt: skip
    return table(head, rows)


def wong_kolter(count: int) -> str:
    """Certified accuracy of the published network on MNIST's test set, with the method and the ball of the paper."""
    x, y = mnist(10_000)
    graph, certifier = trace(network("kw_mnist"), x[:1]), method("wong_kolter")(batch=16)
    with torch.no_grad():
        right = (graph.as_module()(x).argmax(1) == y).double().mean().item()
    chosen = torch.arange(0, len(x), len(x) // count)[
        :count
    ]  # evenly: the first half of the test set is the harder one
    x, y, free, held, start = x[chosen], y[chosen], torch.tensor(torch.inf), 0, time.process_time()
    for i in torch.split(torch.arange(len(x)), 250):
        ball = LpBall(norm=Norm.LINF, eps=torch.full((len(i),), 0.1, dtype=torch.float64), lower=-free, upper=free)
        held += int(certifier.certify(graph, x[i], y[i], ball).sum())
        print(f"{int(i[-1]) + 1} images: {held} certified", flush=True)
    seconds = time.process_time() - start
    share = held / len(x)
    error = (share * (1 - share) / len(x)) ** 0.5 if len(x) < 10_000 else 0.0
    row = [len(x), f"{100 * share:.2f} %", f"{100 * error:.2f} %", "94.2 %", f"{100 * right:.2f} %", f"{seconds:.0f}"]
    head = [
        "images",
        "certified",
        "standard error",
        "published, of all 10,000",
        "accuracy, of all 10,000",
        "CPU seconds",
    ]
    return (
        "The dual bound of Wong and Kolter on their MNIST network, linf 0.1, the whole ball, images taken evenly from "
        "the test set:\n\n" + table(head, [row])
    )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--samples", type=int, nargs="+", default=[8], help="images")
    made.add_argument("--methods", nargs="*", default=METHODS)
    made.add_argument("--limit", type=float, default=240, help="seconds that one method may take, by the clock")
    made.add_argument("--wong-kolter", type=int, default=1000, help="images for the published certified accuracy")
    arguments = parse(made)
    if not FOLDER.is_dir():
        print("`../shared/data` is not here: nothing to measure")
        return
    parts = [compared(arguments)] if arguments.methods else []
    if arguments.wong_kolter:
        parts.append(wong_kolter(arguments.wong_kolter))
    report("bounds", "Incomplete methods: bounds, seconds, memory", parts, arguments)


if __name__ == "__main__":
    main()
