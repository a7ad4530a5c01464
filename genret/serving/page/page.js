// The page: reads its address, asks the retrievers, shows what they find.

import { Problem, forget, get, retrieve } from "./api.js";
import { byId, counted, element } from "./elements.js";
import { buildPanel, predicate, showFilters, spoken } from "./filters.js";
import { answerColumn, crossReference, legend, problemColumn, waitingColumn } from "./hits.js";
import { handleKeys, rove } from "./keys.js";
import { closePassage, openPassage } from "./passage.js";
import { remedy } from "./remedies.js";
import { formatState, parseState, withoutEmpty } from "./state.js";
import { stems } from "./words.js";

let state = parseState(location.search);
let service = { retrievers: [], fields: [], info: null };
let asking = new AbortController();
let waiting = 0;

// --- the service ---

async function start() {
  notice("Opening…", "The page asks the server which retrievers it has.");
  try {
    const [retrievers, fields, info] = await Promise.all(["v1/retrievers", "v1/fields", "v1/info"].map((path) => get(path)));
    service = { retrievers, fields, info };
  } catch (problem) {
    noticeOf(problem, start);
    return;
  }
  describe(service.info);
  buildRetrievers();
  buildPanel(service.fields, () => state.filters, filtersChanged);
  byId("legend").replaceChildren(...legend());
  show();
}

function describe({ run, version, passages, limits }) {
  byId("about").replaceChildren(
    element("span", { class: "run" }, run),
    element("span", {}, counted(passages, "passage")),
    element("span", { class: "version" }, version),
  );
  byId("query").maxLength = limits.max_query_characters;
  for (const option of [...byId("k").options]) if (Number(option.value) > limits.max_k) option.remove();
}

function buildRetrievers() {
  const pills = service.retrievers.map(({ name, kind }) =>
    element(
      "label", { class: "pill", title: kind },
      element("input", { type: "checkbox", name: "retriever", value: name, onchange: retrieversChanged }), name,
    ),
  );
  byId("retrievers").replaceChildren(byId("retrievers").firstElementChild, ...pills);
}

function chosen() {
  const wanted = service.retrievers.filter(({ name }) => state.retrievers?.includes(name));
  return wanted.length > 0 ? wanted : service.retrievers;
}

// --- the state ---

/** Go on to another state: a new place in the history, and what it shows. */
function move(change) {
  state = { ...state, ...change };
  state.filters = withoutEmpty(state.filters);
  history.pushState(null, "", location.pathname + formatState(state));
  show();
}

function show() {
  document.title = state.query ? `${state.query} · genret` : "genret";
  byId("query").value = state.query;
  choose(byId("k"), String(state.k), String(state.k));
  choose(byId("limit"), state.limit, `${state.limit} s`);
  byId("tokens").checked = state.tokens;
  const names = chosen().map(({ name }) => name);
  for (const box of byId("retrievers").querySelectorAll("input")) box.checked = names.includes(box.value);
  showFilters(state.filters, filtersChanged);
  byId("printed").textContent = spoken(state.filters).map(({ name, text }) => `${name}: ${text}`).join(" · ");
  if (state.passage) openPassage(state.passage, stems(state.query));
  else closePassage();
  ask();
}

/** Select a value, which joins the list if it came from a link. */
function choose(select, value, label) {
  if (![...select.options].some((option) => option.value === value)) select.append(new Option(label, value));
  select.value = value;
}

function filtersChanged() {
  move({});
}

function retrieversChanged() {
  const names = [...byId("retrievers").querySelectorAll("input:checked")].map((box) => box.value);
  const all = names.length === service.retrievers.length || names.length === 0;
  move({ retrievers: all ? null : names });
}

// --- asking ---

let shown = "";

