"""The run record: what one training run was, what it scored, what it cost. One JSON file per run.

The dataclasses below are the schema; `run_record.schema.json` says the same to other programs (`json_schema`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

SCHEMA = "legibility.run-record/1"
DOUBTED_BY = "doubted by "
"""Before a control's name in the details of a score: it hasn't learnt, so it has no value, but would have a better one."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class ScoreEntry:
    """One measured score.

    Args:
        name: stable identifier, such as `"held_out_kl"`.
        value: the score, or None when it could not be measured (say why in `reason`).
        unit: `"nats"`, `"bits"`, `"share"` (0 to 1), `"seconds"`, ...; changes of shares are read in percentage points.
        direction: which way is more interpretable; None if neither.
        control: the same score of a control that needs no training, such as the random-init twin; or None.
        control_name: what that control is, such as `"random-init"`.
        trained_on: whether this run optimised the score or a stand-in of it. Such a score is marked in every report.
        family: held-out student family the value belongs to; None for the aggregate (mean over families).
        version: version of the score's protocol; different versions are never compared.
        reason: why `value` is None.
        controls: the same score of every control that it has a value for, by name; `control` is the first of them.
        control_reasons: why the others have none, by name.
        details: other numbers that belong to the score, by name.
        interval: 95 % interval of the value, low and high, where the score has one.

    Example:
        >>> ScoreEntry("held_out_kl", 0.41, "nats", "lower", control=None, control_name=None, trained_on=False).value
        0.41
    """

    name: str
    value: float | None
    unit: str
    direction: Literal["lower", "higher"] | None
    control: float | None
    control_name: str | None
    trained_on: bool
    family: str | None = None
    version: str = "1"
    reason: str | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    control_reasons: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)
    interval: list[float] | None = None

    @property
    def beaten_by(self) -> tuple[str, ...]:
        """Controls that do better, by more than rounding: with one of them, the value says nothing for the model."""
        if self.direction is None or self.value is None:
            return ()
        # Some scores stand beside a reference, such as the same students on the true labels: no control, nothing to beat.
        first = {"random-init": self.control} if self.control_name == "random-init" and self.control is not None else {}
        controls = {**first, **self.controls}
        sign = 1.0 if self.direction == "higher" else -1.0
        least = sign * self.value + _ROUNDING * abs(self.value)
        return tuple(name for name, other in controls.items() if sign * other > least)


@dataclass(frozen=True)
class TaskEntry:
    """How well the run does its task, on which data.

    Args:
        name: what the loss is, such as `"cross-entropy"`.
        loss: mean task loss on the evaluation examples (lower is better), without any of our terms.
        accuracy: share of right answers, 0 to 1; None if it has no meaning.
        entropy: mean entropy of the predicted distribution, nats.
        examples: how many examples were evaluated.
        source: which data that was, such as `"validation"`.
    """

    name: str
    loss: float | None
    accuracy: float | None
    entropy: float | None
    examples: int | None
    source: str


@dataclass(frozen=True)
class CostEntry:
    """What the run cost.

    Args:
        fit_seconds: wall time of the fit.
        steps: optimizer steps made.
        step_seconds: mean wall time of one step, everything included.
        report_seconds: wall time of measuring the scores.
        peak_memory_bytes: peak memory of the process or device.
        terms: seconds per step of each callback's own work, by name.
        parameters: parameters of the primary.
        report_share: `report_seconds / fit_seconds`; None without a fit.
    """

    fit_seconds: float | None
    steps: int | None
    step_seconds: float | None
    report_seconds: float | None
    peak_memory_bytes: int | None
    terms: Mapping[str, float | None]
    parameters: int
    report_share: float | None = None


@dataclass(frozen=True)
class ControlOf:
    """Marks a run as a control: a model that no method of ours trained.

    Args:
        kind: `"temperature"`: a finished model with flattened logits; `"random-init"`: an untrained one.
        arm: the arm whose model is used.
        matches: the arm whose task loss this control is set to match; None if it matches none.
        temperature: the temperature that the logits were divided by.
    """

    kind: Literal["temperature", "random-init"]
    arm: str
    matches: str | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """One run: an arm (one setting of one method) under one seed.

    Args:
        arm: name of the setting, equal over seeds. Arms that differ only in a number at the end, such as
            `legibility-0.1` and `legibility-0.3`, or in a multiple, `l1` and `l1-x2`, are one method at several
            strengths.
        seed: the training seed; arms are compared seed by seed.
        recipe: which recipe it belongs to; runs of different recipes are never compared. None without a recipe.
        strengths: coefficient of each term, by name.
        students: names of the students trained with.
        task: task loss and its company.
        scores: every score, aggregates (`family=None`) and per family.
        cost: time and memory.
        versions: version of each library involved.
        control_of: set for controls only.
        settings: everything else needed to repeat the run; JSON values.
        guards: quantities that betray a degenerate solution (effective rank, rms, live units, ...).
        notes: remarks for the reader, such as a student that was dropped.
        created: when, ISO 8601.
        schema: the format's name and version.

    Example:
        >>> record = RunRecord(
        ...     arm="plain", seed=0, recipe=None, strengths={}, students=[],
        ...     task=TaskEntry("cross-entropy", 1.5, None, None, 1000, "validation"), scores=[],
        ...     cost=CostEntry(60.0, 100, 0.6, 5.0, None, {}, 1234), versions={"torch": "2.13.0"})
        >>> record.schema
        'legibility.run-record/1'
    """

    arm: str
    seed: int
    recipe: str | None
    strengths: Mapping[str, float]
    students: list[str]
    task: TaskEntry
    scores: list[ScoreEntry]
    cost: CostEntry
    versions: Mapping[str, str]
    control_of: ControlOf | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    guards: Mapping[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))
    schema: str = SCHEMA
