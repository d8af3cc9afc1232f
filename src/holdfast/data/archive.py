"""Zip archives from strangers: refused by what they declare, before anything is unpacked."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from holdfast.core.errors import HoldfastError

__all__ = ["human", "open_zip"]

_DEFLATE_LIMIT = 1032  # deflate cannot do better: 258 bytes from 2 bits
_MEMBERS = 200_000


def open_zip(path: Path, max_bytes: int, error: type[HoldfastError]) -> ZipFile:
    """Open an archive whose declared sizes are possible and add up to at most ``max_bytes``; nothing is unpacked.

    Args:
        path: the file.
        max_bytes: most that all members may declare together.
        error: what to raise.

    Raises:
        HoldfastError: of the type ``error``: damaged, encrypted, too large, names that leave the archive or repeat,
            or sizes that no archive of this length can hold.
    """
    try:
        archive = ZipFile(path)
    except (BadZipFile, OSError) as fault:
        raise error(f"{path} is a damaged or truncated zip archive ({fault}); fetch it again") from None
    try:
        _check(archive, path, max_bytes, error)
    except BaseException:
        archive.close()
        raise
    return archive


def _check(archive: ZipFile, path: Path, max_bytes: int, error: type[HoldfastError]) -> None:
    members = archive.infolist()
    if len(members) > _MEMBERS:
        raise error(f"{path} lists {len(members)} members; at most {_MEMBERS} are read")
    names = [m.filename for m in members]
    if len(set(names)) != len(names):
        raise error(f"{path} holds two members of one name; readers would not agree on which one counts")
    for m in members:
        parts = m.filename.replace("\\", "/").split("/")
        if m.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise error(f"{path} holds a member named {m.filename!r}, which points outside the archive")
        if m.flag_bits & 1:
            raise error(f"{path}: the member {m.filename!r} is encrypted")
        if m.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise error(
                f"{path}: the member {m.filename!r} is packed with method {m.compress_type}; only deflate is read"
            )
        most = m.compress_size * (_DEFLATE_LIMIT if m.compress_type == ZIP_DEFLATED else 1)
        if m.file_size > most:
            raise error(
                f"{path}: the member {m.filename!r} declares {human(m.file_size)} from {human(m.compress_size)}, "
                "which is impossible: the archive is damaged or a decompression bomb"
            )
    if sum(m.compress_size for m in members) > path.stat().st_size:
        raise error(f"{path}: its members overlap, as in a decompression bomb")
    total = sum(m.file_size for m in members)
    if total > max_bytes:
        raise error(f"{path} would unpack to {human(total)}; at most {human(max_bytes)} are read")


def human(size: int) -> str:
    """A number of bytes for people.

    Example:
        >>> human(12_000), human(3 << 30)
        ('11.7 KiB', '3.0 GiB')
    """
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
