// The line on a node of how its run goes on: in the page's language, and gone where it would be of another run.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { isOpen, kindIn, nodeAt, nodesOf, root, workflowOf } from "./runs.js";
import { line, loadWords, speak } from "./words.js";

const LINE = "$$node-text-preview"; // the page's widget
const LEFT_OUT = [2, 4]; // modes of nodes that are muted or bypassed

let running; // id of the run that goes on

function isOurs(node) {
  return node?.comfyClass?.startsWith("RAPID_");
}

// The page has written the server's words, which are English, on whatever node of the open graph has that number: also
// where the run is of another workflow, or the node lies outside of the subgraph that is open.
async function told({ nodeId, prompt_id }) {
  await null; // the page writes first
  translate(nodeAt(nodeId));
  const run = prompt_id ?? running;
  const workflow = run && (await workflowOf(run)); // of a run that began before this page nothing is known
  const node = isOpen(workflow) ? nodeAt(nodeId) : undefined;
  const written = app.canvas.graph?.getNodeById(String(nodeId).split(":").at(-1));
  const ours = node ? isOurs(node) : kindIn(workflow, nodeId)?.startsWith("RAPID_");
  if (written && written !== node && ours) takeAway(written);
}

function translate(node) {
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

// How far a run had come that ended too early is no result; what is told of another workflow's runs is.
async function ended({ prompt_id: run }) {
  if (isOpen(await workflowOf(run))) clear(() => true);
}

app.registerExtension({
  name: "rapid.line",
  async init() {
    await loadWords();
    api.addEventListener("progress_text", ({ detail }) => told(detail));
    api.addEventListener("execution_start", ({ detail }) => {
      running = detail.prompt_id;
      clear((node) => LEFT_OUT.includes(node.mode));
    });
    for (const end of ["execution_error", "execution_interrupted"]) api.addEventListener(end, ({ detail }) => ended(detail));
  },
});
