"""(g) Minimum-norm attacks against those of other libraries: distance and cost with equal passes, on real networks.

python benchmarks/peers.py [--norms l2 ...] [--samples 32] [--passes 200] [--models NAME ...]

The other libraries are none of this project's dependencies; those that cannot be imported are left out. Install them apart,
without their own torch, and put that folder after this project's:

    pip install --no-deps --target /tmp/peers adv-lib foolbox eagerpy adversarial-robustness-toolbox torchattacks ...
    PYTHONPATH=/tmp/peers python benchmarks/peers.py

All attacks get the same samples, which the model classifies right, and iterations for about the same forwards and
backwards; what they really sent is counted in front of the model, row by row. All results are judged by the same lines here.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from _common import SHARED, parse, parser, report, table
from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import run
from holdfast.audits.plan import Plan
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.archive import Keep
from holdfast.judge.ledger import Budget
from holdfast.numerics.distance import between

MODELS = ("mnist_lenet5_advtrained", "cifar10_resnet2b_linf_2_255")
NORMS = (Norm.L0, Norm.L1, Norm.L2, Norm.LINF)
OURS = ("ddn", "fmn", "alma", "pdpgd", "brendel_bethge", "sigma_zero", "fab_t", "carlini_wagner", "ead")
P = {Norm.L0: 0, Norm.L1: 1, Norm.L2: 2, Norm.LINF: float("inf")}
SEARCHES = 4  # of penalty attacks of other libraries, whose own nine leave no steps at so few passes


class Counted(nn.Module):
    """Counts rows on their way into the model and gradients on their way back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        scores = self.model(x)
        if scores.requires_grad:
            scores.register_hook(self._back)
        return scores

    def _back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class Reached(NamedTuple):
    """One line of the table."""

    library: str
    name: str
    success: float
    median: float
    forwards: float
    backwards: float
    milliseconds: float


Job = Callable[[nn.Module, Tensor, Tensor], Tensor]


