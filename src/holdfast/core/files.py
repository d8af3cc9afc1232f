"""Files that are there whole or not at all, and JSON and YAML that say each thing once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from typing_extensions import override

from holdfast.core.errors import UsageError

__all__ = ["read_json", "read_yaml", "write_whole"]


def read_json(text: str | bytes) -> Any:
    """A JSON text, whoever reads it: no name is given twice in an object, and NaN and Infinity are no numbers.

    Of a name that is given twice some readers take the first and some the last, so that two of them read two reports.

    Raises:
        ValueError: it is no such text.

    Example:
        >>> read_json('{"a": [1, {"b": 2}]}')
        {'a': [1, {'b': 2}]}
        >>> read_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: 'a' is given twice
    """
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"'{name}' is given twice")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def read_yaml(text: str) -> Any:
    """A YAML text: no tags, no key given twice.

    Raises:
        yaml.YAMLError: it is no such text.

    Example:
        >>> read_yaml("{a: [1, 2], b: c}")
        {'a': [1, 2], 'b': 'c'}
    """
    import yaml  # what reads JSON alone does without

    class Strict(yaml.SafeLoader):
        @override
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen, typed = set[Any](), cast(Any, self)
            for key_node, _ in node.value:
                key = typed.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
                seen.add(key)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader=Strict)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a temporary file beside the path, syncs it to disk and renames it: a process may die at any moment.

    Raises:
        UsageError: a folder is there.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, and a file would be written: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
