"""No file runs code unless it is trusted, whatever its name says and however it is damaged."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast.core.errors import ModelError, UnsafeFileError, UsageError
from holdfast.models import load_model
from holdfast.models.guard import Format, admit, inspect_file
from holdfast.models.pickles import callables
from holdfast.models.zoo import digits_cnn

ARCH = "holdfast.models.zoo:digits_cnn"


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return digits_cnn().eval()


def test_formats_are_told_by_content(tmp_path, module):
    torch.save(module.state_dict(), tmp_path / "a.safetensors")
    torch.save(module.state_dict(), tmp_path / "b.onnx", _use_new_zipfile_serialization=False)
    save_file(module.state_dict(), tmp_path / "c.pt")
    torch.save(module, tmp_path / "d.pt")
    torch.save(module, tmp_path / "e.pt", _use_new_zipfile_serialization=False)
    expected = [Format.STATE_DICT, Format.STATE_DICT, Format.SAFETENSORS, Format.PICKLE, Format.PICKLE]
    assert [inspect_file(p).format for p in sorted(tmp_path.iterdir())] == expected


def test_pt_named_safetensors_opens_as_what_it_is(tmp_path, module):
    torch.save(module.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors", arch=ARCH)
    assert loaded.format is Format.STATE_DICT
    assert not loaded.trusted


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("whole", [True, False], ids=["module", "state dict"])
def test_traps_do_not_run_and_are_named(tmp_path, module, zipped, whole):
    marker = tmp_path / "ran"
    if whole:
        module.trap = Trap(marker)
        torch.save(module, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    else:
        torch.save({**module.state_dict(), "x": Trap(marker)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeFileError, match=r"would run: .*\b(posix|nt)\.system") as refusal:
        load_model(tmp_path / "m.pt", arch=ARCH)
    assert refusal.value.exit_code == 4
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(tmp_path, protocol):
    marker = tmp_path / "ran"
    (tmp_path / "m.bin").write_bytes(pickle.dumps(Trap(marker), protocol))
    with pytest.raises(UnsafeFileError, match=r"(posix|nt)\.system"):
        load_model(tmp_path / "m.bin", arch=ARCH)
    assert not marker.exists()


def test_a_computed_name_is_not_harmless():
    # 'collections' 'OrderedDict' lie on the stack last pushed, but a POP and a DUP make another pair the top
    program = b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x0bcollections0\x93)R."
    assert callables(io.BytesIO(program), 1) == ["a computed name"]
    assert callables(io.BytesIO(b"\x80\x04\x8c\x05pos"), 1)[0].startswith("damaged")


def test_memoised_names_are_followed():
    program = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x9400h\x00h\x01\x93)R."
    assert callables(io.BytesIO(program), 1) == ["posix.system"]


def test_trust_opens_and_is_recorded(tmp_path, module):
    torch.save(module, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", trust=True)
    assert loaded.trusted
    assert "--trust" in loaded.notes[-1]
    assert loaded.subject == load_model(_safe(tmp_path, module), arch=ARCH).subject
    with pytest.raises(UsageError, match="leave out --arch"):
        load_model(tmp_path / "m.pt", arch=ARCH, trust=True)


def test_trusting_a_plain_state_dict_is_not_recorded(tmp_path, module):
    assert not load_model(_safe(tmp_path, module), arch=ARCH, trust=True).trusted


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_and_export_need_trust(tmp_path, module):
    x = torch.rand(2, 1, 8, 8)
    torch.jit.trace(module, x).save(tmp_path / "ts.pt")
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: batch},)), tmp_path / "ex.pt2")
    for name, kind in (("ts.pt", Format.TORCHSCRIPT), ("ex.pt2", Format.PT2)):
        assert inspect_file(tmp_path / name).format is kind
        with pytest.raises(UnsafeFileError, match="can run code"):
            load_model(tmp_path / name)
        with pytest.raises(UsageError, match="leave out --arch"):
            load_model(tmp_path / name, arch=ARCH, trust=True)
        loaded = load_model(tmp_path / name, trust=True)
        loaded.module.train()
        loaded.module.eval()
        assert loaded.trusted
        assert torch.allclose(loaded.module(x), module(x), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras"),
        (b"\x1f\x8b" + bytes(64), "gzip"),
        (b'{"a": 1}', "JSON"),
        (bytes(range(1, 200)), "truncated"),
    ],
)
def test_other_files_are_named(tmp_path, content, words):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match=words) as refusal:
        load_model(tmp_path / "m.pt", arch=ARCH)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.97])
def test_truncated_torch_files(tmp_path, module, zipped, keep):
    torch.save(module.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    raw = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(ModelError):
        load_model(tmp_path / "m.pt", arch=ARCH)


@pytest.mark.parametrize("keep", [0.001, 0.5, 0.99])
def test_truncated_safetensors(tmp_path, module, keep):
    path = _safe(tmp_path, module)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(ModelError, match="truncated"):
        load_model(path, arch=ARCH)


def test_safetensors_header_cap(tmp_path):
    (tmp_path / "m").write_bytes(struct.pack("<Q", 1 << 40) + b'{"a"' + bytes(64))
    with pytest.raises(ModelError, match="declares a safetensors header"):
        inspect_file(tmp_path / "m")


def test_zip_bombs_and_foreign_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "huge", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(70 << 20))
    with pytest.raises(ModelError, match="pickle instructions"):
        inspect_file(tmp_path / "huge")
    for name, content, words in (
        ("x.npy", b"", "NumPy archive"),
        ("a.txt", b"", "not one that PyTorch"),
        ("../a", b"", "outside"),
    ):
        with zipfile.ZipFile(tmp_path / "z", "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(ModelError, match=words):
            inspect_file(tmp_path / "z")


def test_hugging_face_folders_with_code_are_refused_even_with_trust(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoModel": "evil.py"}}))
    with pytest.raises(UnsafeFileError, match="auto_map"):
        load_model(tmp_path, trust=True)
    for text, words in (("{", "JSON"), ("[]", "model_type"), ('{"model_type": "vit"}', "no .safetensors")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=words):
            load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"without config\.json"):
        load_model(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match="no model file"):
        load_model(tmp_path / "absent.pt")


@pytest.mark.parametrize(("name", "hub"), [("microsoft/resnet-50", True), ("runs/net.pt", False), ("a/b/c", False)])
def test_a_name_of_a_hub_is_not_fetched_and_that_is_said(name, hub):
    with pytest.raises(ModelError) as told:
        load_model(name)
    assert (f"hf download {name}" in str(told.value)) == hub


def test_admit_lets_data_through(tmp_path, module):
    path = _safe(tmp_path, module)
    admit(path, inspect_file(path), trust=False)


def _safe(folder: Path, module: nn.Module) -> Path:
    path = folder / "weights.safetensors"
    save_file(module.state_dict(), path)
    return path
