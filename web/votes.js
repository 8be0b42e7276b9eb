// Votes of blind comparisons, kept in this browser by node: one for each pair of pictures. No side effects on import.

import { graphOf } from "./storage.js";

const VOTES = "rapid.votes:";
const MOST_VOTES = 1000; // of one node
const Z = 1.96; // of a 95 % interval

const unkept = new WeakMap(); // of nodes whose votes the browser does not keep

function boxOf(node) {
  const graph = graphOf(node);
  return graph && `${VOTES}${graph}:${node.id}`;
}

// Fingerprint of a pair -> "a", "b" or "same".
export function votesOf(node) {
  if (unkept.has(node)) return unkept.get(node);
  const box = boxOf(node);
  try {
    return (box && JSON.parse(localStorage.getItem(box))) || {};
  } catch {
    return {}; // pages may be denied a storage
  }
}

export function keepVote(node, pair, choice) {
  const { [pair]: _, ...others } = votesOf(node);
  put(node, Object.fromEntries([...Object.entries(others), [pair, choice]].slice(-MOST_VOTES)));
}

export function noVotes(node) {
  put(node, {});
}

function put(node, votes) {
  const box = boxOf(node);
  unkept.set(node, votes);
  try {
    if (!box) return; // the graph has no id of its own
    localStorage.setItem(box, JSON.stringify(votes));
    unkept.delete(node);
  } catch {
    // The browser's room is used up: they last until the page is closed.
  }
}

// How often each was chosen, the share of b among those that were decided, and its interval (Wilson's, 95 %).
export function tally(votes) {
  const chosen = Object.values(votes);
  const [a, b, same] = ["a", "b", "same"].map((choice) => chosen.filter((one) => one === choice).length);
  return { a, b, same, ...wilson(b, a + b) };
}

export function wilson(chosen, all) {
  if (!all) return { share: null, low: null, high: null };
  const share = chosen / all;
  const middle = (share + Z ** 2 / (2 * all)) / (1 + Z ** 2 / all);
  const half = (Z / (1 + Z ** 2 / all)) * Math.sqrt((share * (1 - share)) / all + Z ** 2 / (4 * all ** 2));
  return { share, low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}
