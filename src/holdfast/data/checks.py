"""What is wrong with a data set, in words, before a model is asked anything."""

from __future__ import annotations

from holdfast.core.arrays import distinct
from holdfast.core.findings import Finding, Severity
from holdfast.core.threat import Norm, ThreatModel
from holdfast.core.words import counted
from holdfast.data.dataset import Dataset

__all__ = ["check_data"]

_COLUMNS = (
    "'holdfast columns FILE --out columns.yaml' writes a first version to correct, and --table columns.yaml takes it"
)
_LEVELS = (15.0, 16.0, 31.0, 63.0, 127.0)  # largest levels of pictures of few bits; scikit-learn's digits have 16
_TRIFLE = 0.01  # of the range's width: what lies beyond it by no more was rounded or resized


def check_data(data: Dataset, threat: ThreatModel, classes: int | None = None) -> list[Finding]:
    """Compare inputs with the threat model's range and labels with the number of classes.

    Args:
        data: the samples.
        threat: says what range a feature has.
        classes: how many classes the model has, if known.

    Returns:
        findings ``data.*`` and ``labels.*``; empty if all is well.
    """
    notes = [
        Finding(code="data.conversion", severity=Severity.NOTE, title="converted on the way in", message=note)
        for note in data.notes
    ]
    return [*notes, *_values(data, threat), *_labels(data, classes)]


def _values(data: Dataset, threat: ThreatModel) -> list[Finding]:
    x = data.x
    finite = x.isfinite()
    if not bool(finite.all()):
        rows = (~finite).flatten(1).any(1).nonzero().flatten()
        return [
            Finding(
                code="data.nan",
                severity=Severity.ERROR,
                title="NaN or infinite inputs",
                message=f"{len(rows)} of {len(x)} samples hold NaN or infinity, the first in row {int(rows[0])}.",
                remedy="Remove or repair these rows.",
                data={"samples": len(rows), "first": int(rows[0])},
            )
        ]
    least, most, mean, spread = float(x.min()), float(x.max()), float(x.mean()), float(x.std())
    measured = {"min": least, "max": most, "mean": mean, "std": spread}
    width = threat.high - threat.low
    if least < threat.low or most > threat.high:
        outside = int(((x < threat.low) | (x > threat.high)).flatten(1).any(1).sum())
        looks, remedy = _guess_scale(data, least, most, mean, spread, threat)
        return [
            Finding(
                code="data.range",
                severity=Severity.ERROR,
                title="inputs outside the declared range",
                message=f"{outside} of {counted(len(x), 'sample')} {'leaves' if outside == 1 else 'leave'} "
                f"[{threat.low:g}, {threat.high:g}]: "
                f"values run from {least:.4g} to {most:.4g}. {looks}".rstrip(),
                remedy=remedy,
                data={**measured, "samples": outside} | ({"flags": "--table columns.yaml"} if x.ndim == 2 else {}),
            )
        ]
    if most - threat.low <= width / 32:
        return [
            Finding(
                code="data.scaled_twice",
                severity=Severity.WARNING,
                title="inputs fill almost none of the range",
                message=f"All values lie within [{least:.4g}, {most:.4g}] of [{threat.low:g}, {threat.high:g}]"
                f"{'.' if x.ndim == 2 else '; were they divided by 255 twice?'}",
                remedy=f"Check the scaling{f', or say what each column may be: {_COLUMNS}' if x.ndim == 2 else ''}: a "
                f"perturbation of size eps is large against such inputs.{_bytes(data)}",
                data=measured,
            )
        ]
    if threat.norm is Norm.LINF and 0 < most - least <= threat.eps:
        return [
            Finding(
                code="data.eps",
                severity=Severity.WARNING,
                title="eps is as large as the data are wide",
                message=f"All values lie within [{least:.4g}, {most:.4g}], and each may be moved by {float(threat.eps):.4g}.",
                remedy="Check the scaling of x, or give a smaller --eps: nothing of an input is left under such a "
                "change.",
                data=measured,
            )
        ]
    return []


