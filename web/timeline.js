// What a rapid-record looks like: its totals in words, and one cell an evaluation. No side effects on import.

const WORDS = { run: "computed", reuse: "blocks reused", hold: "not computed" };
const ROWS = 8; // images of a batch that are shown

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
  const parts = [`${t.computed} of ${t.evaluations} evaluations computed`];
  if (t.partial) parts.push(`${t.partial} of them on part of the tokens`);
  if (t.reused) parts.push(`${t.reused} reused`);
  parts.push(`${t.held} left out`);
  if (t.speedup_allowed) parts.push(`${t.speedup_allowed.toFixed(2)}x by FLOPs`);
  if (t.speedup_measured) parts.push(`about ${t.speedup_measured.toFixed(2)}x by the clock`);
  return parts.join(", ");
}

export function details(record) {
  const measured = record.evaluations.flatMap((e) => e.measured).filter((m) => m !== null);
  const parts = [`${record.sampler} on ${record.family}`, `${record.seconds.toFixed(2)} s`,
    `cache ${(record.bytes / 2 ** 20).toFixed(1)} MiB`];
  if (measured.length) {
    const mean = measured.reduce((sum, m) => sum + m, 0) / measured.length;
    parts.push(`forecast error where measured ${mean.toFixed(3)}`);
  }
  return parts.join(", ");
}

// Hover text of a cell.
export function said(evaluation, image) {
  const share = evaluation.share[image];
  const partial = share > 0 && share < 1;
  const lines = [`evaluation ${evaluation.index + 1}, sigma ${evaluation.sigma.toPrecision(3)}: ` +
    (partial ? `computed ${Math.round(100 * share)} % of the tokens` : WORDS[evaluation.levels[image]])];
  const density = evaluation.density[image];
  if (density !== undefined && density < 1) lines.push(`attention at density ${density}`);
  if (evaluation.error[image] !== null) lines.push(`estimated forecast error ${evaluation.error[image].toPrecision(2)}`);
  if (evaluation.measured[image] !== null) {
    lines.push(`measured forecast error ${evaluation.measured[image].toPrecision(2)}`);
  }
  return [...lines, ...evaluation.reasons.map((reason) => `dense: ${reason}`)].join("\n");
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
    const line = element("span", "", text);
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
  for (const reason of record.evaluations.flatMap((e) => e.reasons)) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  const reasons = [...counts].map(([reason, n]) => `computed densely ${n} time${n > 1 ? "s" : ""}: ${reason}`);
  const more = record.shape[0] > ROWS ? [`the first ${ROWS} of ${record.shape[0]} images are shown`] : [];
  return [...reasons, ...record.notes, ...more];
}
