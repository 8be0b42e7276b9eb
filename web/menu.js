// Entries of the menus on a right click: a RAPID node into a model's wire or before a sampler, a report, and a comparison
// with the full picture.

import { app } from "../../scripts/app.js";
import { ACCELERATE_NODE, COMPARE_NODE, REPORT_NODE, Branch, connect, linkInto, linksOf, modelLink, slotOf, typeOf } from "./branches.js";
import { reportsOn, decoderAfter, isPatch, isSampler, latentSlot, samplerAfter, skipsAlready } from "./branches.js";
import { loadWords, speak, word } from "./words.js";

const REACH = 14; // pixels of the graph across a wire that count as on it
const GAP = 40; // pixels between nodes
const STEP = 40; // of the search for a free place
const FARTHEST = 3000;
const SOON = 200; // milliseconds

function add(graph, kind, [x, y]) {
  const node = LiteGraph.createNode(kind);
  graph.add(node);
  node.pos = free(graph, node, x, y);
  return node;
}

// The free place nearest to one that is wanted, or that one.
function free(graph, node, x, y) {
  const title = LiteGraph.NODE_TITLE_HEIGHT;
  const taken = graph._nodes.filter((one) => one !== node).map((one) => [one.pos[0], one.pos[1] - title, one.size[0], one.size[1] + title]);
  const [width, height] = [node.size[0], node.size[1] + title];
  const fits = ([left, top]) => taken.every((box) =>
    left + width + GAP <= box[0] || box[0] + box[2] + GAP <= left || top - title + height + GAP <= box[1] || box[1] + box[3] + GAP <= top - title);
  for (let far = 0; far < FARTHEST; far += STEP) {
    const around = far ? Array.from({ length: 24 }, (_, i) => (i * Math.PI) / 12) : [0];
    const places = around.map((angle) => [x + far * Math.cos(angle), y + far * Math.sin(angle)]);
    const found = places.find(fits);
    if (found) return found.map(Math.round);
  }
  return [x, y];
}

// One step of the page's undo. change: returns the nodes that it added.
function edit(change) {
  const { canvas } = app;
  canvas.emitBeforeChange();
  try {
    const added = change();
    canvas.deselectAll();
    canvas.selectItems(added);
    canvas.setDirty(true, true);
    return added;
  } finally {
    canvas.emitAfterChange();
  }
}

// The part of a wire at a place of the graph.
function segmentAt(canvas, [x, y]) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.lineWidth = REACH;
  return [...(canvas.renderedPaths ?? [])].find(({ path }) => path && pen.isPointInStroke(path, x, y));
}

// The links that a part of a wire stands for: many where they share a reroute.
function linksAt(graph, segment) {
  return segment.linkIds ? [...segment.linkIds].map((id) => graph.getLink(id)).filter((link) => link) : [segment];
}

function insertEntry(graph, links, place) {
  const [link] = links;
  if (!link || typeOf(graph, link) !== "MODEL" || !graph.getNodeById(link.origin_id) || skipsAlready(graph, link)) return [];
  return [{ content: word("menu.insert"), callback: () => edit(() => [insert(graph, links, place)]) }];
}

// RAPID Accelerate in the way of links that have one source. Reports on what is made with it get the new node's model.
function insert(graph, links, place) {
  const source = graph.getNodeById(links[0].origin_id);
  const slot = links[0].origin_slot;
  const reports = linksOf(source, slot).filter(({ target_id: id }) => {
    const target = graph.getNodeById(id);
    return target?.comfyClass === REPORT_NODE && reportsOn(target, links);
  });
  const targets = [...links, ...reports].map((link) => [link.target_id, link.target_slot]);
  const node = add(graph, ACCELERATE_NODE, place);
  source.connect(slot, node, slotOf(node.inputs, "MODEL"), links[0].parentId);
  for (const target of targets) connect(graph, [node.id, slotOf(node.outputs, "MODEL")], target);
  return node;
}

// A report between a sampler and what takes its latent.
function report(graph, sampler) {
  const [slot, model] = [latentSlot(sampler), modelLink(sampler)];
  const targets = linksOf(sampler, slot).map((link) => [link.target_id, link.target_slot]);
  const node = add(graph, REPORT_NODE, [sampler.pos[0] + sampler.size[0] + GAP, sampler.pos[1]]);
  connect(graph, [model.origin_id, model.origin_slot], [node.id, slotOf(node.inputs, "MODEL")]);
  sampler.connect(slot, node, slotOf(node.inputs, "LATENT"));
  for (const target of targets) connect(graph, [node.id, slotOf(node.outputs, "LATENT")], target);
  return node;
}

