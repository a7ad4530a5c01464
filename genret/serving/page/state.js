// What the page shows, as the query string of its address: a link is all that is needed to see the same.

export const DEFAULT_K = 10;
const MOST_K = 1000;

/**
 * @typedef {Object} FieldFilter What one metadata field is held to.
 * @property {string[]} values One of these; none: any.
 * @property {string} from Not before this; empty: no bound.
 * @property {string} to Not after this; empty: no bound.
 *
 * @typedef {Object} State
 * @property {string} query
 * @property {string[]|null} retrievers By name; null: all of them.
 * @property {number} k
 * @property {string} limit Seconds; empty: none.
 * @property {boolean} tokens Whether identifiers are explained.
 * @property {Map<string, FieldFilter>} filters By field.
 * @property {string} passage The id of the one that is open; empty: none.
 */

/** Read a state from a query string; what makes no sense is as if it were not there. */
export function parseState(search) {
  const parameters = new URLSearchParams(search);
  const k = Number(parameters.get("k"));
  const limit = Number(parameters.get("limit"));
  const names = (parameters.get("r") ?? "").split(",").filter(Boolean);
  return {
    query: parameters.get("q") ?? "",
    retrievers: names.length > 0 ? names : null,
    k: Number.isInteger(k) && k >= 1 && k <= MOST_K ? k : DEFAULT_K,
    limit: limit > 0 && Number.isFinite(limit) ? String(limit) : "",
    tokens: parameters.get("tokens") !== "0",
    filters: parseFilters(parameters),
    passage: parameters.get("passage") ?? "",
  };
}

/** Write a state as a query string, with nothing in it that goes without saying. */
export function formatState(state) {
  const parameters = new URLSearchParams();
  if (state.query) parameters.set("q", state.query);
  if (state.retrievers) parameters.set("r", state.retrievers.join(","));
  if (state.k !== DEFAULT_K) parameters.set("k", state.k);
  if (state.limit) parameters.set("limit", state.limit);
  if (!state.tokens) parameters.set("tokens", "0");
  for (const [field, filter] of state.filters) {
    for (const value of filter.values) parameters.append(`in.${field}`, value);
    if (filter.from) parameters.set(`from.${field}`, filter.from);
    if (filter.to) parameters.set(`to.${field}`, filter.to);
  }
  if (state.passage) parameters.set("passage", state.passage);
  const text = parameters.toString();
  return text ? `?${text}` : "";
}

/** The filter of a field, which is put there if it is missing. */
export function fieldFilter(filters, field) {
  if (!filters.has(field)) filters.set(field, { values: [], from: "", to: "" });
  return filters.get(field);
}

/** A copy without the fields that are not held to anything. */
export function withoutEmpty(filters) {
  return new Map(
    [...filters]
      .filter(([, filter]) => filter.values.length > 0 || filter.from || filter.to)
      .map(([field, filter]) => [field, { ...filter, values: [...filter.values] }]),
  );
}

function parseFilters(parameters) {
  const filters = new Map();
  for (const [name, value] of parameters) {
    const dot = name.indexOf(".");
    const [kind, field] = [name.slice(0, dot), name.slice(dot + 1)];
    if (dot < 0 || !field) continue;
    if (kind === "in") fieldFilter(filters, field).values.push(value);
    else if (kind === "from" || kind === "to") fieldFilter(filters, field)[kind] = value;
  }
  return withoutEmpty(filters);
}
