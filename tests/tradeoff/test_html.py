"""The page: self-contained, safe against names from outside, and saying what the comparison says."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legibility.tradeoff import (
    ControlOf,
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
HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\"'&amp;%{x}{{7*7}}<!--"


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
            self.text += data

    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        found: dict[str, dict[str, dict[str, Any]]] = json.loads(self.scripts[0][1])
        return found


@pytest.fixture
def page(language_model: list[RunRecord]) -> Page:
    return Page(render_html(compare(language_model)))


def test_nothing_is_loaded_from_anywhere(language_model: list[RunRecord]) -> None:
    text = render_html(compare(language_model))
    for tag, attributes in Page(text).elements:
        for name in ("src", "srcset", "href", "action", "data", "poster", "xlink:href", "formaction"):
            assert attributes.get(name) is None or str(attributes[name]).startswith("#"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    own = "".join(part for part in re.split(r"(?s)<script>.*?</script>", text))
    assert not re.search(r"https?://|url\(|@import", own)


def test_the_content_security_policy_names_exactly_the_scripts_of_the_page(page: Page) -> None:
    (policy,) = (a["content"] or "" for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    runnable = [script for attributes, script in page.scripts if attributes.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in runnable]
    assert len(hashes) == 2 and re.findall(r"sha256-([^']+)", policy) == hashes
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
    text = render_html(compare(pairs, headlines=["held_out_kl", HOSTILE, "lost"]))
    parsed, clean = Page(text), Page(render_html(compare([record(), record("a", 0, 2.0)])))
    assert len(parsed.scripts) == len(clean.scripts) == 3
    assert not [
        tag for tag, attributes in parsed.elements if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert HOSTILE in parsed.text and "{{7*7}}" in parsed.text
    # Plotly reads its texts as a small HTML: there, names must be escaped once more.
    for figure in parsed.figures().values():
        for view in figure.values():
            shown = [line for trace in view["data"] for line in trace.get("text", [])]
            shown += [view["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
            for line in shown:
                assert not re.search(r"<(?!/?b>|br>)", line), line
            assert all(
                trace.get("hovertemplate", "%{text}<extra></extra>") == "%{text}<extra></extra>"
                for trace in view["data"]
            )


def test_no_less_than_sign_can_close_the_json(page: Page, language_model: list[RunRecord]) -> None:
    assert "<" not in page.scripts[0][1] and ">" not in page.scripts[0][1]
    assert page.scripts[0][0] == {"type": "application/json", "id": "figures"}


def test_the_picture_has_all_points_means_controls_and_the_front(page: Page) -> None:
    figures = page.figures()
    assert len(figures) == 2  # held-out KL and disagreement
    figure = figures["panel-0-0"]["values"]
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines"]
    runs = [trace for trace in figure["data"] if trace["mode"] == "markers" and "error_x" not in trace]
    means = [trace for trace in figure["data"] if "error_x" in trace]
    assert len(runs) == len(means) == 5 and all(len(trace["x"]) == 3 for trace in runs)
    by_name = {re.sub(r"</?b>", "", trace["text"][0]).split(" · ")[0]: trace for trace in means}
    assert by_name["temperature"]["marker"]["symbol"] == "x"
    assert by_name["temperature"]["marker"]["color"] == by_name["legibility-0.3"]["marker"]["color"]
    others = [trace["marker"]["symbol"] for name, trace in by_name.items() if name != "temperature"]
    assert len(set(others)) == 4 and "x" not in others
    # Plain: losses 2, 2.01, 2.02 and scores .5, .55, .6; half widths 4.302653 * .01 / sqrt(3), five times that.
    plain = by_name["plain"]
    assert (plain["x"], plain["y"]) == (pytest.approx([2.01]), pytest.approx([0.55]))
    assert plain["error_x"]["array"] == pytest.approx([0.0248414], abs=1e-6)
    assert plain["error_y"]["array"] == pytest.approx([0.1242069], abs=1e-6)
    front, tie = lines
    assert front["meta"]["points"] == [0, 2] and tie["meta"]["arms"] == [3, 2] and tie["line"]["dash"] == "dot"
    assert front["y"] == pytest.approx([0.55, 0.55 * (1 - 0.186)], rel=1e-2)
    changes = figures["panel-0-0"]["changes"]["data"]
    assert any(trace["y"] == [pytest.approx(-18.6)] for trace in changes if "error_y" in trace)


def test_untrained_controls_are_hidden_until_asked_for(language_model: list[RunRecord], record: Make) -> None:
    init = record("init", 0, 80.0, {"held_out_kl": 9.0}, control=ControlOf("random-init", "plain"))
    parsed = Page(render_html(compare([*language_model, init])))
    pressed = [attributes["aria-pressed"] for tag, attributes in parsed.elements if tag == "button"]
    assert pressed == ["true"] * 5 + ["false"] and "untrained controls are hidden at first" in parsed.text
    assert "hidden at first" not in Page(render_html(compare(language_model))).text


def test_hover_shows_arm_seed_and_values(page: Page) -> None:
    texts = [line for trace in page.figures()["panel-0-0"]["values"]["data"] for line in trace.get("text", [])]
    assert "<b>plain</b> · seed 1<br>task loss: 2.010<br>held-out KL: 0.5500" in texts
    (control,) = (text for text in texts if text.startswith("<b>temperature</b> · mean of 3"))
    assert "control: plain at temperature 1.1, task loss of legibility-0.3" in control


def test_the_page_says_what_the_comparison_says(page: Page, language_model: list[RunRecord]) -> None:
    for verdict in verdicts(compare(language_model)):
        assert verdict.text in page.text
    for part in ("−18.6 ±0.5 %", "at +0.62 % loss", "beyond this control", "−8.2 ±1.0 pp", "torch 2.13.0", "baseline"):
        assert part in page.text
    assert "legibility sweep demo" in page.text


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
    for part in ("lstm", "out of memory", "random-init: 0.9000 ±0", "effective rank", "time per step", "1,234 ±0"):
        assert part in text
    assert "! 6.0" in text and "! 30.0" not in text
    assert "† the run was trained on this score" in text and "a, seed 0, 1: note of a" in text


def test_several_recipes_have_sections_of_their_own(record: Make) -> None:
    runs = [record("plain", 0, recipe=name) for name in ("digits", "stdlib_lm", None)]
    parsed = Page(render_html(compare(runs)))
    assert [a["id"] for tag, a in parsed.elements if tag == "article"] == ["section-0", "section-1", "section-2"]
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
    code = "import sys, legibility.tradeoff; print([m for m in ('torch', 'plotly', 'jinja2', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_browser_draws_the_pictures_and_runs_no_hostile_script(record: Make, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    hostile = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"
    runs = [record("plain", 0, 2.0, {"fvu": 1.0}), record(hostile, 0, 2.1, {"fvu": 0.5})]
    path = write_html(compare(runs), tmp_path / "report.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *flags, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'class="main-svg"' in done.stdout and done.stdout.count('class="point"') >= 4
    assert "<title>Trade-off: demo</title>" in done.stdout
