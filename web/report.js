// RAPID Report in the graph: a timeline of the run, its totals, the map of its tokens, and a button that copies it all.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { details, element, legend, remarks, rows, totals } from "./timeline.js";

const NODE = "RAPID_Report";
const KEPT = "rapid_report"; // property of the node, saved with the workflow
const HEIGHT = 190; // pixels of the panel at least
const SIZE = [380, 560]; // of a new node
const WAITING = "Queue the workflow: what its run computed and left out is shown here.";
const panels = new Set();

class Panel {
  constructor() {
    this.root = element("div", "rapid-report");
    this.full = null; // the record with its token maps, of this session only
    this.show(null);
  }

  // kept: {text, record, maps} or null before any run.
  show(kept, full = null) {
    this.full = full ?? kept?.record ?? null;
    const record = kept?.record;
    if (!record) {
      this.root.replaceChildren(element("div", "", kept?.text ?? WAITING));
      return;
    }
    const parts = [element("div", "totals", totals(record)), element("div", "", details(record)), ...rows(record)];
    if (record.status !== "finished") parts.unshift(element("div", "alert", `This run was not finished: ${record.status}.`));
    parts.push(legend(record), remarkList(record), mapsOf(kept.maps ?? []), this.copier());
    this.root.replaceChildren(...parts.filter((part) => part));
  }

  // A run ended before it came to the report: what is shown is of another one.
  outdated(text) {
    this.root.querySelector(".alert.run")?.remove();
    this.root.prepend(element("div", "alert run", text));
  }

  copier() {
    const button = element("button", "", "Copy as JSON");
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(JSON.stringify(this.full, null, 1));
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy as JSON"), 1500);
    });
    return button;
  }
}

function remarkList(record) {
  const lines = remarks(record);
  if (!lines.length) return null;
  const list = element("ul");
  list.append(...lines.map((line) => element("li", "", line)));
  return list;
}

function mapsOf(files) {
  const found = element("div", "maps");
  for (const { filename, subfolder, type } of files) {
    const picture = element("img");
    picture.alt = picture.title = "How often each token was computed (yellow: always); below, one cell an evaluation";
    picture.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    picture.addEventListener("error", () => picture.remove()); // temporary files are gone with the server
    found.append(picture);
  }
  return files.length ? found : null;
}

// What outlives a reload: everything but the token maps, which are large.
function kept(output) {
  const record = output.rapid_record?.length ? JSON.parse(output.rapid_record[0]) : null;
  const small = record && { ...record, evaluations: record.evaluations.map((e) => ({ ...e, tokens: [] })) };
  return [{ text: output.text?.join("\n") ?? "", record: small, maps: output.rapid_map ?? [] }, record];
}

function after(node, name, then) {
  const before = node[name];
  node[name] = function (...given) {
    before?.apply(this, given);
    then.apply(this, given);
  };
}

function add(node) {
  const panel = new Panel();
  panels.add(panel);
  const widget = node.addDOMWidget("rapid_report", "rapid_report", panel.root, {
    serialize: false, getMinHeight: () => HEIGHT,
  });
  widget.serialize = false;
  node.setSize(SIZE.map((pixels, i) => Math.max(pixels, node.size[i])));
  after(node, "onExecuted", (output) => {
    const [small, full] = kept(output);
    app.canvas.emitBeforeChange(); // a change of the workflow like any other, or a reload would not know of it
    node.properties[KEPT] = small;
    app.canvas.emitAfterChange();
    panel.show(small, full);
  });
  after(node, "onConfigure", () => panel.show(node.properties[KEPT] ?? null));
  after(node, "onRemoved", () => panels.delete(panel));
}

function tellAll(text) {
  for (const panel of panels) panel.outdated(text);
}

app.registerExtension({
  name: "rapid.report",
  init() {
    const style = element("link");
    style.rel = "stylesheet";
    style.href = new URL("./report.css", import.meta.url).href;
    document.head.append(style);
    api.addEventListener("execution_error", ({ detail }) =>
      tellAll(`The latest run failed in ${detail.node_type}; below is what was known before.`));
    api.addEventListener("execution_interrupted", () =>
      tellAll("The latest run was interrupted; below is what was known before."));
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) add(node);
  },
});
