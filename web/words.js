// Words of the report in the page's language, out of locales/<language>/main.json, which ComfyUI
// serves to the page. Names in braces are replaced by values.

import { api } from "../../scripts/api.js";

let tables = {};
let language = "en";

// Fetched once, before the first report is shown.
const loaded = api.fetchApi("/i18n").then((answer) => answer.json()).then(
  (all) => { tables = all; },
  (error) => console.warn("RAPID: no words of the report:", error),
);

export function loadWords() {
  return loaded;
}

export function speak(locale) {
  language = tables[locale]?.rapid ? locale : "en";
}

function find(place) {
  const names = place.split(".");
  const inside = (table) => names.reduce((words, name) => words?.[name], table?.rapid);
  return inside(tables[language]) ?? inside(tables.en);
}

function fill(text, params) {
  return text.replace(/\{(\w+)\}/g, (all, name) => (name in params ? shown(params[name]) : all));
}

function shown(value) {
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  return value?.code ? reason(value) : String(value);
}

// Words by their place, such as "copied" or "status.failed"; the place itself where there are none.
export function word(place, params = {}) {
  return fill(find(place.includes(".") ? place : `report.${place}`) ?? place, params);
}

// A reason or note of a record: {code, params, text}, or a sentence in English of version 1.
export function reason(given) {
  if (typeof given === "string") return given;
  const text = find(`reasons.${given.code}`);
  return text === undefined ? given.text : fill(text, given.params ?? {});
}

// A title of a template; itself where there are no words.
export function title(text) {
  return find(`titles.${text}`) ?? text;
}

// A choice of an input, with its value behind it; the value itself where there are no words.
export function choice(value) {
  const here = find(`choices.${value}`);
  return here === undefined || here === value ? String(value ?? "") : `${here} (${value})`;
}

// The line on a node in the page's language. The server says it in English, part by part as `line` in the table has it.
export function line(text) {
  const [english, here] = [tables.en?.rapid?.line ?? {}, tables[language]?.rapid?.line ?? {}];
  return text.split(" · ").map((part) => said(part, english, here) ?? part).join(" · ");
}

function said(part, english, here) {
  for (const [name, words] of Object.entries(english)) {
    const names = [...words.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
    const pattern = words.split(/\{\w+\}/).map((text) => text.replace(/[.*+?^$()|[\]\\]/g, "\\$&")).join("(\\S+(?: \\S+)??)");
    const found = part.match(new RegExp(`^${pattern}$`));
    if (found) return fill(here[name] ?? words, Object.fromEntries(names.map((one, i) => [one, found[i + 1]])));
  }
  return undefined;
}

const UNVERIFIED = " (unverified)";

// A model family as a record names it.
export function family(name) {
  if (!name.endsWith(UNVERIFIED)) return name;
  return word("unverified", { family: name.slice(0, -UNVERIFIED.length) });
}