function ask() {
  const questions = state.query.trim() ? chosen().map((retriever) => ({ retriever, question: questionFor(retriever) })) : [];
  // Opening a passage changes the address, but no question.
  const wanted = JSON.stringify(questions);
  if (questions.length > 0 && wanted === shown) return;
  shown = wanted;
  asking.abort();
  asking = new AbortController();
  if (questions.length === 0) {
    welcome();
    return;
  }
  byId("notice").hidden = true;
  byId("columns").replaceChildren(...questions.map(({ retriever }) => waitingColumn(retriever)));
  byId("columns").dataset.count = questions.length;
  fit();
  byId("copy-button").hidden = navigator.clipboard === undefined;
  byId("status").textContent = "Searching…";
  byId("legend").hidden = true;
  buildTabs();
  waiting = questions.length;
  for (const { retriever, question } of questions) askOne(retriever, question, asking.signal);
}

function questionFor(retriever) {
  const filter = predicate(state.filters, service.fields);
  return {
    query: state.query.trim(),
    k: state.k,
    retriever: retriever.name,
    ...(filter ? { filter } : {}),
    ...(state.limit ? { timeout: Number(state.limit) } : {}),
    ...(state.tokens && retriever.explain ? { explain: true } : {}),
  };
}

async function askOne(retriever, question, signal) {
  let made;
  try {
    if (question.filter && !retriever.filters) throw new Problem("This retriever takes no filters.", { status: 422 });
    const { body, milliseconds } = await retrieve(question, signal);
    made = answerColumn(retriever, body, milliseconds, { stems: stems(state.query), nothing, open: (id) => move({ passage: id }) });
  } catch (problem) {
    if (signal.aborted) return;
    if (!(problem instanceof Problem)) console.error(problem);
    made = problemColumn(retriever, remedy(problem, () => askAgain(retriever, question, signal), unfiltered()));
  }
  if (signal.aborted) return;
  replaceColumn(retriever, made);
  waiting -= 1;
  if (waiting === 0) finished();
}

function askAgain(retriever, question, signal) {
  if (signal.aborted) return;
  replaceColumn(retriever, waitingColumn(retriever));
  waiting += 1;
  askOne(retriever, question, signal);
}

function replaceColumn(retriever, made) {
  const columns = byId("columns");
  const old = [...columns.children].find((column) => column.dataset.retriever === retriever.name);
  const hadFocus = old.contains(document.activeElement);
  old.replaceWith(made);
  for (const item of made.querySelectorAll(".hit")) foldable(item);
  watchTabs();
  if (hadFocus) made.querySelector(".hit, button")?.focus();
}

function finished() {
  const columns = byId("columns");
  const compared = crossReference(columns, (item) => item.focus());
  const told = [...columns.children].map((column) => {
    const hits = column.querySelectorAll(".hit").length;
    const failed = column.querySelector(".badge.failed") !== null;
    return `${column.dataset.retriever} ${failed ? "gave no answer" : `found ${hits}`}`;
  });
  byId("status").replaceChildren(compared, element("span", { class: compared ? "hidden" : "" }, ` ${told.join(", ")}`));
  byId("legend").hidden = columns.querySelector(".token") === null;
  rove(columns);
}

/** A passage whose text does not fit gets a button for the rest of it. */
function foldable(item) {
  const button = item.querySelector(".more");
  button.addEventListener("click", () => unfold(item));
}

function unfold(item) {
  const open = item.classList.toggle("unfolded");
  const button = item.querySelector(".more");
  button.setAttribute("aria-expanded", String(open));
  button.textContent = open ? "less" : "more";
}

// --- what is there when there is nothing to show ---

function welcome() {
  byId("columns").replaceChildren();
  byId("status").textContent = "";
  for (const id of ["legend", "tabs", "copy-button"]) byId(id).hidden = true;
  const names = service.retrievers.map(({ name }) => name).join(", ");
  notice(
    "Ask something, and see who finds what",
    `The same query goes to ${service.retrievers.length === 1 ? names : `${service.retrievers.length} retrievers (${names})`}, ` +
      `over ${counted(service.info.passages, "passage")}. Each column shows what one of them found, how sure it was, and how long it took.`,
  );
}

