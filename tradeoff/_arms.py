"""What a comparison consists of: sections, arms, metrics, cells; and the front they span."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from legibility.tradeoff._record import ControlOf, RunRecord
from legibility.tradeoff._statistics import Estimate

Kind = Literal["task", "score", "guard", "cost"]
Direction = Literal["lower", "higher"] | None


@dataclass(frozen=True)
class Metric:
    """Something measured in every run.

    Args:
        kind: `"task"` (loss, accuracy, entropy), `"score"`, `"guard"` or `"cost"`.
        name: identifier within its kind.
        unit: unit of the values.
        direction: which way is better; None if neither.
        change_unit: `"%"` (of the baseline); `"points"` (percentage points) for units `"share"` and `"%"`; `unit` itself
            where some baseline value isn't positive, so that no percentage has a meaning.
        family: held-out student family, None for the aggregate.
        version: the score's protocol.
    """

    kind: Kind
    name: str
    unit: str
    direction: Direction
    change_unit: str
    family: str | None = None
    version: str = "1"


@dataclass(frozen=True)
class Cell:
    """One metric of one arm.

    Args:
        value: mean and interval over the seeds that have a value.
        change: against the baseline, paired by seed, in `Metric.change_unit`.
        relative: the same in % of the baseline, for shares whose baseline is never 0.
        gains: change minus the change of each control matched to this arm, paired by seed, by the control's name.
        trained_on: some run of the arm optimised this score.
        control: the score's own control (such as the random-init twin), over seeds.
        control_name: what that is.
        adjusted: of a headline score in an arm under test: p of what makes its change a gain, after Holm's adjustment
            over all of these in the section; see `legibility.tradeoff._adjusted_gains`. None elsewhere.
        missing: why values are missing, for the reader; None if none is.
    """

    value: Estimate | None = None
    change: Estimate | None = None
    relative: Estimate | None = None
    gains: Mapping[str, Estimate] | None = None
    trained_on: bool = False
    control: Estimate | None = None
    control_name: str | None = None
    adjusted: float | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Arm:
    """One setting of one method, over its seeds."""

    name: str
    sources: tuple[str, ...]
    records: tuple[RunRecord, ...]
    control_of: ControlOf | None
    cells: Mapping[Metric, Cell]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds it was run with."""
        return tuple(record.seed for record in self.records)


@dataclass(frozen=True)
class Section:
    """The comparison within one recipe (None: runs without a recipe).

    Args:
        recipe: the recipe's name.
        baseline: the arm that changes are taken against.
        arms: baseline first, each arm followed by the controls matched to it.
        metrics: everything measured.
        headlines: the scores to show first.
        warnings: what the reader must know before trusting the numbers.
    """

    recipe: str | None
    baseline: str
    arms: tuple[Arm, ...]
    metrics: tuple[Metric, ...]
    headlines: tuple[Metric, ...]
    warnings: tuple[str, ...]

    @property
    def task_loss(self) -> Metric:
        """The task loss."""
        return next(metric for metric in self.metrics if metric.kind == "task" and metric.name == "loss")

    def arm(self, name: str) -> Arm:
        """The arm called `name`."""
        return next(arm for arm in self.arms if arm.name == name)

    def of_kind(self, kind: Kind) -> list[Metric]:
        """The metrics of one kind, aggregates only."""
        return [metric for metric in self.metrics if metric.kind == kind and metric.family is None]

    def controls_of(self, arm: str) -> list[Arm]:
        """The control arms matched to `arm`."""
        return [other for other in self.arms if other.control_of is not None and other.control_of.matches == arm]


@dataclass(frozen=True)
class Comparison:
    """Run records, compared: one section per recipe."""

    sections: tuple[Section, ...]


def front(section: Section, metric: Metric) -> list[Arm]:
    """The arms that no other arm beats in both task loss and `metric` (means over seeds), by task loss; no controls.

    An arm is beaten by one that is at least as good in both and better in one. Empty if `metric` has no direction.
    """
    if metric.direction is None:
        return []
    points: list[tuple[float, float, Arm]] = []
    for arm in section.arms:
        loss, value = arm.cells[section.task_loss].value, arm.cells[metric].value
        if arm.control_of is None and loss is not None and value is not None:
            points.append((loss.mean, value.mean if metric.direction == "lower" else -value.mean, arm))
    kept = [
        (x, y, arm) for x, y, arm in points if not any(u <= x and v <= y and (u < x or v < y) for u, v, _ in points)
    ]
    return [arm for _, _, arm in sorted(kept, key=lambda point: point[:2])]


def is_matched(section: Section, arm: Arm, control: Arm) -> bool | None:
    """Whether `control` stands at about the task loss of `arm`; None if that isn't known.

    About: the task-loss changes differ by at most a tenth of the arm's change (and 0.1 percentage points, if the
    change is in %).
    """
    cell = arm.cells[section.task_loss]
    gap = (cell.gains or {}).get(control.name)
    if gap is None or cell.change is None:
        return None
    slack = 0.1 if section.task_loss.change_unit == "%" else 0.0
    return abs(gap.mean) <= slack + 0.1 * abs(cell.change.mean)


def natural(text: str) -> list[tuple[float, str]]:
    """Sort key by which `arm-2` comes before `arm-10`, and `arm-0.05` before `arm-0.3`."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)", text)
    return [(float(part), "") if index % 2 else (-1.0, part) for index, part in enumerate(parts)]
