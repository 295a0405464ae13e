/** The service's API: what it serves, and an answer's events as they come. */

export class ServiceError extends Error {
  /** `status` is that of HTTP, null where there was no answer or where it broke off. */
  constructor(message, { status = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
  }
}

/** The served models: `{id, method}` each, aliases left out. */
export async function fetchModels(key) {
  const { data } = await (await request("v1/models", key)).json();
  return data.filter((card) => card.id === card.root).map((card) => ({ id: card.id, method: card.pasta.method }));
}

/** Typed events of one answer; the last of them is its report. Leaving the iteration, or `signal`, ends the answer. */
export async function* ask(body, key, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, pasta: { ...body.pasta, events: true } }),
    signal,
  });
  for await (const line of readLines(response.body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice("data:".length).trim();
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServiceError(chunk.error.message, { param: chunk.error.param });
    yield* chunk.pasta?.events ?? [];
  }
  throw new ServiceError("The answer broke off in the middle.");
}

async function request(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServiceError("The service does not answer. Is it running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const retryAfter = response.headers.get("Retry-After");
  try {
    const { message, param } = (await response.json()).error;
    return new ServiceError(String(message), { status, param, retryAfter });
  } catch {
    return new ServiceError(`The service answered with status ${status}.`, { status, retryAfter }); // a proxy, perhaps
  }
}

async function* readLines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const lines = (unread + value).split("\n");
      unread = lines.pop();
      yield* lines;
    }
  } finally {
    reader.cancel().catch(() => {}); // of a stream that failed: it has been said
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServiceError("The service went away in the middle of the answer.");
  }
}
