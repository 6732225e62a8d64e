"""Markdown, CSV and pictures: they say what the comparison says, and no name from outside does anything in them."""

import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from legibility.tradeoff import (
    Comparison,
    ControlOf,
    PlainTable,
    RunRecord,
    check_export,
    compare,
    draw_picture,
    export,
    render_csv,
    render_markdown,
    render_runs_csv,
    verdicts,
)
from legibility.tradeoff.page._text import escaped

Make = Callable[..., RunRecord]
HOSTILE = "=1+1|<img src=x onerror=alert(1)>`*_$x^2$\\[a](https://b.c)\n# h \u202e"


@pytest.fixture
def comparison(language_model: list[RunRecord]) -> Comparison:
    return compare(language_model)


@pytest.fixture
def hostile(record: Make) -> Comparison:
    runs = [record("plain", seed, 2.0, {HOSTILE: 1.0}, recipe=HOSTILE) for seed in (0, 1)]
    runs += [record(HOSTILE, seed, 2.1, {HOSTILE: 0.5 + seed}, recipe=HOSTILE) for seed in (0, 1)]
    control = ControlOf("temperature", "plain", HOSTILE, 1.1)
    return compare([*runs, record("-" + HOSTILE, 0, 2.1, {HOSTILE: 0.7}, recipe=HOSTILE, control=control)])


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_markdown_says_what_the_comparison_says(comparison: Comparison) -> None:
    text = render_markdown(comparison)
    assert "## demo\n\n15 runs: 4 arms and 1 control, 3 seeds each, compared with plain seed by seed." in text
    assert "| legibility-0.3 | +0.62 ±0.05 % (2.022 ±0.026) | ✓ -18.6 ±0.5 % (0.45 ±0.10) |" in text
    assert "| ↳ beyond this control |" in text and "| plain (baseline) |" in text
    for verdict in verdicts(comparison):
        assert f"- {verdict.text}" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in lines[:8]} == {4}  # arm, loss, two scores, seeds
    assert text.endswith("\n") and "\n\n\n" not in text


def test_markdown_has_further_tables(comparison: Comparison) -> None:
    extra = PlainTable("At equal loss", "Paired by seed.", ["method", "a|b"], [["x", "-3 %"]])
    text = render_markdown(comparison, further={"demo": [extra]})
    assert "### At equal loss\n\nPaired by seed.\n\n| method | a\\|b |\n| --- | ---: |\n| x | -3 % |" in text
    with pytest.raises(ValueError, match="`further`"):
        render_markdown(comparison, further={"other": [extra]})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b|c", "a\\_b\\|c"),
        ("<b>", "\\<b\\>"),
        ("# a", "\\# a"),
        ("- a", "\\- a"),
        ("1. a", "1\\. a"),
        ("-1.5 %", "-1.5 %"),
        ("1.5", "1.5"),
        ("a\n\n# b", "a # b"),
        ("http://a.b", "http\\://a.b"),
        ("www.a.b", "www\\.a.b"),
        ("[a](b)", "\\[a\\](b)"),
    ],
)
def test_markdown_shows_names_as_they_are(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_hostile_names_do_nothing_in_markdown(hostile: Comparison) -> None:
    text = render_markdown(hostile)
    assert not re.search(r"(?<!\\)<", text) and not re.search(r"(?<!\\)`", text) and "https://" not in text
    assert re.findall(r"(?m)^#+ (?!\\=1)(.*)$", text) == [
        "The trade-off",
        escaped(HOSTILE),
        "In sentences",
        "Guards",
        "Costs",
    ]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:6]} == {5}


def test_csv_has_every_arm_and_metric_in_full_precision(comparison: Comparison) -> None:
    rows = table(render_csv(comparison))
    section = comparison.sections[0]
    assert len(rows) == len(section.arms) * len(section.metrics)
    (found,) = [row for row in rows if row["arm"] == "legibility-0.3" and row["metric"] == "held_out_kl"]
    cell = section.arm("legibility-0.3").cells[section.headlines[0]]
    assert cell.change is not None and cell.gains is not None
    assert float(found["change"]) == cell.change.mean and float(found["change_low"]) == cell.change.low
    assert float(found["beyond_control"]) == cell.gains["temperature"].mean
    assert (found["verdict"], found["change_unit"], found["seeds"]) == ("gain", "%", "3")
    (control,) = [row for row in rows if row["arm"] == "temperature" and row["metric"] == "held_out_kl"]
    assert (control["control"], control["matches"], control["verdict"]) == ("temperature", "legibility-0.3", "")


def test_of_several_controls_the_best_one_counts(record: Make) -> None:
    runs = []
    for seed in (0, 1):
        runs += [record("plain", seed, 2.0, {"fvu": 1.0}), record("a", seed, 2.1, {"fvu": 0.5})]
        for name, fvu in (("weak", 0.9), ("strong", 0.6)):
            runs.append(record(name, seed, 2.1, {"fvu": fvu}, control=ControlOf("temperature", "plain", "a", 1.1)))
    (found,) = [row for row in table(render_csv(compare(runs))) if row["arm"] == "a" and row["metric"] == "fvu"]
    assert float(found["beyond_control"]) == pytest.approx(-50 + 40)


