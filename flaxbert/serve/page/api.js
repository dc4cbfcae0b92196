// Calls of the server. Addresses are relative, so that the page also works below a path of a proxy.

const STORES = { api: "flaxbert.api-key", admin: "flaxbert.admin-key" };
const held = { api: "", admin: "" };

for (const [kind, name] of Object.entries(STORES)) {
  try {
    held[kind] = sessionStorage.getItem(name) || "";
  } catch {
    held[kind] = ""; // storage is closed; keys hold until the page is left
  }
}

export const keys = {
  get: (kind) => held[kind],
  set(kind, value) {
    held[kind] = value;
    try {
      if (value) sessionStorage.setItem(STORES[kind], value);
      else sessionStorage.removeItem(STORES[kind]);
    } catch {
      // the key holds until the page is left
    }
  },
  // Whether a header can carry it.
  allows: (value) => /^[\x21-\x7e]*$/.test(value),
};

export class CallError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function explain(status, body, headers, key) {
  const said = body?.error ?? body?.message ?? body?.detail;
  const message = typeof said === "string" ? said : `The server answered ${status}.`;
  if (status === 401) return key ? `The server does not accept the key that was entered. ${message}` : message;
  if (status === 429 && headers.get("retry-after")) return `${message} Try again in ${headers.get("retry-after")} s.`;
  return message;
}

function timingOf(headers, trip) {
  const number = (name) => (headers.has(name) ? Number(headers.get(name)) : null);
  return {
    total: number("x-total-time"),
    tokenization: number("x-tokenization-time"),
    queue: number("x-queue-time"),
    inference: number("x-inference-time"),
    tokens: number("x-compute-tokens"),
    version: headers.get("x-model-version"),
    trip,
  };
}

// Returns { data, timing }; with a body it is a POST. Throws CallError with a message that can be shown, and AbortError.
export async function call(path, { body, admin = false, text = false, signal } = {}) {
  const key = admin ? held.admin : held.api || held.admin;
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const begun = performance.now();
  let response, content;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "same-origin",
      signal,
    });
    content = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("The server can not be reached. It may be starting anew; try again.", 0);
  }
  const trip = performance.now() - begun;
  let data = content;
  if (!text || !response.ok) {
    try {
      data = JSON.parse(content);
    } catch {
      data = null;
    }
  }
  if (!response.ok) throw new CallError(explain(response.status, data, response.headers, key), response.status);
  if (data === null) throw new CallError("The answer of the server is no JSON.", response.status);
  return { data, timing: timingOf(response.headers, trip) };
}