/** What removes the filters; null where there are none. */
function unfiltered() {
  return state.filters.size > 0 ? () => move({ filters: new Map() }) : null;
}

function nothing(retriever) {
  const remove = unfiltered();
  return element(
    "div", { class: "empty" },
    element("p", {}, remove ? "No passage that passes the filters was found." : "No passage was found."),
    remove
      ? element("button", { type: "button", onclick: remove }, "Remove the filters")
      : element("p", {}, retriever.kind === "bm25" ? "No passage has a word of the query: try others." : "Try other words."),
  );
}

function notice(title, text, ...more) {
  byId("notice").replaceChildren(element("h2", {}, title), element("p", {}, text), ...more);
  byId("notice").hidden = false;
}

function noticeOf(problem, again) {
  byId("status").textContent = problem.message;
  byId("notice").replaceChildren(remedy(problem, again, null));
  byId("notice").hidden = false;
}

// --- one column at a time, where there is no room for all ---

const NARROWEST_COLUMN = 250;
let watcher = null;

/** Whether all columns have room; else they are swiped, with tabs above them. */
function fit() {
  const columns = byId("columns");
  const swiped = columns.clientWidth < columns.children.length * NARROWEST_COLUMN;
  for (const part of [columns, byId("tabs")]) part.classList.toggle("swiped", swiped);
}

function buildTabs() {
  const columns = byId("columns");
  const tabs = [...columns.children].map(({ dataset: { retriever } }) =>
    element(
      "button",
      { type: "button", "data-retriever": retriever, onclick: () => columns.querySelector(`[data-retriever="${CSS.escape(retriever)}"]`).scrollIntoView({ block: "nearest", inline: "start" }) },
      retriever,
    ),
  );
  byId("tabs").replaceChildren(...tabs);
  byId("tabs").hidden = tabs.length < 2;
  watchTabs();
}

function watchTabs() {
  watcher?.disconnect();
  watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const tab = [...byId("tabs").children].find((button) => button.dataset.retriever === target.dataset.retriever);
        tab?.setAttribute("aria-current", String(isIntersecting));
      }
    },
    { root: byId("columns"), threshold: 0.01, rootMargin: "1000000px -40% 1000000px -40%" },
  );
  for (const column of byId("columns").children) watcher.observe(column);
}

// --- wiring ---

byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = byId("query").value.trim();
  if (query === state.query && query) {
    forget();
    shown = "";
    show();
  } else {
    move({ query, passage: "" });
  }
});
byId("k").addEventListener("change", (event) => move({ k: Number(event.target.value) }));
byId("limit").addEventListener("change", (event) => move({ limit: event.target.value }));
byId("tokens").addEventListener("change", (event) => move({ tokens: event.target.checked }));
byId("filters-button").addEventListener("click", toggleFilters);
byId("help-button").addEventListener("click", () => byId("help").showModal());
byId("copy-button").addEventListener("click", copyLink);
byId("passage").addEventListener("close", () => {
  if (state.passage) move({ passage: "" });
});
new ResizeObserver(fit).observe(byId("results"));
window.addEventListener("popstate", () => {
  state = parseState(location.search);
  show();
});
// Where a finger points, the focus would bring up a keyboard over what the link is to show.
if (!state.query || matchMedia("(pointer: fine)").matches) byId("query").focus();

function toggleFilters() {
  const open = byId("filters").hidden;
  byId("filters").hidden = !open;
  byId("filters-button").setAttribute("aria-expanded", String(open));
  if (open) byId("filters").querySelector("input")?.focus();
}

async function copyLink() {
  await navigator.clipboard.writeText(location.href);
  byId("copy-button").textContent = "Copied";
  setTimeout(() => {
    byId("copy-button").textContent = "Copy link";
  }, 1500);
}

handleKeys({ unfold, toggleFilters, toggleTokens: () => move({ tokens: !state.tokens }), open: (id) => move({ passage: id }) });
start();
