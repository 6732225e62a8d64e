"""The page in a real browser: it opens, draws, filters, says what a mark is, prints, and no name from outside runs."""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from legibility.tradeoff import ControlOf, RunRecord, compare, write_html

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

Make = Callable[..., RunRecord]
HOSTILE = [
    "<script>window.broken=1</script>",
    '"><img src=x onerror="window.broken=1">',
    "</script><svg onload=window.broken=1>",
    "\u202eevil\u202c <a href='javascript:window.broken=1'>here</a>",
    "%{x}{{window.broken=1}}${window.broken=1}",
    "javascript:window.broken=1",
]


class Opened:
    """A page, and everything that went wrong on it."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        self.page = context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(path.as_uri())
        self.settle()

    def _dismiss(self, dialog: Any) -> None:
        self.wrong.append("dialog")
        dialog.dismiss()

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "blob:", "data:")):
            self.wrong.append(f"asked for {url}")

    def settle(self) -> None:
        """Waits until every picture is drawn as the controls say."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.page.locator("html[data-drawn=all]").wait_for(state="attached")

    def marks(self, panel: int = 0, name: str = "means") -> int:
        """How many marks of a kind a panel has now."""
        found: int = self.page.evaluate(
            """([panel, name]) => document.querySelectorAll(".plot")[panel].data
                .filter((trace) => trace.name === name).reduce((sum, trace) => sum + trace.x.length, 0)""",
            [panel, name],
        )
        return found

    def hover(self, panel: int, trace: str, at: int, arm: str, starts: str) -> str:
        """What is shown over a mark, the `at`-th of the trace whose hover text names `arm`, once it says `starts`."""
        plot = self.page.locator(".plot").nth(panel)
        plot.scroll_into_view_if_needed()
        self.settle()
        place = plot.evaluate(
            """(plot, [name, at, arm]) => {
                const trace = plot.data.find((one) => one.name === name && one.hovertext.some((text) => text.includes(arm)));
                const { xaxis, yaxis } = plot._fullLayout;
                const box = plot.getBoundingClientRect();
                return [box.left + xaxis._offset + xaxis.d2p(trace.x[at]), box.top + yaxis._offset + yaxis.d2p(trace.y[at])];
            }""",
            [trace, at, arm],
        )
        self.page.mouse.move(0, 0)
        self.page.mouse.move(*place)
        text = ""
        for turn in range(100):  # what is shown on the way there may be of another mark
            self.page.wait_for_timeout(50)
            self.page.mouse.move(place[0] + turn % 2, place[1])
            shown = plot.locator(".hoverlayer .hovertext tspan.line").all_text_contents()
            text = "\n".join(shown).replace("\N{NO-BREAK SPACE}", " ")
            if starts in text:
                break
        return text


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Writes the page of some records and opens it; at the end nothing may have gone wrong."""
    pages: list[Opened] = []

    def make(records: list[RunRecord], **options: Any) -> Opened:
        path = write_html(compare(records), tmp_path / f"{len(pages)}.html")
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield make
    for opened in pages:
        assert opened.wrong == []
        assert opened.page.evaluate("window.broken") is None
        opened.page.context.close()


def test_it_opens_draws_and_asks_for_nothing(open_page: Open, language_model: list[RunRecord]) -> None:
    opened = open_page(language_model)
    assert opened.page.title() == "Trade-off: demo"
    assert opened.page.locator(".plot .main-svg").count() >= 2
    assert [opened.marks(panel) for panel in (0, 1)] == [5, 5]
    assert [opened.marks(panel, "runs") for panel in (0, 1)] == [15, 15]
    drawn = opened.page.locator(".plot").first.locator("path.point").count()
    assert drawn == 20  # 5 means, 15 runs: what is in the data is in the picture


def test_hover_says_arm_seed_strength_values_and_the_control(
    open_page: Open, language_model: list[RunRecord], record: Make
) -> None:
    runs = [one for one in language_model if one.arm != "legibility-0.3"]
    for seed, kl in enumerate((0.4, 0.45, 0.53)):
        runs.append(record("legibility-0.3", seed, 2.02, {"held_out_kl": kl}, strengths={"legibility": 0.3}))
    opened = open_page(runs)
    text = opened.hover(0, "runs", 2, "legibility-0.3", "legibility-0.3 · seed 2")
    assert text.startswith("legibility-0.3 · seed 2")
    # 2.02 / 2.02 - 1; .53 / .6 - 1
    for part in ("strength: legibility 0.3", "task loss: 0.00 %", "held-out KL: −11.7 %", "temperature, same seed:\n"):
        assert part in text
    opened.page.get_by_label("values").check()
    text = opened.hover(0, "means", 0, "legibility-0.3", "mean of 3 seeds")
    assert text.startswith("legibility-0.3 · mean of 3 seeds") and "held-out KL: 0.46 ±0.16" in text


def test_filters_work_by_mouse_and_keyboard(open_page: Open, language_model: list[RunRecord]) -> None:
    opened = open_page(language_model)
    page = opened.page
    button = page.get_by_role("button", name="label-smoothing")
    button.click()
    opened.settle()
    assert (opened.marks(), opened.marks(0, "runs"), button.get_attribute("aria-pressed")) == (4, 12, "false")
    assert page.locator(".pictures .status").inner_text() == "4 of 5 methods and controls are shown."
    # A tie needs both its ends.
    page.get_by_role("button", name="legibility-0.3").focus()
    ties = "document.querySelector('.plot').data.filter((trace) => trace.name === 'tie').length"
    assert page.evaluate(ties) == 1
    page.keyboard.press("Space")
    opened.settle()
    assert opened.marks() == 3 and page.evaluate(ties) == 0
    page.keyboard.press("Enter")
    opened.settle()
    assert opened.marks() == 4 and page.evaluate(ties) == 1
    page.get_by_label("single runs").focus()
    page.keyboard.press("Space")
    opened.settle()
    assert opened.marks(0, "runs") == 0
    changes = page.evaluate("document.querySelector('.plot').layout.yaxis.title.text")
    page.get_by_role("radio", name="change against plain").focus()
    page.keyboard.press("ArrowRight")
    opened.settle()
    assert page.get_by_label("values").is_checked()
    assert page.evaluate("document.querySelector('.plot').layout.yaxis.title.text") != changes


def test_the_median_front_is_drawn_where_it_is_asked_for(open_page: Open, record: Make) -> None:
    runs = [record("plain", seed, 2.0, {"fvu": 1.0}) for seed in (0, 1)]
    for arm, loss, fvu in (("a-1", 2.2, 0.8), ("a-2", 2.4, 0.5)):
        runs += [record(arm, seed, loss, {"fvu": fvu}) for seed in (0, 1)]
    opened = open_page(runs)
    assert opened.marks(0, "attained") == 0
    opened.page.get_by_label("median front").check()
    opened.settle()
    assert opened.marks(0, "attained") == 2
    lines = [line.get_attribute("d") or "" for line in opened.page.locator(".plot .js-line").all()]
    assert any(re.search(r"H.*V", line) for line in lines), "on at the score that is reached, then down"
    opened.page.get_by_label("single runs").uncheck()
    opened.settle()
    text = opened.hover(0, "attained", 1, "a", "a · half of 2 seeds reach")
    assert "task loss: +20.0 %" in text and "-50" in text.replace("\u2212", "-")
    opened.page.get_by_role("button", name="a 2 strengths").click()
    opened.settle()
    assert opened.marks(0, "attained") == 0


def test_everything_can_be_reached_by_the_tab_key(open_page: Open, language_model: list[RunRecord]) -> None:
    page = open_page(language_model).page
    seen: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        style = page.evaluate("[getComputedStyle(document.activeElement).outlineStyle, document.activeElement.tagName]")
        assert style[0] == "solid" or style[1] == "BODY"  # the focus is seen; after the last element it leaves the page
        seen.append(
            page.evaluate("document.activeElement.textContent.trim() || document.activeElement.ariaLabel || ''")
        )
    for part in ("Skip to the results", "plain", "rank-penalty", "Every run", "All costs"):
        assert part in seen, part


def test_the_table_of_runs_is_searched(open_page: Open, language_model: list[RunRecord]) -> None:
    page = open_page(language_model).page
    page.get_by_role("link", name="the table of every run").click()
    rows = page.locator("details.runs tbody tr:visible")
    assert rows.count() == 15  # the link unfolded it
    page.get_by_label("Only runs whose row contains").fill("LEGIBILITY 2")
    assert page.locator("details.runs .status").inner_text() == f"{rows.count()} of 15 runs"
    assert 0 < rows.count() < 15 and "legibility-0.3" in rows.first.inner_text()


def test_colours_follow_the_reader(open_page: Open, language_model: list[RunRecord]) -> None:
    opened = open_page(language_model)
    found = []
    for scheme in ("dark", "light"):
        opened.page.emulate_media(color_scheme=scheme)
        opened.settle()
        colours = """[getComputedStyle(document.body).backgroundColor,
            document.querySelector('.plot').data.find((trace) => trace.name === 'means').marker.color]"""
        found.append(opened.page.evaluate(colours))
    assert found == [["rgb(20, 23, 27)", "#e7ebef"], ["rgb(252, 252, 251)", "#1b2128"]]


def test_nothing_is_wider_than_the_window(open_page: Open, language_model: list[RunRecord], record: Make) -> None:
    page = open_page([*language_model, record("word" * 60, 0, 2.3, {"held_out_kl": 1.0})]).page
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    for width in (1400, 700, 400, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_it_prints_on_white_with_everything_unfolded(
    open_page: Open, language_model: list[RunRecord], tmp_path: Path
) -> None:
    opened = open_page(language_model, color_scheme="dark")
    page = opened.page
    page.evaluate(
        """addEventListener("beforeprint", () => {
            const shut = document.querySelectorAll("details:not([open]):not(.runs)").length;
            const ink = document.querySelector(".plot").data.find((trace) => trace.name === "means").marker.color;
            window.printed = [shut, ink];
        })"""
    )
    file = tmp_path / "page.pdf"
    page.pdf(path=file)
    assert file.read_bytes().startswith(b"%PDF")
    assert page.evaluate("window.printed") == [0, "#1b2128"]
    opened.settle()
    assert page.locator("details[open]").count() == 1  # as before: the sentences only


def test_hostile_names_do_nothing(open_page: Open, record: Make) -> None:
    runs = [record("plain", 0, 2.0, {"fvu": 1.0})]
    for index, name in enumerate(HOSTILE):
        control = ControlOf("temperature", "plain", HOSTILE[0], 1.1) if index == 1 else None
        runs.append(
            record(
                name, 0, 2.1 + index / 10, {"fvu": 0.5 + index / 10}, control=control, recipe="demo",
                strengths={name: 1.0}, settings={name: name}, notes=[name], guards={name: 1.0},
            )
        )  # fmt: skip
    opened = open_page(runs)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    for name in HOSTILE:
        shown = opened.hover(0, "means", 0, html.escape(name), "fvu: ")
        assert "fvu: " in shown and "onerror" in shown or "onerror" not in name
    buttons = page.locator("button[data-group]")
    for index in range(buttons.count()):
        buttons.nth(index).click()
    opened.settle()
    assert page.locator("img, iframe, article a[href^='javascript'], svg a").count() == 0
    assert page.title() == "Trade-off: demo"
    assert page.get_by_text(HOSTILE[0]).count() > 0


def test_without_javascript_the_numbers_are_there(
    browser: Any, language_model: list[RunRecord], tmp_path: Path
) -> None:
    path = write_html(compare(language_model), tmp_path / "page.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    page.get_by_text("Every run", exact=True).click()
    assert page.locator("details.runs tbody tr:visible").count() == 15
    context.close()


@pytest.mark.slow
def test_a_thousand_runs_are_drawn_and_filtered(open_page: Open, record: Make) -> None:
    runs = [record("plain", seed, 2.0 + seed / 100, {"held_out_kl": 1.0, "disagreement": 0.5}) for seed in range(10)]
    for method in ("a", "b", "c"):
        for index in range(1, 34):
            for seed in range(10):
                loss, kl = 2.0 + (seed + index) / 100, 1.0 - index / 100
                runs.append(record(f"{method}-{index}", seed, loss, {"held_out_kl": kl, "disagreement": kl / 2}))
    opened = open_page(runs)
    assert len(runs) == 1000 and opened.marks(0, "runs") == 1000 and opened.marks(1) == 100
    opened.page.get_by_role("button", name="b 33 strengths").click()
    opened.settle()
    assert opened.marks(0, "runs") == opened.marks(1, "runs") == 670
