// RAPID Compare in the graph: two pictures over each other with a slider, both times, how near they are, where they
// differ, and votes in blind comparisons.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel } from "./panel.js";
import { ended } from "./report.js";
import { deliver } from "./runs.js";
import { element, seconds } from "./timeline.js";
import { keepVote, noVotes, tally, votesOf } from "./votes.js";
import { loadWords, word } from "./words.js";

const COMPARE = "RAPID_Compare";

// One comparison on a node. shown: {about, files: {a, b, difference}, text, run, failure} or null before any run.
class Comparison {
  constructor(node, shown) {
    this.node = node;
    this.shown = shown;
    this.about = shown.about;
    this.index = 0; // of the pair that is shown
    this.different = false; // whether the difference map is shown
    this.told = new Set(); // pairs of a blind comparison that were voted on here
  }

  get pair() {
    return this.about.pairs[this.index];
  }

  get hidden() { // whether it is not to be told which is which
    return this.about.blind && !this.told.has(this.pair.fingerprint);
  }

  parts() {
    this.body = element("div", "body");
    this.draw();
    return [this.body];
  }

  draw() {
    const parts = [this.head(), this.stage(), this.tools(), this.ballot(), this.count()];
    this.body.replaceChildren(...parts.filter((part) => part));
  }

  head() {
    if (this.hidden) return element("div", "headline", word("compare.which"));
    const [took, near] = [times(this.about), element("div", `closeness ${this.about.verdict}`, nearness(this.about))];
    const head = element("div", "head");
    if (took) head.append(element("div", "headline", took));
    head.append(near);
    return head;
  }

  stage() {
    const stage = element("div", "stage");
    const swapped = this.about.blind && this.pair.swapped;
    const [left, right] = swapped ? ["b", "a"] : ["a", "b"];
    const under = this.picture(right, stage);
    const over = this.picture(left, stage);
    over.classList.add("over");
    stage.append(under, over);
    if (this.different) stage.append(this.picture("difference", stage));
    else {
      stage.append(element("div", "divider"));
      stage.append(element("span", "tag left", this.name(left)), element("span", "tag right", this.name(right)));
    }
    const slider = element("input", "slider");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 0.5, value: this.place ?? 50 });
    slider.setAttribute("aria-label", word("compare.slider"));
    const move = () => {
      this.place = slider.value;
      stage.style.setProperty("--place", `${slider.value}%`);
    };
    slider.addEventListener("input", move);
    slider.addEventListener("keydown", (event) => event.stopPropagation()); // the graph has keys of its own
    move();
    if (!this.different) stage.append(slider);
    return stage;
  }

  picture(which, stage) {
    const made = element("img", which);
    const { filename, subfolder, type } = this.shown.files[which][this.index] ?? {};
    made.alt = which === "difference" ? word("compare.difference") : this.name(which);
    made.draggable = false;
    made.addEventListener("error", () => stage.classList.add("gone")); // temporary files are gone with the server
    if (filename) made.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    return made;
  }

  // What stands on a picture: in a blind comparison nothing but its side.
  name(which) {
    const swapped = this.about.blind && this.pair.swapped;
    if (this.hidden) return word((which === "a") !== swapped ? "compare.left" : "compare.right");
    const record = this.about[`record_${which}`];
    const what = record && word(record.full ? "compare.full" : "compare.rapid");
    return `${which.toUpperCase()}${what ? ` · ${what}` : ""}`;
  }

  tools() {
    const tools = element("div", "tools");
    const map = this.button("compare.difference", () => (this.different = !this.different));
    map.setAttribute("aria-pressed", this.different);
    tools.append(map);
    if (this.different) tools.append(element("span", "", word("compare.amplified", { times: this.about.amplify })));
    const number = Math.min(this.about.pairs.length, this.shown.files.a.length);
    if (number > 1) {
      const step = (by) => (this.index = (this.index + by + number) % number);
      tools.append(
        this.button("compare.previous", () => step(-1)),
        element("span", "", `${this.index + 1}/${number}`),
        this.button("compare.next", () => step(1)),
      );
    }
    return tools;
  }

  // act: what is done before all is drawn anew.
  button(place, act) {
    const button = element("button", place.replace("compare.", ""), word(place));
    button.addEventListener("click", () => {
      act();
      this.draw();
      this.body.querySelector(`button.${place.replace("compare.", "")}`)?.focus(); // for who goes on by keys
    });
    return button;
  }

  ballot() {
    if (!this.hidden) return null;
    const ballot = element("div", "ballot");
    const sides = this.pair.swapped ? ["b", "a"] : ["a", "b"];
    const vote = (choice) => () => {
      this.told.add(this.pair.fingerprint);
      keepVote(this.node, this.pair.fingerprint, choice);
    };
    ballot.append(
      this.button("compare.left_better", vote(sides[0])),
      this.button("compare.no_difference", vote("same")),
      this.button("compare.right_better", vote(sides[1])),
    );
    return ballot;
  }

  count() {
    if (!this.about.blind) return null;
    const { a, b, same, share, low, high } = tally(votesOf(this.node));
    if (!(a + b + same)) return null;
    const count = element("div", "count");
    const percent = (value) => Math.round(100 * value);
    const parts = a + b
      ? [word("compare.preferred", { b, decided: a + b, share: percent(share), low: percent(low), high: percent(high) })]
      : [];
    if (same) parts.push(word("compare.undecided", { same }));
    count.append(element("span", "", parts.join(", ")));
    count.append(this.button("compare.forget_votes", () => noVotes(this.node)));
    return count;
  }
}

