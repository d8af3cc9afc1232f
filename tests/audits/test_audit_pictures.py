"""Witnesses as 8-bit pictures: what is saved comes back, and recheck counts anew what still breaks the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.audits.context import Context
from holdfast.audits.folder import RunFolder
from holdfast.audits.journal import Journal
from holdfast.audits.pictures import in_8_bits, load_png, save_png
from holdfast.audits.plan import Plan
from holdfast.audits.replay import Replay
from holdfast.audits.run import audit


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_said_to_come_back_of_a_picture_comes_back(tmp_path, channels):
    x = torch.rand(5, channels, 7, 6, generator=torch.Generator().manual_seed(0))
    x[0].flatten()[: 4 * channels] = torch.tensor([0.0, 1.0, 0.5 / 255, 1.5 / 255]).repeat(channels)
    for k, image in enumerate(x):
        save_png(tmp_path / f"{k}.png", image)
    assert torch.equal(torch.stack([load_png(tmp_path / f"{k}.png") for k in range(5)]), in_8_bits(x))


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    weights, data, _ = trained
    plan = Plan.of(
        model=str(weights), arch="holdfast.models.zoo:digits_mlp", data=str(data), samples=12, eps="0.15", certify="none",
        grid="1/255", queries=60,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pictures") / "run"
    assert audit(plan, folder).grid.pictures_saved > 3
    return plan, RunFolder(folder)


def replayed(run, **change):
    plan, folder = run
    context = Context.open(plan, folder)
    records = Journal(folder.journal_file, context.identity, read_only=True).units()
    fewer = {name: getattr(records["grid", 0], name) - less for name, less in change.items()}
    replay = Replay(context, records | {("grid", 0): records["grid", 0].model_copy(update=fewer)})
    replay.run()
    return replay.notes.problems


def test_recheck_counts_the_pictures_anew(run):
    assert replayed(run) == []
    for name in ("saved", "still_breaking"):
        (problem,) = replayed(run, **{name: 1})
        assert "pictures break the model, not" in problem


def test_a_picture_that_shows_something_else_is_found(run):
    first = min((run[1].path / "pictures").glob("*.png"))
    kept = first.read_bytes()
    try:
        pixels = np.array(Image.open(first))
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(first)
        (problem,) = replayed(run)
        assert problem == f"sample {first.stem}: its saved picture shows something else than its witness"
        first.write_bytes(b"no picture")
        assert len(replayed(run)) == 1
    finally:
        first.write_bytes(kept)
