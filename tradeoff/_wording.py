"""Names and numbers as people read them, the same in terminal, page and sentences."""

import math
import re
from collections.abc import Sequence

from legibility.tradeoff._arms import Arm, Cell, Metric, Section
from legibility.tradeoff._statistics import Estimate

_TITLES = {
    ("task", "loss"): "task loss",
    ("score", "held_out_kl"): "held-out KL",
    ("score", "code_length"): "code length",
    ("score", "disagreement"): "disagreement",
    ("score", "patch_through_kl"): "patch-through KL",
    ("score", "exact_zero_share"): "exact-zero share",
    ("cost", "step_seconds"): "time per step",
    ("cost", "fit_seconds"): "time of the fit",
    ("cost", "report_seconds"): "time of measuring",
    ("cost", "peak_memory_bytes"): "peak memory",
}
_SUFFIX = {"share": " %", "%": " %", "seconds": " s", "bytes": " MB"}
_SCALE = {"share": 100.0, "bytes": 1e-6}


def title(metric: Metric) -> str:
    """The metric's name in words, lower case."""
    return _TITLES.get((metric.kind, metric.name), metric.name.replace("_", " "))


def heading(section: Section) -> str:
    """The section's name."""
    return section.recipe if section.recipe is not None else "runs without a recipe"


def unit_and_direction(metric: Metric) -> str:
    """The unit that values are shown in, and which way is better, such as `"nats, lower is better"`."""
    unit = "%" if metric.unit == "share" else "MB" if metric.unit == "bytes" else metric.unit
    return ", ".join(part for part in (unit, f"{metric.direction} is better" if metric.direction else "") if part)


def value(cell: Cell, metric: Metric) -> str:
    """Mean and half-width of a cell, such as `"1.913 ±0.004"`; an en dash if missing."""
    if cell.value is None:
        return "–"
    return with_half_width(cell.value, metric.unit)


def with_half_width(estimated: Estimate, unit: str) -> str:
    """Mean and half-width in `unit`; the mean alone with one seed."""
    scale, suffix = _SCALE.get(unit, 1.0), _SUFFIX.get(unit, "")
    half = None if estimated.half_width is None else estimated.half_width * scale
    return number(estimated.mean * scale, half) + suffix


def change(estimated: Estimate | None, metric: Metric) -> str:
    """Signed change and half-width, such as `"-18.6 ±1.6 %"`; an en dash if missing."""
    if estimated is None:
        return "–"
    half = estimated.half_width
    places = _places(estimated, metric)
    width = "" if half is None else f" ±{half:.{places}f}"
    return signed(estimated.mean, places) + width + _change_suffix(metric)


def change_in_words(estimated: Estimate, metric: Metric) -> str:
    """Size of the change without its sign, such as `"18.6 %"` or `"1.9 percentage points"`."""
    suffix = " percentage points" if metric.change_unit == "points" else _change_suffix(metric)
    return f"{abs(estimated.mean):.{_places(estimated, metric)}f}{suffix}"


def signed_change(estimated: Estimate, metric: Metric) -> str:
    """Signed change without its interval, such as `"+0.62 %"`."""
    return signed(estimated.mean, _places(estimated, metric)) + _change_suffix(metric)


def interval(estimated: Estimate, metric: Metric, *, flip: bool = False) -> str:
    """Interval of a change in words, such as `"-20.1 to -17.0"`; `flip` turns its sign. Needs two seeds."""
    assert estimated.low is not None and estimated.high is not None
    places = _places(estimated, metric)
    low, high = (-estimated.high, -estimated.low) if flip else (estimated.low, estimated.high)
    return f"{signed(low, places)} to {signed(high, places)}"


def seeds(count: int) -> str:
    """`"1 seed"`, `"5 seeds"`."""
    return f"{count} seed" if count == 1 else f"{count} seeds"


def number(mean: float, half: float | None = None) -> str:
    """A number with as many places as its half-width `half` leaves two digits of; four digits without one."""
    if mean and (abs(mean) >= 1e7 or abs(mean) < 1e-5):
        return f"{mean:.3g}" if half is None else f"{mean:.3g} ±{half:.1g}"
    if half and half > 1e-9 * abs(mean):
        places = min(6, max(0, 1 - math.floor(math.log10(half))))
        return f"{unsign(mean, places)} ±{half:.{places}f}"
    places = 0 if mean == int(mean) else min(8, max(0, 3 - math.floor(math.log10(abs(mean)))))
    shown = unsign(mean, places)
    return shown if half is None else f"{shown} ±0"


def signed(mean: float, places: int) -> str:
    """A number with its sign, and no sign on a rounded zero."""
    shown = f"{mean:+.{places}f}"
    return shown if float(shown) else shown[1:]


def unsign(mean: float, places: int) -> str:
    """A number without the sign of a rounded negative zero."""
    shown = f"{mean:,.{places}f}"
    return shown if shown.strip("-0.") else shown.lstrip("-")


def typeset(text: str) -> str:
    """Text with typographic minus signs before its numbers, and numbers that no line break parts from their unit."""
    return re.sub(r"(?<=\d) (?=(%|pp\b|±))", "\N{NO-BREAK SPACE}", re.sub(r"(?<![\w.])-(?=\d)", "−", text))


def listed(parts: Sequence[str]) -> str:
    """`"a"`, `"a and b"`, `"a, b and c"`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def role(arm: Arm) -> str | None:
    """What a control arm is, in words; None for other arms."""
    control = arm.control_of
    if control is None:
        return None
    if control.kind == "random-init":
        return f"control: {control.arm}, untrained"
    temperatures = [run.control_of.temperature for run in arm.records if run.control_of is not None]
    known = [temperature for temperature in temperatures if temperature is not None]
    heat = f" at temperature {math.fsum(known) / len(known):.3g}" if known else " with flattened logits"
    goal = f", task loss of {control.matches}" if control.matches is not None else ""
    return f"control: {control.arm}{heat}{goal}"


def _places(estimated: Estimate, metric: Metric) -> int:
    size = max(abs(estimated.mean), estimated.half_width or 0.0)
    if metric.change_unit in ("%", "points"):
        return 2 if size < 1 else 1 if size < 1000 else 0
    return min(8, max(0, 2 - math.floor(math.log10(size)))) if size else 0


def _change_suffix(metric: Metric) -> str:
    return {"%": " %", "points": " pp"}.get(metric.change_unit, f" {metric.change_unit}".rstrip())
