"""Every change of a data set can be counted, undone and done again; a manifest that lies is found out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from holdfast.core.cards import Card, Knows
from holdfast.core.errors import DataError, UsageError
from holdfast.core.knowledge import Knowledge
from holdfast.core.manifest import ChangeKind, Manifest, Samples
from holdfast.data.dataset import Dataset
from holdfast.data.poisoned import PoisonedDataset


def clean(n: int = 12) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset.of(torch.rand(n, 2, 3, generator=generator), torch.arange(n) % 3, name="clean")


def samples(data: Dataset, rows: list[int]) -> Samples:
    return Samples(data.x[rows], data.y[rows])


def changed(data: Dataset) -> PoisonedDataset:
    """Two replaced (one in its label alone), two removed, one added."""
    rows = torch.tensor([7, 2])
    new = Samples(torch.stack([data.x[7], 0.5 * data.x[2]]), torch.tensor([2, 2]))
    return PoisonedDataset.of(
        data, method="toy", seed=3, replacing=(rows, new), remove=torch.tensor([11, 0]), add=samples(data, [5])
    )


def test_a_data_set_is_changed_row_by_row() -> None:
    data = clean()
    made = changed(data).data
    assert len(made) == 11
    assert torch.equal(made.x[0], data.x[1])
    assert torch.equal(made.x[1], 0.5 * data.x[2])
    assert made.y[6] == 2
    assert torch.equal(made.x[6], data.x[7])
    assert torch.equal(made.x[-1], data.x[5])
    assert made.sha256 != data.sha256
    assert "changed by toy" in made.notes


def test_what_is_undone_and_replayed_is_what_was_there_to_the_bit() -> None:
    data = clean()
    made = changed(data)
    assert made.original().sha256 == data.sha256
    assert torch.equal(made.original().x, data.x)
    assert torch.equal(made.manifest.replay(data.x, data.y)[0], made.data.x)


@pytest.mark.parametrize("seed", range(6))
def test_the_edits_are_the_symmetric_difference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = Dataset.of(torch.randint(0, 2, (15, 2), generator=generator).float(), torch.arange(15) % 2)
    order = torch.randperm(15, generator=generator)
    new = Samples(data.x[order[6:9]], 1 - data.y[order[:3]])
    made = PoisonedDataset.of(
        data, method="toy", seed=None, replacing=(order[:3], new), remove=order[3:6], add=samples(data, [0, 1])
    )
    before, after = (Counter(Samples(d.x, d.y).keys()) for d in (data, made.data))
    assert made.manifest.edits == ((before - after) | (after - before)).total()


def test_a_flip_costs_two_an_addition_or_a_removal_one() -> None:
    data = clean()
    flip = Samples(data.x[:1], (data.y[:1] + 1) % 3)
    far = Samples(data.x[:1] + 1, data.y[:1])
    assert PoisonedDataset.of(data, method="a", seed=0, replacing=(torch.tensor([0]), flip)).manifest.edits == 2
    assert PoisonedDataset.of(data, method="a", seed=0, remove=torch.tensor([4])).manifest.edits == 1
    assert PoisonedDataset.of(data, method="a", seed=0, add=far).manifest.edits == 1


def test_a_replacement_by_the_same_sample_is_no_change() -> None:
    data = clean()
    made = PoisonedDataset.of(data, method="a", seed=0, replacing=(torch.tensor([3]), samples(data, [3])))
    assert len(made.manifest) == made.manifest.edits == 0
    assert made.data.sha256 == data.sha256


def test_a_replacement_that_differs_in_one_feature_is_a_change() -> None:
    data = clean()
    nearly = data.x[:1].clone()
    nearly[0, 1, 2] += 0.5
    made = PoisonedDataset.of(data, method="a", seed=0, replacing=(torch.tensor([0]), Samples(nearly, data.y[:1])))
    assert (len(made.manifest), made.manifest.edits) == (1, 2)
    assert torch.equal(made.data.x[:1], nearly)


def test_a_manifest_is_as_long_as_its_changes() -> None:
    manifest = changed(clean()).manifest
    assert len(manifest) == len(manifest.changes) == 2 + 2 + 1


def test_changes_are_told_with_their_labels() -> None:
    told = changed(clean()).manifest.changes
    assert [(c.kind, c.row, c.before, c.after) for c in told] == [
        (ChangeKind.REPLACED, 2, 2, 2), (ChangeKind.REPLACED, 7, 1, 2),
        (ChangeKind.REMOVED, 0, 0, None), (ChangeKind.REMOVED, 11, 2, None), (ChangeKind.ADDED, 10, None, 2),
    ]  # fmt: skip


def test_a_saved_manifest_comes_back_and_still_replays(tmp_path: Path) -> None:
    data = clean()
    made = changed(data)
    made.manifest.save(tmp_path / "m.json")
    again = Manifest.load(tmp_path / "m.json")
    assert torch.equal(again.replay(data.x, data.y)[0], made.data.x)
    assert torch.equal(again.undo(made.data.x, made.data.y)[0], data.x)
    assert (again.changes, again.edits, again.seed, again.method) == (made.manifest.changes, 7, 3, "toy")


def test_samples_that_do_not_lie_in_one_piece_are_saved_as_they_are(tmp_path: Path) -> None:
    data = clean()
    across = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    manifest = Manifest.of(data.x, data.y, method="a", seed=0, add=Samples(across, torch.tensor([0, 1])))
    manifest.save(tmp_path / "m.json")
    assert torch.equal(Manifest.load(tmp_path / "m.json").added.x, across)


def test_samples_are_read_beside_the_manifest_and_nowhere_else(tmp_path: Path) -> None:
    """A manifest comes from strangers: it names a file, and must not reach into other folders."""
    path = tmp_path / "mine" / "m.json"
    path.parent.mkdir()
    changed(clean()).manifest.save(path)
    path.with_suffix(".safetensors").rename(tmp_path / "m.safetensors")
    about = json.loads(path.read_text())
    for name in ("../m.safetensors", str(tmp_path / "m.safetensors")):
        path.write_text(json.dumps({**about, "features": {**about["features"], "file": name}}))
        with pytest.raises(DataError, match="is no manifest"):
            Manifest.load(path)


def test_other_data_are_refused() -> None:
    data = clean()
    made = changed(data)
    with pytest.raises(DataError, match="the original data should have the hash"):
        made.manifest.replay(data.x + 1e-7, data.y)
    with pytest.raises(DataError, match="the changed data should have the hash"):
        made.manifest.undo(data.x, data.y)


@pytest.mark.parametrize("lie", ["old", "new", "added", "after"])
def test_a_manifest_that_lies_is_found_out(lie: str) -> None:
    data = clean()
    made = changed(data)
    if lie == "after":
        false = replace(made.manifest, after="0" * 64)
    else:
        part = getattr(made.manifest, lie)
        false = replace(made.manifest, **{lie: Samples(part.x + 0.1, part.y)})
    with pytest.raises(DataError, match="does not fit"):
        false.undo(made.data.x, made.data.y) if lie == "old" else false.replay(data.x, data.y)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    changed(clean()).manifest.save(path)
    whole, features = path.read_text(), (tmp_path / "m.safetensors").read_bytes()
    about = json.loads(whole)
    for wrong, message in (
        ({**about, "schema_version": 9}, "schema version 9, and this reads 1"),
        ({**about, "schema_version": 0}, "schema version 0, and this reads 1"),
        ({**about, "edits": 2}, "lists other changes"),
        ({**about, "changes": about["changes"][1:]}, "lists other changes"),
        ({k: v for k, v in about.items() if k != "seed"}, "is no manifest"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            Manifest.load(path)
    for text in ("[1, 2]", "changes: 3", '{"schema_version": 1, "features": []}'):
        path.write_text(text)
        with pytest.raises(DataError, match="is no manifest"):
            Manifest.load(path)
    (tmp_path / "m.safetensors").write_bytes(b"no tensors")
    sha256 = hashlib.sha256(b"no tensors").hexdigest()
    path.write_text(json.dumps({**about, "features": {**about["features"], "sha256": sha256}}))
    with pytest.raises(DataError, match="is no manifest"):
        Manifest.load(path)
    path.write_text(whole)
    (tmp_path / "m.safetensors").write_bytes(features[:-4] + b"\0\0\0\0")
    with pytest.raises(DataError, match="are not those that it was written with"):
        Manifest.load(path)
    with pytest.raises(DataError, match="is no manifest"):
        Manifest.load(tmp_path / "absent.json")


def test_changes_that_cannot_be_are_refused() -> None:
    data = clean()
    one = samples(data, [1])
    with pytest.raises(UsageError, match=r"must lie in 0\.\.11"):
        PoisonedDataset.of(data, method="a", seed=0, remove=torch.tensor([12]))
    with pytest.raises(UsageError, match="changed twice"):
        PoisonedDataset.of(data, method="a", seed=0, replacing=(torch.tensor([3]), one), remove=torch.tensor([3]))
    with pytest.raises(UsageError, match="2 rows are changed, with 1 samples"):
        PoisonedDataset.of(data, method="a", seed=0, replacing=(torch.tensor([3, 4]), one))
    with pytest.raises(UsageError, match="do not fit a data set"):
        PoisonedDataset.of(data, method="a", seed=0, add=Samples(torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(UsageError, match=r"features of torch.float64 .* convert them"):
        PoisonedDataset.of(data, method="a", seed=0, add=Samples(one.x.double(), one.y))
    with pytest.raises(UsageError, match=r"labels of torch.float32 .* convert them"):
        PoisonedDataset.of(data, method="a", seed=0, add=Samples(one.x, one.y.float()))
    with pytest.raises(UsageError, match=r"labels of shape \(1, 1\) for 1 samples; give one for each"):
        PoisonedDataset.of(data, method="a", seed=0, add=Samples(one.x, one.y.view(1, 1)))
    for rows in (torch.tensor([3.0]), torch.tensor([[3]])):
        with pytest.raises(UsageError, match="vectors of int64"):
            PoisonedDataset.of(data, method="a", seed=0, remove=rows)


Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("about", "tensors", "message"),
    [
        ({"changes": {11: 99}}, {"removed": torch.tensor([0, 99])}, r"must lie in 0\.\.11, got 0 to 99"),
        ({"changes": {11: -1}}, {"removed": torch.tensor([0, -1])}, r"must lie in 0\.\.11, got -1 to"),
        ({"changes": {11: 2}}, {"removed": torch.tensor([0, 2])}, "changed twice"),
        ({}, {"removed": torch.tensor([0.0, 11.0])}, "vectors of int64"),
        ({}, {"new.x": torch.zeros(2, 3)}, r"shape \(3,\) do not fit"),
        ({}, {"new.x": torch.zeros(2, 2, 3).double()}, "convert them"),
        ({}, {"lost.x": torch.zeros(3, 2, 3)}, "2 rows are changed, with 3 samples"),
        ({}, {"old.x": torch.zeros(3, 2, 3)}, "2 rows are changed, with 3 samples"),
        ({}, {"new.x": torch.zeros(1, 2, 3)}, "2 rows are changed, with 1 samples"),
        ({"count": 20, "changes": {10: 18}}, {}, "it tells 20 samples of the original data, of 12"),
    ],
)
def test_a_forged_manifest_is_refused_in_a_sentence(
    tmp_path: Path, about: dict[str, Any], tensors: Tensors, message: str
) -> None:
    """The forger made the hash of the samples fit."""
    data, path, beside = clean(), tmp_path / "m.json", tmp_path / "m.safetensors"
    changed(data).manifest.save(path)
    told = json.loads(path.read_text())
    rows = about.get("changes", {})
    told |= {**about, "changes": [[kind, rows.get(row, row), *labels] for kind, row, *labels in told["changes"]]}
    content = save({**load(beside.read_bytes()), **tensors})
    told["features"]["sha256"] = hashlib.sha256(content).hexdigest()
    beside.write_bytes(content)
    path.write_text(json.dumps(told))
    with pytest.raises(DataError, match=message):
        Manifest.load(path).replay(data.x, data.y)


def test_a_forged_count_does_not_undo(tmp_path: Path) -> None:
    made, path = changed(clean()), tmp_path / "m.json"
    made.manifest.save(path)
    told = json.loads(path.read_text())
    changes = [[kind, 18 if kind == "added" else row, *labels] for kind, row, *labels in told["changes"]]
    path.write_text(json.dumps({**told, "count": 20, "changes": changes}))
    with pytest.raises(DataError, match="it tells 19 samples of the changed data, of 11"):
        Manifest.load(path).undo(made.data.x, made.data.y)


def test_a_manifest_cannot_take_the_name_of_its_samples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name the manifest m\.json"):
        changed(clean()).manifest.save(tmp_path / "m.safetensors")


def test_a_method_knows_what_its_card_asks_for_and_nothing_else() -> None:
    card = Card(title="Toy", rows=(), paper="", section="", summary="", knows=(Knows.CLEAN,))
    known = Samples(torch.zeros(1, 2), torch.zeros(1))
    whole = Knowledge(surrogate=torch.nn.Identity(), clean=known)
    assert whole.narrowed(card).clean is known
    assert whole.narrowed(card).surrogate is None
    with pytest.raises(UsageError, match="Toy must know clean samples"):
        Knowledge().narrowed(card)
    with pytest.raises(UsageError, match="no surrogate is known"):
        whole.narrowed(card).known_surrogate()
