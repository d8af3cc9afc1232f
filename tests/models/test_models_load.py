"""Models come out of files as they went in, and errors name what to mend."""

import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast.core.errors import ModelError, UnsafeFileError, UsageError
from holdfast.models import Normalisation, fingerprint, load_model
from holdfast.models.arch import import_function, working_folder_on_path
from holdfast.models.guard import Format, inspect_file
from holdfast.models.weights import fill
from holdfast.models.zoo import digits_cnn

ARCH = "holdfast.models.zoo:digits_cnn"
X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return digits_cnn().eval()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def saved(folder: Path, state) -> Path:
    torch.save(state, folder / "m.pt")
    return folder / "m.pt"


def test_round_trip(tmp_path, module):
    module.train()
    loaded = load_model(saved(tmp_path, module.state_dict()), arch=ARCH)
    assert torch.equal(loaded.module(X), module(X))
    assert not loaded.module.training
    assert loaded.subject.kind == "model"
    assert loaded.subject.sha256 == fingerprint(module)
    assert loaded.notes == ()
    assert ARCH in loaded.source


def test_weights_alone_need_an_architecture(tmp_path, module):
    with pytest.raises(UsageError, match="--arch package"):
        load_model(saved(tmp_path, module.state_dict()))


def test_normalisation_is_part_of_the_model(tmp_path, module):
    path = saved(tmp_path, module.state_dict())
    plain = load_model(path, arch=ARCH)
    loaded = load_model(path, arch=ARCH, normalise=Normalisation.parse("0.5/0.25"))
    assert torch.allclose(loaded.module(X), module((X - 0.5) / 0.25))
    assert loaded.subject != plain.subject
    assert "0.5/0.25" in loaded.notes[0]
    with pytest.raises(ModelError, match="3 channels and the input 1"):
        load_model(path, arch=ARCH, normalise=Normalisation.parse("0,0,0/1,1,1")).module(X)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes_come_off_with_a_note(tmp_path, module, prefix):
    loaded = load_model(saved(tmp_path, {prefix + k: v for k, v in module.state_dict().items()}), arch=ARCH)
    assert torch.equal(loaded.module(X), module(X))
    assert "was taken off" in loaded.notes[0]


def test_checkpoints_are_opened_one_level_down(tmp_path, module):
    loaded = load_model(saved(tmp_path, {"epoch": 3, "state_dict": module.state_dict(), "acc": 0.5}), arch=ARCH)
    assert torch.equal(loaded.module(X), module(X))
    assert "left aside: epoch, acc" in loaded.notes[0]
    with pytest.raises(ModelError, match="its keys: epoch"):
        load_model(saved(tmp_path, {"epoch": 3}), arch=ARCH)
    with pytest.raises(ModelError, match="holds Tensor"):
        load_model(saved(tmp_path, torch.zeros(3)), arch=ARCH)


def test_keys_that_do_not_fit_are_named(tmp_path, module):
    state = module.state_dict()
    state["head.weight"] = state.pop("7.weight")
    with pytest.raises(ModelError, match=r"missing: 7\.weight; not in the architecture: head\.weight"):
        load_model(saved(tmp_path, state), arch=ARCH)
    state = module.state_dict()
    state["7.weight"] = torch.zeros(11, 64)
    with pytest.raises(ModelError, match=r"7\.weight: \(11, 64\) in the file, \(10, 64\) wanted"):
        load_model(saved(tmp_path, state), arch=ARCH)


def test_batch_counters_may_be_absent_or_extra(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))\n"
    )
    monkeypatch.chdir(tmp_path)
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    state = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    x = torch.rand(2, 2)
    assert torch.equal(load_model(saved(tmp_path, state), arch="nets.py:net").module(x), module(x))
    assert load_model(
        saved(tmp_path, {**module.state_dict(), "9.num_batches_tracked": torch.tensor(1)}), arch="nets.py:net"
    )


def test_stored_types_are_said(tmp_path, module):
    loaded = load_model(saved(tmp_path, {k: v.half() for k, v in module.state_dict().items()}), arch=ARCH)
    assert "float16" in loaded.notes[0]
    assert next(loaded.module.parameters()).dtype == torch.float32


