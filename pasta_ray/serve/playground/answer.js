/** One answer as its events tell it: which branches there are, and when each of them wrote. No page, no network. */

export const MAIN = "0";
const NUM_COLOURS = 8;

export class Answer {
  /** `waiting`, `writing`, `done`, `stopped` or `failed`. */
  state = "waiting";
  /** `[ms, event]` in order; with them the answer can be played again. */
  events = [];
  /** When the main branch had joined all bodies so far, in ms from the request. */
  syncs = [];
  branches = new Map();
  report = null;

  constructor(method) {
    this.method = method;
    this.#open(MAIN, null, null);
  }

  apply(event, ms) {
    switch (event.type) {
      case "promise":
        this.#open(event.branch, event.topic, ms);
        break;
      case "delta": {
        const branch = this.branches.get(event.branch);
        branch.start ??= ms;
        branch.numTokens += event.num_tokens;
        branch.written.push(ms);
        break;
      }
      case "close":
        this.branches.get(event.branch).end = ms;
        break;
      case "sync":
        this.syncs.push(ms);
        break;
      case "report":
        this.report = event.report;
        break;
      default:
        return; // of a newer service
    }
    this.events.push([ms, event]);
    this.state = "writing";
    if (this.report) this.end("done", ms);
  }

  end(state, ms) {
    this.state = state;
    for (const branch of this.branches.values()) branch.end ??= ms;
  }

  get running() {
    return this.state === "waiting" || this.state === "writing";
  }

  get numOpen() {
    return [...this.branches.values()].filter((branch) => branch.end === null).length;
  }

  get lastMs() {
    return this.events.at(-1)?.[0] ?? 0;
  }

  #open(id, topic, start) {
    const number = id.slice(MAIN.length + 1); // "0.3" is the third body of the main branch, which has no number
    const colour = id === MAIN ? 0 : 1 + ((this.branches.size - 1) % NUM_COLOURS);
    this.branches.set(id, { id, number, colour, topic, start, end: null, numTokens: 0, written: [] });
  }
}
