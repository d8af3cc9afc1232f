"""From ``--arch`` to a module without its weights: a function that the user names, or one of timm's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from holdfast.core.errors import ModelError, UnsafeFileError, UsageError, did_you_mean
from holdfast.core.kinds import is_list_or_tuple
from holdfast.models.wrap import Normalisation

__all__ = ["build_arch", "import_function", "timm_arch", "working_folder_on_path"]


def build_arch(arch: str, state: Mapping[str, Tensor], *, trust: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Build an architecture; its weights are not loaded.

    Args:
        arch: ``package.module:function``, ``file.py:function`` or ``timm:NAME``.
        state: the weights to come; timm's classifier gets its size from them.
        trust: also take a ``.py`` file from outside the working folder.

    Returns:
        the module and what was noticed.

    Raises:
        UsageError: not of that form, or no such function.
        UnsafeFileError: a file outside the working folder, without trust.
        ModelError: the function fails or returns no module.
    """
    if arch.startswith("timm:"):
        return timm_arch(arch.removeprefix("timm:"), state)
    with working_folder_on_path():
        function = import_function(arch, trust=trust)
        if isinstance(function, nn.Module):
            raise UsageError(f"--arch {arch} names a module that is built already; name a function that builds it")
        try:
            module = function()
        except Exception as fault:  # whatever the user's code raises, told in one line
            raise ModelError(
                f"--arch {arch} failed when called without arguments: {type(fault).__name__}: {fault}"
            ) from fault
    if not isinstance(module, nn.Module):
        raise ModelError(f"--arch {arch} returned {type(module).__name__}, not a torch.nn.Module")
    return module, ()


def import_function(spec: str, *, trust: bool = False, flag: str = "--arch") -> Callable[..., object]:
    """The object that ``package.module:function`` or ``file.py:function`` names; naming code is consent to import it.

    Raises:
        UsageError: not of that form, no such module or function.
        UnsafeFileError: a file outside the working folder, without trust.
        ModelError: the module fails to import.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise UsageError(f"'{spec}' is no function; write package.module:function, file.py:function or timm:NAME")
    module = _from_file(Path(source), trust=trust, flag=flag) if source.endswith(".py") else _from_path(source)
    try:
        found = getattr(module, name)
    except AttributeError:
        public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UsageError(f"{source} has no '{name}'. {did_you_mean(name, public)}") from None
    if not callable(found):
        raise UsageError(f"{flag} {spec} is {type(found).__name__}, not a function")
    return found


@contextmanager
def working_folder_on_path() -> Generator[None, None, None]:
    """The working folder first among the places to import from, as ``python -m`` has it."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_path(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as fault:
        if fault.name and (name == fault.name or name.startswith(f"{fault.name}.")):
            raise UsageError(
                f"there is no module '{name}' in {Path.cwd()} or on the Python path; "
                "run from the folder that holds it, or set PYTHONPATH"
            ) from None
        raise ModelError(f"--arch: '{name}' needs the package '{fault.name}', which is not installed") from None
    except (Exception, SystemExit) as fault:  # whatever the user's module raises, or ends the program with
        raise ModelError(f"--arch: importing '{name}' failed: {type(fault).__name__}: {fault}") from fault


def _from_file(path: Path, *, trust: bool, flag: str) -> ModuleType:
    resolved = path.resolve()
    if not resolved.is_file():
        raise UsageError(f"there is no file {path}")
    if not trust and not resolved.is_relative_to(Path.cwd().resolve()):
        raise UnsafeFileError(
            f"{path} lies outside the working folder, and importing it would run: {resolved}. "
            "Run from its folder, or pass --trust."
        )
    spec = importlib.util.spec_from_file_location(resolved.stem, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as fault:  # whatever the user's file raises, or ends the program with
        raise ModelError(f"{flag}: importing {path} failed: {type(fault).__name__}: {fault}") from fault
    return module


def timm_arch(name: str, state: Mapping[str, Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    """A timm architecture sized for the weights at hand; nothing is ever downloaded.

    Raises:
        UsageError: timm is not installed, knows no such model, or no such weights of it.
    """
    try:
        import timm
        from timm.models import get_pretrained_cfg, list_pretrained
    except ImportError as fault:
        raise UsageError(f"--arch timm:{name} needs timm: pip install timm ({fault})") from None
    if not timm.is_model(name):  # also refuses names such as hf-hub:..., which would reach out
        raise UsageError(f"timm has no model '{name}'. {did_you_mean(name, timm.list_models())}"[:500])
    bare, dot, tag = name.partition(".")
    tags = {tagged.partition(".")[2]: tagged for tagged in list_pretrained(f"{bare}.*")}
    if dot and tag not in tags:
        raise UsageError(f"timm has no weights '{tag}' of {bare}. {did_you_mean(tag, tags)}"[:500])
    module = timm.create_model(name, pretrained=False)
    config: Mapping[str, Any] = vars(module)["pretrained_cfg"]
    sizes: dict[str, Any] = {}
    head = _first(config.get("classifier"))
    stem = _first(config.get("first_conv"))
    if f"{head}.weight" in state and len(state[f"{head}.weight"]) != config["num_classes"]:
        sizes["num_classes"] = len(state[f"{head}.weight"])
    if f"{stem}.weight" in state and state[f"{stem}.weight"].shape[1] != config["input_size"][0]:
        sizes["in_chans"] = state[f"{stem}.weight"].shape[1]
    if sizes:
        module = timm.create_model(name, pretrained=False, **sizes)
    notes = [f"timm's {name} was sized for the weights: {size}={value}" for size, value in sizes.items()]
    expected: dict[str, list[str]] = {}
    for own, tagged in {tag: name}.items() if dot else tags.items():
        known = get_pretrained_cfg(tagged)
        if known is not None:
            expected.setdefault(str(Normalisation(tuple(known.mean), tuple(known.std))), []).append(own)
    if len(expected) == 1:
        notes.append(
            f"timm's own weights of {name} expect the normalisation {next(iter(expected))}; it is applied only if declared"
        )
    elif expected:
        kinds = "; ".join(f"{values} for {', '.join(own[:6])}" for values, own in expected.items())
        notes.append(
            f"timm's own weights of {bare} expect different normalisations by tag ({kinds}); name the tag, as in "
            f"timm:{next(iter(tags.values()))}, to be told which; it is applied only if declared"
        )
    else:
        notes.append(f"timm has no weights of {name}, so the normalisation is unknown; declare it if there was one")
    return module, tuple(notes)


def _first(name: object) -> str:
    return str(name[0] if is_list_or_tuple(name) and name else name)
