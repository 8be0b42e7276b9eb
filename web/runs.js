// Runs of workflows as the page hears of them: to which node of which workflow an output belongs. No side effects on import.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { store } from "./storage.js";

const LATEST = 8; // runs whose workflows are remembered: events of one run come close together

export function root() {
  return app.rootGraph ?? app.graph;
}

// The node of an execution id such as "12" or, inside of subgraphs, "3:12".
export function nodeAt(path) {
  const [first, ...rest] = String(path).split(":");
  return rest.reduce((node, id) => node?.subgraph?.getNodeById(id), root().getNodeById(first));
}

export function* nodesOf(graph) {
  for (const node of graph?._nodes ?? []) {
    yield node;
    yield* nodesOf(node.subgraph);
  }
}

// An output came for a workflow, which need not be the one that is open: the page hands it to whatever node there has the
// same number. What belongs elsewhere is kept for when that workflow is opened again. kind: of the nodes that show such
// outputs; full: what is too large to be kept.
export async function deliver({ prompt_id, node, display_node }, kind, shown, full) {
  const [workflow, path] = [await workflowOf(prompt_id), display_node ?? node];
  const here = isOpen(workflow) ? nodeAt(path) : null;
  if (here?.rapidPanel && here.comfyClass === kind) {
    here.rapidPanel.show(shown, full);
    store(here.graph?.id, here.id, shown);
  } else {
    store(...placeIn(workflow, path), shown);
  }
}

// The graph of a workflow that is not open in which an execution id such as "3:12" names a node, and the node's own id.
function insideOf(workflow, path) {
  const steps = String(path).split(":");
  const graphs = workflow?.definitions?.subgraphs ?? [];
  const graph = steps.slice(0, -1).reduce((outer, id) => {
    const kind = outer?.nodes?.find((node) => String(node.id) === id)?.type;
    return graphs.find((one) => one.id === kind);
  }, workflow);
  return [graph, steps.at(-1)];
}

// Ids of the graph and the node that an execution id stands for in a workflow that is not open.
function placeIn(workflow, path) {
  const [graph, id] = insideOf(workflow, path);
  return [graph?.id, id];
}

// The class of the node that an execution id stands for in such a workflow, or undefined.
export function kindIn(workflow, path) {
  const [graph, id] = insideOf(workflow, path);
  return graph?.nodes?.find((node) => String(node.id) === id)?.type;
}

// Whether a workflow that a run is of is the one that is open. Those in API form have no id and count as open.
export function isOpen(workflow) {
  return workflow?.id === undefined || workflow.id === root().id;
}

// The workflows that runs are of, by run: asked for when something has to be shown. A run that nothing was found of, as
// where a busy server did not answer, is asked for again the next time.
const workflows = new Map();

export async function workflowOf(run) {
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
