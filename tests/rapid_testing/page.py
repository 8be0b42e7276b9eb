"""ComfyUI's page as a person has it before them: the graph, its nodes, and what RAPID Report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from devkit.server import ComfyServer

READY = "window.app?.graph && window.app?.extensionManager"
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
USUAL = {"Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False, "Comfy.ColorPalette": "dark",
         "Comfy.Locale": "en"}  # fmt: skip
PATIENCE = 120_000  # milliseconds


class Graph:
    """A page with a graph. said: console messages and errors as (kind, text, address)."""

    def __init__(self, page: Any, server: ComfyServer):
        self.page, self.server = page, server
        self.said: list[tuple[str, str, str]] = []
        self.settings: dict[str, Any] = {}
        self.latest = ""  # id of the latest run
        page.on("console", lambda m: self.said.append((m.type, m.text, m.location.get("url", ""))))
        page.on("pageerror", lambda error: self.said.append(("error", str(error), getattr(error, "stack", "") or "")))

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
        self.do("async given => { for (const [id, value] of Object.entries(given)) "
                "await app.extensionManager.setting.set(id, value) }", settings)  # fmt: skip

    def load(self, workflow: dict[str, Any]) -> None:
        """Put a workflow, in API or UI form, into the graph."""
        way = "g => app.loadGraphData(g)" if "nodes" in workflow else "g => app.loadApiJson(g, 'example')"
        self.do(way, workflow)

    def look_at(self, kind: str, selector: str = "") -> None:
        """Bring the first node of a kind into view, without which its elements may not be there, and wait for one."""
        there = "app.canvas.graph._nodes.find(n => n.comfyClass === kind)"  # of the subgraph that is open, if one is
        self.page.wait_for_function(f"kind => {there}", arg=kind)
        self.do(f"kind => {{ const n = {there}; app.canvas.ds.scale = 1; "
                "app.canvas.centerOnNode(n); app.canvas.setDirty(true, true) }", kind)  # fmt: skip
        if selector:
            self.page.wait_for_selector(selector)

    def add(self, word: str, title: str, x: int, y: int) -> None:
        """Find the node of a title by a word in the search that a double click opens, and drag it to a place."""
        self.page.mouse.click(1200, 850)
        self.page.wait_for_timeout(500)
        self.page.mouse.dblclick(1200, 850, delay=50)
        self.page.get_by_placeholder("Add a node...").wait_for()
        self.page.wait_for_timeout(500)  # it is drawn twice when it opens
        self.page.keyboard.type(word)
        self.page.get_by_text(title, exact=True).first.click()
        self.page.mouse.move(x, y, steps=4)
        self.page.mouse.click(x, y)

    def run(self) -> None:
        """Press Run and wait until the run is over."""
        with self.page.expect_response(lambda r: r.url.endswith("/prompt") and r.request.method == "POST") as answer:
            self.page.get_by_test_id("queue-button").click()
        self.latest = answer.value.json()["prompt_id"]
        for _ in range(PATIENCE // 200):
            if self.latest in self._history():
                return
            self.page.wait_for_timeout(200)
        raise TimeoutError(f"the run is not over after {PATIENCE / 1000:.0f} s:\n{self.server.log_tail()}")

    def _history(self) -> dict[str, Any]:
        return json.loads(self.server.client._request(f"/history/{self.latest}"))

    def node(self, kind: str) -> dict[str, Any]:
        """What a test wants to know of the first node of a kind."""
        return self.do("kind => { const n = app.graph._nodes.find(n => n.comfyClass === kind); return {id: n.id, "
                       "title: n.title, size: [...n.size], properties: n.properties, "
                       "widgets: (n.widgets ?? []).map(w => w.label ?? w.name)} }", kind)  # fmt: skip

    def outputs(self, kind: str) -> dict[str, Any]:
        """What the API's history says of the latest run's first node of a kind."""
        latest = self._history()[self.latest]
        number = next(i for i, node in latest["prompt"][2].items() if node["class_type"] == kind)
        return latest["outputs"][number]

    def shot(self, path: Path, *kinds: str, margin: int = 24) -> None:
        """Screenshot of the nodes of some kinds, or of all, in the middle of the page."""
        self.do("kinds => { const some = app.graph._nodes.filter(n => !kinds.length || kinds.includes(n.comfyClass)); "
                "app.canvas.selectItems(some); app.extensionManager.command.execute('Comfy.Canvas.FitView') }",
                list(kinds))  # fmt: skip
        self.page.wait_for_timeout(800)
        self.do("() => app.canvas.deselectAll()")
        self.page.wait_for_timeout(300)
        box = self.do("kinds => { const c = app.canvas, r = c.canvas.getBoundingClientRect(); const all = app.graph"
                      "._nodes.filter(n => !kinds.length || kinds.includes(n.comfyClass)).map(n => n.getBounding()); "
                      "const at = (x, y) => [(x + c.ds.offset[0]) * c.ds.scale + r.left, "
                      "(y + c.ds.offset[1]) * c.ds.scale + r.top]; "
                      "return [...at(Math.min(...all.map(b => b[0])), Math.min(...all.map(b => b[1]))), "
                      "...at(Math.max(...all.map(b => b[0] + b[2])), Math.max(...all.map(b => b[1] + b[3])))] }",
                      list(kinds))  # fmt: skip
        left, top, right, bottom = box
        clip = {"x": max(0, left - margin), "y": max(0, top - margin)}
        clip |= {"width": min(1600 - clip["x"], right - left + 2 * margin),
                 "height": min(1000 - clip["y"], bottom - top + 2 * margin)}  # fmt: skip
        self.page.screenshot(path=str(path), clip=clip)


    def begin(self, **settings: Any) -> Graph:
        """The usual settings but for these, and nothing in the graph. The page is loaded anew where settings differ,
        since some count from the next load on."""
        wanted = {**QUIET, **USUAL, **settings}
        if self.settings != wanted:
            if not self.settings:
                self.open()
            self.set(wanted)
            self.open()
            self.page.wait_for_timeout(1000)  # dialogs of the first seconds
            self.settings = wanted
        self.page.keyboard.press("Escape")
        self.do("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.said.clear()
        return self
