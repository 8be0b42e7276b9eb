// Choices that had other names: replaced when a saved workflow is opened. The table is the server's
// (nodes/base.py), which understands the old names, too.

import { app } from "../../scripts/app.js";

function replaceOld(node, inputs) {
  for (const widget of node.widgets ?? []) {
    const old = inputs[widget.name]?.[1]?.rapid_old_choices;
    if (old && Object.hasOwn(old, widget.value)) widget.value = old[widget.value];
  }
}

app.registerExtension({
  name: "rapid.old_choices",
  beforeRegisterNodeDef(nodeType, nodeData) {
    const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
    if (!Object.values(inputs).some((input) => input[1]?.rapid_old_choices)) return;
    const before = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function (...given) {
      before?.apply(this, given);
      replaceOld(this, inputs);
    };
  },
});
