"""What it takes to call a change a gain where many are looked at: all that makes it one, and Holm's adjustment.

Of forty intervals around differences that are none in truth two exclude zero, and an arm that pays for a better score in
task loss, by less than seed noise lets one see, is no better than one that does not. So a gain rests on two tests:

- the change against the baseline is none by chance;
- nor is what goes beyond each control that stands at the arm's task loss; or, where no control does, the arm's task loss
  is lower than the baseline's, beyond seed noise, or equal in every seed.

Its p is the larger of theirs, adjusted over all arms and headline scores of the section. Simulated, 2,000 comparisons each
of six arms in four scores that depend on the expected task loss alone, 3, 5 and 8 seeds, arms that pay nothing to a quarter
of the loss (`benchmarks/matched_loss.py`): some gain is called in at most .001 of them without controls and .029 with. By
each interval for itself, and taking a loss "within seed noise" for an equal one, it was up to .99 and .47. The price is
seeds: gains beyond controls of 2.4 times the standard deviation of their paired differences are found in .002, .17 and
.999 of all cells with 3, 5 and 8 seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from legibility.tradeoff._arms import Arm, Cell, Metric, Section, is_matched
from legibility.tradeoff.statistics._significance import holm, t_test


def with_adjusted(section: Section) -> Section:
    """The section with `Cell.adjusted` of the headline scores in all arms but the baseline and controls."""
    found: dict[tuple[str, Metric], float] = {}
    for arm in section.arms:
        if arm.control_of is None and arm.name != section.baseline:
            for metric in section.headlines:
                p = _p_of_gain(section, arm, metric)
                if p is not None:
                    found[arm.name, metric] = p
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    return replace(section, arms=tuple(replace(arm, cells=_filled(arm, adjusted)) for arm in section.arms))


def _filled(arm: Arm, adjusted: Mapping[tuple[str, Metric], float]) -> Mapping[Metric, Cell]:
    return {
        metric: replace(cell, adjusted=adjusted[arm.name, metric]) if (arm.name, metric) in adjusted else cell
        for metric, cell in arm.cells.items()
    }


def matched_controls(section: Section, arm: Arm, metric: Metric) -> Sequence[Arm]:
    """The controls at the arm's task loss that have something to say about `metric`."""
    gains = arm.cells[metric].gains or {}
    return [one for one in section.controls_of(arm.name) if one.name in gains and is_matched(section, arm, one)]


def _p_of_gain(section: Section, arm: Arm, metric: Metric) -> float | None:
    """None with one seed, for a score without a better, or one that the arm was trained on: none of these is a test."""
    cell, loss = arm.cells[metric], arm.cells[section.task_loss].change
    if cell.change is None or metric.direction is None or cell.trained_on:
        return None
    p = t_test(cell.change)
    if p is None:
        return None
    if controls := matched_controls(section, arm, metric):
        return max([p, *(_beyond(section, arm, metric, control) for control in controls)])
    if loss is None or loss.mean > 0:
        return 1.0
    return p if not any(loss.values.values()) else max(p, t_test(loss) or 0.0)


def _beyond(section: Section, arm: Arm, metric: Metric, control: Arm) -> float:
    """p of the gain over a control, less what the control would gain on its way to the arm's very loss."""
    gain, loss_gap = (arm.cells[of].gains or {} for of in (metric, section.task_loss))
    theirs, their_loss = (control.cells[of].change for of in (metric, section.task_loss))
    allowance = 0.0
    if theirs is not None and their_loss is not None and loss_gap[control.name].mean:
        way = abs(loss_gap[control.name].mean / their_loss.mean) if their_loss.mean else 1.0
        allowance = min(1.0, way) * abs(theirs.mean)
    p = t_test(gain[control.name], allowance)
    return 1.0 if p is None else p
