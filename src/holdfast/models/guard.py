"""Which format a model file has, told by its content, and whether opening it could run code. Nothing here runs any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO
from zipfile import ZipFile

from holdfast.core.errors import ModelError, UnsafeFileError
from holdfast.data.archive import human, open_zip
from holdfast.models.pickles import LEGACY_MAGIC, callables

__all__ = ["Contents", "Format", "admit", "inspect_file"]

MAX_FILE = 64 << 30
MAX_HEADER = 100_000_000  # the safetensors format's own limit
MAX_JSON = 16 << 20
MAX_PROGRAM = 64 << 20
"""Most bytes of pickle instructions in an archive; the tensors lie outside of them."""


class Format(StrEnum):
    """What a model file is."""

    SAFETENSORS = "safetensors"
    STATE_DICT = "PyTorch weights"
    PICKLE = "pickled objects"
    TORCHSCRIPT = "TorchScript archive"
    PT2 = "torch.export archive (.pt2)"
    ONNX = "ONNX"
    HF_FOLDER = "Hugging Face folder"
    FUNCTION = "Python function"
    """A function of a file that the caller named; no file is found to be one."""


@dataclass(frozen=True)
class Contents:
    """What a look at a file showed.

    Attributes:
        format: what it is, whatever its name says.
        runs: what opening it would or could run; empty for a file that is only data.
    """

    format: Format
    runs: tuple[str, ...] = ()


def inspect_file(path: str | Path) -> Contents:
    """Tell a file's format from its bytes; sizes that it declares are checked before anything is read.

    Raises:
        ModelError: nothing there, damaged, too large, or no known model format; the message says what it looks like.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        hub = path.suffix == "" and len(path.parts) == 2 and not path.is_absolute()
        hint = (
            f"; nothing is fetched from a hub: download {path} into a folder first (hf download {path} --local-dir FOLDER) "
            "and give that folder"
        )
        raise ModelError(f"there is no model file at {path}{hint if hub else ''}")
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ModelError(f"{path} has {human(size)}; at most {human(MAX_FILE)} are opened")
    with path.open("rb") as file:
        start = file.read(512)
        if start.startswith(b"PK\x03\x04"):
            return _archive(path)
        if _is_safetensors(start, size, path):
            return Contents(Format.SAFETENSORS)
        if LEGACY_MAGIC in start[:32] or start[:1] == b"\x80":
            return _pickle(file, legacy=LEGACY_MAGIC in start[:32])
        if _is_onnx(file, size):
            return Contents(Format.ONNX)
        if _is_text_pickle(file):
            return _pickle(file, legacy=False)
    raise ModelError(f"{path} is no model file that can be opened: {_looks(start)}")


def admit(path: str | Path, contents: Contents, *, trust: bool) -> None:
    """Refuse a file that could run code, unless it is trusted.

    Raises:
        UnsafeFileError: the message says what would run and how to save the model instead.
    """
    if contents.runs and not trust:
        strangers_first = sorted(contents.runs, key=lambda name: name.startswith("torch."))
        more = len(strangers_first) - 6
        shown = ", ".join(strangers_first[:6]) + (f" and {more} more" if more > 0 else "")
        if not any(name.startswith("torch.") for name in contents.runs):
            raise UnsafeFileError(
                f"{path} is a file of the kind '{contents.format}', and opening it can run code; would run: {shown}. If it "
                "is an estimator of scikit-learn's kind, export it to ONNX with skl2onnx and give that file, or load it "
                "with skops in a predict.py of your own; or, if you trust where the file comes from, pass --trust."
            )
        raise UnsafeFileError(
            f"{path} is a file of the kind '{contents.format}', and opening it can run code; would run: {shown}. "
            "Save the weights alone, with torch.save(model.state_dict(), file) or as safetensors, and name the "
            "architecture with --arch; or, if you trust where the file comes from, pass --trust."
        )


def _folder(path: Path) -> Contents:
    config = path / "config.json"
    if not config.is_file():
        raise ModelError(f"{path} is a folder without config.json; wanted a Hugging Face classifier, or a model file")
    if config.stat().st_size > MAX_JSON:
        raise ModelError(f"{config} has {human(config.stat().st_size)}; at most {human(MAX_JSON)} are read")
    try:
        declared = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ModelError(f"{config} is not readable JSON ({fault})") from None
    if not isinstance(declared, dict) or "model_type" not in declared:
        raise ModelError(f"{config} names no model_type; is this a folder that save_pretrained wrote?")
    if "auto_map" in declared:
        raise UnsafeFileError(
            f"{config} asks for code of its own (auto_map), which is never run from here, trusted or not; "
            "build the model in Python and pass it to the library"
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} holds no .safetensors weights; save them with save_pretrained(folder, safe_serialization=True)"
        )
    return Contents(Format.HF_FOLDER)


