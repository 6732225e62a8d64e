"""The comparison at equal task loss, as people read it."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from legibility.tradeoff import RunRecord, compare
from legibility.tradeoff._matched_words import matched_sentences
from legibility.tradeoff.statistics import compare_at_matched_loss

Make = Callable[..., RunRecord]


def said(record: Make, arms: Mapping[str, tuple[float, float]], *, seeds: int = 3, **more: Any) -> list[str]:
    """Sentences about arms at (loss, KL); every seed of an arm has a little noise of its own."""
    runs = []
    for place, (arm, (loss, kl)) in enumerate(arms.items()):
        for seed in range(seeds):
            wobble = 0.002 * ((place * 7 + seed * 3) % 5 - 2)
            strengths = {"a": 1.0} if arm.startswith("a-") else {}
            runs.append(record(arm, seed, loss, {"held_out_kl": kl + wobble}, strengths=strengths, **more))
    section = compare(runs).sections[0]
    return matched_sentences(section, compare_at_matched_loss(section))


FRONT = {"plain": (1.0, 1.0), "a-1": (1.1, 0.8), "a-2": (1.2, 0.6), "a-4": (1.3, 0.4)}


def test_better_and_no_difference(record: Make) -> None:
    better = said(record, FRONT | {"width-2": (1.0, 1.0), "width-1": (1.1, 0.95), "width-0": (1.2, 0.9)}, seeds=6)
    assert better[0].startswith("a against width, at task loss 1 to 1.2: better in held-out KL -1")
    assert ", p < .001)" in better[0] and better[0].endswith("(6 seeds).")
    assert "Holm's adjustment over the 1 test" in better[1]
    assert not any("sign-flip" in text for text in better)
    assert any("Few points of width" in text for text in better)
    same = said(record, FRONT | {"width-2": (1.05, 0.9), "width-1": (1.15, 0.7), "width-0": (1.25, 0.5)})
    assert "a against width, at task loss 1.05 to 1.25: no difference to be told in held-out KL" in same[0]


def test_few_seeds_say_what_they_cannot_show(record: Make) -> None:
    text = " ".join(said(record, FRONT | {"smooth": (1.1, 0.9)}))
    assert "With 3 seeds a sign-flip test" in text and "can't go below p = 0.25; it takes 6 seeds" in text
    assert "At one strength only, so compared at that run's task loss: smooth." in text
    one = said(record, FRONT | {"smooth": (1.1, 0.9)}, seeds=1)
    assert "no verdict on one seed in held-out KL -" in one[0] and "(1 seed)" in one[0] and " p " not in one[0]


def test_no_overlap_and_no_second_strength_are_said(record: Make) -> None:
    far = said(record, FRONT | {"smooth": (2.0, 0.1)})
    assert far[0] == (
        "a and smooth can't be compared at equal task loss (seed 0: task losses 1 to 1.3 and 2 don't overlap,"
        " and alike in the other 2)."
    )
    single = said(record, {"plain": (1.0, 1.0), "smooth": (1.1, 0.9), "decay": (1.2, 0.8)})
    (text,) = single
    assert (
        text.startswith("No comparison at equal task loss: it takes two methods") and "there is decay, smooth." in text
    )
    assert said(record, {"plain": (1.0, 1.0)}) == []
    mixed = said(record, FRONT | {"smooth": (1.1, 0.9), "b": (1.1, 0.9)}, settings={"lr": 1})
    assert not any("for want of a second strength" in text for text in mixed)


def test_two_points_give_numbers_but_no_verdict(record: Make) -> None:
    text = said(record, {"plain": (1.0, 1.0), "x-1": (1.1, 0.8), "x-2": (1.2, 0.6), "y": (1.15, 0.9)})
    assert "no verdict on two points in held-out KL -22" in text[0] and " p " not in text[0]
    assert any(one.startswith("X: a straight line through two points") for one in text)


@pytest.mark.parametrize("name", ["x", "[bold]", "a\nb"])
def test_names_stand_as_they_are(record: Make, name: str) -> None:
    assert name in said(record, FRONT | {name: (1.1, 0.9)})[0]


def test_a_difference_that_hangs_on_the_drawing_is_pointed_out(record: Make) -> None:
    steep = {f"a-{i}": (1.0 + 0.25 * i, 20.0**-i) for i in (1, 2)}
    other = {f"width-{9 - i}": (1.0 + 0.1 * i, 20.0 ** (-0.4 * i)) for i in range(1, 5)}
    text = " ".join(said(record, {"plain": (1.0, 1.0)} | steep | other))
    assert "Between a and width: a tenth or more of a difference depends on how the curves are drawn" in text
    straight = " ".join(said(record, FRONT | {"width-2": (1.0, 1.0), "width-1": (1.1, 0.95), "width-0": (1.2, 0.9)}))
    assert "how the curves are drawn" not in straight


def test_methods_of_one_strength_each_are_named_once(record: Make) -> None:
    text = said(record, FRONT | {"smooth": (1.1, 0.9), "b-1": (1.1, 0.9), "c-1": (1.15, 0.7)})
    assert not any(
        "for want of a second strength" in one for one in text
    )  # only pairs with a method under test are asked
    runs = [
        record(arm, 0, loss, {"kl": kl})
        for arm, (loss, kl) in {"plain": (1.0, 1.0), "x-1": (1.1, 0.8), "x-2": (1.2, 0.7)}.items()
    ]
    runs += [record("y", 0, 1.15, {"kl": 0.7}), record("z", 0, 1.16, {"kl": 0.6})]
    section = compare(runs).sections[0]
    found = matched_sentences(section, compare_at_matched_loss(section))
    assert "Not compared with each other, for want of a second strength: y, z." in found
