"""(d) Randomised smoothing against the bare model: rows a second.

A row is one noisy copy through the model. The bare model answers the same number of rows, without noise, in batches of
the same size; the hand-written loop adds ``torch.randn_like`` and counts labels, with noise that no key repeats. What
Holdfast adds is one stream of noise for each sample, so that counts do not depend on the batch. CPU seconds, least of
the interleaved rounds.

    python benchmarks/smoothing_throughput.py [--samples 8] [--copies 500] [--batch 256]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from _common import digits, interleaved, mnist, parse, parser, report, table, trained, zoo
from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.certifiers.smoothed import Smoothed
from holdfast.models.zoo import digits_cnn, mnist_cnn

SIGMA = 0.25


def bare(model: nn.Module, x: Tensor, copies: int, batch: int) -> None:
    """The model alone, on as many rows."""
    rows = x.repeat_interleave(batch // len(x) + 1, dim=0)[:batch]
    with torch.no_grad():
        for start in range(0, len(x) * copies, batch):
            model(rows[: len(x) * copies - start])


def by_hand(model: nn.Module, x: Tensor, copies: int, batch: int) -> Tensor:
    """Votes (m, K) as one counts them by hand, sample by sample."""
    votes = []
    with torch.no_grad():
        for one in x:
            total: Tensor | None = None
            for start in range(0, copies, batch):
                noisy = one.expand(min(batch, copies - start), *one.shape)
                scores = model(noisy + SIGMA * torch.randn_like(noisy))
                count = torch.bincount(scores.argmax(1), minlength=scores.shape[1])
                total = count if total is None else total + count
            votes.append(total)
    return torch.stack(votes)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--samples", type=int, default=8)
    made.add_argument("--copies", type=int, default=500)
    made.add_argument("--batch", type=int, default=256)
    made.add_argument("--rounds", type=int, default=5)
    arguments = parse(made)
    torch.manual_seed(0)
    models: list[tuple[str, nn.Module, Tensor]] = [
        ("digits_cnn, trained", trained(digits_cnn()), digits("test", arguments.samples)[0])
    ]
    real = zoo("mnist_lenet5_advtrained")
    if real is None:
        models.append(("mnist_cnn, untrained", mnist_cnn().eval(), torch.rand(arguments.samples, 1, 28, 28)))
    else:
        models.append(("mnist_lenet5_advtrained", real, mnist(arguments.samples)[0]))
    rows: list[list[object]] = []
    for name, model, x in models:
        g = Smoothed(ModuleAsk(model, batch=arguments.batch), SIGMA, seed=0)
        count = len(x) * arguments.copies
        least = interleaved(
            {
                "bare model": lambda m=model, x=x: bare(m, x, arguments.copies, arguments.batch),
                "by hand": lambda m=model, x=x: by_hand(m, x, arguments.copies, arguments.batch),
                "holdfast": lambda g=g, x=x: g.votes(x, range(len(x)), arguments.copies, "estimate"),
            },
            arguments.rounds,
        )
        for who, seconds in least.items():
            rows.append([count, name, who, f"{count / seconds:,.0f}", f"{least['bare model'] / seconds:.2f}"])
    report(
        "smoothing_throughput",
        "Smoothing throughput",
        [table(["rows", "model", "who", "rows a second", "of the bare model"], rows)],
        arguments,
    )


if __name__ == "__main__":
    main()
