// The keyboard: one passage is in the tab order, arrows go to the others.

import { byId } from "./elements.js";

/** Make the first passage the one that Tab reaches; from then on it is the one that was last in focus. */
export function rove(columns) {
  const items = [...columns.querySelectorAll(".hit")];
  const reachable = items.find((item) => item === document.activeElement) ?? items[0];
  for (const item of items) reach(item, item === reachable);
}

/**
 * Listen to all keys of the page.
 * @param {{unfold: Function, toggleFilters: Function, toggleTokens: Function, open: Function}} actions
 */
export function handleKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const handled = writing(event.target) ? inBox(event) : inPage(event, actions);
    if (handled) event.preventDefault();
  });
  const columns = byId("columns");
  columns.addEventListener("focusin", (event) => focused(columns, event.target.closest(".hit")));
  columns.addEventListener("focusout", () => highlight(columns, null));
  columns.addEventListener("mouseover", (event) => highlight(columns, event.target.closest(".hit")));
  columns.addEventListener("mouseleave", () => highlight(columns, document.activeElement.closest(".hit")));
}

function writing(target) {
  return target.matches("input:not([type=checkbox]), select, textarea");
}

function inBox(event) {
  const query = byId("query");
  if (event.key === "Escape" && event.target !== query) return leave(event.target);
  if (event.target !== query) return false;
  if (event.key === "Escape" && query.value === "") return leave(query);
  return event.key === "ArrowDown" && focus(document.querySelector(".hit"));
}

function leave(target) {
  target.blur();
  return true;
}

function inPage(event, actions) {
  const item = event.target.closest(".hit");
  switch (event.key) {
    case "/":
      byId("query").select();
      return focus(byId("query"));
    case "?":
      byId("help").showModal();
      return true;
    case "f":
      return call(byId("filters-button").hidden ? null : actions.toggleFilters);
    case "t":
      return call(actions.toggleTokens);
    case "Escape":
      return call(byId("filters").hidden ? null : actions.toggleFilters);
    case "ArrowDown":
    case "ArrowUp":
    case "ArrowLeft":
    case "ArrowRight":
    case "Home":
    case "End":
      return item !== null && focus(neighbour(item, event.key));
    case "Enter":
      return item === event.target && call(() => actions.unfold(item));
    case "o":
      return item !== null && call(() => actions.open(item.dataset.passage));
    default:
      return false;
  }
}

function call(action) {
  action?.();
  return action !== null;
}

/** Where an arrow leads to; nowhere at the edges. */
function neighbour(item, key) {
  const column = item.closest(".column");
  switch (key) {
    case "ArrowDown":
      return item.nextElementSibling;
    case "ArrowUp":
      return item.previousElementSibling ?? byId("query");
    case "Home":
      return item.parentElement.firstElementChild;
    case "End":
      return item.parentElement.lastElementChild;
    default:
      return beside(column, key === "ArrowLeft" ? "previousElementSibling" : "nextElementSibling", item);
  }
}

/** The passage of the same rank in the next column that has passages, or its last. */
function beside(column, direction, item) {
  const place = [...item.parentElement.children].indexOf(item);
  for (let next = column[direction]; next !== null; next = next[direction]) {
    const items = next.querySelectorAll(".hit");
    if (items.length > 0) return items[Math.min(place, items.length - 1)];
  }
  return null;
}

function focus(target) {
  target?.focus();
  return Boolean(target);
}

function focused(columns, item) {
  if (item === null) return;
  for (const other of columns.querySelectorAll('.hit[tabindex="0"]')) reach(other, other === item);
  reach(item, true);
  highlight(columns, item);
}

/** Whether Tab reaches a passage, and the buttons in it. */
function reach(item, reachable) {
  const index = reachable ? "0" : "-1";
  item.tabIndex = index;
  for (const button of item.querySelectorAll("button")) button.tabIndex = index;
}

/** Show where the other retrievers have the same passage. */
function highlight(columns, item) {
  for (const other of columns.querySelectorAll(".hit")) {
    other.classList.toggle("same", item !== null && other !== item && other.dataset.passage === item.dataset.passage);
  }
}
