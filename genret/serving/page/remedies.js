// A request that failed: what happened, and what a person can do about it.

import { forget, setKey } from "./api.js";
import { element } from "./elements.js";

/**
 * @param {import("./api.js").Problem} problem
 * @param {() => void} again Asks the same again.
 * @param {(() => void)|null} unfilter Removes the filters; null where there are none.
 * @returns {HTMLElement}
 */
export function remedy(problem, again, unfilter) {
  const told = element("div", { class: "problem", role: "alert" }, element("p", {}, problem.message), ...ways(problem, again, unfilter));
  if (problem.requestId) told.append(element("p", { class: "request" }, `request ${problem.requestId}`));
  return told;
}

function ways(problem, again, unfilter) {
  switch (problem.status) {
    case 0:
      return [element("p", {}, "See that genret serve is running and can be reached from here."), button("Try again", again)];
    case 401:
      return [element("p", {}, "The server asks for a key."), keyForm(again)];
    case 422:
      return [
        element("p", {}, problem.field ? `Change “${problem.field}” and search again.` : "Change what is asked and search again."),
        ...(unfilter ? [button("Remove the filters", unfilter)] : []),
      ];
    case 429:
    case 503:
      return [element("p", {}, "The server is busy."), countdown(problem.retryAfter || 1, again)];
    default:
      return [element("p", {}, "The server’s log says more under the number of the request."), button("Try again", again)];
  }
}

function button(text, onclick) {
  return element("button", { type: "button", onclick }, text);
}

function keyForm(again) {
  const input = element("input", {
    type: "password", autocomplete: "off", "aria-label": "API key", placeholder: "API key", required: true,
  });
  const accept = (event) => {
    event.preventDefault();
    setKey(input.value.trim());
    forget();
    again();
  };
  return element("form", { class: "key", onsubmit: accept }, input, element("button", {}, "Use this key"));
}

/** Ask again by itself as soon as the server said that one may, or earlier by hand. */
function countdown(seconds, again) {
  const waits = element("button", { type: "button" }, `Try again (in ${seconds} s)`);
  const end = performance.now() + seconds * 1000;
  const timer = setInterval(() => {
    const left = Math.ceil((end - performance.now()) / 1000);
    if (left > 0) waits.textContent = `Try again (in ${left} s)`;
    else go();
  }, 250);
  const go = () => {
    clearInterval(timer);
    if (waits.isConnected) again();
  };
  waits.addEventListener("click", go);
  return waits;
}