function reportOf(sampler) {
  return linksOf(sampler, latentSlot(sampler)).map((link) => sampler.graph.getNodeById(link.target_id))
    .find((node) => node?.comfyClass === REPORT_NODE);
}

// A second branch without RAPID's nodes, from the same seed, and RAPID Compare on both pictures.
function compare(graph, decoder) {
  const [bottom, right] = [1, 0].map((k) => Math.max(...graph._nodes.map((one) => one.pos[k] + one.size[k])));
  const added = [];
  const branch = new Branch((copy, original) => {
    if (original.title) copy.title = word("menu.full", { title: original.title });
    copy.pos = [original.pos[0], original.pos[1]];
    added.push(copy);
  });
  const full = branch.copy(decoder);
  const down = bottom + 3 * GAP - Math.min(...added.map((one) => one.pos[1]));
  for (const copy of added) copy.pos = [copy.pos[0], copy.pos[1] + down];
  for (const [node, copy, name] of branch.seeded) added.push(sharedSeed(graph, node, copy, name));

  const view = add(graph, COMPARE_NODE, [right + 2 * GAP, full.pos[1]]);
  added.push(view);
  [full, decoder].forEach((one, i) => one.connect(slotOf(one.outputs, "IMAGE"), view, view.findInputSlot(["picture_a", "picture_b"][i])));
  const samplers = [...branch.copies].filter(([original]) => isSampler(original));
  if (samplers.length !== 1) return added; // a report tells the time of one
  const [own, its] = samplers[0];
  for (const [sampler, name] of [[its, "record_a"], [own, "record_b"]]) {
    const known = reportOf(sampler);
    const node = known ?? report(graph, sampler);
    if (!known) added.push(node);
    node.connect(slotOf(node.outputs, "RAPID_RECORD"), view, view.findInputSlot(name));
  }
  return added;
}

// One seed for a node and its copy, which would else draw their own after each run.
function sharedSeed(graph, node, copy, name) {
  const seed = add(graph, "PrimitiveInt", [copy.pos[0] - 270 - GAP, copy.pos[1]]);
  seed.title = word("menu.seed");
  seed.widgets.find((widget) => widget.name === "value").value = node.widgets.find((widget) => widget.name === name).value;
  const control = seed.widgets.find((widget) => widget.name === "control_after_generate");
  if (control) control.value = "fixed";
  for (const one of [node, copy]) seed.connect(0, one, one.findInputSlot(name));
  return seed;
}

function samplerEntries(node) {
  const link = modelLink(node);
  return link ? insertEntry(node.graph, [link], [node.pos[0] - 270 - GAP, node.pos[1]]) : [];
}

function patchEntries(node) {
  const [sampler, decoder] = [samplerAfter(node), decoderAfter(node)];
  const entries = [];
  if (sampler && !reportOf(sampler)) {
    entries.push({ content: word("menu.add_report"), callback: () => edit(() => [report(node.graph, sampler)]) });
  }
  const missing = !sampler || !decoder || !linkInto(node, "MODEL");
  entries.push({
    content: word("menu.compare"),
    callback() {
      if (missing) return tell(word("menu.cannot_compare"));
      edit(() => compare(node.graph, decoder));
      // Once the new nodes are drawn and have a size.
      return setTimeout(() => app.extensionManager.command?.execute("Comfy.Canvas.FitView"), SOON);
    },
  });
  return entries;
}

function tell(detail) {
  app.extensionManager.toast.add({ severity: "warn", summary: "RAPID", detail, life: 8000 });
}

function entries(find) {
  speak(app.extensionManager?.setting?.get("Comfy.Locale"));
  try {
    return find();
  } catch (error) {
    console.warn("RAPID: no entries of the menu:", error); // the others are worth more
    return [];
  }
}

app.registerExtension({
  name: "rapid.menu",
  async init() {
    await loadWords();
  },
  getCanvasMenuItems(canvas) {
    return entries(() => {
      const segment = segmentAt(canvas, canvas.graph_mouse);
      return segment ? insertEntry(canvas.graph, linksAt(canvas.graph, segment), [...canvas.graph_mouse]) : [];
    });
  },
  getNodeMenuItems(node) {
    return entries(() => {
      if (isSampler(node)) return samplerEntries(node);
      return isPatch(node) ? patchEntries(node) : [];
    });
  },
});