def _bytes(data: Dataset) -> str:
    """What was done to bytes, which a range of [0, 255] does not expect."""
    if not any("uint8" in note for note in data.notes):
        return ""
    return " Arrays of type uint8 are divided by 255 when they are read: give them as floats, or a range of [0, 1]."


def _guess_scale(
    data: Dataset, least: float, most: float, mean: float, spread: float, threat: ThreatModel
) -> tuple[str, str]:
    if data.x.ndim == 2:  # what helps pictures would spoil a table
        flat = data.features is None and least >= 0 and 1.5 < most <= 255
        return (
            "The columns seem to be in units of their own.",
            f"Say what each column may be: {_COLUMNS}."
            + (" If the rows are flattened pictures in 0..255, divide x by 255 instead." if flat else ""),
        )
    beyond = max(threat.low - least, most - threat.high)
    if beyond <= _TRIFLE * (threat.high - threat.low):
        return f"They leave it by {beyond:.3g} at most.", f"Clip them: x.clip({threat.low:g}, {threat.high:g})."
    if least >= 0 and 1.5 < most <= 255:
        if most in _LEVELS and bool((data.x == data.x.round()).all()):
            return f"They look like 0..{most:g}.", f"Divide x by {most:g}."
        return "They look like 0..255.", "Divide x by 255, or save it as uint8."
    if -1.001 <= least < 0 and most <= 1.001 and threat.low == 0:
        return "They look like [-1, 1].", "Save x as (x + 1) / 2 and declare the normalisation mean 0.5, std 0.5."
    if least < 0 and abs(mean) < 1.5 and 0.3 < spread < 3:
        return (
            "They look standardised (mean near 0, deviation near 1).",
            "Save the inputs before standardising, in [0, 1], and declare mean and std as the model's normalisation: "
            "perturbations are measured on the raw inputs.",
        )
    return (
        "",
        f"Scale x into [{threat.low:g}, {threat.high:g}].",
    )


def _labels(data: Dataset, classes: int | None) -> list[Finding]:
    y = data.y
    least, most, kinds = int(y.min()), int(y.max()), len(distinct(y))
    measured: dict[str, float | int | str] = {"min": least, "max": most, "distinct": kinds}
    if classes is not None:
        measured["classes"] = classes
    if least < 0:
        return [
            _label_error(
                "labels.negative", f"Labels run from {least} to {most}.", "Number the classes from 0.", measured
            )
        ]
    if classes is not None and most >= classes:
        based = least >= 1 and most == classes
        why = f"The model has {classes} classes, 0..{classes - 1}, and labels run from {least} to {most}."
        if based:
            return [
                _label_error(
                    "labels.one_based", f"{why} They seem to count from 1.", "Subtract 1 from the labels.", measured
                )
            ]
        return [_label_error("labels.range", why, "Check that model and labels belong to the same task.", measured)]
    if kinds == 1:
        return [
            Finding(
                code="labels.single",
                severity=Severity.WARNING,
                title="only one class",
                message=f"{'The one sample has' if len(y) == 1 else f'All {len(y)} samples have'} the label {least}.",
                remedy="Shuffle the data before taking its first rows: accuracy on one class says little.",
                data=measured,
            )
        ]
    if classes is not None and kinds < classes:
        return [
            Finding(
                code="labels.fewer",
                severity=Severity.NOTE,
                title="some classes are absent",
                message=f"{kinds} of the model's {classes} classes occur among {counted(len(y), 'sample')}.",
                remedy="",
                data=measured,
            )
        ]
    return []


def _label_error(code: str, message: str, remedy: str, measured: dict[str, float | int | str]) -> Finding:
    return Finding(
        code=code,
        severity=Severity.ERROR,
        title="labels do not fit the model",
        message=message,
        remedy=remedy,
        data=measured,
    )
