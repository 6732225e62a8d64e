"""The schedule: its levels by hand, what it refuses."""

import pytest

from legibility.lightning_plugins import Schedule


@pytest.mark.parametrize(
    ("schedule", "levels"),  # at 0, .1, .25, .5, .75, .9, 1
    [
        (Schedule(), [1, 1, 1, 1, 1, 1, 1]),
        (Schedule.warm_up(0.5), [0, 0.2, 0.5, 1, 1, 1, 1]),
        (Schedule.warm_up(0.0), [1, 1, 1, 1, 1, 1, 1]),
        (Schedule.anneal(0.1, 0.9), [0, 0, 0.1875, 0.5, 0.8125, 1, 1]),
        (Schedule.anneal(0.0, 1.0, curve="cubic"), [0, 0.271, 0.578125, 0.875, 0.984375, 0.999, 1]),
        (Schedule.low_high_low(), [0.1, 0.1, 1, 1, 0.1, 0.1, 0.1]),
        (Schedule([(0.25, 2.0), (0.75, 0.0)]), [2, 2, 2, 1, 0, 0, 0]),
    ],
)
def test_levels(schedule: Schedule, levels: list[float]) -> None:
    assert [schedule.at(u) for u in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)] == pytest.approx(levels)


def test_steps_end_at_the_end() -> None:
    schedule = Schedule.warm_up(0.5)
    assert [schedule.level(step, 4) for step in range(4)] == [0.5, 1, 1, 1]
    assert schedule.total(4) == 3.5


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        ([], "from 0 to 1"),
        ([(0.5, 1.0), (0.2, 1.0)], "rising"),
        ([(0.0, 1.0), (1.5, 1.0)], "from 0 to 1"),
        ([(0.0, -1.0)], "levels"),
        ([(0.0, float("nan"))], "levels"),
        ([(float("nan"), 1.0)], "from 0 to 1"),
        ([1.0], "pairs"),
    ],
)
def test_bad_knots(knots: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"`knots`.*{message}"):
        Schedule(knots)  # type: ignore[arg-type]


def test_bad_curve() -> None:
    with pytest.raises(ValueError, match="`curve`.*'square'"):
        Schedule(curve="square")  # type: ignore[arg-type]
