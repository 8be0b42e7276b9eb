"""Fixtures of the tests that use ComfyUI as people do: a server with this pack, and a real
browser."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devkit.browser import find_browser
from devkit.server import ComfyServer
from rapid_testing.page import Graph

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """A running Chromium. Without one these tests are skipped, but never where CI counts on
    them."""
    with sync_api.sync_playwright() as play:
        path = find_browser(play.chromium.executable_path)
        if path is None and os.environ.get("CI"):
            pytest.fail("no Chromium on this machine; .ci/run installs one")
        if path is None:
            pytest.skip("no Chromium on this machine")
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def graph(chromium, server: ComfyServer) -> Iterator[Callable[..., Graph]]:
    """graph(**settings): ComfyUI's page with an empty graph. One page for all tests, as people keep
    theirs open."""
    allowed = ["clipboard-read", "clipboard-write"]
    context = chromium.new_context(viewport={"width": 1600, "height": 1000}, permissions=allowed)
    yield Graph(context.new_page(), server).begin
    context.close()


@pytest.fixture(scope="session")
def picture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """picture("docs/name.png"): where a screenshot goes. `--pictures .` makes those of the
    documentation anew."""
    folder = Path(request.config.getoption("--pictures") or tmp_path_factory.mktemp("pictures"))

    def at(name: str) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return folder / name

    return at