class TestArch:
    def test_module_in_the_working_folder(self, tmp_path, monkeypatch, module):
        (tmp_path / "my_own_net.py").write_text("from holdfast.models.zoo import digits_cnn as net\n")
        monkeypatch.chdir(tmp_path)
        before = list(sys.path)
        assert load_model(saved(tmp_path, module.state_dict()), arch="my_own_net:net").format is Format.STATE_DICT
        assert sys.path == before
        sys.modules.pop("my_own_net")

    def test_file_outside_the_working_folder_needs_trust(self, tmp_path, monkeypatch, module):
        marker = tmp_path / "ran"
        (tmp_path / "net.py").write_text(
            f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
            "from holdfast.models.zoo import digits_cnn as net\n"
        )
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        path = saved(tmp_path, module.state_dict())
        for arch in (f"{tmp_path}/net.py:net", "../net.py:net"):
            with pytest.raises(UnsafeFileError, match="outside the working folder") as refusal:
                load_model(path, arch=arch)
            assert refusal.value.exit_code == 4
        assert not marker.exists()
        assert load_model(path, arch="../net.py:net", trust=True)
        assert marker.exists()

    @pytest.mark.parametrize(
        ("arch", "error", "words"),
        [
            ("digits_cnn", UsageError, "write package.module:function"),
            ("holdfast.models.zoo:digit_cnn", UsageError, "Did you mean digits_cnn"),
            ("no_such_module:f", UsageError, "no module 'no_such_module'"),
            ("holdfast.models.nothing:f", UsageError, "no module"),
            ("nowhere.py:f", UsageError, "no file"),
            ("holdfast.models.zoo:__all__", UsageError, "not a function"),
            ("math:sqrt", ModelError, "failed when called without arguments"),
            ("os:getcwd", ModelError, "returned str"),
        ],
    )
    def test_errors_name_the_fix(self, tmp_path, module, arch, error, words):
        with pytest.raises(error, match=words):
            load_model(saved(tmp_path, module.state_dict()), arch=arch)

    def test_faults_inside_the_users_module(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "broken_a.py").write_text("import surely_not_installed\n")
        (tmp_path / "broken_b.py").write_text("1 / 0\n")
        with working_folder_on_path(), pytest.raises(ModelError, match="needs the package 'surely_not_installed'"):
            import_function("broken_a:f")
        with pytest.raises(ModelError, match="ZeroDivisionError"):
            import_function("broken_b.py:f")


class TestTied:
    @staticmethod
    def net(tied=True):
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer if tied else nn.Linear(4, 4))

    def test_one_name_of_a_shared_tensor_is_enough(self, tmp_path):
        from safetensors.torch import save_model

        from holdfast.models.weights import fill

        net, other = self.net(), self.net()
        save_model(net, str(tmp_path / "w.safetensors"))
        state = {k: v for k, v in net.state_dict().items() if k.startswith("0.")}
        notes = fill(other, state, what="tied")
        assert torch.equal(other(torch.ones(1, 4)), net(torch.ones(1, 4)))
        assert any("tied to 0." in note for note in notes)

    def test_two_values_for_one_tensor_are_refused(self):
        from holdfast.models.weights import fill

        with pytest.raises(ModelError, match="shares one tensor"):
            fill(self.net(), self.net(tied=False).state_dict(), what="tied")


@pytest.mark.parametrize("prefix", ["module.", "_module.", "_orig_mod.", "_orig_mod.module.", "_module.module."])
def test_prefixes_of_wrapped_models_are_taken_off(prefix):
    from holdfast.models.weights import fill

    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    notes = fill(other, {prefix + k: v for k, v in net.state_dict().items()}, what="linear")
    assert torch.equal(net.weight, other.weight)
    assert len(notes) == prefix.count(".")


class TestTimm:
    NAME = "timm:test_resnet"

    @pytest.fixture(autouse=True)
    def _timm(self):
        pytest.importorskip("timm")

    def test_sized_by_the_weights_and_offline(self, tmp_path, no_network):
        import timm

        module = timm.create_model("test_resnet", num_classes=7, in_chans=1).eval()
        save_file(module.state_dict(), tmp_path / "w.safetensors")
        loaded = load_model(tmp_path / "w.safetensors", arch=self.NAME)
        x = torch.rand(2, 1, 64, 64)
        assert torch.allclose(loaded.module(x), module(x))
        assert any("num_classes=7" in note for note in loaded.notes)
        assert any("only if declared" in note for note in loaded.notes)

    def test_the_note_names_a_normalisation_only_where_the_tag_decides_it(self, tmp_path):
        import timm

        torch.save(timm.create_model("resnet34", num_classes=2).state_dict(), tmp_path / "w.pt")
        tagged = load_model(tmp_path / "w.pt", arch="timm:resnet34.ra4_e3600_r224_in1k")
        assert "expect the normalisation 0.5,0.5,0.5/0.5,0.5,0.5" in tagged.notes[-1]
        assert "different normalisations by tag" in load_model(tmp_path / "w.pt", arch="timm:resnet34").notes[-1]
        with pytest.raises(UsageError, match="no weights 'nosuch' of resnet34"):
            load_model(tmp_path / "w.pt", arch="timm:resnet34.nosuch")

    @pytest.mark.parametrize("name", ["resnet_18", "hf-hub:someone/model", "hf_hub:a/b"])
    def test_unknown_names_reach_nowhere(self, tmp_path, module, no_network, name):
        with pytest.raises(UsageError, match="no model"):
            load_model(saved(tmp_path, module.state_dict()), arch=f"timm:{name}")


