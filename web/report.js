// RAPID Report in the graph: a timeline of the run, its totals, the map of its tokens, and a button that copies it all.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel } from "./panel.js";
import { readRecord } from "./record.js";
import { deliver, nodesOf, root, workflowOf } from "./runs.js";
import { saver } from "./save.js";
import { forget, smaller, store, storeFailure } from "./storage.js";
import { closeness, details, element, headline, legend, mapLegend, remarks, ROWS, rows, totals } from "./timeline.js";
import { loadWords, reason, word } from "./words.js";

const NODE = "RAPID_Report";

// What a report shows. shown: {text, reason, record, maps, run, failure} or null before any run. text, reason, record: of
// the run that gave them, a reason where there is no record. failure: {node} of a later run that ended before it came here
// (node: where it failed, null where it was interrupted). full: the record with its token maps, where it is known.
function reportParts(shown, full) {
  try {
    return partsOf(shown, full ?? shown?.record);
  } catch (error) {
    console.warn("RAPID Report: a record that this version does not read:", error);
    return [element("div", "text", shown?.text ?? word("waiting"))];
  }
}

function partsOf(shown, full) {
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
  parts.push(legend(record), remarkList(record), ...mapsOf(shown.maps ?? []), tools(full));
  return parts;
}

// What is said of a run that ended before it came to the report; before: whether another one's is shown.
export function ended({ node }, before) {
  const place = node === null ? "interrupted" : "failed";
  return word(before ? `${place}_before` : place, { node });
}

function tools(record) {
  const made = element("div", "tools");
  made.append(copier(record), saver(record));
  return made;
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
  if (!files.length) return [];
  const maps = element("div", "maps");
  const key = mapLegend();
  for (const { filename, subfolder, type } of files.slice(0, ROWS)) {
    const picture = element("img");
    picture.alt = picture.title = word("map");
    picture.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    picture.addEventListener("error", () => { // temporary files are gone with the server
      picture.remove();
      if (!maps.childElementCount) key.remove();
    });
    maps.append(picture);
  }
  return [maps, key];
}

// What an output holds as text in JSON, or null.
function parsed(texts) {
  try {
    return texts?.length ? JSON.parse(texts[0]) : null;
  } catch {
    return null; // the text is shown instead
  }
}

function receiveReport(detail) {
  const { output, prompt_id } = detail;
  if (!output?.rapid_record) return null;
  const full = parsed(output.rapid_record);
  const shown = {
    text: output.text?.join("\n") ?? "",
    reason: parsed(output.rapid_reason),
    record: full && smaller(full),
    maps: output.rapid_map ?? [],
    run: prompt_id,
  };
  return deliver(detail, NODE, shown, full);
}

// A run ended before it was done (node: where it failed, null where it was interrupted): panels that it did not come to
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

app.registerExtension({
  name: "rapid.report",
  async init() {
    const style = element("link");
    style.rel = "stylesheet";
    style.href = new URL("./report.css", import.meta.url).href;
    document.head.append(style);
    forget();
    await loadWords();
    api.addEventListener("executed", ({ detail }) => receiveReport(detail));
    api.addEventListener("execution_error", ({ detail }) => tellAll(detail.prompt_id, detail.node_type));
    api.addEventListener("execution_interrupted", ({ detail }) => tellAll(detail.prompt_id, null));
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) addPanel(node, "rapid_report", reportParts);
  },
});
