"""The training loop: keyed, resumable to the bit, best epoch kept, nothing of the caller's touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.core.errors import JournalError, ModelError, UsageError
from holdfast.data.dataset import Dataset
from holdfast.training.batch import Batch
from holdfast.training.hooks import Epoch, Hooks
from holdfast.training.loop import fit, split
from holdfast.training.settings import SCHEDULES, TrainingSettings


class Killed(Exception):
    pass


def blobs(n: int = 90) -> Dataset:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(n) % 3
    return Dataset.of(torch.randn(n, 4, generator=generator) * 0.3 + torch.eye(4)[y], y)


def network() -> nn.Module:
    """Dropout and batch norm: the global generator and buffers must be resumed too."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    assert model.training
    return F.cross_entropy(model(batch.x + 0.1 * batch.draws.normal("noise", (4,))), batch.y)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def kill_at(epoch: int, batches: int) -> Callable[[int, int], None]:
    """Dies at the first step after the epoch, whose checkpoint is there then."""

    def told(done: int, total: int) -> None:
        if done == epoch * batches + 1:
            raise Killed

    return told


class Saved(Hooks):
    """Dies once an epoch's checkpoint is there: at the first step of the next one."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.done = epoch, 0

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        if self.done == self.epoch:
            raise Killed

    def after_epoch(self, model: nn.Module, epoch: Epoch) -> None:
        self.done = epoch.number


class Remembers(Hooks):
    """Pulls the weights towards an average of its own after each step, and shrinks them after each epoch."""

    def __init__(self) -> None:
        self.mean: dict[str, Tensor] = {}

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        assert model.training
        with torch.no_grad():
            for name, p in model.named_parameters():
                mean = self.mean.setdefault(name, p.clone())
                mean.lerp_(p, 0.1)
                p.lerp_(mean, 0.3)

    def after_epoch(self, model: nn.Module, epoch: Epoch) -> None:
        assert not model.training
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 - 0.01 * epoch.number)

    def state(self) -> dict[str, Tensor]:
        return self.mean

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.mean = dict(state)


class Forgets(Remembers):
    """As `Remembers`, and does not say what it remembers."""

    def state(self) -> dict[str, Tensor]:
        return {}


def killed_and_resumed(file: Path, settings: TrainingSettings, make: Callable[[], list[Hooks]]) -> nn.Module:
    with pytest.raises(Killed):
        fit(network(), blobs(), loss, settings=settings, hooks=[*make(), Saved(2)], checkpoint=file)
    fresh = network()
    fit(fresh, blobs(), loss, settings=settings, hooks=[*make(), Saved(99)], checkpoint=file, resume=True)
    return fresh


def test_a_killed_training_resumes_with_what_its_hooks_remember(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=4, batch=16, validation=0.2)
    whole, plain = network(), network()
    fit(whole, blobs(), loss, settings=settings, hooks=[Remembers(), Saved(99)])
    fit(plain, blobs(), loss, settings=settings)
    assert not same(weights(whole), weights(plain)), "the hooks change nothing"
    assert same(weights(whole), weights(killed_and_resumed(tmp_path / "a", settings, lambda: [Remembers()])))
    assert not same(weights(whole), weights(killed_and_resumed(tmp_path / "b", settings, lambda: [Forgets()])))


def test_a_checkpoint_of_other_hooks_is_refused(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=3)
    with pytest.raises(Killed):
        fit(network(), blobs(), loss, settings=settings, hooks=[Remembers(), Saved(1)], checkpoint=tmp_path / "c")
    with pytest.raises(JournalError, match="hooks was"):
        fit(network(), blobs(), loss, settings=settings, checkpoint=tmp_path / "c", resume=True)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_and_resumed_training_ends_with_the_same_bits(tmp_path: Path, optimiser: str, at: int) -> None:
    settings = TrainingSettings(epochs=5, batch=16, optimiser=optimiser, rate=0.05, validation=0.2)
    whole = network()
    told = fit(whole, blobs(), loss, settings=settings)
    broken, file = network(), tmp_path / "c"
    with pytest.raises(Killed):
        fit(broken, blobs(), loss, settings=settings, progress=kill_at(at, batches=5), checkpoint=file)
    fresh = network()
    torch.manual_seed(99)  # whatever the process drew before
    again = fit(fresh, blobs(), loss, settings=settings, checkpoint=file, resume=True)
    assert same(weights(whole), weights(fresh))
    assert again.history == told.history
    assert not same(weights(whole), weights(network()))


def test_a_training_killed_in_the_middle_of_an_epoch_repeats_that_epoch(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=3, batch=16)
    whole, fresh = network(), network()
    fit(whole, blobs(), loss, settings=settings)

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network(), blobs(), loss, settings=settings, checkpoint=tmp_path / "c", progress=stop)
    fit(fresh, blobs(), loss, settings=settings, checkpoint=tmp_path / "c", resume=True)
    assert same(weights(whole), weights(fresh))
    assert [p.name for p in tmp_path.iterdir()] == ["c"], "no draft is left behind"


class Watch(Hooks):
    def __init__(self, seen: dict[int, dict[str, Tensor]]) -> None:
        self.seen = seen

    def after_epoch(self, model: nn.Module, epoch: Epoch) -> None:
        self.seen[epoch.number] = weights(model)


def test_the_best_validation_epoch_is_kept() -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    scores = iter([0.2, 0.9, 0.4, 0.1])

    def score(model: nn.Module, batch: Batch) -> Tensor:
        assert not model.training
        if len(seen) not in marks:
            marks[len(seen)] = next(scores)
        return torch.arange(len(batch.x)) < marks[len(seen)] * len(batch.x)

    marks: dict[int, float] = {}
    model = network()
    done = fit(
        model, blobs(), loss, score=score, settings=TrainingSettings(epochs=4, validation=0.5),
        hooks=[Watch(seen)],
    )  # fmt: skip
    assert done.best.number == 2
    assert same(weights(model), seen[2])
    assert not same(seen[2], seen[4])
    assert not model.training


def test_held_out_rows_are_never_trained_on() -> None:
    seen: set[int] = set()

    def watching(model: nn.Module, batch: Batch) -> Tensor:
        seen.update(batch.ids.tolist())
        return loss(model, batch)

    done = fit(network(), blobs(), watching, settings=TrainingSettings(epochs=2, validation=0.2, seed=4))
    assert len(done.held_out) == 18
    assert seen == set(range(90)) - set(done.held_out.tolist())


def test_epochs_shuffle_anew_and_the_seed_decides() -> None:
    def orders(seed: int) -> list[list[int]]:
        found: list[list[int]] = []

        def watching(model: nn.Module, batch: Batch) -> Tensor:
            found.append(batch.ids.tolist())
            return loss(model, batch)

        fit(network(), blobs(), watching, settings=TrainingSettings(epochs=2, batch=90, validation=0, seed=seed))
        return found

    first = orders(0)
    assert first == orders(0)
    assert first[0] != first[1]
    assert first != orders(1)


def test_a_last_row_alone_joins_the_batch_before() -> None:
    sizes: list[int] = []

    def watching(model: nn.Module, batch: Batch) -> Tensor:
        sizes.append(len(batch.x))
        return loss(model, batch)

    told: list[tuple[int, int]] = []
    settings = TrainingSettings(epochs=1, batch=16, validation=0.1)  # 81 rows
    fit(network(), blobs(), watching, settings=settings, progress=lambda *at: told.append(at))
    assert sizes == [16, 16, 16, 16, 17]
    assert told[-1] == (5, 5)


def test_global_random_state_is_left_alone() -> None:
    model = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model, blobs(), loss, settings=TrainingSettings(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "c"
    with pytest.raises(Killed):
        fit(
            network(),
            blobs(),
            loss,
            settings=TrainingSettings(epochs=3),
            progress=kill_at(1, batches=1),
            checkpoint=file,
        )
    with pytest.raises(JournalError, match="rate was"):
        fit(network(), blobs(), loss, settings=TrainingSettings(epochs=3, rate=0.5), checkpoint=file, resume=True)
    with pytest.raises(JournalError, match="data was"):
        fit(network(), blobs(60), loss, settings=TrainingSettings(epochs=3), checkpoint=file, resume=True)
    with pytest.raises(JournalError, match="another architecture"):
        fit(nn.Linear(4, 3), blobs(), loss, settings=TrainingSettings(epochs=3), checkpoint=file, resume=True)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(JournalError, match="no checkpoint"):
        fit(network(), blobs(), loss, settings=TrainingSettings(epochs=3), checkpoint=file, resume=True)


def test_a_checkpoint_whose_history_lacks_a_field_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "c"
    fit(network(), blobs(), loss, settings=TrainingSettings(epochs=1), checkpoint=file)
    with safe_open(file, framework="pt") as opened:
        header, tensors = opened.metadata(), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {**header, "history": '[{"number": 1, "loss": 0.5}]'})
    with pytest.raises(JournalError, match=r"no checkpoint of a training.*delete it to start anew"):
        fit(network(), blobs(), loss, settings=TrainingSettings(epochs=1), checkpoint=file, resume=True)


def test_divergence_is_told_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lower the learning rate"):
        fit(network(), blobs(), lambda m, b: loss(m, b) * float("nan"), checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_schedules_end_at_zero_and_peak_at_one() -> None:
    assert SCHEDULES["cosine"](0) == 1
    assert SCHEDULES["cosine"](1) == pytest.approx(0)
    assert SCHEDULES["one-cycle"](0) == pytest.approx(1 / 25)
    assert SCHEDULES["one-cycle"](0.3) == pytest.approx(1)
    assert SCHEDULES["one-cycle"](1) == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 0}, {"validation": 1.0}, {"rate": 0.0}, {"optimiser": "adm"}, {"schedule": "x"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TrainingSettings(**wrong)  # type: ignore[arg-type]


def test_too_few_samples_for_a_validation_split() -> None:
    with pytest.raises(UsageError, match="cannot spare"):
        split(1, 0.5, 0)
