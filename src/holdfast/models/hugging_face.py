"""A Hugging Face folder of an image classifier, with what its image processor does before the model."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from holdfast.core.errors import ModelError, UsageError
from holdfast.core.kinds import is_list_or_tuple
from holdfast.models.image_processing import Processed, Processor
from holdfast.models.wrap import FromHF

__all__ = ["hugging_face_module"]

_MAX_CONFIG = 1 << 20


def hugging_face_module(folder: Path, *, processed: bool = True) -> tuple[nn.Module, tuple[str, ...]]:
    """An image classifier that ``save_pretrained`` wrote, from pictures in [0, 1] to logits; offline, no code from it.

    Args:
        folder: the model's folder.
        processed: put what the folder's image processor does before the model; False where a normalisation is
            declared, which then stands instead.

    Returns:
        the module and notes: what the processor does, how the weights are stored.

    Raises:
        UsageError: transformers is not installed.
        ModelError: no image classifier, or damaged.
    """
    try:
        import transformers
    except ImportError as fault:
        raise UsageError(
            f"{folder} is a Hugging Face folder; it needs transformers: pip install transformers ({fault})"
        ) from None
    try:
        with _silently(transformers):
            module, info = cast(Any, transformers).AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as fault:  # transformers raises what its layers raise
        raise ModelError(
            f"{folder} is no readable image classifier ({type(fault).__name__}: {str(fault)[:300]})"
        ) from None
    missing: list[str] = sorted(info["missing_keys"])
    if missing:  # transformers would fill them with random numbers and warn
        raise ModelError(
            f"{folder}: weights are missing for {', '.join(missing[:8])}; is it the fine-tuned classifier?"
        )
    classifier = FromHF(module, _class_names(module.config), _multi_label(module.config))
    notes = _about(classifier)
    if not processed:
        return classifier, notes
    with _silently(transformers):
        found, more = _with_processor(folder, module.config, classifier)
    return found, (*notes, *more)


def _about(classifier: FromHF) -> tuple[str, ...]:
    if classifier.multi_label:
        return (
            "a multi-label classifier (problem_type: multi_label_classification): it decides each label by itself, "
            "which argmax is not",
        )
    return ()


def _multi_label(config: Any) -> bool:
    return getattr(config, "problem_type", None) == "multi_label_classification"


def _class_names(config: Any) -> tuple[str, ...] | None:
    """The names of the classes, unless they are the ones that transformers makes up."""
    named: Mapping[int, str] = getattr(config, "id2label", None) or {}
    names = tuple(str(named[k]) for k in sorted(named))
    return None if not names or all(name == f"LABEL_{k}" for k, name in enumerate(names)) else names


def _with_processor(folder: Path, config: Any, classifier: FromHF) -> tuple[nn.Module, tuple[str, ...]]:
    """The classifier behind its processor, and what that does."""
    unknown = "so what is done to a picture before the model is unknown; declare the normalisation if there was one"
    if not any(
        (folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    ) and not getattr(config, "pretrained_cfg", None):
        return classifier, (f"the folder has no image processor, {unknown}",)
    from transformers import AutoImageProcessor

    try:
        held = cast(Any, AutoImageProcessor).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        says = json.dumps(held.to_dict(), sort_keys=True, default=str)
    except Exception as fault:  # transformers raises what its layers raise
        return classifier, (
            f"the image processor cannot be opened ({type(fault).__name__}: {str(fault).splitlines()[0][:200]}), {unknown}",
        )
    processor, name = _called(held), type(held).__name__
    module = Processed(processor, classifier, f"{name} {says}"[:_MAX_CONFIG])
    shape = _native(config)
    try:
        step = module.step(shape)
    except ModelError as fault:
        return classifier, (f"{name}: {fault}; inputs go to the model as they are, {unknown}",)
    notes = [f"{name} applied as measured, on pictures in [0, 1]: it {step.describe(*shape[1:])}"]
    means = [float(v) for v in getattr(held, "image_mean", None) or ()]
    stds = [float(v) for v in getattr(held, "image_std", None) or ()]
    if len(means) == len(stds) == len(step.scale) and getattr(held, "do_normalize", False):
        once = torch.tensor([1 / s for s in stds])
        if not torch.allclose(step.scale, once, rtol=1e-4):
            notes.append(
                f"its file names the normalisation {_numbers(means)}/{_numbers(stds)}, but it normalises twice or "
                "rescales otherwise; what it does is applied, not what the file names"
            )
    notes.append(
        "pictures of another size are resized in real numbers; the processor itself rounds them to 8 bits then"
    )
    return module, tuple(notes)


def _called(held: Any) -> Processor:
    """A processor as a function of pictures in [0, 1]."""
    transforms = getattr(held, "val_transforms", None)

    def processor(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if transforms is not None:  # timm's, which takes pictures in [0, 1] as tensors
                return transforms(x)
            # the others rescale from 0..255 themselves
            return held(list(x * 255), return_tensors="pt", input_data_format="channels_first")["pixel_values"]

    return processor


def _native(config: Any) -> tuple[int, int, int]:
    """The shape of a picture that the model was made for, or a usual one."""
    size = getattr(config, "image_size", None)
    timm: Mapping[str, Any] = getattr(config, "pretrained_cfg", None) or {}
    if size is None and "input_size" in timm:
        return cast(tuple[int, int, int], tuple(timm["input_size"]))
    height, width = (size, size) if isinstance(size, int) else size if is_list_or_tuple(size) else (224, 224)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _numbers(values: list[float]) -> str:
    return ",".join(f"{v:g}" for v in values)


@contextmanager
def _silently(transformers: Any) -> Generator[None, None, None]:
    """Without the progress bars and warnings of transformers, which go to the terminal whatever was asked for."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
