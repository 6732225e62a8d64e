"""The table in a terminal."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from legibility.tradeoff import Comparison, ControlOf, RunRecord, ScoreEntry, compare, print_comparison

Make = Callable[..., RunRecord]


def shown(comparison: Comparison, width: int = 80, encoding: str = "utf-8", color: bool = False) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_comparison(comparison, Console(file=file, width=width, force_terminal=color))
    file.flush()
    return raw.getvalue().decode(encoding)


def test_piped_table_fits_80_columns_without_colour_codes(language_model: list[RunRecord]) -> None:
    text = shown(compare(language_model))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for part in (
        "demo",
        "legibility-0.3",
        "-18.6 ±0.5 %",
        "+0.62 ±0.05 %",
        "2.010 ±0.025",
        "beyond control",
        "-8.2 ±1.0 pp",
    ):
        assert part in text
    assert "○ temperature (control: plain at temperature 1.1, task loss of legibility-0.3)" in text.replace("\n", " ")
    assert "\x1b[" in shown(compare(language_model), color=True)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_console_and_nothing_is_lost(
    language_model: list[RunRecord], record: Make, width: int
) -> None:
    names = ("code_length", "patch_through_kl", "exact_zero_share", "held_out_kl", "disagreement")
    runs = [record("plain", 0, 2.0, dict.fromkeys(names, 0.5), accuracy=0.5)]
    runs += [record("a-rather-long-name-of-an-arm" * 3, 0, 2.1, dict.fromkeys(names, 0.25), accuracy=0.5)]
    text = shown(compare(runs), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("-50.0 %") >= 4 and "-25.0 pp" in text


def test_all_scores_stand_beside_the_task_loss(record: Make) -> None:
    names = ("code_length", "patch_through_kl", "exact_zero_share", "held_out_kl", "disagreement")
    runs = [record(arm, 0, 2.0, dict.fromkeys(names, value)) for arm, value in (("plain", 0.5), ("a", 0.25))]
    text = shown(compare(runs), 80)
    tables = text.count("task loss  ") + text.count("task loss\n")
    assert text.count("arm  ") >= 2 and tables >= 2


def test_terminals_without_unicode_get_ascii(language_model: list[RunRecord]) -> None:
    text = shown(compare(language_model), encoding="ascii")
    assert "-18.6 ~0.5 %" in text and "o temperature" in text


def test_names_from_outside_are_neither_markup_nor_escape_codes(record: Make) -> None:
    name = "[bold red]x[/]\x1b[2J\x07"
    text = shown(compare([record(), record(name, notes=["[blink]"])]), 120)
    assert "[bold red]x[/]?[2J?" in text and "\x1b" not in text


def test_marks_have_a_legend(record: Make, score: Callable[..., ScoreEntry]) -> None:
    runs = [record("plain", s, 2.0, {"kl": 1.0, "fvu": 1.0, "lens": 1.0}) for s in (0, 1)]
    trained = [score("kl", 0.5, trained_on=True), score("fvu", 0.5), score("lens", None, reason="no head")]
    runs += [record("a", s, 2.1 + s / 1e4, trained) for s in (0, 1)]
    text = shown(compare(runs), 100)
    assert "-50.0 ±0.0 %†" in text and "† trained on this score" in text
    assert "-50.0 ±0.0 %‡" in text and "‡ better, but at a task loss that no control matches" in text
    assert "missing in all" in text and "no head" in text
    plain = shown(compare(runs[:2]), 100)
    assert "†" not in plain and "‡" not in plain and "○" not in plain


def test_warnings_and_every_recipe_are_printed(record: Make) -> None:
    runs = [record("plain", 0, recipe="one"), record("plain", 0, recipe="two"), record("a", 1, recipe="two")]
    text = shown(compare(runs))
    assert "one · 1 arm, 1 run · change" in text and "two · 2 arms, 2 runs · change" in text
    assert "Warning: a and plain don't share seed 0, 1" in text


def test_an_unmatched_control_has_no_row_of_gains(record: Make) -> None:
    text = shown(compare([record(), record("init", control=ControlOf("random-init", "plain"))]))
    assert "beyond" not in text.lower().split("upper line")[0] and "control: plain, untrained" in text


def test_many_differences_say_what_chance_makes_of_them(record: Make) -> None:
    names = ("code_length", "patch_through_kl", "held_out_kl", "disagreement")
    runs = [record(arm, s, 2.0, dict.fromkeys(names, 1.0 + s / 10)) for arm in ("plain", "a", "b", "c") for s in (0, 1)]
    assert "of 12 differences that are none in truth, 1 or so would show one" in shown(compare(runs), 200)
    assert "none in truth" not in shown(compare(runs[:6]), 200)


def test_methods_at_equal_task_loss_are_printed(record: Make) -> None:
    def run(arm: str, seed: int, loss: float, kl: float) -> RunRecord:
        strengths = {"a": 1.0} if arm.startswith("a") else {}
        return record(arm, seed, loss, {"held_out_kl": kl + 0.001 * ((seed * len(arm)) % 3)}, strengths=strengths)

    arms = {"plain": (1.0, 1.0), "a-1": (1.1, 0.8), "a-2": (1.2, 0.6), "[b]-1": (1.1, 0.9), "[b]-2": (1.2, 0.8)}
    text = shown(compare([run(arm, seed, *found) for arm, found in arms.items() for seed in (0, 1, 2)]), 100)
    assert "Methods at equal task loss (means over the range that both cover)" in text
    assert " - a against [b], at task loss 1.1 to 1.2: no verdict on two points in held-out KL -1" in text
    alone = shown(compare([run("plain", 0, 1.0, 1.0)]), 100)
    assert "Methods at equal" not in alone


def test_many_arms_are_told_by_outcome_and_pairs_only_where_there_is_something_to_tell(record: Make) -> None:
    runs = [record("plain", seed, 2.0 + 0.01 * seed, {"held_out_kl": 0.5 + 0.001 * seed}) for seed in range(6)]
    for method in ("a", "b", "c", "d", "e", "f"):
        for strength in range(1, 5):
            for seed in range(6):
                kl = (0.2 if method == "a" else 0.45) - 0.01 * strength + 0.001 * (seed * (ord(method) + strength) % 7)
                loss = 2.0 + 0.02 * strength + 0.01 * seed
                runs.append(record(f"{method}-{strength}", seed, loss, {"held_out_kl": kl}))
    text = " ".join(shown(compare(runs), 200).split())
    assert "- a, at +0.99 to +4.0 % task loss: held-out KL" in text and "at 4 of 4 strengths" in text
    assert "a-1 lowers held-out KL" not in text
    assert "a against b, at task loss" in text and "better in held-out KL" in text
    assert "b against c" not in text and "all 15 tests" in text
    assert "10 of 15 pairs: no difference to be told in any score" in text
    few = " ".join(shown(compare([run for run in runs if run.arm[0] in "pab"]), 200).split())
    assert "a-1 lowers held-out KL" in few and "pairs: no difference" not in few
