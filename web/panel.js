// A panel on a node, as high as what it shows, in both renderers. No side effects on import.

import { app } from "../../scripts/app.js";
import { stored } from "./storage.js";
import { element } from "./timeline.js";
import { speak } from "./words.js";

const WIDTH = 380; // pixels of a new node
const EDGE = 14; // padding and border of a panel, above and below
const FRAME = 10; // what LiteGraph leaves free around it

// name: of the widget and class of the panel; parts(shown, full): the elements to show.
class Panel {
  constructor(name, parts) {
    this.name = name;
    this.parts = parts;
    this.root = element("div", `rapid-panel ${name.replace("_", "-")}`);
    this.content = element("div", "content");
    this.root.append(this.content);
    this.show(null);
  }

  // shown: what is kept over a reload of the page, or null before any run. full: what came with it.
  show(shown, full = null) {
    speak(app.extensionManager?.setting?.get("Comfy.Locale"));
    [this.shown, this.full] = [shown, full];
    this.content.replaceChildren(...this.parts(shown, full).filter((part) => part));
  }
}

// Put a panel on a node.
export function addPanel(node, name, parts) {
  const panel = (node.rapidPanel = new Panel(name, parts));
  let height = 60;
  const widget = node.addDOMWidget(name, name, panel.root, {
    serialize: false, getMinHeight: () => height + FRAME, hideOnZoom: false,
  });
  widget.serialize = false;
  node.setSize([Math.max(WIDTH, node.size[0]), node.computeSize()[1]]);
  new ResizeObserver(() => {
    const now = panel.content.offsetHeight + EDGE;
    if (!panel.content.offsetWidth || Math.abs(now - height) < 2) return; // out of view, or as it was
    height = now;
    panel.root.style.minHeight = `${height}px`;
    node.setSize([node.size[0], node.computeSize()[1]]);
    node.setDirtyCanvas(true, true);
  }).observe(panel.content);
  const before = node.onConfigure;
  node.onConfigure = function (...given) {
    before?.apply(this, given);
    queueMicrotask(() => panel.show(stored(node))); // once the graph has its id
  };
  return panel;
}
