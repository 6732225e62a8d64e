"""The page: self-contained, safe against names from outside, and saying what the comparison says."""

import base64
import gzip
import hashlib
import html.parser
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legibility.tradeoff import (
    ControlOf,
    PlainTable,
    RunRecord,
    ScoreEntry,
    compare,
    render_html,
    save_record,
    verdicts,
    write_html,
)

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

Make = Callable[..., RunRecord]
HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\"'&amp;%{x}{{7*7}}<!--\u202e"


class Page(html.parser.HTMLParser):
    """All elements with their attributes, the scripts, the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside != "style":
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def pictures(self) -> dict[str, dict[str, Any]]:
        """What the page's script draws, by section."""
        found: dict[str, dict[str, Any]] = json.loads(self.scripts[0][1])
        return found


def strings(value: object) -> list[str]:
    """All strings in a JSON value, keys left out."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in strings(part)]


@pytest.fixture
def page(language_model: list[RunRecord]) -> Page:
    return Page(render_html(compare(language_model)))


def test_nothing_is_loaded_from_anywhere(language_model: list[RunRecord]) -> None:
    text = render_html(compare(language_model))
    for tag, attributes in Page(text).elements:
        for name in ("src", "srcset", "href", "action", "data", "poster", "xlink:href", "formaction"):
            assert attributes.get(name) is None or str(attributes[name]).startswith("#"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    own = "".join(part for part in re.split(r"(?s)<script type=.*?</script>", text))
    assert not re.search(r"https?://|url\(|@import", own)


def test_the_content_security_policy_names_exactly_the_scripts_of_the_page(page: Page) -> None:
    (policy,) = (a["content"] or "" for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    kinds = [attributes.get("type") for attributes, _ in page.scripts]
    assert kinds == ["application/json", "text/plain", None]
    plotly = gzip.decompress(base64.b64decode(page.scripts[1][1]))
    assert b"Plotly" in plotly
    hashes = [
        base64.b64encode(hashlib.sha256(script).digest()).decode() for script in (plotly, page.scripts[2][1].encode())
    ]
    assert re.findall(r"sha256-([^']+)", policy) == hashes
    assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_hostile_names_stay_text(record: Make, score: Callable[..., ScoreEntry]) -> None:
    def run(arm: str, kl: float, **fields: Any) -> RunRecord:
        scores = [
            score("held_out_kl", kl, control=1.0, control_name=HOSTILE),
            score("held_out_kl", kl, family=HOSTILE, unit="nats"),
            score(HOSTILE, kl - 1, unit=HOSTILE),  # no percentage of 0: changes are in the unit
            score("lost", None, reason=HOSTILE),
        ]
        return record(
            arm,
            0,
            2.0,
            scores,
            recipe=HOSTILE,
            strengths={HOSTILE: 1.0},
            students=[HOSTILE],
            notes=[HOSTILE],
            settings={HOSTILE: HOSTILE},
            guards={HOSTILE: 1.0},
            versions={HOSTILE: HOSTILE},
            **fields,
        )

    control = ControlOf("temperature", HOSTILE, HOSTILE, 1.1)
    runs = [run("plain", 1.0), run(HOSTILE, 0.5), run("c", 0.7, control=control)]
    pairs = [(f"{HOSTILE}/{i}.json", one) for i, one in enumerate(runs)]
    table = PlainTable(HOSTILE, HOSTILE, [HOSTILE], [[HOSTILE]])
    text = render_html(compare(pairs, headlines=["held_out_kl", HOSTILE, "lost"]), further={HOSTILE: [table]})
    parsed, clean = Page(text), Page(render_html(compare([record(), record("a", 0, 2.0)])))
    assert len(parsed.scripts) == len(clean.scripts) == 3
    assert not [
        tag for tag, attributes in parsed.elements if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert HOSTILE in parsed.text and "{{7*7}}" in parsed.text
    # Plotly reads its texts as a small HTML: there, names must be escaped once more.
    shown = strings(parsed.pictures())
    assert sum("alert(1)" in one for one in shown) > 5
    assert not [one for one in shown if "<" in one]


def test_no_less_than_sign_can_close_the_json(page: Page) -> None:
    assert "<" not in page.scripts[0][1] and ">" not in page.scripts[0][1]
    assert page.scripts[0][0] == {"type": "application/json", "id": "figures"}


def test_the_picture_has_all_points_means_controls_and_the_front(page: Page) -> None:
    picture = page.pictures()["section-0"]
    names = [arm["name"] for arm in picture["arms"]]
    assert names == ["plain", "label-smoothing", "legibility-0.3", "temperature", "rank-penalty"]
    assert [panel["metric"] for panel in picture["panels"]] == [1, 2]  # held-out KL and disagreement
    assert picture["panels"][0]["front"] == [0, 2]
    drawn = {names[group["arms"][0]]: group for group in picture["groups"]}
    assert drawn["temperature"]["symbol"] == "x" and drawn["temperature"]["control"]
    assert drawn["temperature"]["colour"] == drawn["legibility-0.3"]["colour"]
    others = [group["symbol"] for name, group in drawn.items() if name != "temperature"]
    assert len(set(others)) == 4 and "x" not in others
    assert picture["arms"][3]["owner"] == 2 and picture["arms"][2]["controls"] == [3]
    # Plain: losses 2, 2.01, 2.02 and scores .5, .55, .6; half widths 4.302653 * .01 / sqrt(3), five times that.
    loss, kl = (metric["values"][0] for metric in picture["metrics"][:2])
    assert (loss["mean"], kl["mean"]) == (pytest.approx(2.01), pytest.approx(0.55))
    assert loss["half"] == pytest.approx(0.0248414, abs=1e-6) and kl["half"] == pytest.approx(0.1242069, abs=1e-6)
    assert kl["seeds"] == [0, 1, 2] and kl["runs"] == pytest.approx([0.5, 0.55, 0.6])
    assert kl["texts"] == ["0.5000", "0.5500", "0.6000"]
    change = picture["metrics"][1]["changes"][2]
    assert change["mean"] == pytest.approx(-18.6) and change["text"].startswith("−18.6")


def test_one_method_has_one_colour_and_one_button(record: Make) -> None:
    runs = [record("plain", 0, 2.0, {"fvu": 1.0})]
    for strength in ("0.3", "1", "0.1"):
        runs.append(record(f"legibility-{strength}", 0, 2.1, {"fvu": 0.5}, strengths={"legibility": float(strength)}))
        control = ControlOf("temperature", "plain", f"legibility-{strength}", 1.1)
        runs.append(record(f"temperature-{strength}", 0, 2.1, {"fvu": 0.7}, control=control))
    runs.append(record("legibility-2", 0, 2.1, {"fvu": 0.5}, strengths={"l1": 1.0}))  # another method after all
    parsed = Page(render_html(compare(runs)))
    picture = parsed.pictures()["section-0"]
    groups = [[picture["arms"][arm]["name"] for arm in group["arms"]] for group in picture["groups"]]
    assert ["legibility-0.1", "legibility-0.3", "legibility-1"] in groups
    assert ["temperature-0.1", "temperature-0.3", "temperature-1"] in groups
    assert ["legibility-2"] in groups and ["plain"] in groups and len(groups) == 4
    buttons = [attributes for tag, attributes in parsed.elements if tag == "button"]
    assert [attributes["data-group"] for attributes in buttons] == ["0", "1", "2", "3"]
    assert "3 strengths" in parsed.text


def test_an_arm_and_multiples_of_its_strengths_have_one_button(record: Make) -> None:
    runs = [record("plain", 0, 2.0, {"fvu": 1.0})]
    for arm, times in (("l1", 1.0), ("l1-x0.5", 0.5), ("l1-x10", 10.0), ("l1-x2", 2.0)):
        runs.append(record(arm, 0, 2.1, {"fvu": 0.5}, strengths={"l1.a.*": 3 * times, "l1.b.*": 5 * times}))
    parsed = Page(render_html(compare(runs)))
    picture = parsed.pictures()["section-0"]
    arms = [[picture["arms"][arm] for arm in group["arms"]] for group in picture["groups"]]
    assert [[arm["name"] for arm in group] for group in arms] == [["plain"], ["l1-x0.5", "l1", "l1-x2", "l1-x10"]]
    assert [arm["label"] for arm in arms[1]] == ["0.5", "1", "2", "10"]
    assert "l1 4 strengths" in parsed.text


def test_the_median_front_of_a_method_by_hand(record: Make) -> None:
    runs = [record("plain", seed, 2.0, {"fvu": 1.0}) for seed in (0, 1)]
    for arm, seed, loss, fvu in (
        ("a-1", 0, 2.1, 0.8),
        ("a-1", 1, 2.3, 0.6),
        ("a-2", 0, 2.2, 0.5),
        ("a-2", 1, 2.4, 0.7),
    ):
        runs.append(record(arm, seed, loss, {"fvu": fvu}))
    parsed = Page(render_html(compare(runs)))
    (panel,) = parsed.pictures()["section-0"]["panels"]
    # One of two seeds: seed 0 alone reaches all of it, (2.4, .7) and (2.3, .6) are beaten.
    assert panel["attained"]["values"][0] is None, "plain is one arm"
    found = panel["attained"]["values"][1]
    assert (found["name"], found["over"], found["x"], found["y"]) == (
        "a",
        "half of 2 seeds reach",
        [2.1, 2.2],
        [0.8, 0.5],
    )
    assert found["texts"] == [["2.100", "0.8000"], ["2.200", "0.5000"]]
    changes = panel["attained"]["changes"][1]
    assert (changes["x"], changes["y"]) == ([5.0, 10.0], [-20.0, -50.0])
    assert "median front" in parsed.text
    assert "median front" not in Page(render_html(compare([run for run in runs if run.arm != "a-2"]))).text


def test_controls_of_several_methods_are_told_apart(record: Make) -> None:
    runs = [record("plain", 0, 2.0, {"fvu": 1.0})]
    for index, arm in enumerate(("a-1", "a-2", "b-1", "b-2")):
        runs.append(record(arm, 0, 2.1, {"fvu": 0.5}))
        runs.append(record(f"t-{index}", 0, 2.1, {"fvu": 0.7}, control=ControlOf("temperature", "plain", arm, 1.1)))
    parsed = Page(render_html(compare(runs)))
    assert "t for a 2 strengths" in parsed.text and "t for b 2 strengths" in parsed.text
    symbols = {group["symbol"] for group in parsed.pictures()["section-0"]["groups"] if group["control"]}
    colours = [group["colour"] for group in parsed.pictures()["section-0"]["groups"]]
    assert symbols == {"x"} and colours[1] == colours[2] != colours[3] == colours[4]


def test_untrained_controls_are_hidden_until_asked_for(language_model: list[RunRecord], record: Make) -> None:
    init = record("init", 0, 80.0, {"held_out_kl": 9.0}, control=ControlOf("random-init", "plain"))
    parsed = Page(render_html(compare([*language_model, init])))
    pressed = [attributes["aria-pressed"] for tag, attributes in parsed.elements if tag == "button"]
    assert pressed == ["true"] * 5 + ["false"] and "Untrained controls are hidden at first" in parsed.text
    assert "hidden at first" not in Page(render_html(compare(language_model))).text


def test_every_picture_has_words_and_a_table_for_those_who_cannot_see_it(page: Page) -> None:
    labels = [a["aria-label"] or "" for _, a in page.elements if a.get("role") == "img"]
    assert len(labels) == 2
    assert labels[0].startswith("Scatter plot of task loss and held-out KL, means over seeds: plain 2.010, 0.5500; ")
    identities = {a["id"] for _, a in page.elements if "id" in a}
    links = [str(a["href"])[1:] for tag, a in page.elements if tag == "a"]
    assert "section-0-runs" in links and set(links) <= identities
    assert "0.4060" in page.text  # .5 * .812: the first seed's run of legibility-0.3 stands in the table
    regions = [a for tag, a in page.elements if a.get("role") == "region"]
    assert regions and all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    buttons = [a for tag, a in page.elements if tag == "button"]
    assert all(a["type"] == "button" and "aria-pressed" in a for a in buttons)


def test_the_page_says_what_the_comparison_says(page: Page, language_model: list[RunRecord]) -> None:
    for verdict in verdicts(compare(language_model)):
        assert re.sub(r"(?<![\w.])-(?=[0-9])", "−", verdict.text) in page.text
    for part in ("−18.6 ±0.5 %", "beyond this control", "−8.2 ±1.0 pp", "torch 2.13.0", "baseline"):
        assert part in page.text
    assert "legibility sweep demo --seeds 3" in page.text


def test_what_came_out_stands_first_and_in_few_words(page: Page) -> None:
    gain = page.text.index("legibility-0.3, at +0.62 % task loss: held-out KL −18.6 % (−8.2 pp beyond control)")
    unmatched = page.text.index("label-smoothing, at +1.2 % task loss: held-out KL −7.9 % and disagreement −1.1")
    worse = page.text.index("rank-penalty, at +0.72 % task loss: held-out KL +5.6 %")
    assert gain < unmatched < worse < page.text.index("In pictures") < page.text.index("In numbers")


def test_of_many_arms_the_methods_are_named(record: Make) -> None:
    strengths = [f"{0.1 * i:.1f}" for i in range(1, 13)]
    runs = [record("plain", seed, 2.0 + seed / 100, {"fvu": 1.0 + seed / 1e3}) for seed in range(3)]
    for strength in strengths:
        runs += [
            record(f"a-{strength}", seed, 2.0 + seed / 100, {"fvu": (1 - 0.1 * float(strength)) * (1 + seed / 1e3)})
            for seed in range(3)
        ]
    text = Page(render_html(compare(runs))).text
    assert "a, at 0.00 % task loss: fvu −12.0 to −1.0 % at 12 of 12 strengths" in text


def test_further_tables_have_a_place(language_model: list[RunRecord]) -> None:
    table = PlainTable("At equal loss", "Paired by seed.", ["method", "KL"], [["legibility", "-3.1 %"]])
    text = Page(render_html(compare(language_model), further={"demo": [table]})).text
    place = text.index("At equal loss")
    assert text.index("In numbers") < place < text.index("In sentences")
    assert "Paired by seed." in text and "−3.1 %" in text
    with pytest.raises(ValueError, match=r"`further` must name recipes .*'demo'.*got 'other'"):
        render_html(compare(language_model), further={"other": [table]})
    with pytest.raises(ValueError, match=r"`rows\[0\]`.*2 cells.*got 1"):
        PlainTable("", "", ["a", "b"], [["1"]])


def test_the_commands_repeat_what_was_run(record: Make) -> None:
    def commands(runs: list[RunRecord], **options: Any) -> str:
        return Page(render_html(compare(runs, **options))).text

    assert "legibility sweep demo --seeds 1\n" in commands([record("plain", 0), record("a", 0)])
    assert "legibility sweep demo --seeds 3,3\n" in commands([record("plain", 3), record("a", 3)])
    assert "--seeds 0,2\nlegibility compare runs --baseline b\n" in commands(
        [record(arm, seed) for arm in ("b", "a") for seed in (0, 2)], baseline="b"
    )
    pairs = [(f"x/demo/full/{arm}/seed-0/record.json", record(arm, 0)) for arm in ("plain", "a")]
    assert "legibility sweep demo --preset full --seeds 1" in Page(render_html(compare(pairs))).text
    assert "--seeds" not in commands([record("plain", 0, recipe=None)])
    assert "legibility sweep 'a b; rm' --seeds 1" in commands([record("plain", 0, recipe="a b; rm")])


def test_details_families_controls_guards_costs_notes(record: Make, score: Callable[..., ScoreEntry]) -> None:
    def run(arm: str, seed: int, kl: float, rank: float) -> RunRecord:
        lstm = score(
            "held_out_kl", None if arm == "a" else kl, family="lstm", reason="out of memory" if arm == "a" else None
        )
        mean = score("held_out_kl", kl + seed / 1e4, control=0.9, control_name="random-init", trained_on=arm == "a")
        return record(
            arm, seed, 2.0, [mean, lstm], guards={"effective_rank": rank + seed / 10}, notes=[f"note of {arm}"]
        )

    runs = [run(arm, seed, kl, rank) for arm, kl, rank in (("plain", 0.5, 30), ("a", 0.25, 6)) for seed in (0, 1)]
    text = Page(render_html(compare(runs))).text
    for part in ("lstm", "out of memory", "random-init: 0.9000 ±0", "effective rank", "time per step", "1,234"):
        assert part in text
    assert "6.05 ±0.64" in text and "1,234 ±0" not in text
    assert "Tripped, by more than 20 % of plain's" in text
    assert "! 6.0" in text and "! 30.0" not in text
    assert "† the run was trained on this score" in text and "a, seed 0, 1: note of a" in text


def test_several_recipes_have_sections_of_their_own(record: Make) -> None:
    runs = [record("plain", 0, recipe=name) for name in ("digits", "stdlib_lm", None)]
    parsed = Page(render_html(compare(runs)))
    assert [a["id"] for tag, a in parsed.elements if tag == "article"] == ["section-0", "section-1", "section-2"]
    assert [a["href"] for tag, a in parsed.elements if tag == "a"][1:4] == ["#section-0", "#section-1", "#section-2"]
    assert "runs without a recipe" in parsed.text and "Nothing to compare" in parsed.text
    identities = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(identities) == len(set(identities))


def test_one_seed_no_scores_no_loss(record: Make) -> None:
    for runs in (
        [record("plain", 0, 2.0, {"fvu": 1.0}), record("a", 0, 2.1, {"fvu": 0.5})],
        [record("plain", 0, None), record("a", 1, None)],
        [record("plain", 0, 2.0, {"fvu": 1.0}), record("a", 1, 2.0, {"fvu": 0.5})],
    ):
        text = render_html(compare(runs))
        assert "NaN" not in Page(text).text and "None" not in Page(text).text


def test_shared_folders_are_not_shown(record: Make, tmp_path: Path) -> None:
    pairs = [
        (tmp_path / "secret" / "runs" / name, record(arm)) for name, arm in (("p/0.json", "plain"), ("a/0.json", "a"))
    ]
    parsed = Page(render_html(compare(pairs)))
    assert "secret" not in parsed.text and "p/0.json" in parsed.text.replace("\\", "/")


def test_rendering_is_deterministic(language_model: list[RunRecord]) -> None:
    assert render_html(compare(language_model)) == render_html(compare(language_model))


def test_write_makes_folders_and_leaves_no_half_page(
    language_model: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_html(compare(language_model), tmp_path / "new" / "report.html")
    assert path.read_text("utf-8") == render_html(compare(language_model))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_html(compare(language_model), path)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_names_that_utf8_cannot_hold_do_not_lose_the_page(record: Make, tmp_path: Path) -> None:
    broken = record("a\udcff", 0, 2.0, {"fvu": 1.0})
    save_record(broken, tmp_path / "run.json")
    assert write_html(compare([record("plain", 0, 2.0, {"fvu": 2.0}), broken]), tmp_path / "report.html").exists()


@pytest.mark.parametrize("module", ["plotly.offline", "jinja2"])
def test_a_missing_library_names_the_extra(
    language_model: list[RunRecord], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "legibility\[html\]"'):
        render_html(compare(language_model))


def test_importing_the_room_imports_nothing_heavy() -> None:
    code = "import sys, legibility.tradeoff; print([m for m in ('torch', 'plotly', 'jinja2', 'matplotlib', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
