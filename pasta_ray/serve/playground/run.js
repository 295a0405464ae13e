/** Answers coming in: from the service as they are written, or played again at the pace that they had. */

import { ask } from "./stream.js";

/** Let the service answer into `panel`. Throws what went wrong; `signal` stops it. */
export async function answerInto(panel, body, key, signal) {
  const started = performance.now();
  const elapsed = () => performance.now() - started;
  panel.startedAt = started;
  try {
    for await (const event of ask({ ...body, pasta: { method: panel.answer.method } }, key, signal)) {
      panel.apply(event, elapsed());
    }
    panel.end("done", elapsed());
  } catch (error) {
    panel.end(signal.aborted ? "stopped" : "failed", elapsed());
    throw error;
  }
}

/** Play `events` into `panel`, at once or at their own pace. */
export async function playInto(panel, events, signal, atOnce = false) {
  const started = performance.now();
  panel.startedAt = started;
  for (const [ms, event] of events) {
    const wait = ms - (performance.now() - started);
    if (!atOnce && wait > 4) await pause(wait, signal);
    if (signal.aborted) break;
    panel.apply(event, ms);
  }
  panel.end("stopped", panel.answer.lastMs); // no news for one that is done
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