def _archive(path: Path) -> Contents:
    with open_zip(path, MAX_FILE, ModelError) as archive:
        inner = [name.partition("/")[2] for name in archive.namelist()]
        if "serialized_exported_program.json" in archive.namelist() or any(
            name.endswith("archive_format") or name.startswith("models/") for name in inner
        ):
            return Contents(
                Format.PT2, ("a program whose symbols and constants are evaluated and unpickled on loading",)
            )
        if any(name.startswith("code/") for name in inner) or "constants.pkl" in inner:
            return Contents(
                Format.TORCHSCRIPT, ("a TorchScript program with its own unpickler", *_programs(archive, path))
            )
        if "data.pkl" in inner:
            runs = _programs(archive, path)
            return Contents(Format.PICKLE if runs else Format.STATE_DICT, runs)
        if inner and all(name.endswith(".npy") for name in archive.namelist()):
            raise ModelError(f"{path} is a NumPy archive: data, not a model; give it as --data")
    raise ModelError(f"{path} is a zip archive, but not one that PyTorch wrote")


def _programs(archive: ZipFile, path: Path) -> tuple[str, ...]:
    found: list[str] = []
    for name in archive.namelist():
        if name.endswith(".pkl"):
            if archive.getinfo(name).file_size > MAX_PROGRAM:
                raise ModelError(f"{path}: {name} holds more than {human(MAX_PROGRAM)} of pickle instructions")
            with archive.open(name) as member:
                found += callables(member, 1)
    return tuple(dict.fromkeys(found))


def _pickle(file: IO[bytes], *, legacy: bool) -> Contents:
    """A pickle outside an archive; PyTorch's old format strings together magic, version, system, object and keys."""
    file.seek(0)
    runs = tuple(dict.fromkeys(callables(file, 5 if legacy else 1)))
    if legacy and not runs:
        return Contents(Format.STATE_DICT)
    return Contents(Format.PICKLE, runs or ("a plain pickle, which PyTorch did not write",))


def _is_text_pickle(file: IO[bytes]) -> bool:
    """Whether the bytes parse as one of the old text pickles that call something."""
    file.seek(0)
    if file.read(1) not in (b"c", b"(", b"}", b"]", b"i"):
        return False
    file.seek(0)
    found = callables(file, 1)
    return bool(found) and not any(name.startswith("damaged") for name in found)


def _is_safetensors(start: bytes, size: int, path: Path) -> bool:
    if len(start) < 9 or start[8:9] != b"{":
        return False
    header = int.from_bytes(start[:8], "little")
    if header > MAX_HEADER:
        raise ModelError(
            f"{path} declares a safetensors header of {human(header)}; the format allows {human(MAX_HEADER)}"
        )
    if header > size - 8:
        raise ModelError(f"{path} is a truncated safetensors file: {human(header)} of header declared; fetch it again")
    return True


def _is_onnx(file: IO[bytes], size: int) -> bool:
    """Whether the bytes are fields of an ONNX ModelProto to the very end, with an ir_version (1) and a graph (7)."""
    file.seek(0)
    seen: set[int] = set()
    try:
        for field in _fields(file, size):
            if field not in (*range(1, 9), 14, 20, 25, 26):
                return False
            seen.add(field)
    except ValueError:
        return False
    return {1, 7} <= seen


def _fields(file: IO[bytes], size: int) -> Iterator[int]:
    """Field numbers of a protobuf message's top level; payloads are skipped, not read."""
    while file.tell() < size:
        tag = _varint(file)
        if tag & 7 == 0:
            _varint(file)
        elif tag & 7 == 2:
            length = _varint(file)
            if file.tell() + length > size:
                raise ValueError("a field beyond the end")
            file.seek(length, 1)
        else:
            raise ValueError("no such field in a ModelProto")
        yield tag >> 3


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("no varint")


_MAGIC = (
    (b"", "it is empty"),
    (b"version https://git-lfs", "it is a Git LFS pointer; fetch the real file with 'git lfs pull'"),
    (b"<", "it looks like a web page; was the download refused?"),
    (b"\x89HDF", "it is HDF5, as Keras writes; export the model to ONNX"),
    (b"\x1f\x8b", "it is gzip; unpack it first"),
    (b"\x78\x5e", "it is compressed with zlib, as joblib.dump(compress=...) writes; save it uncompressed"),
    (b"\x78\x9c", "it is compressed with zlib, as joblib.dump(compress=...) writes; save it uncompressed"),
    (b"\x78\x01", "it is compressed with zlib, as joblib.dump(compress=...) writes; save it uncompressed"),
    (b"\x78\xda", "it is compressed with zlib, as joblib.dump(compress=...) writes; save it uncompressed"),
    (b"GGUF", "it is GGUF, a language-model format"),
    (b"\x93NUMPY", "it is a NumPy array"),
    (b"{", "it is JSON"),
    (b"TFL3", "it is TensorFlow Lite; export the model to ONNX"),
)


def _looks(start: bytes) -> str:
    known = next((words for magic, words in _MAGIC if (start.startswith(magic) if magic else not start)), None)
    return (
        known or "its bytes are not those of safetensors, PyTorch, TorchScript, torch.export or ONNX; is it truncated?"
    )
