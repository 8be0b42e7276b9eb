// A run's timeline as a policy file, so that other seeds and prompts compute the same steps. No side effects on import.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { element } from "./timeline.js";
import { reason, word } from "./words.js";

const POLICIES = "/rapid/policies";
const EXISTS = "save_exists";

// A button that asks for a name and saves the timeline of a record.
export function saver(record) {
  const button = element("button", "save", word("save"));
  button.addEventListener("click", async () => {
    button.disabled = true;
    await ask(record).catch((error) => {
      console.warn("RAPID Report: a timeline could not be saved:", error);
      tell("error", word("save_unreachable"));
    });
    button.disabled = false;
  });
  return button;
}

async function ask(record) {
  const { dialog } = app.extensionManager;
  const name = await dialog.prompt({
    title: word("save_title"), message: word("save_message"), defaultValue: suggested(record),
  });
  if (!name) return;
  let answer = await send({ name, record });
  if (answer.reason?.code === EXISTS) {
    const yes = await dialog.confirm({
      title: word("save_title"), message: word("replace", answer.reason.params), type: "overwrite",
    });
    if (!yes) return;
    answer = await send({ name, record, replace: true });
  }
  if (answer.reason) return tell("warn", reason(answer.reason));
  tell("success", word("saved", answer));
  await app.refreshComboInNodes?.(); // so that it can be chosen
}

function suggested({ family, sampler, totals }) {
  const words = `${family.replace(" (unverified)", "")}-${sampler}-${totals.computed}-of-${totals.evaluations}`;
  return words.replace(/[^\w.+-]/g, "_");
}

async function send(body) {
  const answer = await api.fetchApi(POLICIES, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  return answer.json();
}

function tell(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "RAPID Report", detail, life: 10000 });
}
