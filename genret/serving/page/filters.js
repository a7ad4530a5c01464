// Filters: from the metadata's fields to what a person can choose, and from that to a predicate.

import { byId, counted, element } from "./elements.js";
import { fieldFilter, withoutEmpty } from "./state.js";

const RANGES = { number: "number", date: "date" };

/**
 * The predicate of the request; null where nothing is held to anything. A field that the server did not name is text.
 * @param {Map<string, import("./state.js").FieldFilter>} filters
 * @param {Object[]} fields As `/v1/fields` names them.
 */
export function predicate(filters, fields) {
  const parts = [];
  for (const [name, filter] of withoutEmpty(filters)) {
    const field = fields.find((other) => other.name === name);
    const type = field?.type;
    if (filter.values.length > 0) {
      parts.push({ field: name, in: filter.values.map((value) => typed(value, field)) });
    }
    const range = {};
    if (filter.from) range.gte = type === "number" ? Number(filter.from) : filter.from;
    if (filter.to) Object.assign(range, lastBound(filter.to, type));
    if (Object.keys(range).length > 0) parts.push({ field: name, range });
  }
  if (parts.length === 0) return null;
  return parts.length === 1 ? parts[0] : { and: parts };
}

/** All filters in words, for chips and paper. */
export function spoken(filters) {
  return [...withoutEmpty(filters)].map(([name, filter]) => {
    const bounds = [filter.from && `from ${filter.from}`, filter.to && `to ${filter.to}`].filter(Boolean).join(" ");
    return { name, text: [filter.values.join(" or "), bounds].filter(Boolean).join(", ") };
  });
}

/**
 * Build the panel.
 * @param {Object[]} fields As `/v1/fields` names them.
 * @param {() => Map} filters The present ones, which the panel changes.
 * @param {() => void} changed Called after each change.
 */
export function buildPanel(fields, filters, changed) {
  const panel = byId("filters");
  panel.replaceChildren(...fields.map((field) => fieldset(field, filters, changed)));
  byId("filters-button").hidden = fields.length === 0;
}

/** Show the present filters in the panel, on its button and as chips. */
export function showFilters(filters, changed) {
  for (const control of byId("filters").querySelectorAll("[data-field]")) {
    const filter = filters.get(control.dataset.field);
    if (control.type === "checkbox") control.checked = filter?.values.includes(control.value) ?? false;
    else control.value = filter?.[control.dataset.bound] ?? "";
  }
  const chips = spoken(filters).map(({ name, text }) => chip(name, text, filters, changed));
  byId("applied").replaceChildren(...chips);
  byId("applied").hidden = chips.length === 0;
  byId("filters-button").replaceChildren(
    "Filters", ...(chips.length > 0 ? [" ", element("span", { class: "count" }, String(chips.length))] : []),
  );
}

function fieldset(field, filters, changed) {
  const made = element("fieldset", { class: "field" }, element("legend", {}, field.name));
  made.append(field.type in RANGES ? range(field, filters, changed) : choices(field, filters, changed));
  return made;
}

function choices(field, filters, changed) {
  const choose = (event) => {
    const filter = fieldFilter(filters(), field.name);
    const others = filter.values.filter((value) => value !== event.target.value);
    filter.values = event.target.checked ? [...others, event.target.value] : others;
    changed();
  };
  const list = element("div", { class: "choices" }, ...field.values.map(({ value, count }) => choice(field, value, count, choose)));
  const hidden = field.distinct - field.values.length;
  return hidden > 0 ? element("div", {}, list, another(field, hidden, filters, changed)) : list;
}

function choice(field, value, count, choose) {
  return element(
    "label", { class: "choice" },
    element("input", { type: "checkbox", value: String(value), "data-field": field.name, onchange: choose }),
    element("span", { class: "value", dir: "auto" }, String(value)),
    element("span", { class: "count" }, count.toLocaleString("en")),
  );
}

/** A box for a value that is not among the most frequent ones. */
function another(field, hidden, filters, changed) {
  const add = (event) => {
    // Enter in this box means this box, not the search.
    if (event.key !== "Enter") return;
    event.preventDefault();
    const value = event.target.value.trim();
    const filter = fieldFilter(filters(), field.name);
    if (value && !filter.values.includes(value)) filter.values.push(value);
    event.target.value = "";
    changed();
  };
  return element("input", {
    type: "text", class: "another", placeholder: `${counted(hidden, "other")}: type one, Enter`,
    "aria-label": `Another value of ${field.name}`, onkeydown: add,
  });
}

function range(field, filters, changed) {
  const bound = (name, placeholder) =>
    element(
      "label", { class: "bound" }, name,
      element("input", {
        type: RANGES[field.type], step: field.type === "number" ? "any" : null, placeholder,
        min: field.minimum, max: field.maximum,
        "data-field": field.name, "data-bound": name, "aria-label": `${field.name} ${name}`,
        onchange: (event) => {
          fieldFilter(filters(), field.name)[name] = event.target.value;
          changed();
        },
      }),
    );
  return element("div", { class: "range" }, bound("from", field.minimum), bound("to", field.maximum));
}

function chip(name, text, filters, changed) {
  const remove = () => {
    filters.delete(name);
    changed();
  };
  return element(
    "li", {},
    element(
      "button", { type: "button", class: "chip", "aria-label": `Remove the filter ${name}: ${text}`, onclick: remove },
      element("span", { class: "name" }, name), " ", element("span", { dir: "auto" }, text),
      element("span", { class: "cross", "aria-hidden": "true" }, "×"),
    ),
  );
}

/** What stands in the metadata for what stands in an address or a box, which is always text. */
function typed(value, field) {
  const frequent = field?.values.find((known) => String(known.value) === value);
  if (frequent) return frequent.value;
  if (field?.type === "number") return Number(value);
  return field?.type === "boolean" ? value === "true" : value;
}

/** A date without a time is its first moment; "to" a day means the whole of it. */
function lastBound(value, type) {
  if (type === "number") return { lte: Number(value) };
  if (!/^\d{4}-\d{2}-\d{2}$/.test(value)) return { lte: value };
  const next = new Date(`${value}T00:00:00Z`);
  next.setUTCDate(next.getUTCDate() + 1);
  return { lt: next.toISOString().slice(0, 10) };
}
