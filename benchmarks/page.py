"""Is a comparison of 1,000 runs quick, and its page still fluid?

Made-up records (four methods at many strengths, each strength with a temperature control, and a baseline) are written
to a folder, compared as `legibility compare` does, and the page is opened in a headless Chromium. Printed: seconds and
peak memory of comparing, the page's size, when its pictures are drawn, how long a click on a filter takes until the
next frame, and the longest task that held up the page meanwhile. Needs `legibility[dev]`.

    python benchmarks/page.py [--runs 1000] [--browser /usr/bin/chromium]
"""

import argparse
import math
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from legibility.tradeoff import (
    ControlOf,
    CostEntry,
    RunRecord,
    ScoreEntry,
    TaskEntry,
    compare,
    find_records,
    save_record,
    write_html,
)

SEEDS = 10
SCORES = ("held_out_kl", "code_length", "disagreement", "patch_through_kl")
METHODS = {"legibility": -3.0, "weight-decay": -1.0, "label-smoothing": -0.7, "l1": -0.2}
FAMILIES = (None, "lstm", "transformer", "conv", "ngram")

CLICK = """async (button) => {
  const longest = [];
  const watcher = new PerformanceObserver((list) => list.getEntries().forEach((one) => longest.push(one.duration)));
  watcher.observe({ type: "longtask" });
  const start = performance.now();
  button.click();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const frame = performance.now() - start;
  await new Promise((done) => setTimeout(done, 1500));
  watcher.disconnect();
  return [frame, Math.max(0, ...longest)];
}"""
SCROLL = """async () => {
  const gaps = [];
  let last = performance.now();
  for (let y = 0; y < document.body.scrollHeight; y += 400) {
    scrollTo({ top: y, behavior: "instant" });
    await new Promise((done) => requestAnimationFrame(done));
    const now = performance.now();
    gaps.push(now - last);
    last = now;
  }
  gaps.sort((a, b) => a - b);
  return [gaps[Math.floor(gaps.length / 2)], gaps[gaps.length - 1]];
}"""


def records(count: int) -> Iterator[RunRecord]:
    """At least `count` records."""
    draw = random.Random(0)
    strengths = math.ceil((count / SEEDS - 1) / (2 * len(METHODS)))
    for seed in range(SEEDS):
        noise = draw.gauss(0, 0.02)
        yield record("plain", seed, 2 + noise, 0.0, draw, None)
        for method, slope in METHODS.items():
            for index in range(strengths):
                strength = round(0.02 * 1.25**index, 4)
                cost = strength**0.7 / 5
                arm = f"{method}-{strength:g}"
                yield record(arm, seed, 2 + noise + cost, slope * cost, draw, None)
                control = ControlOf("temperature", "plain", arm, 1.1)
                yield record(f"temperature-{method}-{strength:g}", seed, 2 + noise + cost, -cost, draw, control)


def record(
    arm: str, seed: int, loss: float, change: float, draw: random.Random, control: ControlOf | None
) -> RunRecord:
    """One run whose scores are `change` away from 1."""
    scores = [
        ScoreEntry(
            name, max(0.01, 1 + change + draw.gauss(0, 0.02)), "nats", "lower", 2.0, "random-init", False, family
        )
        for name in SCORES
        for family in FAMILIES
    ]
    cost = CostEntry(60.0, 1000, 0.06 + draw.random() / 100, 5.0, 10**9, {}, 636_160)
    task = TaskEntry("cross-entropy", loss, 0.6, 1.5, 131_072, "validation")
    return RunRecord(arm, seed, "made_up", {}, [], task, scores, cost, {"torch": "0"}, control, {"lr": 0.002})


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for one in records(parsed.runs):
            save_record(one, Path(folder, "runs", one.arm, f"{one.seed}.json"))
        start = time.perf_counter()
        found = find_records(Path(folder, "runs"))
        read = time.perf_counter()
        compared = compare(found)
        done = time.perf_counter()
        page = write_html(compared, Path(folder, "page.html"))
        written = time.perf_counter()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{len(found)} runs, {len(compared.sections[0].arms)} arms")
        print(f"read {read - start:.2f} s, compared {done - read:.2f} s, page written {written - done:.2f} s")
        print(f"peak memory {memory:.0f} MB, page {page.stat().st_size / 1e6:.2f} MB")
        if parsed.browser:
            in_browser(page, parsed.browser)


def in_browser(page_file: Path, browser_path: str) -> None:
    """Opens, clicks and scrolls."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        start = time.perf_counter()
        page.goto(page_file.as_uri())
        opened = time.perf_counter()
        page.locator("html[data-drawn=all]").wait_for(state="attached")
        ready = time.perf_counter()
        points = page.evaluate("document.querySelectorAll('.main-svg .point').length")
        print(
            f"opened in {opened - start:.2f} s, all pictures drawn after {ready - start:.2f} s, {points} points drawn"
        )
        page.locator("section.pictures").first.scroll_into_view_if_needed()
        for name, selector in (("one method", "button[data-group='1']"), ("single runs", "[data-show=runs]")):
            for state in ("off", "on"):
                frame, longest = page.locator(selector).first.evaluate(CLICK)
                print(f"filter: {name} {state}: next frame after {frame:.0f} ms, longest task {longest:.0f} ms")
        middle, worst = page.evaluate(SCROLL)
        print(f"scrolling: {middle:.0f} ms a frame in the median, {worst:.0f} ms at worst")
        search = page.locator("details.runs input").first
        page.locator("details.runs summary").first.click()
        start = time.perf_counter()
        search.fill("legibility-0.02 7")
        page.locator("details.runs .status", has_text=" of ").first.wait_for()
        print(f"search among the runs: {time.perf_counter() - start:.2f} s")
        browser.close()


if __name__ == "__main__":
    main()
