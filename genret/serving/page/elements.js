// Elements without a line of HTML: text can only ever become text.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object<string, any>} attributes By name; `class`, and `onclick` and the like for listeners. What is null,
 *   undefined or false is left out.
 * @param {...(Node|string|null|undefined)} children Strings become text nodes.
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The element with this id, which the page's HTML has. */
export function byId(id) {
  return document.getElementById(id);
}

/** Seconds or milliseconds, as short as they can be read. */
export function readableMilliseconds(milliseconds) {
  if (milliseconds >= 9950) return `${Math.round(milliseconds / 1000)} s`;
  if (milliseconds >= 995) return `${(milliseconds / 1000).toFixed(1)} s`;
  return milliseconds >= 9.95 ? `${Math.round(milliseconds)} ms` : `${milliseconds.toFixed(1)} ms`;
}

/** A number with a true minus and so many digits that neighbours in a ranking can be told apart. */
export function readableNumber(value, digits = 4) {
  return value.toPrecision(digits).replaceAll("-", "−");
}

/** A probability in per cent. */
export function readableProbability(probability) {
  const per = probability * 100;
  if (per >= 99.95) return "100%";
  return `${per >= 0.1 ? per.toFixed(1) : per.toPrecision(1)}%`;
}

/** "1 passage", "2 passages", "12,345 passages". */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}
