// What reports show, kept in this browser over a reload of the page. Not in the workflow: its undo steps, its file and
// the pictures that carry it would have a report of another run than theirs.

import { ROWS } from "./timeline.js";

const PREFIX = "rapid.report:";
const MOST = 30; // reports
const NOBODY = "00000000-0000-0000-0000-000000000000"; // id of graphs that have none of their own

// Id of a node's graph; undefined where it has none of its own.
export function graphOf(node) {
  const id = node.graph?.id;
  return id && id !== NOBODY ? id : undefined;
}

function place(graph, id) {
  return !graph || graph === NOBODY ? null : `${PREFIX}${graph}:${id}`;
}

// A record without what is large and not shown: token maps, and images beyond those that have a row.
export function smaller(record) {
  const evaluations = (record.evaluations ?? []).map((e) => {
    const cut = Object.entries(e).map(([name, value]) =>
      [name, Array.isArray(value) && name !== "reasons" ? value.slice(0, ROWS) : value]);
    return { ...Object.fromEntries(cut), tokens: [] };
  });
  return { ...record, evaluations };
}

// Keep what the report of a graph (its id) and a node shows.
export function store(graph, id, shown) {
  const key = place(graph, id);
  try {
    if (key) localStorage.setItem(key, JSON.stringify({ at: Date.now(), ...shown }));
  } catch {
    forget(0); // the browser's room is used up: other things need it more
  }
}

// What a report showed last, or null.
export function stored(node) {
  const key = place(node.graph?.id, node.id);
  try {
    return (key && JSON.parse(localStorage.getItem(key))) || null;
  } catch {
    return null;
  }
}

// Add to the reports of a workflow that another run than theirs failed.
export function storeFailure(graph, run, failure) {
  for (const key of keys().filter((one) => one.startsWith(`${PREFIX}${graph}:`))) {
    try {
      const shown = JSON.parse(localStorage.getItem(key));
      if (shown.run !== run) localStorage.setItem(key, JSON.stringify({ ...shown, failure }));
    } catch {
      localStorage.removeItem(key); // cannot be read, or not be written
    }
  }
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return []; // pages may be denied a storage
  }
}

// Drop all but the latest reports.
export function forget(most = MOST) {
  const age = (key) => Number(localStorage.getItem(key).match(/"at":(\d+)/)?.[1] ?? 0);
  for (const key of keys().sort((a, b) => age(b) - age(a)).slice(most)) localStorage.removeItem(key);
}