function times({ seconds_a: a, seconds_b: b }) {
  const parts = [];
  if (a) parts.push(word("compare.took_a", { took: seconds(a) }));
  if (b) parts.push(word("compare.took_b", { took: seconds(b) }));
  if (a && b) parts.push(word("compare.as_fast", { factor: (a / b).toFixed(2) }));
  return parts.join(" · ");
}

function nearness({ psnr, ssim, lpips, verdict, equal, pairs, psnr_worst: worst }) {
  if (equal) return word("compare.equal");
  const parts = [`PSNR ${psnr.toFixed(1)} dB`, `SSIM ${ssim.toFixed(4)}`];
  if (lpips !== null) parts.push(`LPIPS ${lpips.toFixed(4)}`);
  if (pairs.length > 1) parts.push(word("compare.worst", { decibels: worst.toFixed(1) }));
  return word("compare.near", { figures: parts.join(" · "), verdict: word(`verdict.${verdict}`) });
}

function compareParts(node, shown) {
  const alert = shown?.failure ? [element("div", "alert run", ended(shown.failure, shown.about))] : [];
  if (!shown?.about) return [...alert, element("div", "text", word("compare.waiting"))];
  try {
    return [...alert, ...new Comparison(node, shown).parts()];
  } catch (error) {
    console.warn("RAPID Compare: a comparison that this version does not read:", error);
    return [element("div", "text", shown.text ?? word("compare.waiting"))];
  }
}

function receiveComparison(detail) {
  const about = detail.output?.rapid_compare?.[0];
  if (!about) return null;
  const files = Object.fromEntries(
    ["a", "b", "difference"].map((which) => [which, detail.output[`rapid_compare_${which}`] ?? []]));
  const shown = { about, files, text: detail.output.text?.join("\n") ?? "", run: detail.prompt_id };
  return deliver(detail, COMPARE, shown, null);
}

app.registerExtension({
  name: "rapid.compare",
  async init() {
    await loadWords();
    api.addEventListener("executed", ({ detail }) => receiveComparison(detail));
  },
  nodeCreated(node) {
    if (node.comfyClass === COMPARE) addPanel(node, "rapid_compare", (shown) => compareParts(node, shown));
  },
});
