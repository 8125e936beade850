// Requests to the service and its streams of events. Knows no page.

/** What the service said instead of an answer, in words. */
export class ServiceError extends Error {
  constructor(status, message, { hint = "", code = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, hint, code, retryAfter });
  }
}

const KEY = "aiasst.key";
export const key = {
  get: () => { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; } },
  set: (value) => { try { value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY); } catch { /* kept nowhere */ } },
};

async function ask(path, { body, signal } = {}) {
  const headers = { Accept: body?.stream ? "text/event-stream" : "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new ServiceError(0, "The service does not answer.", { hint: "Is it still running? Then try again." });
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response) {
  let told = {};
  try { told = (await response.json()).error ?? {}; } catch { /* no JSON: the status must do */ }
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  const words = {
    401: ["The service wants an API key.", "Give it in the settings."],
    429: ["The service has more to do than it can take on.", "It can be tried again."],
    503: ["The service is stopping or not ready.", "Try again in a moment."],
  }[response.status] ?? [`The service answered with status ${response.status}.`, ""];
  return new ServiceError(response.status, told.message ?? words[0], {
    hint: told.hint ?? words[1], code: told.code ?? "", retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

export const getJson = async (path, options) => (await ask(path, options)).json();

/** The events of an answer, each parsed; ends at [DONE]. */
export async function* stream(path, body, signal) {
  const response = await ask(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", ended = false;
  try {
    for (;;) {
      let piece;
      try { piece = await reader.read(); } catch (failure) {
        if (failure.name === "AbortError") throw failure;
        throw new ServiceError(0, "The connection was lost in the middle of the answer.", { hint: "Try again." });
      }
      if (piece.done) break;
      text += piece.value.replaceAll("\r\n", "\n");
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") { ended = true; return; }
        if (!data) continue;
        const told = JSON.parse(data);
        if (told.error) throw new ServiceError(told.error.status ?? 0, told.error.message, { hint: told.error.hint, code: told.error.code });
        yield told;
      }
    }
    throw new ServiceError(0, "The connection was lost in the middle of the answer.", { hint: "Try again." });
  } finally {
    if (!ended) reader.cancel().catch(() => { /* it is gone already */ });
  }
}
