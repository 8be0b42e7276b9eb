// What a rapid-record looks like: its totals in words, and one cell an evaluation. No side effects on import.

import { sentence, word } from "./words.js";

const WORDS = { run: "computed", reuse: "blocks reused", hold: "not computed" };
export const ROWS = 8; // images of a batch that are shown

// Colours of the share of tokens that ran, from none to all: those of the map (rapid_core/heatmap.py).
const SCALE = [[26, 26, 89], [38, 115, 166], [89, 191, 115], [250, 230, 64]];

export function element(tag, name = "", text = "") {
  const found = document.createElement(tag);
  if (name) found.className = name;
  if (text) found.textContent = text;
  return found;
}

export function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  const mixed = SCALE[low].map((value, i) => Math.round(value + (SCALE[low + 1][i] - value) * (place - low)));
  return `rgb(${mixed.join(", ")})`;
}

export function totals(record) {
  const t = record.totals;
  const parts = [word("{0} of {1} evaluations computed", t.computed, t.evaluations)];
  if (t.partial) parts.push(word("{0} of them on part of the tokens", t.partial));
  if (t.reused) parts.push(word("{0} reused", t.reused));
  parts.push(word("{0} left out", t.held));
  if (t.speedup_allowed) parts.push(word("{0}x by FLOPs", t.speedup_allowed.toFixed(2)));
  if (t.speedup_measured) parts.push(word("about {0}x by the clock", t.speedup_measured.toFixed(2)));
  return parts.join(", ");
}

export function details(record) {
  const measured = record.evaluations.flatMap((e) => e.measured).filter((m) => m !== null);
  const parts = [word("{0} on {1}", record.sampler, sentence(record.family)), `${record.seconds.toFixed(2)} s`,
    word("cache {0} MiB", (record.bytes / 2 ** 20).toFixed(1))];
  if (measured.length) {
    const mean = measured.reduce((sum, m) => sum + m, 0) / measured.length;
    parts.push(word("forecast error where measured {0}", mean.toFixed(3)));
  }
  return parts.join(", ");
}

// Hover text of a cell.
export function said(evaluation, image) {
  const share = evaluation.share[image];
  const partial = share > 0 && share < 1;
  const what = partial ? word("computed {0} % of the tokens", Math.round(100 * share)) : word(WORDS[evaluation.levels[image]]);
  const lines = [word("evaluation {0}, sigma {1}: {2}", evaluation.index + 1, evaluation.sigma.toPrecision(3), what)];
  const density = evaluation.density[image];
  if (density !== undefined && density < 1) lines.push(word("attention at density {0}", density));
  if (evaluation.error[image] !== null) {
    lines.push(word("estimated forecast error {0}", evaluation.error[image].toPrecision(2)));
  }
  if (evaluation.measured[image] !== null) {
    lines.push(word("measured forecast error {0}", evaluation.measured[image].toPrecision(2)));
  }
  return [...lines, ...evaluation.reasons.map((one) => word("dense: {0}", sentence(one)))].join("\n");
}

export function cell(evaluation, image) {
  const level = evaluation.levels[image];
  const density = evaluation.density[image];
  const found = element("div", `cell ${level}`);
  found.dataset.share = evaluation.share[image];
  if (level === "run") found.style.background = colour(evaluation.share[image]);
  if (density !== undefined && density < 1) found.classList.add("thin");
  if (evaluation.reasons.length) found.classList.add("fallback");
  found.title = said(evaluation, image);
  return found;
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
  const found = element("div", "legend");
  const entry = (text, name, share) => {
    const mark = element("span", `cell ${name}`);
    if (share !== undefined) mark.style.background = colour(share);
    const line = element("span", "", word(text));
    line.prepend(mark);
    found.append(line);
  };
  const any = (test) => record.evaluations.some(test);
  entry("computed", "run", 1);
  if (record.totals.partial) entry("on part of the tokens", "run", 0.3);
  if (record.totals.reused) entry("blocks reused", "reuse");
  if (record.totals.held) entry("left out, forecast", "hold");
  if (any((e) => e.density.some((d) => d < 1))) entry("sparse attention (low cell)", "run thin", 1);
  if (any((e) => e.reasons.length)) entry("computed for a reason (hover)", "fallback");
  return found;
}

// Reasons of dense evaluations with how often each was given, then notes.
export function remarks(record) {
  const counts = new Map();
  for (const one of record.evaluations.flatMap((e) => e.reasons)) counts.set(one, (counts.get(one) ?? 0) + 1);
  const reasons = [...counts].map(([one, n]) => word("computed densely, {0} x: {1}", n, sentence(one)));
  const more = record.shape[0] > ROWS ? [word("the first {0} of {1} images are shown", ROWS, record.shape[0])] : [];
  return [...reasons, ...record.notes.map(sentence), ...more];
}
