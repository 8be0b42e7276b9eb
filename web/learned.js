// Settings, RAPID: what was learned of models, with a button that forgets it.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { element } from "./timeline.js";
import { loadWords, speak, word } from "./words.js";

const PATH = "/rapid/learned";

function kilobytes(size) {
  return `${(size / 1024).toFixed(1)} KB`;
}

function date(seconds) {
  return seconds === null ? word("learned.not_kept") : new Date(seconds * 1000).toLocaleString();
}

// What an entry is of, in a line.
function title({ name, error, family, patched, sampler, steps, guidance, turns }) {
  if (error) return word("learned.damaged", { name, error });
  const said = [word("learned.entry", { family, sampler, steps, guidance })];
  if (turns) said.push(word("learned.turns", { turns }));
  if (patched) said.push(word("learned.patched"));
  return said.join(" · ");
}

function row(entry, again) {
  const line = element("tr");
  const forget = element("button", "", word("learned.forget"));
  forget.addEventListener("click", async () => {
    forget.disabled = true;
    const answer = await api.fetchApi(`${PATH}/${encodeURIComponent(entry.name)}`, { method: "DELETE" })
      .catch(() => null); // the server is gone, which the list will say
    if (!answer || answer.ok || answer.status === 404) return again();
    forget.textContent = (await answer.json()).error;
  });
  const cells = [title(entry), word("learned.pictures", entry), kilobytes(entry.size), date(entry.modified)];
  line.append(...cells.map((text) => element("td", "", text)), element("td"));
  line.lastChild.append(forget);
  return line;
}

async function fill(root) {
  await loadWords();
  speak(app.extensionManager?.setting?.get("Comfy.Locale"));
  const again = () => fill(root);
  try {
    const entries = await (await api.fetchApi(PATH)).json();
    const table = element("table");
    table.append(...entries.map((entry) => row(entry, again)));
    root.replaceChildren(entries.length ? table : element("p", "", word("learned.nothing")));
  } catch (error) {
    console.warn("RAPID: what was learned could not be listed:", error);
    root.replaceChildren(element("p", "", word("learned.failed")));
  }
}

app.registerExtension({
  name: "rapid.learned",
  settings: [
    {
      id: "RAPID.Learned",
      name: "Learned models",
      category: ["RAPID", "RAPID Accelerate", "Learned models"],
      tooltip: "What RAPID Accelerate learned with learn on. Forget an entry to learn it anew.",
      defaultValue: "",
      type() {
        const root = element("div", "rapid-learned");
        fill(root);
        return root;
      },
    },
  ],
});
