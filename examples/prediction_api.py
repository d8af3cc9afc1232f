"""Attack a model that can only be asked over HTTP: ``python examples/prediction_api.py``, a quarter of a minute.

A server on this machine plays the prediction API: JSON in, and out either the three best scores or a label alone, no more
than so many requests a second. Two attacks ask it, each with the access it is made for, and a substitute is trained from
its answers. In the end the ledger of each must equal the server's own count of rows.

The same from the command line, against any API that speaks this JSON (the URL stands where a file would):

    holdfast attack square --model http://127.0.0.1:8000/ --classes 10 --top-k 3 --max-queries 5000 --data digits:test \\
        --samples 8 --eps 0.2 --queries 200 --out runs/api/square
    holdfast attack hopskipjump --model http://127.0.0.1:8000/ --classes 10 --answers labels --max-queries 5000 \\
        --data digits:test --samples 4 --norm l2 --queries 300 --out runs/api/hopskipjump
    holdfast audit --model http://127.0.0.1:8000/ --classes 10 --max-queries 20000 --data digits:test --samples 20 \\
        --eps 0.1 --suite black-box --certify none --queries 300 --out runs/api/audit
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.attacks.evasion.transfer.substitute import Substitute
from holdfast.attacks.shared import evaluate, fit
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.models import HttpModel, serve
from holdfast.models.zoo import digits_mlp
from holdfast.training.batch import Batch
from holdfast.training.loop import fit as trained
from holdfast.training.settings import TrainingSettings

CLASSES = 10


def deployed() -> nn.Module:
    """The model behind the API; the attackers below never see it."""
    torch.manual_seed(0)
    model = digits_mlp()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    trained(model, hf.load_data("digits:train"), loss, settings=TrainingSettings(epochs=5))
    return model


def digits(n: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Samples that no model here was trained on."""
    data = hf.load_data("digits:test")
    return data.x[first : first + n], data.y[first : first + n]


def problem(n: int, first: int = 0) -> Problem:
    """Digits with the set in which a substitute's examples may lie."""
    return Problem.of(*digits(n, first), LpBall.uniform(hf.Norm.LINF, 0.2, n))


def told(title: str, ledger: int, sent: int, answered: int, found: str) -> None:
    """One line, and an end if the books differ."""
    print(f"{title}: {found}; ledger {ledger}, sent {sent}, answered by the server {answered}")
    if not ledger == sent == answered:
        raise SystemExit(f"{title}: the books differ")


def booked(result: Any, line: HttpModel) -> int:
    """Rows that the search and the referee asked, and those that the API billed and nobody asked for."""
    return result.cost.queries + result.judging.forwards + line.usage.retried + line.usage.canaries


def main() -> None:
    """Serves, attacks and compares the books."""
    model = deployed()

    with serve(model, top_k=3, rate=300) as api:
        line = HttpModel(api.url, classes=CLASSES, top_k=3, max_queries=5000, concurrency=1)
        scores = hf.attack(line, digits(8), "square", hf.ThreatModel.of("linf", "0.2"), queries=200)
        found = f"{int(scores.broken.sum())} of 8 broken at linf 0.2 from the three best scores"
        told("Square", booked(scores, line), line.usage.sent, api.rows + line.usage.retried, found)
        line.close()

    with serve(model, mode="labels") as api:
        line = HttpModel(api.url, classes=CLASSES, access="labels", max_queries=5000)
        labels = hf.attack(line, digits(4), "hopskipjump", "l2", queries=300)
        found = f"median l2 distance {float(labels.distance.median()):.2f} from labels alone"
        told("HopSkipJump", booked(labels, line), line.usage.sent, api.rows + line.usage.retried, found)
        line.close()

    with serve(model) as api:
        line = HttpModel(api.url, classes=CLASSES, max_queries=5000, canary_every=5000)
        made = fit(Substitute(rounds=3), problem(60), line)
        told("Substitute", int(made.ledger.queries.sum()), line.usage.sent, api.rows, "trained from all scores")
        judged = evaluate(Substitute(), made.artefact, problem(60, first=60), model)
        print(f"  {judged.success:.0%} of its examples on unseen digits hold on the model behind the API")
        line.close()


if __name__ == "__main__":
    main()
