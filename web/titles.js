// Titles of groups and nodes in RAPID's templates, which are English in their files, in the page's language.

import { app } from "../../scripts/app.js";
import { root } from "./runs.js";
import { loadWords, speak, title } from "./words.js";

// Only titles that are in the table, and only of workflows that are marked as ours: others' words stay theirs.
function translate(graph) {
  if (!graph?.extra?.rapid_template) return;
  speak(app.extensionManager?.setting?.get("Comfy.Locale"));
  for (const one of [...graph._groups, ...graph._nodes]) {
    const here = title(one.title);
    if (here !== one.title) one.title = here;
  }
}

app.registerExtension({
  name: "rapid.titles",
  async init() {
    await loadWords();
  },
  afterConfigureGraph() {
    translate(root());
  },
});
