"""Grouping, pairing, controls."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from legibility.tradeoff import (
    Arm,
    Cell,
    ControlOf,
    RunRecord,
    ScoreEntry,
    Section,
    TaskEntry,
    compare,
    front,
    is_matched,
    judge,
)

Make = Callable[..., RunRecord]
MakeScore = Callable[..., ScoreEntry]


def only(records: Sequence[RunRecord], **options: Any) -> Section:
    (section,) = compare(records, **options).sections
    return section


def cell(section: Section, arm: str, name: str, family: str | None = None) -> Cell:
    (found,) = (metric for metric in section.metrics if (metric.name, metric.family) == (name, family))
    return section.arm(arm).cells[found]


def test_paired_change_by_hand(record: Make) -> None:
    runs = [record("plain", s, 2.0, {"held_out_kl": kl}) for s, kl in enumerate((0.5, 1.0, 2.0))]
    runs += [record("a", s, 2.0, {"held_out_kl": kl}) for s, kl in enumerate((0.4, 0.85, 1.5))]
    found = cell(only(runs), "a", "held_out_kl")
    # Per seed: -20, -15, -25 %; mean -20, s = 5, half = 4.302653 * 5 / sqrt(3) = 12.420689.
    assert found.change is not None and found.value is not None
    assert dict(found.change.values) == pytest.approx({0: -20, 1: -15, 2: -25})
    assert found.change.mean == pytest.approx(-20) and found.change.half_width == pytest.approx(12.420689, abs=1e-5)
    # The unpaired means would give (2.75 / 3.5 - 1) = -21.4 %.
    assert found.value.mean == pytest.approx(2.75 / 3)


def test_shares_change_in_percentage_points_and_other_scores_in_percent(record: Make) -> None:
    section = only(
        [record("plain", 0, 2.0, {"exact_zero_share": 0.0}), record("l1", 0, 2.0, {"exact_zero_share": 0.88})]
    )
    found = cell(section, "l1", "exact_zero_share")
    assert found.change is not None and found.change.mean == pytest.approx(88.0)
    assert found.relative is None  # there is no percentage of nothing
    section = only([record("plain", 0, 2.0, {"near_share": 0.5}), record("l1", 0, 2.0, {"near_share": 0.4})])
    relative = cell(section, "l1", "near_share").relative
    assert relative is not None and relative.mean == pytest.approx(-20.0)


@pytest.mark.parametrize("base", [0.0, -0.5])
def test_a_baseline_without_percentages_gives_differences_in_the_unit(record: Make, base: float) -> None:
    section = only([record("plain", 0, 2.0, {"saving": base}), record("a", 0, 2.0, {"saving": 1.0})])
    found = cell(section, "a", "saving")
    assert found.change is not None and found.change.mean == pytest.approx(1.0 - base)
    assert next(metric for metric in section.metrics if metric.name == "saving").change_unit == "nats"


def test_only_seeds_of_both_arms_are_paired(record: Make) -> None:
    runs = [record("plain", s, 2.0, {"held_out_kl": 1.0}) for s in (0, 1, 2)]
    runs += [record("a", s, 2.0, {"held_out_kl": v}) for s, v in ((1, 0.9), (2, 0.7), (7, 100.0))]
    section = only(runs)
    found = cell(section, "a", "held_out_kl")
    assert found.change is not None and dict(found.change.values) == pytest.approx({1: -10, 2: -30})
    assert section.warnings == ("a and plain don't share seed 0, 7: changes use the seeds that both have.",)


def test_no_seed_in_common_is_missing_not_wrong(record: Make) -> None:
    found = cell(only([record("plain", 0, 2.0, {"fvu": 1.0}), record("a", 1, 2.0, {"fvu": 0.5})]), "a", "fvu")
    assert found.change is None and found.value is not None
    assert found.missing == "the baseline has no value for these seeds"


def test_missing_values_stay_missing_with_their_reasons(record: Make, score: MakeScore) -> None:
    runs = [record("plain", s, 2.0, {"fvu": 1.0, "kl": 1.0}) for s in (0, 1, 2)]
    runs += [record("a", 0, 2.0, [score("fvu", None, reason="student failed")]), record("a", 1, 2.0, {"fvu": 0.5})]
    runs += [record("a", 2, 2.0, [])]
    section = only(runs)
    partly, never = cell(section, "a", "fvu"), cell(section, "a", "kl")
    assert partly.value is not None and dict(partly.value.values) == {1: 0.5}
    assert partly.missing == "student failed (seed 0); not measured (seed 2)"
    assert never.value is None and never.change is None and never.missing == "not measured"


def test_missing_task_loss(record: Make) -> None:
    section = only([record("plain", 0, None, {"fvu": 1.0}), record("a", 0, 2.0, {"fvu": 0.5})])
    assert section.arm("a").cells[section.task_loss].change is None
    assert front(section, section.headlines[0])[0].name == "a"


def test_aggregates_and_families_are_kept_apart(record: Make, score: MakeScore) -> None:
    def run(arm: str, values: tuple[float, float, float]) -> RunRecord:
        mean, lstm, ngram = values
        families = [score("held_out_kl", lstm, family="lstm"), score("held_out_kl", ngram, family="ngram")]
        return record(arm, 0, 2.0, [*families, score("held_out_kl", mean)])

    section = only([run("plain", (1.5, 1.0, 2.0)), run("a", (1.2, 0.9, 1.5))])
    changes = [cell(section, "a", "held_out_kl", family).change for family in (None, "lstm", "ngram")]
    assert [found.mean for found in changes if found] == pytest.approx([-20, -10, -25])
    assert [metric.family for metric in section.headlines] == [None]


def test_gain_over_the_matched_control_is_paired(record: Make) -> None:
    control = ControlOf("temperature", "plain", "a", 1.1)
    runs = [record("plain", s, 2.0, {"held_out_kl": 1.0}) for s in (0, 1)]
    runs += [record("a", s, 2.02, {"held_out_kl": v}) for s, v in ((0, 0.80), (1, 0.84))]
    runs += [record("warm", s, 2.02, {"held_out_kl": v}, control=control) for s, v in ((0, 0.90), (1, 0.93))]
    section = only(runs)
    gains = cell(section, "a", "held_out_kl").gains
    # Changes -20 and -16 against -10 and -7: gains -10 and -9, mean -9.5, half = 12.706205 * .7071 / sqrt(2) = 6.3531.
    assert gains is not None and dict(gains["warm"].values) == pytest.approx({0: -10, 1: -9})
    assert gains["warm"].half_width == pytest.approx(6.353102, abs=1e-5)
    assert cell(section, "warm", "held_out_kl").gains is None
    assert [arm.name for arm in section.controls_of("a")] == ["warm"]
    assert is_matched(section, section.arm("a"), section.arm("warm")) is True


def test_a_control_at_another_task_loss_matches_nothing(record: Make) -> None:
    control = ControlOf("temperature", "plain", "a", 1.01)
    runs = [
        record("plain", 0, 2.0, {"fvu": 1.0}),
        record("a", 0, 2.04, {"fvu": 0.8}),
        record("warm", 0, 2.01, {"fvu": 0.9}, control=control),
    ]
    section = only(runs)
    assert is_matched(section, section.arm("a"), section.arm("warm")) is False
    assert section.warnings == ("warm doesn't reach the task loss of a, so it doesn't say what softening buys.",)


def test_a_control_of_an_absent_arm_is_said(record: Make) -> None:
    control = ControlOf("temperature", "plain", "absent", 1.1)
    section = only([record(), record("warm", control=control)])
    assert section.warnings == ("warm is a control for absent, which has no run here.",)


def test_order_baseline_first_controls_behind_their_arms(record: Make) -> None:
    names = ["a-10", "a-2", "plain"]
    runs = [record(name) for name in names]
    runs += [
        record("x", control=ControlOf("temperature", "plain", "a-2")),
        record("init", control=ControlOf("random-init", "plain")),
    ]
    assert [arm.name for arm in only(runs).arms] == ["plain", "a-2", "x", "a-10", "init"]


def test_a_duplicate_run_is_an_error_that_names_both_files(record: Make) -> None:
    with pytest.raises(ValueError, match=r"two different runs of arm 'a' with seed 3: one\.json and two\.json"):
        compare([("plain.json", record()), ("one.json", record("a", 3, 1.0)), ("two.json", record("a", 3, 1.1))])


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            "runs/d/full/a/seed-3/record.json",
            "runs/d/quick/a/seed-3/record.json",
            "compare runs/d/full or runs/d/quick,",
        ),
        ("a/record.json", "b/record.json", "compare a or b,"),
        ("runs/one.json", "runs/two.json", "leave one out,"),
        ("https://w.ai/e/p/runs/x: r/record.json", "https://w.ai/e/p/runs/y: r/record.json", "leave one out,"),
    ],
)
def test_two_presets_in_one_folder_are_told_apart(record: Make, one: str, other: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"; {said}"):
        compare([("plain.json", record()), (one, record("a", 3, 1.0)), (other, record("a", 3, 1.1))])


def test_identical_duplicates_count_once(record: Make) -> None:
    section = only([record(), record("a", 3), record("a", 3)])
    assert section.arm("a").seeds == (3,)


def test_the_same_arm_and_seed_in_two_recipes_are_two_sections(record: Make) -> None:
    runs = [record("plain", 0, 1.0 + i, recipe=recipe) for i, recipe in enumerate(("lm-10", None, "lm-2"))]
    assert [section.recipe for section in compare(runs).sections] == ["lm-2", "lm-10", None]


def test_no_baseline_lists_the_arms(record: Make) -> None:
    with pytest.raises(
        ValueError, match="`baseline` 'plain' has no run in recipe 'demo'; its arms: a-2, a-10; name one"
    ):
        compare([record("a-10"), record("a-2")])
    with pytest.raises(ValueError, match="the runs without a recipe"):
        compare([record("a", recipe=None)])
    assert only([record("a"), record("b")], baseline="b").baseline == "b"


def test_a_control_is_no_baseline(record: Make) -> None:
    with pytest.raises(ValueError, match="`baseline` 'warm' is a control arm"):
        compare([record(), record("warm", control=ControlOf("temperature", "plain"))], baseline="warm")


def test_no_record_is_an_error() -> None:
    with pytest.raises(ValueError, match="`records` must hold at least one run record"):
        compare([])


@pytest.mark.parametrize("part", [{"unit": "bits"}, {"direction": "higher"}, {"version": "2"}])
def test_a_score_that_changes_its_definition_is_an_error(record: Make, score: MakeScore, part: dict[str, Any]) -> None:
    runs = [
        ("a.json", record("plain", 0, 2.0, [score("kl", 1.0)])),
        ("b.json", record("a", 0, 2.0, [score("kl", 1.0, **part)])),
    ]
    with pytest.raises(ValueError, match=rf"score 'kl' has {next(iter(part))} .* in a\.json and .* in b\.json"):
        compare(runs)


def test_an_arm_that_is_control_and_not_is_an_error(record: Make) -> None:
    runs = [("p", record()), ("x", record("a", 0)), ("y", record("a", 1, control=ControlOf("temperature", "plain")))]
    with pytest.raises(ValueError, match="arm 'a' is a control of different things in x and y"):
        compare(runs)
    fitted = [record("w", seed, control=ControlOf("temperature", "plain", None, 1 + seed)) for seed in (0, 1)]
    assert only([record(), *fitted]).arm("w").control_of is not None


def test_mixed_evaluations_and_strengths_are_warned_of(record: Make) -> None:
    other = TaskEntry("cross-entropy", 2.0, None, None, 7, "test")
    runs = [record(), record("a", 0, task=other, strengths={"l1": 1.0}), record("a", 1, strengths={"l1": 2.0})]
    text = " ".join(only(runs).warnings)
    assert "different evaluation data (test, validation)" in text
    assert "different numbers of evaluation examples (7, 100)" in text
    assert "a mixes runs of different strengths." in text


def test_trained_on_is_kept(record: Make, score: MakeScore) -> None:
    section = only([record("plain", 0, 2.0, {"fvu": 1.0}), record("a", 0, 2.0, [score("fvu", 0.1, trained_on=True)])])
    assert cell(section, "a", "fvu").trained_on and not cell(section, "plain", "fvu").trained_on


def test_own_controls_of_scores_are_averaged(record: Make, score: MakeScore) -> None:
    runs = [
        record("plain", s, 2.0, [score("fvu", 1.0, control=c, control_name="random-init")])
        for s, c in ((0, 2.0), (1, 4.0))
    ]
    found = cell(only(runs), "plain", "fvu")
    assert found.control is not None and (found.control.mean, found.control_name) == (3.0, "random-init")


def test_headlines(record: Make, score: MakeScore) -> None:
    def names(values: Sequence[dict[str, float]], **options: Any) -> list[str]:
        runs = [record("plain" if not i else f"a{i}", 0, 2.0, scores) for i, scores in enumerate(values)]
        return [metric.name for metric in only(runs, **options).headlines]

    both = [
        {"exact_zero_share": 0.0, "other": 1.0, "held_out_kl": 1.0},
        {"exact_zero_share": 0.0, "other": 2.0, "held_out_kl": 2.0},
    ]
    assert names(both) == ["held_out_kl"]  # the share is 0 everywhere: nothing to see
    assert names(both, headlines=["other", "other"]) == ["other"]
    assert names([{"mine": 1.0}, {"mine": 2.0}]) == ["mine"]
    with pytest.raises(ValueError, match="no run has the score 'mien'; scores: exact_zero_share, held_out_kl, other"):
        names(both, headlines=["mien"])


def test_front_leaves_out_beaten_arms_and_controls(record: Make) -> None:
    points = {"plain": (1.0, 3.0), "b": (2.0, 2.0), "c": (3.0, 1.0), "beaten": (2.5, 2.5), "tie": (2.0, 2.1)}
    runs = [record(name, 0, loss, {"kl": value}) for name, (loss, value) in points.items()]
    runs += [record("warm", 0, 0.5, {"kl": 0.5}, control=ControlOf("temperature", "plain"))]
    section = only(runs)
    assert [arm.name for arm in front(section, section.headlines[0])] == ["plain", "b", "c"]


def test_front_of_a_score_where_higher_is_better(record: Make) -> None:
    points = {"plain": (1.0, 0.1), "b": (2.0, 0.2), "beaten": (3.0, 0.1)}
    section = only([record(name, 0, loss, {"zero_share": value}) for name, (loss, value) in points.items()])
    assert [arm.name for arm in front(section, section.headlines[0])] == ["plain", "b"]
    accuracy = next(metric for metric in section.metrics if metric.name == "entropy")
    assert front(section, accuracy) == []


def test_a_score_that_depends_on_the_loss_alone_is_no_gain(record: Make) -> None:
    """The false-positive trap: every arm buys its score with task loss, at the price that the control pays."""
    rng = random.Random(0)

    def run(arm: str, seed: int, shift: float, control: ControlOf | None = None) -> RunRecord:
        # The arm's losses agree with the control's only about; the score follows each exactly, with a little noise.
        change = shift * (1 + rng.gauss(0, 0.01))
        kl = 0.5 * (1 - 10 * change) * (1 + rng.gauss(0, 0.001))
        return record(arm, seed, (2 + 0.01 * seed) * (1 + change), {"held_out_kl": kl}, control=control)

    outcomes: list[str] = []
    for trial in range(40):
        control = ControlOf("temperature", "plain", "a", 1.1)
        runs = [run("plain", seed, 0.0) for seed in range(5)] + [run("a", seed, 0.02) for seed in range(5)]
        unmatched = only(runs)
        assert judge(unmatched, unmatched.arm("a"), unmatched.headlines[0]) == "unmatched", trial
        section = only([*runs, *(run("warm", seed, 0.02, control) for seed in range(5))])
        outcomes.append(judge(section, section.arm("a"), section.headlines[0]))
    # A two-sided 95 % interval errs on the winning side in about 1 of 40; 5 or more has a chance of .004.
    # What of it is owed to a control that stops a little short of the arm's loss is not counted, hence "unsure".
    assert set(outcomes) <= {"gain", "unsure", "no gain over control"} and outcomes.count("gain") < 5


def test_costs_and_guards_are_metrics_too(record: Make) -> None:
    section = only([record(guards={"rank": 30.0}), record("a", guards={"rank": 6.0})])
    rank = section.arm("a").cells[section.of_kind("guard")[0]].change
    assert rank is not None and rank.mean == pytest.approx(-80)
    steps = next(metric for metric in section.of_kind("cost") if metric.name == "step_seconds")
    arms: tuple[Arm, ...] = section.arms
    assert all(arm.cells[steps].value is not None for arm in arms)
