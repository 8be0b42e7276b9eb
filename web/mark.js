// RAPID's nodes are told at a glance in a large graph: a quiet colour of their own and a bolt. A node of a saved workflow
// keeps the colour that it was saved with, and one whose colour was taken away keeps none.

import { app } from "../../scripts/app.js";

const LOOK = { color: "#3d3560", bgcolor: "#2d2a3b" };
const PLAIN = "rapid_plain"; // in the properties of a node whose colour was taken away
const BOLT = "⚡";

export function isOurs(node) {
  return node?.comfyClass?.startsWith("RAPID_") ?? false;
}

function recolour(node) {
  Object.assign(node, LOOK);
  const [configured, serialized] = [node.onConfigure, node.onSerialize];
  node.onConfigure = function (saved, ...rest) {
    if (saved?.color || saved?.bgcolor || saved?.properties?.[PLAIN]) {
      for (const name of Object.keys(LOOK)) this[name] = saved[name];
    }
    configured?.call(this, saved, ...rest);
  };
  node.onSerialize = function (saved, ...rest) {
    serialized?.call(this, saved, ...rest);
    const { [PLAIN]: before, ...properties } = saved.properties ?? {};
    const plain = !this.color && !this.bgcolor;
    if (plain || before !== undefined) saved.properties = plain ? { ...properties, [PLAIN]: true } : properties;
  };
}

function mark(node) {
  if (!window.LGraphBadge || !node.badges) return;
  node.badges.push(new window.LGraphBadge({ text: BOLT, fgColor: "#ffd75e", bgColor: LOOK.color }));
}

app.registerExtension({
  name: "rapid.mark",
  nodeCreated(node) {
    if (!isOurs(node)) return;
    recolour(node);
    mark(node);
  },
});
