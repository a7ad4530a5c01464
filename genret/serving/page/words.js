// Which words of a passage the query has, and the stretch of a text that has most of them.

const WORD = /[\p{L}\p{N}]+/gu;
const SPACE = /\s+/g;
// English words that would only spot the page with marks.
const UNMARKED = new Set(
  ("a an and are as at be but by can do does for from had has have how i if in into is it its no not of on or s so t " +
    "than that the their then there these they this to was what when where which who why will with you").split(" "),
);
const ENDING = /(?:ies|ing|ed|es|e|s|y)$/;
const SHORTEST_STEM = 3;

/** A word without its case and its commonest English ending; what retrievers match is theirs to say. */
function stem(word) {
  const lower = word.toLowerCase();
  const cut = lower.replace(ENDING, "");
  return cut.length >= SHORTEST_STEM ? cut : lower;
}

/** The stems of a query's words; of all of them where none stands out. */
export function stems(query) {
  const words = query.match(WORD) ?? [];
  const telling = words.filter((word) => !UNMARKED.has(word.toLowerCase()));
  return new Set((telling.length > 0 ? telling : words).map(stem));
}

/**
 * Cut a text into what is marked and what is not.
 * @returns {{text: string, marked: boolean}[]}
 */
export function segments(text, wanted) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(WORD)) {
    if (!wanted.has(stem(match[0]))) continue;
    if (match.index > end) found.push({ text: text.slice(end, match.index), marked: false });
    end = match.index + match[0].length;
    found.push({ text: match[0], marked: true });
  }
  if (end < text.length) found.push({ text: text.slice(end), marked: false });
  return found;
}

/** The stretch of a text, on one line, that has the most different words of the query; the first of the best. */
export function excerpt(text, wanted, length) {
  const line = text.replace(SPACE, " ").trim();
  if (line.length <= length) return line;
  const matches = [...line.matchAll(WORD)]
    .map((match) => ({ place: match.index, stem: stem(match[0]) }))
    .filter((match) => wanted.has(match.stem));
  const start = beginning(line, bestPlace(matches, length), length);
  const end = start + length >= line.length ? line.length : line.lastIndexOf(" ", start + length);
  const stop = end > start ? end : start + length;
  return `${start > 0 ? "… " : ""}${line.slice(start, stop)}${stop < line.length ? " …" : ""}`;
}

/** Where the window of this length with the most different stems begins. */
function bestPlace(matches, length) {
  let best = { place: 0, different: 0 };
  for (const [number, match] of matches.entries()) {
    const within = matches.slice(number).filter((other) => other.place < match.place + length);
    const different = new Set(within.map((other) => other.stem)).size;
    if (different > best.different) best = { place: match.place, different };
  }
  return best.place;
}

/** A little before a place, at the begin of a sentence or a word; the text's own begin where it is near. */
function beginning(line, place, length) {
  if (place < length * 0.6) return 0;
  const from = Math.max(0, place - Math.round(length / 4));
  const sentence = line.slice(from, place).search(/[.!?] /);
  if (sentence >= 0) return from + sentence + 2;
  const space = line.indexOf(" ", from);
  return space >= 0 && space < place ? space + 1 : place;
}
