"""What a cohort and its students must satisfy: settings, agreement of the ranks, finite numbers, the same state."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from legibility.students._signature import Signature
from legibility.students._student import Student
from legibility.students._synchronise import largest_over_ranks


def check_settings(students: int, widths: Sequence[int] | None, on_failure: str, learning_rate: float) -> None:
    """What a cohort is given, before anything is built.

    Raises:
        ValueError: For settings that don't fit.
    """
    if widths is not None and len(widths) != students:
        raise ValueError(f"`widths` must have one entry per student, {students}; got {len(widths)}.")
    if on_failure not in ("drop", "raise"):
        raise ValueError(f"`on_failure` must be 'drop' or 'raise', got {on_failure!r}.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"`learning_rate` must be above 0 and finite, got {learning_rate}.")


def not_finite(losses: Mapping[str, float], slopes: Mapping[str, float]) -> dict[str, str]:
    """Why students can't make this step, by name: a loss or a summed gradient that is not finite.

    Example:
        >>> not_finite({"mlp": 1.0, "gru": 2.0}, {"mlp": 0.5, "gru": math.inf})
        {'gru': 'its gradient became inf'}
    """
    reasons = {name: f"its gradient became {slope}" for name, slope in slopes.items() if not math.isfinite(slope)}
    return reasons | {name: f"its loss became {loss}" for name, loss in losses.items() if not math.isfinite(loss)}


def failed_on_any_rank(
    students: Mapping[str, Student],
    signature: Signature,
    widths: Sequence[int | None],
    reasons: Mapping[str, str],
    device: torch.device,
) -> dict[str, str]:
    """`reasons` of all ranks.

    Raises:
        ValueError: If the ranks were given different students; all of them raise.
    """
    described = f"{list(students.values())} {list(widths)} {signature.settled}"
    digest = float(zlib.crc32(described.encode()) % 2**20)
    flags = [float(name in reasons) for name in students]
    *flags, most, least = largest_over_ranks([*flags, digest, -digest], device)
    if most != -least:
        raise ValueError(
            f"`students`, `widths` and `signature` must be the same on every rank; this one has {described}. "
            "Give `vocabulary` instead of reading it from a rank's own batch."
        )
    elsewhere = "out of memory when built on another rank"
    return {n: reasons.get(n, elsewhere) for n, flag in zip(students, flags, strict=True) if flag}


def check_same(
    state: Mapping[str, Any], students: Mapping[str, Student], signature: Signature, widths: Mapping[str, int]
) -> None:
    """A cohort's state must be of the same students.

    Raises:
        ValueError: If it is of other students, another signature or other widths.
    """
    mine = {
        "students": {name: repr(student) for name, student in students.items()},
        "signature": signature.settled,
        "widths": {name: width for name, width in widths.items() if name in state["widths"]},
    }
    for key, value in mine.items():
        theirs = Signature.from_json(state[key]).settled if key == "signature" else state[key]
        if theirs != value:
            raise ValueError(f"`state` must be of the same {key}: {value}; got {theirs}.")
