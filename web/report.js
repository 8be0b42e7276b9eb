// RAPID Report in the graph: a timeline of the run, its totals, the map of its tokens, and a button that copies it all.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { readRecord } from "./record.js";
import { forget, smaller, store, stored, storeFailure } from "./storage.js";
import { closeness, details, element, headline, legend, remarks, ROWS, rows, totals } from "./timeline.js";
import { loadWords, reason, speak, word } from "./words.js";

const NODE = "RAPID_Report";
const HEIGHT = 190; // pixels of the panel at least
const SIZE = [380, 560]; // of a new node
const LEFT_OUT = [2, 4]; // modes of nodes that are muted or bypassed
const LINE = "$$node-text-preview"; // the page's widget of how a node's run goes on
const LATEST = 8; // runs whose workflows are remembered: events of one run come close together

class Panel {
  constructor() {
    this.root = element("div", "rapid-report");
    this.show(null);
  }

  // shown: {text, reason, record, maps, run, failure} or null before any run. text, reason, record: of the run that
  // gave them, a reason where there is no record. failure: {node} of a later run that ended before it came here (node:
  // where it failed, null where it was interrupted). full: the record with its token maps, where it is known.
  show(shown, full = null) {
    speak(app.extensionManager?.setting?.get("Comfy.Locale"));
    [this.shown, this.full] = [shown, full];
    try {
      this.root.replaceChildren(...this.parts(shown, full ?? shown?.record));
    } catch (error) {
      console.warn("RAPID Report: a record that this version does not read:", error);
      this.root.replaceChildren(element("div", "text", shown?.text ?? word("waiting")));
    }
  }

  parts(shown, full) {
    const alert = shown?.failure ? [element("div", "alert run", ended(shown.failure, shown.text))] : [];
    if (!shown?.record) {
      const text = shown?.reason ? reason(shown.reason) : shown?.text;
      return [...alert, element("div", "text", text || word("waiting"))];
    }
    const record = readRecord(shown.record);
    const parts = [
      headline(record),
      closeness(record),
      element("div", "totals", totals(record)),
      ...rows(record),
      element("div", "", details(record)),
    ];
    if (record.status !== "finished") {
      const status = word(`status.${record.status}`);
      parts.unshift(element("div", "alert", word("not_finished", { status })));
    }
    parts.unshift(...alert);
    parts.push(legend(record), remarkList(record), mapsOf(shown.maps ?? []), copier(full));
    return parts.filter((part) => part);
  }
}

// What is said of a run that ended before it came to the report; before: whether another one's is shown.
function ended({ node }, before) {
  const place = node === null ? "interrupted" : "failed";
  return word(before ? `${place}_before` : place, { node });
}

function copier(record) {
  const whole = !record.grid || record.evaluations.some((e) => e.tokens.length);
  const label = whole ? "copy" : "copy_without_maps";
  const button = element("button", "", word(label));
  button.addEventListener("click", async () => {
    button.textContent = word((await copied(JSON.stringify(record, null, 1))) ? "copied" : "not_copied");
    setTimeout(() => (button.textContent = word(label)), 1500);
  });
  return button;
}

