// What a rapid-record looks like: its totals in words, and one cell an evaluation. No side effects on import.

import { family, reason, word } from "./words.js";

const MODES = { run: "computed", reuse: "reused", skip: "skipped" };
export const ROWS = 8; // images of a batch that are shown

// Colours of the share of tokens that ran, from none to all: those of the map (rapid_core/heatmap.py).
const SCALE = [[26, 26, 89], [38, 115, 166], [89, 191, 115], [250, 230, 64]];

export function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

export function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  const mixed = SCALE[low].map((value, i) => Math.round(value + (SCALE[low + 1][i] - value) * (place - low)));
  return `rgb(${mixed.join(", ")})`;
}

// Seconds as people read them: two digits, or whole ones.
export function seconds(number) {
  return word("seconds", { number: number < 9.95 ? number.toPrecision(2) : String(Math.round(number)) });
}

// What the run took and saved; a line ends between the two where it is too narrow.
export function headline(record) {
  const { seconds_full: full, speedup_theoretical: factor } = record.totals;
  const took = seconds(record.seconds);
  const parts = [full ? word("took_instead", { took, full: seconds(full) }) : took];
  if (factor) parts.push(word("speedup_theoretical", { factor: factor.toFixed(2) }));
  const made = element("div", "headline");
  const comma = word("comma").trimEnd();
  parts.forEach((part, i) => made.append(element("span", "", i < parts.length - 1 ? part + comma : part), " "));
  made.lastChild.remove();
  return made;
}

// How close to the full picture it is predicted to be, with a verdict; null where nothing is known.
export function closeness(record) {
  const { closeness: mean, closeness_worst: least, verdict } = record.totals;
  if (!verdict) return null;
  const several = record.closeness.filter((one) => one !== null).length > 1;
  const words = word(several ? "closeness_of_several" : "closeness",
    { decibels: Math.round(mean), worst: Math.round(least), verdict: word(`verdict.${verdict}`) });
  return element("div", `closeness ${verdict}`, words);
}

export function totals(record) {
  const { computed, evaluations, partial, reused, skipped } = record.totals;
  const parts = [word("computed_of", { computed, evaluations })];
  if (partial) parts.push(word("of_them_partial", { number: partial, percent: partialShare(record) }));
  if (reused) parts.push(word("number_reused", { number: reused }));
  if (skipped) parts.push(word("number_skipped", { number: skipped }));
  return parts.join(word("comma"));
}

// Of the image tokens, in the evaluations that computed some; in percent.
function partialShare({ evaluations }) {
  const shares = evaluations.flatMap((e) => e.token_share).filter((share) => share > 0 && share < 1);
  return Math.round((100 * shares.reduce((sum, share) => sum + share, 0)) / Math.max(1, shares.length));
}

// How far predictions were off where that was measured. It is measured for a straight line, so it says nothing of a run
// that only a schedule decides, which predicts otherwise, and of one that predicted nothing.
function measuredErrors({ totals: { reused, skipped, partial }, policies, evaluations }) {
  if (!(reused || skipped || partial) || policies.every((policy) => policy.technique === "schedule")) return [];
  return evaluations.flatMap((e) => e.measured_error).filter((error) => error !== null);
}

export function details(record) {
  const errors = measuredErrors(record);
  const parts = [
    word("sampler_on", { sampler: record.sampler, family: family(record.family) }),
    word("cache", { mib: (record.bytes / 2 ** 20).toFixed(1) }),
  ];
  if (errors.length) {
    const mean = errors.reduce((sum, error) => sum + error, 0) / errors.length;
    parts.push(word("mean_error", { error: mean.toFixed(3) }));
  }
  return parts.join(word("comma"));
}

// Hover text of a cell.
export function hover(evaluation, image) {
  const share = evaluation.token_share[image];
  const what = share > 0 && share < 1
    ? word("partial_share", { percent: Math.round(100 * share) })
    : word(MODES[evaluation.modes[image]]);
  const lines = [
    word("evaluation", { number: evaluation.index + 1, sigma: evaluation.sigma.toPrecision(3), what }),
  ];
  const density = evaluation.density[image];
  if (density !== undefined && density < 1) lines.push(word("density", { density }));
  for (const name of ["error_estimate", "measured_error"]) {
    const error = evaluation[name][image];
    if (error !== null) lines.push(word(name, { error: error.toPrecision(2) }));
  }
  return [...lines, ...evaluation.reasons.map((one) => word("reason", { reason: reason(one) }))].join("\n");
}

export function cell(evaluation, image) {
  const mode = evaluation.modes[image];
  const density = evaluation.density[image];
  const made = element("div", `cell ${mode}`);
  made.dataset.share = evaluation.token_share[image];
  if (mode === "run") made.style.background = colour(evaluation.token_share[image]);
  if (density !== undefined && density < 1) made.classList.add("thin");
  if (evaluation.reasons.length) made.classList.add("fallback");
  made.title = hover(evaluation, image);
  return made;
}

export function rows(record) {
  const images = Math.min(record.shape[0], ROWS);
  return Array.from({ length: images }, (_, image) => {
    const row = element("div", "row");
    row.append(...record.evaluations.map((evaluation) => cell(evaluation, image)));
    return row;
  });
}

export function legend(record) {
  const made = element("div", "legend");
  const entry = (place, name, share) => {
    const mark = element("span", `cell ${name}`);
    if (share !== undefined) mark.style.background = colour(share);
    const line = element("span", "", word(place));
    line.prepend(mark);
    made.append(line);
  };
  const any = (test) => record.evaluations.some(test);
  entry("computed", "run", 1);
  if (record.totals.partial) entry("legend_partial", "run", 0.3);
  if (record.totals.reused) entry("reused", "reuse");
  if (record.totals.skipped) entry("legend_skipped", "skip");
  if (any((e) => e.density.some((d) => d < 1))) entry("legend_sparse", "run thin", 1);
  if (any((e) => e.reasons.length)) entry("legend_reason", "fallback");
  return made;
}

// What the colours of a map mean, as a strip from never to always.
export function mapLegend() {
  const made = element("div", "legend map-legend");
  const strip = element("span", "strip");
  strip.style.background = `linear-gradient(to right, ${SCALE.map((c) => `rgb(${c.join(", ")})`).join(", ")})`;
  made.append(element("span", "", word("map_never")), strip, element("span", "", word("map_always")));
  return made;
}

// Reasons of full evaluations with how often each was given, then notes.
export function remarks(record) {
  const counts = new Map();
  for (const one of record.evaluations.flatMap((e) => e.reasons.map(reason))) {
    counts.set(one, (counts.get(one) ?? 0) + 1);
  }
  const reasons = [...counts].map(([one, number]) => word("reason_times", { number, reason: one }));
  const images = record.shape[0];
  const more = images > ROWS ? [word("first_images", { number: ROWS, images })] : [];
  return [...reasons, ...record.notes.map(reason), ...more];
}
