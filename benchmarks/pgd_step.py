"""(b) What the engine adds to PGD, and what keyed draws add to Square.

PGD-40 through the engine against a bare loop written here: the gradient of cross-entropy with respect to the input, a
sign step, the projection; all samples in all steps, and one last forward that tells which are broken. The engine asks the
clean inputs besides, judges each iterate, keeps the witnesses and lets broken samples go. On samples that PGD cannot
break that is overhead; on those that it breaks, the active set pays it back. CPU seconds, least of the interleaved rounds.

    python benchmarks/pgd_step.py [--batch 64] [--rounds 9]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _common import digits, forward_seconds, interleaved, mark, mnist, parse, parser, report, table, trained, zoo
from holdfast.attacks import engine
from holdfast.attacks.evasion.soft.square import Square
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.draws import Draws
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.outcome import Outcome

STEPS = 40


def bare(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = STEPS) -> Tensor:
    """PGD as one writes it by hand; (n,) bool: broken."""
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    size = eps * 2.5 / steps
    z = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        z = z.detach().requires_grad_()
        grad = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)[0]
        z = torch.min(torch.max(z.detach() + size * grad.sign(), low), high)
    with torch.no_grad():
        return model(z).argmax(1) != y


def held(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = STEPS) -> Outcome:
    """PGD through the engine."""
    return engine.run(PGD(steps=steps), Problem.of(x, y, LpBall.uniform(Norm.LINF, eps, len(x))), model)


def cases(batch: int) -> tuple[list[tuple[str, nn.Module, Tensor, Tensor, float]], str]:
    """A model with samples that PGD cannot break, one with samples that it breaks, and a word on where they are from."""
    hard, soft = zoo("mnist_lenet5_advtrained"), zoo("mnist_lenet5_clean")
    if hard is None or soft is None:
        from holdfast.models.zoo import mnist_cnn

        torch.manual_seed(0)
        hard = soft = mnist_cnn().eval()
        x = torch.rand(4 * batch, 1, 28, 28)
        y, small, large = hard(x).argmax(1), 1e-5, 0.3
        told = "`../shared/data` is not here: an untrained `mnist_cnn` on noise stands in for the real networks."
    else:
        (x, y), small, large = mnist(2 * batch), 0.1, 0.3
        told = f"`mnist_lenet5_advtrained` at eps {small}, `mnist_lenet5_clean` at eps {large}, MNIST test images."
    chosen = []
    for name, model, eps, broken in (("cannot break", hard, small, False), ("breaks", soft, large, True)):
        right = model(x).argmax(1) == y
        rows = (right & (held(model, x, y, eps).found == broken)).nonzero().flatten()[:batch]
        chosen.append((name, model, x[rows], y[rows], eps))
    return chosen, told


def peers(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """PGD of the other libraries, as far as they are installed, and the names of those that are not."""
    jobs: dict[str, Callable[[], object]] = {}
    step = eps * 2.5 / STEPS
    missing = [m for m in ("foolbox", "torchattacks", "art") if importlib.util.find_spec(m) is None]
    if "foolbox" not in missing:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        foolbox_pgd = foolbox.attacks.LinfPGD(steps=STEPS, rel_stepsize=2.5 / STEPS)
        jobs["foolbox"] = lambda: foolbox_pgd(wrapped, x, y, epsilons=eps)
    if "torchattacks" not in missing:
        import torchattacks

        torchattacks_pgd = torchattacks.PGD(model, eps=eps, alpha=step, steps=STEPS)
        jobs["torchattacks"] = lambda: torchattacks_pgd(x, y)
    if "art" not in missing:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), int(model(x[:1]).shape[1]), clip_values=(0, 1)
        )
        art_pgd = ProjectedGradientDescentPyTorch(
            classifier, eps=eps, eps_step=step, max_iter=STEPS, batch_size=len(x), verbose=False
        )
        jobs["art"] = lambda: art_pgd.generate(x.numpy(), y.numpy())
    return jobs, missing


class PlainDraws(Draws):
    """The same interface, but one generator for all samples: numbers then depend on the batch."""

    def read(self, kind, name, shape, ids, rounds, step, fill):  # type: ignore[no-untyped-def]
        return fill((len(ids), *shape), self._generator)


def square_rows(batch: int, queries: int, rounds: int) -> tuple[str, list[object]]:
    """Square on samples that it cannot break, with keyed draws and with draws for the batch."""
    from holdfast.models.zoo import digits_cnn

    torch.manual_seed(0)
    model = trained(digits_cnn())
    x, y = digits("test")
    rows = (model(x).argmax(1) == y).nonzero().flatten()[:batch]
    x, y = x[rows], y[rows]

    def once() -> None:
        found = engine.run(Square(queries=queries), Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.005, len(x))), model)
        assert int(found.found.sum()) <= len(x) // 20, "Square must stay at work on nearly all samples"

    def plain() -> None:
        with patch.object(engine, "Draws", PlainDraws):
            once()

    least = interleaved({"keyed": once, "plain": plain}, rounds)
    share = least["keyed"] / least["plain"] - 1
    step = {name: f"{1e3 * s / queries:.3f}" for name, s in least.items()}
    label = f"Square, digits CNN, {len(x)} samples"
    return label, [step["keyed"], step["plain"], f"{100 * share:.1f} %", mark(100 * share, 10) + " (%)"]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--queries", type=int, default=256, help="of Square")
    arguments = parse(made)
    chosen, told = cases(arguments.batch)
    rows: list[list[object]] = []
    missing: list[str] = []
    for (name, model, x, y, eps), target in zip(chosen, (1.05, 0.6), strict=True):
        jobs: dict[str, Callable[[], object]] = {
            "bare loop": lambda m=model, x=x, y=y, e=eps: bare(m, x, y, e),
            "holdfast": lambda m=model, x=x, y=y, e=eps: held(m, x, y, e),
        }
        more, missing = peers(model, x, y, eps)
        least = interleaved({**jobs, **more}, arguments.rounds)
        forward = 1e3 * forward_seconds(model, x)
        for who, seconds in least.items():
            ratio = seconds / least["bare loop"]
            goal = mark(ratio, target) if who == "holdfast" else ""
            cost = f"{1e3 * seconds / STEPS:.2f}"
            rows.append([f"{name} ({len(x)} samples)", f"{forward:.1f}", who, cost, f"{ratio:.3f}", goal])
    # A model that costs next to nothing: what is left is the engine, the archive and the exact projection.
    torch.manual_seed(0)
    x = chosen[0][2]
    light = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)).eval()
    overhead: list[list[object]] = []
    for n in (1, len(x)):
        part, label = x[:n], light(x[:n]).argmax(1)
        jobs = {
            f"{who.__name__} {steps}": lambda w=who, s=steps, p=part, y=label: w(light, p, y, 1e-6, s)
            for who in (bare, held)
            for steps in (STEPS, 3 * STEPS)
        }
        least = interleaved(jobs, arguments.rounds)
        cost = [1e3 * (least[f"{w} {3 * STEPS}"] - least[f"{w} {STEPS}"]) / (2 * STEPS) for w in ("bare", "held")]
        once = 1e3 * least[f"held {STEPS}"] - STEPS * cost[1]
        own = cost[1] - cost[0]
        overhead.append([n, *(f"{c:.3f}" for c in cost), f"{own:.3f}", f"{once:.1f}", mark(own, 0.5)])
    label, square = square_rows(256, arguments.queries, arguments.rounds)
    note = (
        f"Peers that are not installed and were skipped: {', '.join(missing)}." if missing else "All peers took part."
    )
    report(
        "pgd_step",
        "Cost of a step",
        [
            f"## PGD-{STEPS} against a bare loop",
            told,
            table(["samples", "forward, ms", "who", "ms a step", "of the bare loop", "target"], rows),
            note,
            "## The engine's own overhead: a linear model",
            table(
                [
                    "samples",
                    "bare, ms a step",
                    "engine, ms a step",
                    "difference, ms",
                    "engine, ms before and after",
                    "target",
                ],
                overhead,
            ),
            "## Keyed draws",
            table(["what", "keyed, ms a step", "torch.rand, ms a step", "more", "target"], [[label, *square]]),
        ],
        arguments,
    )


if __name__ == "__main__":
    main()