// Whether a text is in the clipboard, which pages over plain http reach only by a selection.
async function copied(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  const area = element("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

function remarkList(record) {
  const lines = remarks(record);
  if (!lines.length) return null;
  const list = element("ul");
  list.append(...lines.map((line) => element("li", "", line)));
  return list;
}

function mapsOf(files) {
  const maps = element("div", "maps");
  for (const { filename, subfolder, type } of files.slice(0, ROWS)) {
    const picture = element("img");
    picture.alt = picture.title = word("map");
    picture.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    picture.addEventListener("error", () => picture.remove()); // temporary files are gone with the server
    maps.append(picture);
  }
  return files.length ? maps : null;
}

// What an output holds as text in JSON, or null.
function parsed(texts) {
  try {
    return texts?.length ? JSON.parse(texts[0]) : null;
  } catch {
    return null; // the text is shown instead
  }
}

function add(node) {
  const panel = (node.rapidPanel = new Panel());
  const widget = node.addDOMWidget("rapid_report", "rapid_report", panel.root, {
    serialize: false, getMinHeight: () => HEIGHT, hideOnZoom: false,
  });
  widget.serialize = false;
  node.setSize(SIZE.map((pixels, i) => Math.max(pixels, node.size[i])));
  const before = node.onConfigure;
  node.onConfigure = function (...given) {
    before?.apply(this, given);
    queueMicrotask(() => panel.show(stored(node))); // once the graph has its id
  };
}

function root() {
  return app.rootGraph ?? app.graph;
}

// The node of an execution id such as "12" or, inside of subgraphs, "3:12".
function nodeAt(path) {
  const [first, ...rest] = String(path).split(":");
  return rest.reduce((node, id) => node?.subgraph?.getNodeById(id), root().getNodeById(first));
}

function* nodesOf(graph) {
  for (const node of graph?._nodes ?? []) {
    yield node;
    yield* nodesOf(node.subgraph);
  }
}

// A report came for a workflow, which need not be the one that is open: the page hands it to whatever node there has the
// same number. What belongs elsewhere is kept for when that workflow is opened again.
async function receive({ prompt_id, node, display_node, output }) {
  if (!output?.rapid_record) return;
  const [workflow, path] = [await workflowOf(prompt_id), display_node ?? node];
  const full = parsed(output.rapid_record);
  const shown = {
    text: output.text?.join("\n") ?? "",
    reason: parsed(output.rapid_reason),
    record: full && smaller(full),
    maps: output.rapid_map ?? [],
    run: prompt_id,
  };
  const here = workflow?.id === undefined || workflow.id === root().id ? nodeAt(path) : null;
  if (here?.rapidPanel) {
    here.rapidPanel.show(shown, full);
    store(here.graph?.id, here.id, shown);
  } else {
    store(...placeIn(workflow, path), shown);
  }
}

// Ids of the graph and the node that an execution id such as "3:12" stands for in a workflow that is not open.
function placeIn(workflow, path) {
  const steps = String(path).split(":");
  const graphs = workflow?.definitions?.subgraphs ?? [];
  const graph = steps.slice(0, -1).reduce((outer, id) => {
    const kind = outer?.nodes?.find((node) => String(node.id) === id)?.type;
    return graphs.find((one) => one.id === kind);
  }, workflow);
  return [graph?.id, steps.at(-1)];
}

// A run ended before it was done (node: where it failed, null where it was interrupted): reports that it did not come to
// are of another one.
async function tellAll(run, node) {
  const workflow = await workflowOf(run);
  if (workflow?.id === undefined) return;
  if (workflow.id !== root().id) {
    const inner = workflow.definitions?.subgraphs ?? [];
    for (const graph of [workflow, ...inner]) storeFailure(graph.id, run, { node });
    return;
  }
  for (const one of nodesOf(root())) {
    const panel = one.rapidPanel;
    if (!panel || panel.shown?.run === run) continue;
    panel.show({ ...panel.shown, failure: { node } }, panel.full);
    store(one.graph?.id, one.id, panel.shown);
  }
}

// A run begins: nodes that have no part in it do not go on saying how the run before went.
function quiet() {
  for (const node of nodesOf(root())) {
    if (!node.comfyClass?.startsWith("RAPID_") || !LEFT_OUT.includes(node.mode)) continue;
    const place = (node.widgets ?? []).findIndex((widget) => widget.name === LINE);
    if (place < 0) continue;
    node.widgets[place].onRemove?.();
    node.widgets.splice(place, 1);
    node.setDirtyCanvas(true, true);
  }
}

// The workflows that runs are of, by run: asked for when something has to be shown. A run that nothing was found of, as
// where a busy server did not answer, is asked for again the next time.
const workflows = new Map();

async function workflowOf(run) {
  if (!workflows.has(run)) workflows.set(run, asked(run).catch(() => undefined));
  const found = await workflows.get(run);
  if (found === undefined) workflows.delete(run);
  for (const older of [...workflows.keys()].slice(0, -LATEST)) workflows.delete(older);
  return found;
}

// Of the history, of the queue while it runs, and of the history again for one that ended in between.
async function asked(run) {
  const prompt = (await past(run)) ?? (await queued()).find((one) => one[1] === run) ?? (await past(run));
  if (!prompt) return undefined;
  const { id, definitions, nodes } = prompt[3]?.extra_pnginfo?.workflow ?? {};
  return { id, definitions, nodes };
}

async function past(run) {
  return (await (await api.fetchApi(`/history/${run}`)).json())[run]?.prompt;
}

async function queued() {
  return (await (await api.fetchApi("/queue")).json()).queue_running;
}

app.registerExtension({
  name: "rapid.report",
  async init() {
    const style = element("link");
    style.rel = "stylesheet";
    style.href = new URL("./report.css", import.meta.url).href;
    document.head.append(style);
    forget();
    await loadWords();
    api.addEventListener("execution_start", quiet);
    api.addEventListener("executed", ({ detail }) => receive(detail));
    api.addEventListener("execution_error", ({ detail }) => tellAll(detail.prompt_id, detail.node_type));
    api.addEventListener("execution_interrupted", ({ detail }) => tellAll(detail.prompt_id, null));
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) add(node);
  },
});
