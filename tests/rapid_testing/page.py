"""ComfyUI's page as a person has it before them: the graph, its nodes, and what RAPID Report
shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devkit.client import ClientError
from devkit.server import ComfyServer

READY = "window.app?.graph && window.app?.extensionManager"
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
USUAL = {
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.ColorPalette": "dark",
    "Comfy.Locale": "en",
}
PATIENCE = 120_000  # milliseconds
DIALOG = ".p-dialog-mask, [role=dialog]"
BADGES = 24  # pixels of the graph above a node's title, where its badges are
# Up to three quarters of the page for some nodes; their place on it, in pixels: left, top, width,
# height; and how many pixels of the page one of the graph is.
FRAME = """kinds => { const c = app.canvas, page = c.canvas.getBoundingClientRect();
  c.deselectAll();
  c.draw(true, true);
  const boxes = app.graph._nodes.filter(n => !kinds.length || kinds.includes(n.comfyClass)).map(n => n.getBounding());
  const [left, top] = [0, 1].map(k => Math.min(...boxes.map(b => b[k])));
  const [width, height] = [[0, left], [1, top]].map(([k, from]) => Math.max(...boxes.map(b => b[k] + b[k + 2])) - from);
  const scale = c.ds.scale = Math.min(3, 0.75 * page.width / width, 0.75 * page.height / height);
  c.ds.offset[0] = page.width / 2 / scale - left - width / 2;
  c.ds.offset[1] = page.height / 2 / scale - top - height / 2;
  c.draw(true, true);
  return [(left + c.ds.offset[0]) * scale + page.left, (top + c.ds.offset[1]) * scale + page.top, width * scale,
    height * scale, scale]; }"""


class Graph:
    """A page with a graph. said: console messages and errors as (kind, text, address)."""

    def __init__(self, page: Any, server: ComfyServer):
        self.page, self.server = page, server
        self.said: list[tuple[str, str, str]] = []
        self.settings: dict[str, Any] = {}
        self.latest = ""  # id of the latest run
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: self.said.append((m.type, m.text, m.location.get("url", ""))))
        page.on(
            "pageerror",
            lambda error: self.said.append(
                ("error", str(error), getattr(error, "stack", "") or "")
            ),
        )

    def do(self, code: str, given: Any = None) -> Any:
        """Result of a JavaScript function in the page."""
        return self.page.evaluate(code, given)

    def open(self) -> None:
        """Load the page and wait for its graph."""
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY, timeout=PATIENCE)
        self.page.wait_for_function("app.vueAppReady ?? true", timeout=PATIENCE)

    def set(self, settings: dict[str, Any]) -> None:
        """Change settings of the frontend."""
        self.do(
            "async given => { for (const [id, value] of Object.entries(given)) "
            "await app.extensionManager.setting.set(id, value) }",
            settings,
        )

    def load(self, workflow: dict[str, Any]) -> None:
        """Put a workflow, in API or UI form, into the graph."""
        way = (
            "g => app.loadGraphData(g)"
            if "nodes" in workflow
            else "g => app.loadApiJson(g, 'example')"
        )
        self.do(way, workflow)

    @contextmanager
    def window(self, width: int, height: int) -> Iterator[None]:
        """A window of another size for a while."""
        before = self.page.viewport_size
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_function("w => app.canvas.canvas.width === w", arg=width)
        try:
            yield
        finally:
            self.page.set_viewport_size(before)

    def open_template(self, pack: str, title: str) -> None:
        """Choose a template out of the page's list, as people do."""
        self.page.get_by_text("Templates", exact=True).first.click()
        offered = self.page.locator(DIALOG).first  # tabs of the page have titles of templates, too
        for word in (pack, title):
            offered.get_by_text(word, exact=True).first.click()
        offered.wait_for(state="hidden")

    def look_at(self, kind: str, selector: str = "") -> None:
        """Bring the first node of a kind into view, without which its elements may not be there,
        and wait for one."""
        there = "app.canvas.graph._nodes.find(n => n.comfyClass === kind)"  # of the subgraph that is open, if one is
        self.page.wait_for_function(f"kind => {there}", arg=kind)
        self.do(
            f"kind => {{ const n = {there}; app.canvas.ds.scale = 1; "
            "app.canvas.centerOnNode(n); app.canvas.setDirty(true, true) }",
            kind,
        )
        if selector:
            self.page.wait_for_selector(selector)

    def add(self, word: str, title: str, x: int, y: int) -> None:
        """Find the node of a title by a word in the search that a double click opens, and drag it
        to a place. Clicks and letters that come while the page is busy may be lost: all is done
        again until it has worked."""
        search, found = (
            self.page.get_by_placeholder("Add a node..."),
            self.page.get_by_text(title, exact=True).first,
        )
        hanging = "() => app.canvas.state.ghostNodeId != null"  # until it is put down a node hangs on the pointer
        for _ in range(10):
            if not search.is_visible():
                self.page.mouse.dblclick(1200, 850, delay=50)
            if not self._soon(search.is_visible):
                continue
            search.fill(word)
            if self._soon(found.is_visible):
                found.click()
            if self._soon(lambda: self.do(hanging), 3000):
                break
        else:
            raise TimeoutError(f"{title} was not found by {word!r} in 10 tries")
        for _ in range(10):
            self.page.mouse.move(x, y, steps=4)
            self.page.mouse.click(x, y)
            if self._soon(lambda: not self.do(hanging), 3000):
                return
        raise TimeoutError(f"{title} still hangs on the pointer after 10 clicks")

    def _soon(self, true: Callable[[], bool], within: int = 6000) -> bool:
        """Whether something is so within some milliseconds."""
        for _ in range(within // 200):
            if true():
                return True
            self.page.wait_for_timeout(200)
        return False

    def run(self) -> None:
        """Press Run and wait until the run is over."""
        with self.page.expect_response(
            lambda r: r.url.endswith("/prompt") and r.request.method == "POST"
        ) as answer:
            self.page.get_by_test_id("queue-button").click()
        self.latest = answer.value.json()["prompt_id"]
        if not self._soon(self._over, PATIENCE):
            raise TimeoutError(
                f"the run is not over after {PATIENCE / 1000:.0f} s:\n{self.server.log_tail()}"
            )

    def _history(self) -> dict[str, Any]:
        """What the server keeps of the latest run; nothing while it goes on."""
        return json.loads(self.server.client._request(f"/history/{self.latest}"))

    def _over(self) -> bool:
        try:
            return self.latest in self._history()
        except ClientError:  # a busy server
            return False

    def node(self, kind: str) -> dict[str, Any]:
        """What a test wants to know of the first node of a kind."""
        return self.do(
            "kind => { const n = app.graph._nodes.find(n => n.comfyClass === kind); return {id: n.id, "
            "title: n.title, size: [...n.size], properties: n.properties, "
            "widgets: (n.widgets ?? []).map(w => w.label ?? w.name)} }",
            kind,
        )

    def outputs(self, kind: str) -> dict[str, Any]:
        """What the API's history says of the latest run's first node of a kind."""
        latest = self._history()[self.latest]
        number = next(i for i, node in latest["prompt"][2].items() if node["class_type"] == kind)
        return latest["outputs"][number]

    def shot(self, path: Path, *kinds: str, margin: int = 24) -> None:
        """Screenshot of the nodes of some kinds, or of all, with their badges, in the middle of the
        page."""
        clip, before = self._framed(kinds, margin), None
        for _ in range(20):  # nodes that have just come into view find their size
            if clip == before:
                break
            self.page.wait_for_timeout(500)
            clip, before = self._framed(kinds, margin), clip
        self.page.screenshot(path=str(path), clip=clip)

    def _framed(self, kinds: tuple[str, ...], margin: int) -> dict[str, int]:
        """Bring these nodes to the middle of the page, with nothing selected, and say where on the
        page they are."""
        left, top, width, height, scale = self.do(FRAME, list(kinds))
        top, height = top - BADGES * scale, height + BADGES * scale
        left, top, width, height = map(round, (left, top, width, height))
        clip = {"x": max(0, left - margin), "y": max(0, top - margin)}
        return clip | {
            "width": min(1600 - clip["x"], width + 2 * margin),
            "height": min(1000 - clip["y"], height + 2 * margin),
        }

    def begin(self, **settings: Any) -> Graph:
        """The usual settings but for these, and nothing in the graph. The page is loaded anew where
        settings differ, since some count from the next load on."""
        wanted = {**QUIET, **USUAL, **settings}
        if self.settings != wanted:
            if not self.settings:
                self.open()
            self.set(wanted)
            self.open()
            self.page.wait_for_timeout(1000)  # dialogs of the first seconds
            self.settings = wanted
        for _ in range(20):
            self.page.keyboard.press("Escape")
            if not self.page.locator(DIALOG).count():
                break
            self.page.wait_for_timeout(200)
        self.set({"Comfy.RightSidePanel.IsOpen": False})  # where help was shown
        self.do("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.do(
            "() => Object.keys(localStorage).filter(k => k.startsWith('rapid.report:')).forEach(k => "
            "localStorage.removeItem(k))"
        )  # examples have the same id whichever test opens them
        self.said.clear()
        return self