def ours(norm: Norm, passes: int) -> dict[str, Job]:
    """Our attacks, and the suite `minimal` with its passes shared out among its attacks."""

    def one(full: Attack[Any, Any], share: int, eps: Tensor | None = None) -> Job:
        attack = full.within(share)

        def job(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            ball = LpBall.uniform(norm, float("inf"), len(x))
            problem = Problem.of(x, y, ball if eps is None else ball.with_eps(eps))
            return run(attack, problem, model, keep=Keep.NEAREST, budget=Budget(passes=share)).x

        return job

    suite = Plan.of(suite="minimal", norm=norm, certify="none").entries

    def minimal(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        best, reach = x.clone(), torch.full((len(x),), float("inf"), dtype=torch.float64)
        for entry in suite:
            eps = None if entry.under is None else entry.under * reach.nan_to_num(posinf=0)  # just inside what is known
            found = one(entry.attack(), passes // len(suite), eps)(model, x, y)
            d = between(norm, found, x)
            better = (d > 0) & (d < reach)
            best[better], reach[better] = found[better], d[better]
        return best

    able = {n: method(n)() for n in OURS if norm in method(n).card.norms}
    return {n: one(a, passes) for n, a in able.items()} | {"minimal": minimal}


def peers(norm: Norm, passes: int) -> dict[tuple[str, str], Job]:
    """Attacks of other libraries that are installed and serve the norm."""
    found: dict[tuple[str, str], Job] = {}
    for library, module, jobs in (
        ("adv-lib", "adv_lib.attacks", _adv_lib), ("foolbox", "foolbox", _foolbox),
        ("ART", "art.attacks.evasion", _art), ("torchattacks", "torchattacks", _torchattacks),
    ):  # fmt: skip
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            print(f"{library} is left out: {error}", file=sys.stderr)
            continue
        found |= {(library, name): job for name, job in jobs(loaded, norm, passes // 2).items()}
    return found


def _adv_lib(lib: Any, norm: Norm, steps: int) -> dict[str, Job]:
    p = P[norm]
    found: dict[str, Job] = {
        "fmn": lambda m, x, y: lib.fmn(m, x, y, norm=p, steps=steps),
        "pdpgd": lambda m, x, y: lib.pdpgd(
            m, x, y, norm=p, num_steps=steps, proximal_operator=23 if norm is Norm.L0 else None
        ),
    }
    if norm is Norm.L0:
        found["sigma_zero"] = lambda m, x, y: lib.sigma_zero(m, x, y, num_steps=steps)
    if norm in (Norm.L1, Norm.L2):
        rate = 0.5 if norm is Norm.L1 else 0.1  # of the library's own experiments
        found["alma"] = lambda m, x, y: lib.alma(m, x, y, num_steps=steps, distance=str(norm), init_lr_distance=rate)
    if norm is Norm.L2:
        found["ddn"] = lambda m, x, y: lib.ddn(m, x, y, steps=steps, levels=None)
        found["pdgd"] = lambda m, x, y: lib.pdgd(m, x, y, num_steps=steps)
        found["carlini_wagner_l2"] = lambda m, x, y: lib.carlini_wagner_l2(
            m, x, y, binary_search_steps=SEARCHES, max_iterations=steps // SEARCHES
        )
    if norm is not Norm.L0:
        found["fab"] = lambda m, x, y: lib.fab(m, x, y, norm=p, n_iter=max(1, 2 * steps // 12))  # ten classes a step
    return found


def _foolbox(lib: Any, norm: Norm, steps: int) -> dict[str, Job]:
    few = max(1, steps // SEARCHES)
    table_: dict[Norm, dict[str, Callable[[], Any]]] = {
        Norm.L0: {
            "FMN": lambda: lib.attacks.L0FMNAttack(steps=steps),
            "BrendelBethge": lambda: lib.attacks.L0BrendelBethgeAttack(steps=steps),
        },
        Norm.L1: {
            "FMN": lambda: lib.attacks.L1FMNAttack(steps=steps),
            "EAD": lambda: lib.attacks.EADAttack(SEARCHES, few, decision_rule="L1"),
            "BrendelBethge": lambda: lib.attacks.L1BrendelBethgeAttack(steps=steps),
        },
        Norm.L2: {
            "DDN": lambda: lib.attacks.DDNAttack(steps=steps),
            "FMN": lambda: lib.attacks.L2FMNAttack(steps=steps),
            "CarliniWagner": lambda: lib.attacks.L2CarliniWagnerAttack(SEARCHES, few),
            "BrendelBethge": lambda: lib.attacks.L2BrendelBethgeAttack(steps=steps),
        },
        Norm.LINF: {
            "FMN": lambda: lib.attacks.LInfFMNAttack(steps=steps),
            "BrendelBethge": lambda: lib.attacks.LinfinityBrendelBethgeAttack(steps=steps),
        },
    }

    def job(make: Callable[[], Any]) -> Job:
        def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            wrapped = lib.PyTorchModel(model, bounds=(0, 1), device="cpu")
            return make()(wrapped, x, y, epsilons=None)[0]

        return attack

    return {name: job(make) for name, make in table_[norm].items()}


def _art(lib: Any, norm: Norm, steps: int) -> dict[str, Job]:
    if norm is not Norm.L2:
        return {}
    makes: dict[str, Callable[[Any], Any]] = {
        "DeepFool": lambda c: lib.DeepFool(c, max_iter=max(1, 2 * steps // 11), batch_size=64, verbose=False),
        "CarliniL2": lambda c: lib.CarliniL2Method(
            c, binary_search_steps=SEARCHES, max_iter=steps // SEARCHES, batch_size=64, verbose=False
        ),
    }

    def job(make: Callable[[Any], Any]) -> Job:
        def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

            c = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1))
            return torch.from_numpy(make(c).generate(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()]))

        return attack

    return {name: job(make) for name, make in makes.items()}


def _torchattacks(lib: Any, norm: Norm, steps: int) -> dict[str, Job]:
    return {"CW": lambda m, x, y: lib.CW(m, steps=steps)(x, y)} if norm is Norm.L2 else {}


def measured(library: str, name: str, job: Job, model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Reached:
    """Runs an attack, counts what it sent and judges what came back."""
    torch.manual_seed(0)
    counted = Counted(model).eval()
    start = time.process_time()
    found = job(counted, x.clone(), y.clone())
    seconds = time.process_time() - start
    with torch.no_grad():
        fooled = model(found).argmax(1) != y
    inside = ((found >= 0) & (found <= 1)).flatten(1).all(1)
    d = between(norm, found, x).masked_fill(~(fooled & inside), float("inf"))
    n, passes = len(x), max(1, counted.forwards + counted.backwards)
    return Reached(
        library, name, float(d.isfinite().double().mean()), float(np.median(d.numpy())), counted.forwards / n,
        counted.backwards / n, 1000 * seconds / passes,
    )  # fmt: skip


def compared(name: str, norm: Norm, n: int, passes: int) -> tuple[list[Reached], str]:
    """All attacks of a norm on one model, and a sentence: the best of ours against the best of theirs."""
    from zoo import card, images, load

    model = load(name).eval().requires_grad_(False)
    x, y = images(card(name)["dataset"], "test", 3 * n)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right][:n], y[right][:n]
    jobs = {("holdfast", k): j for k, j in ours(norm, passes).items()} | peers(norm, passes)
    rows: list[Reached] = []
    for (library, attack), job in jobs.items():
        try:
            rows.append(measured(library, attack, job, model, x, y, norm))
        except UnsupportedError as error:
            print(f"{attack}: {error}", file=sys.stderr)
        except Exception as error:  # a peer's own fault is a line of the report, not the end of the benchmark
            if library == "holdfast":
                raise
            print(f"{library} {attack} failed: {type(error).__name__}: {error}", file=sys.stderr)
    rows.sort(key=lambda r: (r.median, r.library))
    mine = min(r.median for r in rows if r.library == "holdfast")
    theirs = [r for r in rows if r.library != "holdfast"]
    if not theirs:
        return rows, "No other library is installed."
    least = min(r.median for r in theirs)
    costs = {k: np.median([r.milliseconds for r in rows if (r.library == "holdfast") is k]) for k in (True, False)}
    met = "met" if mine <= least * (1 + 1e-9) else "MISSED"
    return rows, (
        f"Best of ours {mine:.5g}, best of theirs {least:.5g}: {met}. "
        f"Median CPU ms a pass: ours {costs[True]:.3f}, theirs {costs[False]:.3f}."
    )


def main() -> None:
    """Compares and writes the tables."""
    made = parser(__doc__)
    made.add_argument("--models", nargs="*", default=list(MODELS))
    made.add_argument("--norms", nargs="*", default=[str(n) for n in NORMS])
    made.add_argument("--samples", type=int, default=32)
    made.add_argument("--passes", type=int, default=200)
    arguments = parse(made)
    if not SHARED.is_dir():
        sys.exit(f"the real models of {SHARED} are not here")
    sys.path.insert(0, str(SHARED))
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adversarial-library imports it for plots alone
    parts = [f"{arguments.samples} samples that are classified right, about {arguments.passes} passes each."]
    for name in arguments.models:
        for norm in map(Norm, arguments.norms):
            rows, words = compared(name, norm, arguments.samples, arguments.passes)
            cells = [
                (r.library, r.name, f"{r.success:.0%}", f"{r.median:.5g}", f"{r.forwards:.0f}", f"{r.backwards:.0f}",
                 f"{r.milliseconds:.3f}")
                for r in rows
            ]  # fmt: skip
            head = ("library", "attack", "success", "median", "forwards", "backwards", "CPU ms a pass")
            parts.append(f"## {name}, {norm}\n\n{table(head, cells)}\n\n{words}")
            print(parts[-1], flush=True)
    report("peers", "Minimum-norm attacks against other libraries", parts, arguments)


if __name__ == "__main__":
    main()
