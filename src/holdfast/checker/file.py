"""Opens a proof and checks it against the network and the property."""

import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from holdfast.checker.network import Network
from holdfast.checker.onnx_network import read_network
from holdfast.checker.property import UnsafeCase, read_property
from holdfast.checker.rounding import Rejected
from holdfast.checker.tree import Proof, check_tree

__all__ = ["ARITHMETIC", "FORMAT", "VERSION", "Checked", "check", "content", "sha256"]

FORMAT, VERSION = "holdfast proof", 1
ARITHMETIC = "real numbers, by float64 with outward rounding"
_LARGEST = 1 << 33  # bytes that a file may unpack to


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What an accepted proof shows: no input of the property's set has an output that it calls unsafe.

    Attributes:
        network: sha256 of the network's file.
        property: sha256 of the property's text.
        cases: how many boxes with unsafe outputs the property is made of.
        leaves: how many parts of them were bounded.
        arithmetic: in which it holds.
        seconds: that the check took.
    """

    network: str
    property: str
    cases: int
    leaves: int
    arithmetic: str
    seconds: float


def sha256(data: bytes) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def content(path: str | Path) -> bytes:
    """A file's bytes, unpacked if its name ends in .gz."""
    data = Path(path).read_bytes()
    return gzip.decompress(data) if str(path).endswith(".gz") else data


def check(path: str | Path, network: str | Path | None = None, property: str | Path | None = None) -> Checked:
    """Checks a proof.

    Args:
        path: the proof.
        network: the ONNX file; where the proof says that it was, if missing.
        property: the VNN-LIB file, packed or not; likewise.

    Raises:
        Rejected: anything at all is not as it must be; says what.
    """
    start = perf_counter()
    try:
        with np.errstate(all="ignore"):
            header, arrays = _open(Path(path))
            net, prop = (
                content(given or Path(path).parent / header[kind]["path"])
                for given, kind in ((network, "network"), (property, "property"))
            )
            for kind, data in (("network", net), ("property", prop)):
                if sha256(data) != header[kind]["sha256"]:
                    raise Rejected(f"the proof is about another {kind}: sha256 {header[kind]['sha256']}")
            cases, leaves = _check(header, arrays, read_network(net), prop.decode())
    except Rejected:
        raise
    except Exception as error:  # whatever a broken file leads to
        raise Rejected(f"{type(error).__name__}: {error}") from error
    return Checked(
        network=sha256(net),
        property=sha256(prop),
        cases=cases,
        leaves=leaves,
        arithmetic=ARITHMETIC,
        seconds=perf_counter() - start,
    )


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not _is_proof(path):
        raise Rejected(f"{path} is no proof file; a proof is what `holdfast verify --proof FILE` writes")
    with zipfile.ZipFile(path) as archive:
        if sum(i.file_size for i in archive.infolist()) > _LARGEST or len(set(archive.namelist())) < len(
            archive.namelist()
        ):
            raise Rejected("the file is too large or holds one name twice")
        header = json.loads(archive.read("header.json"))
        if (header["format"], header["version"]) != (FORMAT, VERSION):
            raise Rejected(f"'{header['format']}' version {header['version']}, not '{FORMAT}' version {VERSION}")
        names = [n for n in archive.namelist() if n != "header.json"]
        return header, {
            n.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(n)), allow_pickle=False)
            for n in names
        }


def _is_proof(path: Path) -> bool:
    """Whether it is an archive with a header, which is all that can be said before it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "header.json" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _check(header: dict[str, Any], arrays: dict[str, Any], network: Network, text: str) -> tuple[int, int]:
    sizes = [prod(network.shape_of(k)) for k in network.activations]
    if sizes != header["activations"]:
        raise Rejected(f"the network's activations have the sizes {sizes}, the proof's {header['activations']}")
    outputs = network.shape_of(len(network.nodes) - 1)
    cases = read_property(text, prod(network.shape), prod(outputs))
    queries = [_query(header["queries"], arrays, q) for q in range(len(header["queries"]))]
    for i, case in enumerate(cases):
        if not any(_covers(case, lower, upper, proof) for lower, upper, proof in queries):
            raise Rejected(f"case {i} of the property is in no query of the proof")
    return len(cases), sum(check_tree(network, lower, upper, proof) for lower, upper, proof in queries)


def _query(told: list[dict[str, Any]], arrays: dict[str, Any], q: int) -> tuple[Any, Any, Proof]:
    """One query's box, a unit wider on each side so that how it was rounded does not matter, and its proof."""

    def array(name: str, kind: Any) -> Any:
        found = arrays[f"{q}/{name}"]
        if found.dtype != kind:
            raise Rejected(f"{q}/{name} is of type {found.dtype}, not {np.dtype(kind)}")
        return found.astype(np.float64 if np.issubdtype(kind, np.floating) else np.int64)

    slopes = {k: (array(f"slopes/{k}/leaves", np.int32), array(f"slopes/{k}", np.float32)) for k in told[q]["slopes"]}
    root = {k: {j: array(f"root/{k}/{j}", np.float32) for j in of} for k, of in told[q]["root"]}
    kinds = {"c": np.float64, "d": np.float64, "point": np.float64, "multipliers": np.float32}
    names = ("c", "d", "groups", "node", "index", "point", "rows", "weighted", "multipliers")
    proof = Proof(**{n: array(n, kinds.get(n, np.int32)) for n in names}, slopes=slopes, root=root)
    lower, upper = array("lower", np.float64), array("upper", np.float64)
    if lower.ndim != 1 or lower.shape != upper.shape or not (np.isfinite(lower) & np.isfinite(upper)).all():
        raise Rejected("a box is not finite")
    if (
        not np.isfinite(proof.c).all()
        or not np.isfinite(proof.d).all()
        or proof.c.shape != (len(proof.d), proof.c.shape[-1])
        or proof.groups.shape != proof.d.shape
    ):
        raise Rejected("rows and groups do not agree")
    return np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf), proof


def _covers(case: UnsafeCase, lower: Any, upper: Any, proof: Proof) -> bool:
    """Whether the box contains the case's, and no unsafe output of the case lets a row of some group be positive."""
    if len(lower) != len(case.lower) or (case.lower < lower).any() or (case.upper > upper).any():
        return False
    for g in range(proof.groups[-1] + 1):
        of = np.nonzero(proof.groups == g)[0]
        if len(of) and all(case.has(proof.c[r].tolist(), float(proof.d[r])) for r in of):
            return True
    return False
