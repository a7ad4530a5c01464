// Columns of results: one a retriever, with its passages, scores and identifiers.

import { counted, element, readableMilliseconds, readableNumber, readableProbability } from "./elements.js";
import { excerpt, segments } from "./words.js";

const EXCERPT_CHARACTERS = 280;
const TOKEN_STEPS = [
  { least: 0.9, name: "sure", label: "≥ 90%" },
  { least: 0.5, name: "likely", label: "≥ 50%" },
  { least: 0.2, name: "open", label: "≥ 20%" },
  { least: 0.05, name: "unlikely", label: "≥ 5%" },
  { least: 0, name: "remote", label: "below" },
];

/** What the colours of the tokens mean. */
export function legend() {
  return [
    element("span", { title: "Of a token of the identifier, given the query and the tokens before it" }, "Token probability"),
    ...TOKEN_STEPS.map(({ name, label }) => element("span", { class: `token ${name}` }, label)),
  ];
}

/** A column that waits for its answer. */
export function waitingColumn(retriever) {
  return column(retriever, [element("span", { class: "latency" }, "searching…")], [], { "aria-busy": "true" });
}

/** A column with what a retriever found. */
export function answerColumn(retriever, answer, milliseconds, context) {
  const { hits } = answer.results[0];
  const facts = [exactness(answer.results[0]), latency(answer.timing_ms, milliseconds)];
  if (hits.length === 0) return column(retriever, facts, [context.nothing(retriever)]);
  const list = element("ol", { class: "hits", "aria-label": `Passages by ${retriever.name}` });
  list.append(...hits.map((hit) => hitItem(hit, retriever, context)));
  return column(retriever, facts, [list]);
}

/** A column whose question failed: what happened, and what can be done. */
export function problemColumn(retriever, content) {
  return column(retriever, [element("span", { class: "badge failed" }, "no answer")], [content]);
}

/** The tokens of an identifier, coloured by their probability. */
export function tokenLine(hit) {
  if (!hit.tokens) {
    return hit.identifier ? element("p", { class: "identifier", dir: "auto" }, hit.identifier) : null;
  }
  const tokens = hit.tokens.map(({ token, logprob }) => {
    const probability = Math.exp(logprob);
    const step = TOKEN_STEPS.find(({ least }) => probability >= least) ?? TOKEN_STEPS.at(-1);
    const told = `${readableProbability(probability)}, log-probability ${readableNumber(logprob)}`;
    return element(
      "span", { class: `token ${step.name}`, title: told },
      element("span", { class: "piece", dir: "auto" }, token.trim() || "␣"),
      element("span", { class: "hidden" }, ` (${readableProbability(probability)}) `),
      element("span", { class: "figure", "aria-hidden": "true" }, readableNumber(logprob, 2)),
    );
  });
  return element("p", { class: "identifier" }, element("span", { class: "hidden" }, "Identifier: "), ...tokens);
}

/** Metadata as pairs; addresses of the web become links. */
export function metadataList(metadata, className) {
  return element(
    "dl", { class: className },
    ...Object.entries(metadata).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", { dir: "auto" }, metadataValue(value))),
    ),
  );
}

/** Text in which the words of the query are marked. */
export function marked(text, stems) {
  return segments(text, stems).map((part) => (part.marked ? element("mark", {}, part.text) : part.text));
}

