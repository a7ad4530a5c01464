// One passage by itself: all of it, under an address of its own.

import { get } from "./api.js";
import { byId, element } from "./elements.js";
import { marked, markedTitle, metadataList } from "./hits.js";

let opened = "";

/** Open a passage; nothing happens where it is open already. */
export async function openPassage(id, stems) {
  if (opened === id) return;
  opened = id;
  const dialog = byId("passage");
  fill(element("h2", { id: "passage-title" }, id), element("p", { class: "status" }, "loading…"));
  if (!dialog.open) dialog.showModal();
  try {
    const passage = await get(`v1/passages/${encodeURIComponent(id)}`);
    if (opened === id) fill(...content(passage, stems));
  } catch (problem) {
    const told = problem.status === 404 ? "There is no such passage: it may have been removed." : problem.message;
    if (opened === id) fill(element("h2", { id: "passage-title" }, id), element("p", { class: "problem" }, told));
  }
}

/** Close what is open. */
export function closePassage() {
  opened = "";
  if (byId("passage").open) byId("passage").close();
}

function fill(...children) {
  const close = element("button", { class: "plain close", "aria-label": "Close", autofocus: true }, "×");
  byId("passage").replaceChildren(element("form", { method: "dialog" }, close), ...children);
}

function content(passage, stems) {
  const ids = { passage: passage.passage_id, ...(passage.doc_id === passage.passage_id ? {} : { document: passage.doc_id }) };
  return [
    element("h2", { id: "passage-title", dir: "auto" }, ...markedTitle(passage.title || passage.passage_id, stems)),
    element("p", { class: "text", dir: "auto" }, ...marked(passage.text, stems)),
    metadataList({ ...passage.metadata, ...ids }, "metadata"),
  ];
}
