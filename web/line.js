// The line on a node of how its run goes on: in the page's language, and gone where it would be of another run.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeAt, nodesOf, root } from "./runs.js";
import { line, loadWords, speak } from "./words.js";

const LINE = "$$node-text-preview"; // the page's widget
const LEFT_OUT = [2, 4]; // modes of nodes that are muted or bypassed

function isOurs(node) {
  return node?.comfyClass?.startsWith("RAPID_");
}

// The page has written the server's words, which are English.
function translate({ nodeId }) {
  const node = nodeAt(nodeId);
  const widget = isOurs(node) && node.widgets?.find((one) => one.name === LINE);
  if (!widget) return;
  speak(app.extensionManager?.setting?.get("Comfy.Locale"));
  widget.value = line(String(widget.value));
}

function takeAway(node) {
  const place = (node.widgets ?? []).findIndex((widget) => widget.name === LINE);
  if (place < 0) return;
  node.widgets[place].onRemove?.();
  node.widgets.splice(place, 1);
  node.setDirtyCanvas(true, true);
}

// test: of the nodes whose lines go.
function clear(test) {
  for (const node of nodesOf(root())) if (isOurs(node) && test(node)) takeAway(node);
}

app.registerExtension({
  name: "rapid.line",
  async init() {
    await loadWords();
    api.addEventListener("progress_text", ({ detail }) => queueMicrotask(() => translate(detail)));
    api.addEventListener("execution_start", () => clear((node) => LEFT_OUT.includes(node.mode)));
    // How far a run had come that ended too early is no result.
    for (const end of ["execution_error", "execution_interrupted"]) api.addEventListener(end, () => clear(() => true));
  },
});
