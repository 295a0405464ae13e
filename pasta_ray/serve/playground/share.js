/**
 * A run in the fragment of the page's address, which no server ever sees: its settings by name, and as `run` the
 * finished answers, deflated, if they fit. A fragment may come from anybody: `readRun` takes nothing that it does not
 * know.
 */

const MOST_CHARACTERS = 16_000; // of `run`: what mail and chat programs still carry
const MOST_BYTES = 1 << 20; // of a run that is read
const MOST_EVENTS = 20_000;
const FIELDS = {
  promise: ["branch", "parent", "topic", "tokens_predicted"],
  delta: ["branch", "text", "num_tokens"],
  close: ["branch", "finish_reason"],
  sync: [],
  report: ["report"],
};
const COUNTS = [
  "critical_path",
  "sequential_tokens",
  "theoretical_speedup",
  "num_promises",
  "max_branches",
  "num_syncs",
];

/** The fragment of `settings` (texts by name) and of `answers`; without the answers where they do not fit. */
export async function writeFragment(settings, answers) {
  const parameters = new URLSearchParams(settings);
  if (answers.length && answers.every((answer) => answer.state === "done")) {
    const packed = await pack(answers.map(({ method, events }) => ({ method, events: events.map(shorten) })));
    if (packed.length <= MOST_CHARACTERS) parameters.set("run", packed);
  }
  return `#${parameters}`;
}

export function readFragment(fragment) {
  return Object.fromEntries(new URLSearchParams(fragment.replace(/^#/, "")));
}

/** The answers of a fragment's `run`, as `{method, events: [[ms, event]]}`. Throws for one that cannot be a run. */
export async function readRun(packed) {
  const answers = await unpack(packed);
  check(Array.isArray(answers) && answers.length >= 1 && answers.length <= 2);
  return answers.map(({ method, events }) => {
    check(typeof method === "string" && Array.isArray(events) && events.length <= MOST_EVENTS);
    const read = events.map(lengthen);
    checkOrder(read);
    return { method, events: read };
  });
}

function shorten([ms, event]) {
  const known = event.type === "report" ? { report: withoutTexts(event.report) } : event;
  return [Math.round(ms), event.type, ...FIELDS[event.type].map((name) => known[name])];
}

/** The texts are in the deltas already. */
function withoutTexts({ method, finish_reason, usage, timing, parallel }) {
  return { method, finish_reason, usage, timing, parallel };
}

function lengthen([ms, type, ...values]) {
  check(isNumber(ms) && Object.hasOwn(FIELDS, type) && values.length === FIELDS[type].length);
  const event = { type, ...Object.fromEntries(FIELDS[type].map((name, index) => [name, values[index]])) };
  switch (type) {
    case "promise":
      check(typeof event.parent === "string" && (event.topic === null || typeof event.topic === "string"));
      break;
    case "delta":
      check(typeof event.text === "string" && isNumber(event.num_tokens));
      break;
    case "report":
      checkReport(event.report);
  }
  return [ms, event];
}

function checkReport({ method, finish_reason, usage, timing, parallel }) {
  check(typeof method === "string" && typeof finish_reason === "string");
  check(isNumber(usage.completion_tokens) && isNumber(timing.wall_s));
  check(COUNTS.every((name) => isNumber(parallel[name])));
}

/** Branches open before they write and close once; time does not run back; the report is the end. */
function checkOrder(events) {
  const open = new Set(["0"]);
  const seen = new Set(open);
  let last = 0;
  events.forEach(([ms, event], index) => {
    check(ms >= last && (event.type === "report") === (index === events.length - 1));
    last = ms;
    if (event.type === "promise") {
      check(open.has(event.parent) && typeof event.branch === "string" && !seen.has(event.branch) && seen.size < 100);
      open.add(event.branch);
      seen.add(event.branch);
    } else if (event.type === "delta" || event.type === "close") {
      check(open.has(event.branch));
      if (event.type === "close") open.delete(event.branch);
    }
  });
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value) && value >= 0;

function check(condition) {
  if (!condition) throw new Error("not a run");
}

async function pack(value) {
  const stream = new Blob([JSON.stringify(value)]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

async function unpack(packed) {
  check(packed.length <= MOST_CHARACTERS);
  const binary = atob(packed.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const decoder = new TextDecoder();
  let [text, numBytes] = ["", 0];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return JSON.parse(text + decoder.decode());
    numBytes += value.length;
    check(numBytes <= MOST_BYTES);
    text += decoder.decode(value, { stream: true });
  }
}
