"""Run records built by hand, and a headless browser where the machine has one, for all tests of this room."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from legibility.tradeoff import ControlOf, CostEntry, RunRecord, ScoreEntry, TaskEntry

Make = Callable[..., RunRecord]


@pytest.fixture
def score() -> Callable[..., ScoreEntry]:
    """A score entry with the usual company."""

    def make(name: str, value: float | None, **changes: Any) -> ScoreEntry:
        unit = "share" if name.endswith("share") else "nats"
        direction = "higher" if name.endswith("share") else "lower"
        fields: dict[str, Any] = {
            "unit": unit,
            "direction": direction,
            "control": None,
            "control_name": None,
            "trained_on": False,
        }
        return ScoreEntry(name, value, **{**fields, **changes})

    return make


@pytest.fixture
def record(score: Callable[..., ScoreEntry]) -> Make:
    """record(arm, seed, loss, {score: value}, field=value, ...) -> RunRecord."""

    def make(
        arm: str = "plain",
        seed: int = 0,
        loss: float | None = 2.0,
        scores: Mapping[str, float | None] | list[ScoreEntry] | None = None,
        *,
        accuracy: float | None = None,
        control: ControlOf | None = None,
        **fields: Any,
    ) -> RunRecord:
        entries = scores if isinstance(scores, list) else [score(name, value) for name, value in (scores or {}).items()]
        usual: dict[str, Any] = {
            "recipe": "demo",
            "strengths": {},
            "students": [],
            "task": TaskEntry("cross-entropy", loss, accuracy, None, 100, "validation"),
            "cost": CostEntry(10.0, 100, 0.1, 1.0, 1_000_000, {}, 1234),
            "versions": {"torch": "2.13.0"},
            "created": "2026-05-01T10:00:00+00:00",
        }
        return RunRecord(arm, seed, scores=entries, control_of=control, **{**usual, **fields})

    return make


@pytest.fixture
def language_model(record: Make) -> list[RunRecord]:
    """Three seeds of plain, a legible arm with its temperature control, and two others.

    Seeds shift all arms alike (loss + .01 s, scores x (1 + .1 s)), so paired changes have no seed noise beyond what
    is put in: `wobble` per arm and seed, in % of the baseline.
    """
    arms = {
        "plain": (0.0, 0.0, 0.0, None),
        "legibility-0.3": (0.62, -18.6, -5.6, None),
        "temperature": (0.63, -10.4, 0.7, ControlOf("temperature", "plain", "legibility-0.3", 1.1)),
        "label-smoothing": (1.2, -7.9, -1.1, None),
        "rank-penalty": (0.72, 5.6, 3.6, None),
    }
    runs = []
    for arm, (loss, kl, disagreement, control) in arms.items():
        for seed, wobble in enumerate((-0.2, 0.0, 0.2)):
            noise = 0.0 if arm == "plain" else wobble * (1 if control is None else -1)
            base = 1 + 0.1 * seed
            scores = {
                "held_out_kl": 0.5 * base * (1 + (kl + noise) / 100),
                "disagreement": 0.3 * base * (1 + (disagreement + noise) / 100),
            }
            task_loss = (2 + 0.01 * seed) * (1 + (loss + noise / 10) / 100)
            runs.append(record(arm, seed, task_loss, scores, control=control))
    return runs


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium or Chrome under playwright; tests that need it are skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install legibility[dev]")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)} on the PATH")
    with playwright.sync_playwright() as driver:
        # Containers run as root, where Chromium's sandbox doesn't start.
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
