"""Sentences: what the intervals hold, and no more."""

from collections.abc import Callable

import pytest

from legibility.tradeoff import ControlOf, RunRecord, ScoreEntry, compare, verdicts

Make = Callable[..., RunRecord]


def say(runs: list[RunRecord]) -> list[tuple[str, str]]:
    return [(verdict.outcome, str(verdict)) for verdict in verdicts(compare(runs))]


def test_the_reference_table_in_words(language_model: list[RunRecord]) -> None:
    said = say(language_model)
    # Noise of +-.2 over 3 seeds: s = .2, half = 4.302653 * .2 / sqrt(3) = .4968; the control's noise is opposite, so
    # that of the gain is twice as large.
    assert [outcome for outcome, _ in said] == ["unmatched", "gain", "gain", "worse"]  # no baseline, no control
    texts = [text for _, text in said]
    assert texts[0] == (
        "label-smoothing lowers held-out KL by 7.9 % (-8.4 to -7.4) and disagreement by 1.1 % (-1.6 to -0.6) (95 %"
        " intervals, 3 seeds) at +1.2 % task loss, which no control matches."
    )
    assert texts[1] == (
        "legibility-0.3 lowers held-out KL by 18.6 % (95 % interval -19.1 to -18.1, 3 seeds) at +0.62 % task loss;"
        " temperature alone, at equal task loss, by 10.4 %: 8.2 points better than that (95 % interval 7.2 to 9.2)."
    )
    assert texts[2] == (
        "legibility-0.3 lowers disagreement by 5.6 % (95 % interval -6.1 to -5.1, 3 seeds) at +0.62 % task loss;"
        " temperature alone, at equal task loss, raises it by 0.70 %: 6.3 points better than that (95 % interval 5.3 to"
        " 7.3)."
    )
    assert texts[3].startswith("rank-penalty raises held-out KL by 5.6 % (+5.1 to +6.1) and disagreement by 3.6 %")


def test_no_difference_is_said_as_such(record: Make) -> None:
    runs = [record("plain", s, 2.0, {"held_out_kl": 1.0, "disagreement": 1.0}) for s in (0, 1, 2)]
    runs += [record("a", s, 2.0, {"held_out_kl": v, "disagreement": v}) for s, v in enumerate((1.02, 0.99, 0.98))]
    ((outcome, text),) = say(runs)
    assert outcome == "no difference"
    assert text == (
        "a shows no difference beyond seed noise in held-out KL (-5.5 to +4.8 %, 3 seeds) and disagreement"
        " (-5.5 to +4.8 %, 3 seeds) at 0.00 % task loss (within seed noise)."
    )


def test_as_good_as_the_control_is_no_gain(record: Make) -> None:
    control = ControlOf("temperature", "plain", "a", 1.1)
    runs = []
    for seed, wobble in enumerate((-0.01, 0.0, 0.01)):
        runs += [record("plain", seed, 2.0, {"fvu": 1.0}), record("a", seed, 2.02, {"fvu": 0.9 + wobble})]
        runs += [record("warm", seed, 2.02, {"fvu": 0.9 - wobble}, control=control)]
    ((outcome, text),) = say(runs)
    assert outcome == "no gain over control"
    assert text.endswith(
        "temperature alone, at equal task loss, by 10.0 %: no difference between the two beyond seed noise."
    )


def test_worse_than_the_control_is_said(record: Make) -> None:
    control = ControlOf("temperature", "plain", "a", 1.1)
    runs = []
    for seed in (0, 1, 2):
        runs += [record("plain", seed, 2.0, {"fvu": 1.0}), record("a", seed, 2.02, {"fvu": 0.9 + seed / 1e3})]
        runs += [record("warm", seed, 2.02, {"fvu": 0.8}, control=control)]
    ((outcome, text),) = say(runs)
    assert outcome == "no gain over control"
    assert "by 20.0 %: 10.1 points worse than that (95 % interval 9.9 to 10.3)." in text


