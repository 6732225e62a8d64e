"""What is called a gain where many arms and scores are looked at: nothing by chance, and not nothing at all."""

import random
from collections.abc import Callable

import pytest

from legibility.tradeoff import ControlOf, RunRecord, ScoreEntry, Section, compare, judge
from legibility.tradeoff.statistics import holm

Make = Callable[..., RunRecord]
SCORES = ("held_out_kl", "code_length", "disagreement", "patch_through_kl")


def section_of(
    record: Make,
    rng: random.Random,
    *,
    seeds: int,
    paid: float,
    gain: float = 0.0,
    controls: bool = False,
    short: float = 0.0,
) -> Section:
    """Six arms whose scores fall by 3 for each unit of expected task loss, and by `gain` beyond; noise on all of it.

    Arms pay up to `paid` of loss 2; controls stop `short` (a share of the way) before their arm's loss.
    """
    runs = []

    def run(arm: str, seed: int, way: float, gain: float, control: ControlOf | None = None) -> None:
        scores = {name: 8 - 3 * (2 + way) - gain + rng.gauss(0, 0.03) for name in SCORES}
        runs.append(record(arm, seed, 2 + way + rng.gauss(0, 0.03 if control is None else 0), scores, control=control))

    for seed in range(seeds):
        run("plain", seed, 0.0, 0.0)
        for place, arm in enumerate("abcdef"):
            way = paid * (place + 1) / 6
            run(arm, seed, way, gain)
            if controls:
                goal = runs[-1].task.loss or 0.0
                run(f"warm-{arm}", seed, (goal - 2) * (1 - short), 0.0, ControlOf("temperature", "plain", arm, 1.1))
    return compare(runs).sections[0]


def outcomes(section: Section) -> list[str]:
    return [judge(section, section.arm(arm), metric) for arm in "abcdef" for metric in section.headlines]


@pytest.mark.parametrize("paid", [0.0, 0.02, 0.1])
def test_arms_that_only_move_along_the_front_gain_nothing(record: Make, paid: float) -> None:
    rng = random.Random(1)
    found = [outcomes(section_of(record, rng, seeds=5, paid=paid)) for _ in range(60)]
    assert sum("gain" in one for one in found) <= 3
    # The test can fail: intervals by themselves, and losses "within seed noise" taken for equal, see gains nearly always.
    better = sum(bool({"gain", "unsure", "unmatched"} & set(one)) for one in found)
    assert better > (50 if paid else 10)


@pytest.mark.parametrize("short", [0.0, 0.09])
def test_nor_do_they_beside_controls_that_stop_a_little_short(record: Make, short: float) -> None:
    rng = random.Random(2)
    found = [outcomes(section_of(record, rng, seeds=5, paid=0.6, controls=True, short=short)) for _ in range(60)]
    assert sum("gain" in one for one in found) <= 5
    if short:  # by its intervals alone many an arm would beat such a control
        assert sum("unsure" in one for one in found) > 20


def test_a_gain_beyond_a_control_is_found(record: Make) -> None:
    rng = random.Random(3)
    found = [outcomes(section_of(record, rng, seeds=5, paid=0.1, gain=0.3, controls=True)) for _ in range(10)]
    assert sum(one.count("gain") for one in found) > 0.9 * 10 * 24


def test_p_is_the_larger_of_both_tests_and_adjusted_over_arms_and_scores(record: Make) -> None:
    runs = []
    for seed, wobble in enumerate((-0.01, 0.0, 0.02)):
        runs += [record("plain", seed, 2.0, {"held_out_kl": 1.0, "code_length": 1.0})]
        runs += [record("a", seed, 1.9 - wobble, {"held_out_kl": 0.5, "code_length": 0.8 + 3 * wobble})]
        runs += [record("b", seed, 1.8, {"held_out_kl": 1.1 + wobble, "code_length": 0.9 + wobble})]
    section = compare(runs).sections[0]
    kl, length = section.headlines
    stats = pytest.importorskip("scipy.stats")
    p = {
        ("a", kl): stats.ttest_1samp([-4.5, -5.0, -6.0], 0).pvalue,  # the loss: KL itself is equal in all seeds
        ("a", length): stats.ttest_1samp([-23.0, -20.0, -14.0], 0).pvalue,  # the score, less sure than the loss
        ("b", kl): stats.ttest_1samp([9.0, 10.0, 12.0], 0).pvalue,
        ("b", length): stats.ttest_1samp([-11.0, -10.0, -8.0], 0).pvalue,
    }
    for (arm, metric), expected in zip(p, holm([float(one) for one in p.values()]), strict=True):
        assert section.arm(arm).cells[metric].adjusted == pytest.approx(expected), (arm, metric.name)
    assert section.arm("plain").cells[kl].adjusted is None
    assert section.arm("a").cells[section.task_loss].adjusted is None


def test_what_is_no_test_has_no_p(record: Make, score: Callable[..., ScoreEntry]) -> None:
    runs = []
    for seed in (0, 1):
        rank, trained = score("rank", 3.0 + seed, direction=None), score("kl", 0.5 + seed / 9, trained_on=True)
        runs += [record("plain", seed, 2.0, [score("rank", 4.0, direction=None), score("kl", 1.0), score("fvu", 1.0)])]
        runs += [record("a", seed, 1.0, [rank, trained, score("fvu", 0.5 + seed / 9)])]
    section = compare(runs, headlines=["rank", "kl", "fvu"]).sections[0]
    cells = {metric.name: cell.adjusted for metric, cell in section.arm("a").cells.items() if metric.kind == "score"}
    assert cells["rank"] is None and cells["kl"] is None and cells["fvu"] is not None
    one = compare([record("plain", 0, 2.0, {"kl": 1.0}), record("a", 0, 1.0, {"kl": 0.5})]).sections[0]
    assert one.arm("a").cells[one.headlines[0]].adjusted is None
