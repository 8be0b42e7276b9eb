// What a choice of RAPID's nodes is called in the page's language. Its value stays English: workflows hold it, help
// pages name it, and so it stands behind its translation.

import { app } from "../../scripts/app.js";
import { choice, loadWords, speak } from "./words.js";

app.registerExtension({
  name: "rapid.choices",
  async init() {
    await loadWords();
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("RAPID_")) return;
    speak(app.extensionManager?.setting?.get("Comfy.Locale"));
    for (const widget of node.widgets ?? []) {
      if (widget.type === "combo") widget.options.getOptionLabel = (value) => choice(value);
    }
  },
});
