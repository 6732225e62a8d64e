"""Guards: a primary that says nothing, or next to nothing, is easy to imitate. They tell it from a legible one."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from legibility.lightning_plugins.foundation._recording import Recording
from legibility.losses import entropy
from legibility.scores import activation_rms, effective_rank, live_units
from legibility.students import Signature

_ROWS, _UNITS = 128, 512  # of which the guards are measured: wide enough to see a collapse, cheap enough for each log
_PATIENCE = 3  # measurements in a row that must agree
_FLOOR = {"rms": 0.1, "rank": 0.25, "live": 0.25, "information": 0.1}  # share of the reference below which it collapsed
_LEAST_INFORMATION = 0.05  # nats that an output must have had before it can lose them
_MEANING = {
    "rms": "activations shrink, and students' errors with them",
    "rank": "few directions are left, and those few are easy to predict",
    "live": "units die, and a constant is easy to predict",
    "information": "the output becomes the same for every input",
}


@torch.no_grad()
def information(logits: Tensor) -> float:
    r"""What the output tells about its input, in nats: :math:`H(\bar p) - \overline{H(p)}`, the mean KL(p || mean p).

    Range 0 (the same distribution for every row) to the log of the number of classes or rows. An entropy that rises may
    be softening alone; an information that falls to 0 is a constant output.

    Args:
        logits: (rows, classes), floating point.

    Example:
        >>> round(information(torch.tensor([[50.0, 0.0], [0.0, 50.0]])), 4)  # log 2
        0.6931
        >>> information(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.0
    """
    logits = logits.float()
    mixed = logits.softmax(-1).mean(0, keepdim=True).log()
    return max(0.0, float(entropy(mixed) - entropy(logits).mean()))


def collapse(rows: Tensor) -> dict[str, float]:
    """Effective rank, root mean square and number of units that vary; nothing if a number is not finite.

    Args:
        rows: (rows, units), at least 2 rows.

    Example:
        >>> found = collapse(torch.tensor([[3.0, 4.0], [0.0, 4.0]]))
        >>> found["live"], round(found["rank"], 4), round(found["rms"], 4)
        (1.0, 1.0, 3.2016)
    """
    # Few numbers: on a GPU the decomposition alone would take longer than the copy.
    rows = rows.float().cpu()
    if rows.shape[1] > _UNITS:
        rows = rows[:, torch.linspace(0, rows.shape[1] - 1, _UNITS).long()]
    if not bool(torch.isfinite(rows.sum())):
        return {}
    return {"rank": effective_rank(rows), "rms": activation_rms(rows), "live": float(live_units(rows))}


class Guards:
    r"""Measures the primary's output and taps, and warns once of each kind of collapse.

    Measured are at most 128 rows that count (positions or examples) and 512 units of each. Under ``guard/``: ``rank``,
    ``rms`` and ``live`` of the output (of logits: less their mean over classes) and, for a distribution,
    ``information``; ``<tap>/rank`` and so on for each tap.

    A guard trips when three measurements in a row, of at least as many rows as the first step's, are below a share of
    the reference: ``rms`` a tenth, ``rank`` and ``live`` a quarter of what the first step had; ``information`` a tenth
    of the most that there was (an untrained model has none), if that was .05 nats. A rank must also be less than half
    of the directions that the output needs: a classifier that trains well ends with about one for each class.
    """

    def __init__(self) -> None:
        self._reference: dict[str, float] = {}
        self._rows: dict[str, int] = {}
        self._below: dict[str, int] = {}
        self._told: list[str] = []

    @property
    def fresh(self) -> bool:
        """Nothing was measured yet."""
        return not self._rows

    def look(
        self, recording: Recording, kind: Literal["distribution", "values"], signature: Signature, *, warn: bool
    ) -> dict[str, Tensor | float]:
        """Measures one call, and warns of what collapsed.

        Args:
            recording: The call.
            kind: What the output is.
            signature: What the students read and imitate.
            warn: Not if nothing is asked of the primary.

        Returns:
            What is logged.
        """
        found: dict[str, float] = {}
        distribution = kind == "distribution"
        for place, values in _places(recording, signature):
            if len(values) < 2:
                continue
            if distribution and not place:
                values = values - values.mean(-1, keepdim=True)
            measured = collapse(values)
            if measured and distribution and not place:
                measured["information"] = information(values)
            judged = len(values) >= self._rows.setdefault(place, len(values))
            for name, value in measured.items():
                found[f"guard/{place}{name}"] = value
                if judged:
                    self._judge(place + name, value, signature.outputs - distribution)
        if warn:
            self._tell(found)
        return dict(found)

    def _judge(self, key: str, value: float, needed: int) -> None:
        kind = key.split("/")[-1]
        reference = self._reference.get(key)
        if reference is None or (kind == "information" and value > reference):
            self._below[key] = 0
            if value > 0:  # neither a NaN nor an output that begins at zero can be fallen below
                self._reference[key] = value
            return
        low = not value >= _FLOOR[kind] * reference  # no rank at all (NaN) is a rank that collapsed
        if kind == "rank":
            low = low and not value >= 0.5 * needed
        if kind == "information":
            low = low and reference >= _LEAST_INFORMATION
        self._below[key] = self._below.get(key, 0) + 1 if low else 0

    def _tell(self, found: Mapping[str, float]) -> None:
        for kind, meaning in _MEANING.items():
            keys = [key for key, times in self._below.items() if times >= _PATIENCE and key.split("/")[-1] == kind]
            if not keys or kind in self._told:
                continue
            self._told.append(kind)
            seen = ", ".join(
                f"legibility/guard/{key} {self._reference[key]:.3g} -> {found.get(f'guard/{key}', math.nan):.3g}"
                for key in keys[:4]
            )
            rank_zero_warn(
                f"StudentLegibility: the model is becoming trivial instead of legible: {meaning} ({seen}"
                f"{', ...' if len(keys) > 4 else ''}). Lower `strength` or lengthen `warmup`, and compare the task's "
                "loss with a run of strength 0. If that run does the same, or a sparsity penalty is meant to do it, "
                "all is well. This is said once."
            )

    def state_dict(self) -> dict[str, Any]:
        """Numbers and strings."""
        return {
            "reference": dict(self._reference),
            "rows": dict(self._rows),
            "below": dict(self._below),
            "told": list(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self._reference, self._rows = dict(state["reference"]), dict(state["rows"])
        self._below, self._told = dict(state["below"]), list(state["told"])


def _places(recording: Recording, signature: Signature) -> Iterator[tuple[str, Tensor]]:
    yield "", _some_rows(recording.imitated, signature.per_position, recording.mask).float()
    for name, tap in recording.taps.items():
        yield f"{name}/", _some_rows(tap, signature.taps[name].per_position, recording.mask)


def _some_rows(values: Tensor, per_position: bool, mask: Tensor | None) -> Tensor:
    rows = values.detach()
    rows = rows.flatten(0, 1) if per_position else rows.flatten(1)
    if mask is None:
        counted = torch.arange(len(rows))
    else:
        # An example counts if any of its positions does.
        counted = (mask.flatten() if per_position else mask.any(1)).nonzero().flatten().cpu()
    if len(counted) > _ROWS:
        # No fixed stride: it could meet the same position of every sequence.
        counted = counted[torch.randperm(len(counted), generator=torch.Generator().manual_seed(0))[:_ROWS]]
    return rows[counted.to(rows.device)]
