"""A headless browser, where the machine has one."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

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
