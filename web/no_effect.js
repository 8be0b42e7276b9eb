// Inputs of RAPID Accelerate that have no effect as the node is set are greyed.

import { app } from "../../scripts/app.js";

const ACCELERATE = "RAPID_Accelerate";
const DECIDING = ["mode", "closeness", "policy_file"];
const WITHOUT_EFFECT = {
  speed: ["closeness", "decibels"],
  quality: ["speedup", "learn", "policy_file"],
  off: ["speedup", "closeness", "decibels", "aim", "start_percent", "end_percent", "even_so", "learn", "policy_file"],
};
const NO_FILE = ["auto", "none", undefined];

// Names of inputs that have no effect. What is linked is undefined, and known only when it runs.
// A file that is named in mode quality is refused, and can be changed.
function withoutEffect({ mode, closeness, policy_file }) {
  const refused = mode === "quality" && !NO_FILE.includes(policy_file);
  const names = (WITHOUT_EFFECT[mode] ?? []).filter((name) => !(refused && name === "policy_file"));
  const preset = mode === "quality" && closeness !== undefined && closeness !== "decibels";
  return preset ? [...names, "decibels"] : names;
}

function isLinked(node, name) {
  return node.inputs?.some((input) => input.widget?.name === name && input.link != null);
}

function greyInputs(node) {
  const deciding = node.widgets.filter(({ name }) => DECIDING.includes(name) && !isLinked(node, name));
  const names = withoutEffect(Object.fromEntries(deciding.map(({ name, value }) => [name, value])));
  for (const widget of node.widgets) widget.disabled = names.includes(widget.name);
  node.setDirtyCanvas(true, true);
}

// Call `then` after an object's function of this name, if it has one.
function callAfter(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then();
    return result;
  };
}

app.registerExtension({
  name: "rapid.no_effect",
  nodeCreated(node) {
    if (node.comfyClass !== ACCELERATE) return;
    const update = () => greyInputs(node);
    const deciding = node.widgets.filter(({ name }) => DECIDING.includes(name));
    for (const widget of deciding) callAfter(widget, "callback", update);
    for (const name of ["onConfigure", "onConnectionsChange"]) callAfter(node, name, update);
    update();
  },
});
