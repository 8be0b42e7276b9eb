// Records of all versions, read as one: what version 1 called otherwise gets the names of version 2.

const EVALUATION = {
  levels: "modes",
  share: "token_share",
  dense_cost: "full_cost",
  error: "error_estimate",
  measured: "measured_error",
  measures: "measured_density",
};
const TOTALS = {
  held: "skipped",
  dense_flops: "full_flops",
  speedup_allowed: "speedup_theoretical",
};
const OLD_MODES = { hold: "skip" };

function renamed(given, names) {
  return Object.fromEntries(Object.entries(given).map(([name, value]) => [names[name] ?? name, value]));
}

function newer(evaluation) {
  const given = renamed(evaluation, EVALUATION);
  return { ...given, modes: given.modes.map((mode) => OLD_MODES[mode] ?? mode) };
}

export function readRecord(record) {
  if (record.version !== 1) return record;
  return {
    ...record,
    totals: renamed(record.totals, TOTALS),
    evaluations: record.evaluations.map(newer),
  };
}