/** A title in which the words of the query are marked, and which may break after a dot or the like in a long name. */
export function markedTitle(title, stems) {
  return segments(title, stems).flatMap(({ text, marked: isMarked }) => {
    const pieces = text.split(/(?<=[._/(,:-])(?=\w)/).flatMap((piece) => [piece, element("wbr")]);
    // A mark's end is an end of a word: no break there, unless what comes next allows it.
    pieces.pop();
    return isMarked ? element("mark", {}, ...pieces) : endsOpen(text) ? [...pieces, element("wbr")] : pieces;
  });
}

function endsOpen(text) {
  return /[._/(,:-]$/.test(text);
}

function column(retriever, facts, content, attributes = {}) {
  const heading = `retriever-${retriever.name}`;
  return element(
    "section",
    { class: "column", "data-retriever": retriever.name, "aria-labelledby": heading, ...attributes },
    element(
      "header", {},
      element("h2", { id: heading }, retriever.name),
      retriever.kind === retriever.name ? null : element("span", { class: "kind" }, retriever.kind),
      ...facts,
    ),
    ...content,
  );
}

function exactness({ exact, timed_out: timedOut }) {
  if (exact) return element("span", { class: "badge exact", title: "No better passage can exist" }, "exact");
  if (timedOut) {
    return element("span", { class: "badge cut", title: "The time limit ended the search: the best by then" }, "cut short");
  }
  return element("span", { class: "badge", title: "A search that may miss a better passage, such as a beam’s" }, "inexact");
}

function latency(timing, milliseconds) {
  const stages = Object.entries(timing).map(([stage, time]) => `${stage} ${readableMilliseconds(time)}`);
  const told = [...stages, `with the network ${readableMilliseconds(milliseconds)}`].join("\n");
  return element("span", { class: "latency", title: told }, readableMilliseconds(timing.total ?? milliseconds));
}

function hitItem(hit, retriever, context) {
  const head = element(
    "div", { class: "hit-head" },
    element("span", { class: "rank" }, String(hit.rank)),
    element("h3", { dir: "auto" }, ...markedTitle(hit.title || hit.passage_id, context.stems)),
    element("span", { class: "score", title: scoreTold(hit, retriever) }, readableNumber(hit.score)),
  );
  const short = excerpt(hit.text, context.stems, EXCERPT_CHARACTERS);
  const item = element(
    "li",
    { class: "hit", tabindex: "-1", "data-passage": hit.passage_id, "data-rank": hit.rank },
    head,
    tokenLine(hit),
    element("p", { class: "text short", dir: "auto" }, ...marked(short, context.stems)),
    element("p", { class: "text full", dir: "auto" }, ...marked(hit.text, context.stems)),
    metadataList(hit.metadata, "metadata"),
    foot(hit, context),
  );
  item.classList.toggle("whole", short === hit.text.trim());
  return item;
}

function foot(hit, context) {
  return element(
    "div", { class: "foot" },
    element(
      "button", { type: "button", class: "open", tabindex: "-1", title: "Open the passage", onclick: () => context.open(hit.passage_id) },
      hit.passage_id,
    ),
    element("span", { class: "elsewhere" }),
    element("button", { type: "button", class: "more", tabindex: "-1", "aria-expanded": "false" }, "more"),
  );
}

function scoreTold(hit, retriever) {
  if (retriever.kind !== "generative") return "Scores compare within one retriever and one query only";
  return `log P(identifier | query); P = ${readableProbability(Math.exp(hit.score))}`;
}

function metadataValue(value) {
  if (Array.isArray(value)) return value.map(String).join(", ");
  const text = value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);
  if (!/^https?:\/\//.test(text)) return text;
  return element("a", { href: text, rel: "noopener noreferrer", target: "_blank" }, text);
}

/**
 * Say on each passage where the other columns have it, and count what they share.
 * @param {HTMLElement} columns
 * @param {(item: HTMLElement) => void} go Called with the passage to go to.
 * @returns {string} One sentence; empty where there is nothing to compare.
 */
export function crossReference(columns, go) {
  const places = new Map();
  for (const item of columns.querySelectorAll(".hit")) {
    const id = item.dataset.passage;
    if (!places.has(id)) places.set(id, []);
    places.get(id).push(item);
  }
  for (const items of places.values()) {
    for (const item of items) {
      const others = items.filter((other) => other !== item);
      item.querySelector(".elsewhere").replaceChildren(...others.map((other) => elsewhere(other, go)));
    }
  }
  const asked = columns.querySelectorAll(".column .hits").length;
  if (asked < 2) return "";
  const shared = [...places.values()].filter((items) => items.length === asked).length;
  return `${counted(places.size, "different passage")}, ${shared} found by ${asked === 2 ? "both" : `all ${asked}`}`;
}

function elsewhere(item, go) {
  const name = item.closest(".column").dataset.retriever;
  return element(
    "button",
    { type: "button", class: "place", tabindex: "-1", title: `Also found by ${name}, rank ${item.dataset.rank}`, onclick: () => go(item) },
    `${name} ${item.dataset.rank}`,
  );
}
