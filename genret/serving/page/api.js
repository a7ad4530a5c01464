// The server's answers, and what became of those that did not come.

const KEY = "genret-key";
const MOST_KEPT = 60;
const kept = new Map();

/** A request that failed, with what a person can do about it. */
export class Problem extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, field?: string, retryAfter?: number, requestId?: string}} details `status` 0: no answer.
   */
  constructor(message, { status = 0, field = "", retryAfter = 0, requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, field, retryAfter, requestId });
  }
}

/** Remember the key until the tab is closed. */
export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Read something that stays as it is, such as the fields of the metadata. */
export async function get(path, signal) {
  return (await send(path, { signal })).body;
}

/**
 * Ask a retriever. The same question is not sent twice, so that going back is instant.
 * @returns {Promise<{body: Object, milliseconds: number}>} The answer, and the time from here to there and back.
 */
export async function retrieve(question, signal) {
  const content = JSON.stringify(question);
  if (kept.has(content)) return kept.get(content);
  const answer = await send("v1/retrieve", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: content,
    signal,
  });
  kept.set(content, answer);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return answer;
}

/** Forget all answers, as the server may have others by now. */
export function forget() {
  kept.clear();
}

async function send(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const begin = performance.now();
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.");
  }
  const body = await response.json().catch(() => null);
  const milliseconds = performance.now() - begin;
  if (response.ok && body !== null) return { body, milliseconds };
  throw problemOf(response, body);
}

function problemOf(response, body) {
  const error = body?.error ?? {};
  return new Problem(error.message ?? `The server answered ${response.status} ${response.statusText}`.trim(), {
    status: response.status,
    field: error.field ?? "",
    retryAfter: Number(response.headers.get("Retry-After")) || 0,
    requestId: error.request_id ?? "",
  });
}