def test_csv_of_runs_gives_back_the_records(language_model: list[RunRecord], tmp_path: Path) -> None:
    pairs = [(tmp_path / "secret" / one.arm / f"{one.seed}.json", one) for one in language_model]
    rows = table(render_runs_csv(compare(pairs)))
    losses = {(row["arm"], int(row["seed"])): float(row["value"]) for row in rows if row["metric"] == "loss"}
    assert losses == {(one.arm, one.seed): one.task.loss for one in language_model}
    assert not any("secret" in row["source"] for row in rows)
    (found,) = [r for r in rows if (r["arm"], r["seed"], r["metric"]) == ("legibility-0.3", "1", "held_out_kl")]
    assert float(found["change"]) == pytest.approx(-18.6) and found["source"].endswith("legibility-0.3/1.json")


def test_no_name_is_a_formula(hostile: Comparison) -> None:
    for text in (render_csv(hostile), render_runs_csv(hostile)):
        rows = table(text)
        arms = {row["arm"] for row in rows}
        assert arms == {"plain", "'" + HOSTILE, "'-" + HOSTILE}
        assert all(float(row["change"] or 0) > -1000 for row in rows)  # numbers stay numbers


def test_the_suffix_says_what_is_written(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    starts = {
        "a.html": b"<!DOCTYPE html>", "a.md": b"# The trade-off", "a.csv": b"recipe,arm,control", "a.png": b"\x89PNG",
        "a.runs.csv": b"recipe,arm,seed", "a.svg": b"<?xml", "a.PDF": b"%PDF",
    }  # fmt: skip
    for name, start in starts.items():
        path = export(comparison, tmp_path / "new" / name)
        assert path == tmp_path / "new" / name and path.read_bytes().startswith(start)
    assert len(list((tmp_path / "new").iterdir())) == len(starts)
    for wrong in ("a.jpg", "a", "csv", ".png.txt"):
        with pytest.raises(ValueError, match=r"`path` must end in .*\.runs\.csv"):
            check_export(wrong)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_comparison_gives_the_same_picture(comparison: Comparison, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    one, two = (export(comparison, tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert one == two


def test_the_picture_holds_means_runs_intervals_and_the_front(comparison: Comparison) -> None:
    pytest.importorskip("matplotlib")
    figure = draw_picture(comparison, "values")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "held-out KL (nats, lower is better)",
        "disagreement (nats, lower is better)",
    ]
    axes = figure.axes[0]
    runs = [tuple(point) for dots in axes.collections for point in getattr(dots, "get_offsets", list)()]
    assert any(point == pytest.approx((2.01, 0.55)) for point in runs)
    containers: list[Any] = list(axes.containers)
    means = {bars.lines[0].get_xydata()[0].tolist()[0] for bars in containers}
    assert any(mean == pytest.approx(2.01) for mean in means) and len(means) == 5
    first = draw_picture(comparison).axes[0]
    assert first.get_ylabel() == "change in held-out KL (%)"


def test_untrained_controls_are_left_out_and_a_share_is_in_percent(record: Make) -> None:
    pytest.importorskip("matplotlib")
    runs = [record("plain", 0, 2.0, {"zero_share": 0.2}), record("a", 0, 2.1, {"zero_share": 0.5})]
    runs.append(record("init", 0, 80.0, {"zero_share": 0.0}, control=ControlOf("random-init", "plain")))
    axes = draw_picture(compare(runs), "values").axes[0]
    assert axes.get_xlim()[1] < 3 and axes.get_ylabel() == "change in zero share (%)".removeprefix("change in ")
    assert axes.get_ylim()[0] > 0 and 50 < axes.get_ylim()[1] < 60


def test_hostile_names_do_nothing_in_pictures(hostile: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    root = ElementTree.parse(export(hostile, tmp_path / "a.svg")).getroot()
    assert not {node.tag.rpartition("}")[2] for node in root.iter()} & {"script", "image", "a", "foreignObject"}
    texts = [node.text or "" for node in root.iter() if node.tag.endswith("}text")]
    assert any(text.startswith("=1+1|<img src=x onerror") for text in texts)
    assert not any("\u202e" in text or "\n" in text for text in texts)


def test_nothing_to_draw_is_said(record: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no headline score at a known task loss"):
        export(compare([record("plain", 0, None)]), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_missing_library_names_the_extra(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "legibility\[pictures\]"'):
        draw_picture(comparison)


def test_pictures_leave_matplotlib_as_it_was(comparison: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from legibility.tradeoff import *\n"
        f"export(compare(find_records({str(tmp_path)!r})), {str(tmp_path / 'a.svg')!r})\n"
        "from matplotlib import pyplot\n"
        "assert dict(matplotlib.rcParams) == before and not pyplot.get_fignums()"
    )
    from legibility.tradeoff import save_record

    for arm in comparison.sections[0].arms:
        for one in arm.records:
            save_record(one, tmp_path / f"{one.arm}-{one.seed}.json")
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
