// The way of a model through a graph: which nodes lie before and after RAPID's, and the same way once more without them.
// No side effects on import.

const WAY = ["MODEL", "GUIDER", "LATENT"]; // types of links that lead from a model to its pictures
const PATCHES = ["MODEL", "GUIDER"];
const SEEDS = ["seed", "noise_seed"];

export const ACCELERATE_NODE = "RAPID_Accelerate";
export const REPORT_NODE = "RAPID_Report";
export const COMPARE_NODE = "RAPID_Compare";
const SKIPS = [ACCELERATE_NODE, "RAPID_CacheReuse"]; // one of them is enough on a model

export function slotOf(slots, ...types) {
  return (slots ?? []).findIndex((slot) => types.includes(slot.type));
}

export function linksOf(node, slot) {
  return (node.outputs?.[slot]?.links ?? []).map((id) => node.graph.getLink(id)).filter((link) => link);
}

// What a link carries: an input of a Reroute takes any type.
export function typeOf(graph, { origin_id: id, origin_slot: slot, type }) {
  return graph.getNodeById(id)?.outputs?.[slot]?.type ?? type;
}

// Links into inputs of these types, or from outputs of these.
function linksInto(node, types) {
  const linked = (node?.inputs ?? []).filter(({ link }) => link != null);
  return linked.map((input) => [input, node.graph.getLink(input.link)])
    .filter(([input, link]) => link && (types.includes(input.type) || types.includes(typeOf(node.graph, link))))
    .map(([, link]) => link);
}

// The first of these, or undefined.
export function linkInto(node, ...types) {
  return linksInto(node, types)[0];
}

// Connect by ids and slots, as links have them: an end that is no node is an input or an output of the subgraph itself.
export function connect(graph, [from, slot], [to, input], reroute) {
  const [source, target] = [graph.getNodeById(from), graph.getNodeById(to)];
  if (source && target) source.connect(slot, target, input, reroute);
  else if (target) graph.inputs?.[slot]?.connect(target.inputs[input], target, reroute);
  else if (source) graph.outputs?.[input]?.connect(source.outputs[slot], source, reroute);
}

// A RAPID node that changes a model.
export function isPatch(node) {
  const ours = node?.comfyClass?.startsWith("RAPID_") ?? false;
  return ours && slotOf(node.inputs, "MODEL") >= 0 && slotOf(node.outputs, "MODEL") >= 0;
}

export function isSampler(node) {
  const ours = node?.comfyClass?.startsWith("RAPID_") ?? true;
  return !ours && slotOf(node.inputs, ...PATCHES) >= 0 && slotOf(node.outputs, "LATENT") >= 0;
}

// The link that brings a sampler its model, where there is one; guiders lie between.
export function modelLink(node) {
  for (let link = linkInto(node, ...PATCHES); link; link = linkInto(node.graph.getNodeById(link.origin_id), ...PATCHES)) {
    if (typeOf(node.graph, link) === "MODEL") return link;
  }
  return undefined;
}

function* before(node, types, seen = new Set()) {
  for (const link of linksInto(node, types)) {
    const source = node.graph.getNodeById(link.origin_id);
    if (!source || seen.has(source)) continue;
    seen.add(source);
    yield source;
    yield* before(source, types, seen);
  }
}

// Nearest first.
export function after(node, types = WAY) {
  const [found, seen] = [[node], new Set([node])];
  for (const one of found) {
    (one.outputs ?? []).forEach(({ type }, slot) => {
      if (!types.includes(type)) return;
      for (const link of linksOf(one, slot)) {
        const target = one.graph.getNodeById(link.target_id);
        if (target && !seen.has(target)) found.push(target);
        seen.add(target);
      }
    });
  }
  return found.slice(1);
}

// What made the latent that comes into a node: the nearest before it that takes a model, or undefined.
function makerOf(node) {
  const link = linkInto(node, "LATENT");
  const origin = link && node.graph.getNodeById(link.origin_id);
  if (!origin) return undefined;
  return origin.comfyClass !== REPORT_NODE && slotOf(origin.inputs, ...PATCHES) >= 0 ? origin : makerOf(origin);
}

// Whether a report is of what is made with the model of these links; one that nothing comes into may be.
export function reportsOn(report, links) {
  const maker = makerOf(report);
  const way = maker ? [maker, ...before(maker, PATCHES)] : [];
  return !maker || links.some((link) => way.some((node) => node.id === link.target_id));
}

// Whether steps are skipped already on the model of a link.
export function skipsAlready(graph, link) {
  const [source, target] = [graph.getNodeById(link.origin_id), graph.getNodeById(link.target_id)];
  const way = [source, ...before(source, PATCHES), ...(target ? [target, ...after(target, PATCHES)] : [])];
  return way.some((node) => SKIPS.includes(node?.comfyClass));
}

export function samplerAfter(node) {
  return after(node).find(isSampler);
}

// What first makes pictures of what comes from a node.
export function decoderAfter(node) {
  return after(node).find((one) => !one.comfyClass?.startsWith("RAPID_") && slotOf(one.outputs, "IMAGE") >= 0);
}

// The LATENT output of a sampler that is in use; its first without one.
export function latentSlot(sampler) {
  const used = sampler.outputs.findIndex(({ type, links }) => type === "LATENT" && links?.length);
  return used >= 0 ? used : slotOf(sampler.outputs, "LATENT");
}

// Copies of a node and of what it depends on, as far as RAPID's nodes lie before it, and without those.
export class Branch {
  constructor(move) {
    this.move = move; // what is done with (copy, original)
    this.copies = new Map();
    this.seeded = []; // originals whose seed is their own, and their copies
  }

  // The copy of a node that has RAPID's before it.
  copy(node) {
    if (this.copies.has(node)) return this.copies.get(node);
    const copy = node.clone();
    copy.id = -1; // it gets one of its own
    node.graph.add(copy);
    this.copies.set(node, copy);
    this.move(copy, node);
    for (const input of node.inputs ?? []) {
      const link = input.link == null ? null : node.graph.getLink(input.link);
      if (!link) {
        if (SEEDS.includes(input.widget?.name)) this.seeded.push([node, copy, input.name]);
        continue;
      }
      const source = this.source(node.graph, link);
      if (source) connect(node.graph, source, [copy.id, copy.findInputSlot(input.name)]);
    }
    return copy;
  }

  // Where a copy has from what the original has from a link: (id, slot), or null.
  source(graph, link) {
    const origin = graph.getNodeById(link.origin_id);
    if (!origin || !(isPatch(origin) || [...before(origin, WAY)].some(isPatch))) return [link.origin_id, link.origin_slot];
    if (isPatch(origin)) return this.through(origin, "MODEL");
    if (origin.comfyClass === REPORT_NODE && origin.outputs[link.origin_slot].type === "LATENT") return this.through(origin, "LATENT");
    return [this.copy(origin).id, link.origin_slot];
  }

  through(node, type) {
    const link = linkInto(node, type);
    return link ? this.source(node.graph, link) : null;
  }
}
