"""A browser for the tests of pages: Playwright's own, or one that is installed on this machine."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

INSTALLED = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
)
PATIENCE = 300.0  # seconds for a download


def find_browser(own: str = "") -> Path | None:
    """A Chromium: `own`, where Playwright would have put its, or one on the path; None where there
    is none."""
    if own and Path(own).is_file():
        return Path(own)
    return next((Path(found) for name in INSTALLED if (found := shutil.which(name))), None)


def own_browser(python: Path) -> str:
    """Where Playwright of an environment keeps its Chromium, whether it is there or not."""
    code = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def provide_browser(python: Path) -> Path | None:
    """A browser, which Playwright fetches into the user's cache where there is none; None, said,
    where that fails."""
    found = find_browser(own_browser(python))
    if found is None:
        print("set-up: fetching Chromium for the tests of pages", flush=True)
        command = [str(python), "-m", "playwright", "install", "--only-shell", "chromium"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
        found = find_browser(own_browser(python))
    if found is None:
        print(
            "set-up: no Chromium to be had; tests/browser is skipped (install chromium to run it)",
            flush=True,
        )
    return found