class TestHuggingFace:
    @pytest.fixture
    def folder(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        config = transformers.ResNetConfig(
            num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
        )
        torch.manual_seed(0)
        model = transformers.ResNetForImageClassification(config).eval()
        model.save_pretrained(tmp_path / "hf")
        (tmp_path / "hf" / "preprocessor_config.json").write_text(
            '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "do_resize": false}'
        )
        return tmp_path / "hf", model

    def test_logits_offline_with_a_note(self, folder, no_network):
        path, model = folder
        loaded = load_model(path)
        x = torch.rand(2, 3, 32, 32)
        assert loaded.format is Format.HF_FOLDER
        assert torch.allclose(loaded.module(x), model((x - 0.5) / 0.25).logits, atol=1e-5)
        assert "0.5,0.5,0.5/0.25,0.25,0.25" in loaded.notes[0]

    def test_a_missing_head_is_not_filled_with_random_numbers(self, folder):
        from safetensors.torch import load_file

        path, _ = folder
        state = {k: v for k, v in load_file(path / "model.safetensors").items() if "classifier" not in k}
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="weights are missing for classifier"):
            load_model(path)

    def test_damaged(self, folder):
        path, _ = folder
        (path / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(ModelError, match="no readable image classifier"):
            load_model(path)


def test_onnx(tmp_path, module):
    onnx = pytest.importorskip("onnx")
    torch.onnx.export(
        module, (X,), tmp_path / "m.bin", dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
    )  # fmt: skip
    assert onnx.load(tmp_path / "m.bin").graph.node
    assert inspect_file(tmp_path / "m.bin").format is Format.ONNX
    loaded = load_model(tmp_path / "m.bin")
    assert torch.allclose(loaded.module(X), module(X), atol=1e-5)
    with pytest.raises(UsageError, match="leave out --arch"):
        load_model(tmp_path / "m.bin", arch=ARCH)


def _holding(buffers, persistent=True):
    module = nn.Module()
    for name, value in buffers.items():
        module.register_buffer(name, value, persistent)
    return module


class TestFingerprint:
    def test_sees_weights_buffers_and_architecture(self):
        torch.manual_seed(0)
        a = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2))
        before = fingerprint(a)
        assert fingerprint(a) == before
        with torch.no_grad():
            a[0].weight[0, 0] = a[0].weight[0, 0] + 1e-7 + a[0].weight[0, 0] * 1e-6
        changed = fingerprint(a)
        a[2].running_mean += 1
        other = fingerprint(a)
        a[1] = nn.Tanh()
        assert len({before, changed, other, fingerprint(a)}) == 4

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.int32)}),
            ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}),
            ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}),
            ({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, {"a": torch.tensor([[1.0, 3.0], [2.0, 4.0]])}),
        ],
        ids=["type", "shape", "name", "order of the entries"],
    )
    @pytest.mark.parametrize("persistent", [True, False])  # what a state dict leaves out is part of f
    def test_buffers_that_differ_in_one_respect_are_two_models(self, one, other, persistent):
        assert fingerprint(_holding(one, persistent)) != fingerprint(_holding(other, persistent))

    def test_the_order_of_registration_strides_and_ties_are_no_other_model(self):
        a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0])
        transposed = a.T.contiguous().T
        assert fingerprint(_holding({"a": a, "b": b})) == fingerprint(_holding({"b": b, "a": transposed}))
        tied, copied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        tied[1].weight = tied[0].weight
        copied.load_state_dict(tied.state_dict())
        assert fingerprint(tied) == fingerprint(copied)

    def test_a_module_without_numbers_has_none(self):
        with pytest.raises(
            ModelError, match=r"'0.bias' is on the meta device.*load_state_dict\(weights, assign=True\)"
        ):
            fingerprint(nn.Sequential(nn.Linear(2, 2)).to("meta"))

    def test_half_types_and_scalars(self):
        module = nn.Linear(2, 2).bfloat16()
        module.register_buffer("scale", torch.tensor(3))
        assert len(fingerprint(module)) == 64


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        (
            nn.Linear(3, 10),
            nn.Linear(3, 4),
            "It has 4 classes where the file has 10: write 'def build(): return resnet18(num_classes=10)'",
        ),
        (nn.Linear(5, 4), nn.Linear(3, 4), "Is it the right --arch"),
    ],
)
def test_weights_of_another_number_of_classes_come_with_the_remedy(there, here, words):
    with pytest.raises(ModelError) as told:
        fill(here, there.state_dict(), what="torchvision.models:resnet18")
    assert words in str(told.value)
    if "classes" in words:
        assert "from torchvision.models import resnet18" in str(told.value)
        assert "--arch net.py:build" in str(told.value)
