"""Debian's Chromium for tests, by Playwright; without either, tests are skipped. No browser is ever downloaded."""

import contextlib
import shutil
from collections.abc import Iterator

from tests.provided import CHROMIUM, lacks

try:
    from playwright.sync_api import Browser, sync_playwright
except ImportError:
    Browser = None  # type: ignore[assignment, misc]

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LAUNCHED_WITHIN_MS = 120_000


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """Run a browser without a window; skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        lacks(CHROMIUM, "no chromium in the PATH: apt-get install chromium")
    if Browser is None:
        lacks(CHROMIUM, "no playwright: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS), timeout=LAUNCHED_WITHIN_MS)
        try:
            yield browser
        finally:
            browser.close()