def test_a_control_off_the_mark_is_no_witness(record: Make) -> None:
    control = ControlOf("temperature", "plain", "a", 1.1)
    runs = []
    for seed in (0, 1, 2):
        runs += [record("plain", seed, 2.0, {"fvu": 1.0}), record("a", seed, 2.1, {"fvu": 0.5 + seed / 1e3})]
        runs += [record("warm", seed, 2.01, {"fvu": 0.9}, control=control)]
    ((outcome, text),) = say(runs)
    assert outcome == "unmatched"
    assert text.endswith("temperature alone, at +0.50 % task loss, by 10.0 %. No control matches its task loss.")


def test_one_seed_claims_nothing(record: Make) -> None:
    ((outcome, text),) = say([record("plain", 0, 2.0, {"fvu": 1.0}), record("a", 0, 1.9, {"fvu": 0.5})])
    assert (outcome, text) == ("one seed", "a lowers fvu by 50.0 % (1 seed: no interval) at -5.0 % task loss.")


def test_trained_on_is_no_evidence(record: Make, score: Callable[..., ScoreEntry]) -> None:
    runs = [record("plain", s, 2.0, {"fvu": 1.0}) for s in (0, 1)]
    runs += [record("a", s, 2.0, [score("fvu", 0.5 + s / 1e4, trained_on=True)]) for s in (0, 1)]
    ((outcome, text),) = say(runs)
    assert outcome == "trained on" and text.endswith("It was trained on this, so that is no evidence.")


def test_better_at_a_better_loss_is_a_gain_without_a_control(record: Make) -> None:
    runs = [record("plain", s, 2.0, {"fvu": 1.0}) for s in (0, 1)]
    runs += [record("a", s, 1.9 + s / 1e5, {"fvu": 0.5 + s / 1e5}) for s in (0, 1)]
    assert say(runs)[0][0] == "gain"


def test_unknown_task_loss_is_no_gain(record: Make) -> None:
    runs = [record("plain", s, 2.0, {"fvu": 1.0}) for s in (0, 1)]
    runs += [record("a", s, None, {"fvu": 0.5 + s / 1e5}) for s in (0, 1)]
    ((outcome, text),) = say(runs)
    assert outcome == "unmatched" and "(task loss unknown)" in text


def test_missing_scores_are_said_with_their_reason(record: Make, score: Callable[..., ScoreEntry]) -> None:
    runs = [record("plain", 0, 2.0, {"held_out_kl": 1.0}), record("b", 0, 2.0, {"held_out_kl": 2.0})]
    runs += [record("a", 0, 2.0, [score("held_out_kl", None, reason="all students failed")])]
    assert say(runs)[0] == ("missing", "a has no held-out KL to compare: all students failed.")


def test_zeros(record: Make) -> None:
    arms = {"plain": (0.0, 0.1, 0.977), "l1-in-loss": (0.0, 0.08, 0.978), "heal": (0.88, 0.05, 0.982)}
    runs = [
        record(arm, seed, loss, {"exact_zero_share": share and share + seed / 100}, accuracy=accuracy + seed / 1000)
        for arm, (share, loss, accuracy) in arms.items()
        for seed in (0, 1)
    ]
    # Mean 88.5 %, half = 12.706205 * .7071 / sqrt(2) = 6.4 percentage points.
    zeros = "88.5 % exact zeros (95 % interval 82.1 to 94.9, 2 seeds)"
    assert say(runs) == [
        ("gain", f"heal has {zeros} at -50.0 % task loss, accuracy +0.50 pp."),
        ("no difference", "l1-in-loss has no exact zero at -20.0 % task loss, accuracy +0.10 pp."),
    ]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_baseline_alone_says_nothing(record: Make, seeds: int) -> None:
    assert say([record("plain", seed, 2.0, {"fvu": 1.0}) for seed in range(seeds)]) == []
