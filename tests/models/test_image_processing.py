"""What an image processor does is measured, applied and said: order, rescaling, one normalisation or two, resizing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import ModelError
from holdfast.graph import trace
from holdfast.models.image_processing import Processed, measured
from holdfast.models.load import load_model

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)


def resized(x, size):
    return F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)


@pytest.mark.parametrize(
    "processor",
    [
        lambda x: x,
        lambda x: x.flip(1),
        lambda x: (x - MEAN) / STD,
        lambda x: (x - MEAN) / STD / STD,
        lambda x: x * 2 - 1,
        lambda x: 255 * x,
        lambda x: resized(x, (9, 5)),
        lambda x: x.roll(1, 3) * torch.linspace(0, 1, x.shape[3]),
        lambda x: (resized(x, (16, 12))[..., 2:14, 1:11].flip(1) - MEAN) / STD,
    ],
    ids=[
        "nothing",
        "bgr",
        "once",
        "twice",
        "symmetric",
        "levels",
        "smaller",
        "rolled-shaded",
        "larger-cropped-bgr-normalised",
    ],
)
@pytest.mark.parametrize("shape", [(3, 12, 10), (3, 8, 8)])
def test_the_step_is_what_the_processor_does(processor, shape):
    x = torch.rand(4, *shape)
    assert torch.allclose(measured(processor, shape)(x), processor(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "processor",
    [lambda x: x.clamp(0.2, 0.8), lambda x: x * x, lambda x: x + torch.rand_like(x)],
    ids=["clipped", "squared", "noisy"],
)
def test_what_is_no_such_step_is_refused_not_guessed(processor):
    with pytest.raises(ModelError, match="cannot be repeated"):
        measured(processor, (3, 6, 6))


def test_pictures_of_the_wrong_kind_are_refused_in_a_sentence():
    with pytest.raises(ModelError, match="cannot take inputs of shape"):
        measured(lambda x: x @ torch.ones(5, 5).double(), (3, 6, 6))
    with pytest.raises(ModelError, match="pictures of shape"):
        measured(lambda x: x, (12,))


def test_a_resizing_step_is_captured_with_its_gradient():
    module = Processed(
        lambda x: (resized(x, (4, 4)) - 0.5) / 0.25, nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    ).eval()
    x = torch.rand(2, 3, 7, 7, requires_grad=True)
    assert torch.autograd.grad(module(x).sum(), x)[0].abs().sum() > 0
    graph = trace(module, x.detach())
    assert torch.allclose(graph.as_module()(x), module(x), atol=1e-5)


class TestFolders:
    @pytest.fixture(autouse=True)
    def _hf(self, monkeypatch):
        self.hf = pytest.importorskip("transformers")

    def small(self, folder, processor=None, **config):
        torch.manual_seed(0)
        made = self.hf.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
            **{"num_labels": 3, **config},
        )  # fmt: skip
        model = self.hf.ViTForImageClassification(made).eval()
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        return model

    def test_the_processor_is_applied_and_said(self, tmp_path, capfd):
        processor = self.hf.ViTImageProcessor(
            size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3
        )
        model = self.small(tmp_path, processor)
        capfd.readouterr()
        loaded = load_model(tmp_path)
        assert "normalises by 0.1,0.2,0.3/0.5,0.5,0.5" in " ".join(loaded.notes)
        assert not "".join(capfd.readouterr()).strip()
        for size in (8, 21):
            levels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
            wanted = model(**processor(list(levels), return_tensors="pt")).logits
            assert torch.allclose(loaded.module(levels / 255), wanted, atol=1e-5 if size == 8 else 0.03), size

    def test_an_efficientnet_that_normalises_twice_does_so_here(self, tmp_path):
        config = self.hf.EfficientNetConfig(
            image_size=40, num_labels=3, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320
        )
        model = self.hf.EfficientNetForImageClassification(config).eval()
        model.save_pretrained(tmp_path)
        processor = self.hf.EfficientNetImageProcessor(size={"height": 40, "width": 40}, image_std=[0.4, 0.5, 0.6])
        processor.save_pretrained(tmp_path)
        loaded = load_model(tmp_path)
        levels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
        wanted = model(**processor(list(levels), return_tensors="pt")).logits
        assert torch.allclose(loaded.module(levels / 255), wanted, atol=1e-5)
        assert "twice" in " ".join(loaded.notes)

    def test_a_declared_normalisation_stands_instead(self, tmp_path):
        from holdfast.models.wrap import Normalisation

        model = self.small(tmp_path, self.hf.ViTImageProcessor(size={"height": 8, "width": 8}))
        loaded = load_model(tmp_path, normalise=Normalisation((0.0,), (1.0,)))
        x = torch.rand(2, 3, 8, 8)
        assert torch.allclose(loaded.module(x), model(x).logits, atol=1e-6)

    def test_stored_bfloat16_is_said(self, tmp_path):
        self.small(tmp_path).bfloat16().save_pretrained(tmp_path)
        assert "some weights are bfloat16; the model runs in float32" in load_model(tmp_path).notes

    def test_multi_label_and_names_are_known(self, tmp_path):
        self.small(tmp_path, problem_type="multi_label_classification", id2label={0: "dog", 1: "cat", 2: "car"})
        loaded = load_model(tmp_path)
        assert "multi-label" in " ".join(loaded.notes)
        assert loaded.module.classes == ("dog", "cat", "car")
        assert loaded.module.multi_label
