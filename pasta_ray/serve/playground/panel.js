/** One answer's card: its text in document order, each body where it was promised. Text is only ever added as text. */

import { MAIN } from "./answer.js";

const NAMES = { pasta: "PASTA", sequential: "Sequential", apar: "APAR", sot: "Skeleton-of-Thought" };

export const methodName = (method) => NAMES[method] ?? method;

export class Panel {
  #growing = new Map(); // branch to the span that its next text goes to

  constructor(answer) {
    this.answer = answer;
    this.element = document.getElementById("panel").content.cloneNode(true).firstElementChild;
    this.element.dataset.method = answer.method;
    const [title, text] = [this.element.querySelector("h2"), this.element.querySelector(".text")];
    title.textContent = methodName(answer.method);
    text.setAttribute("aria-label", `${methodName(answer.method)}: the answer`);
    text.append(this.#segment(MAIN));
    this.showState();
  }

  apply(event, ms) {
    this.answer.apply(event, ms);
    switch (event.type) {
      case "promise": {
        const before = this.#growing.get(event.parent);
        before.classList.remove("open");
        before.after(this.#segment(event.branch), this.#segment(event.parent));
        break;
      }
      case "delta":
        this.#growing.get(event.branch).firstChild.appendData(event.text);
        break;
      case "close":
        this.#close(event.branch);
    }
  }

  end(state, ms) {
    if (this.answer.running) this.answer.end(state, ms);
    for (const branch of this.#growing.keys()) this.#close(branch);
    this.showState();
  }

  showState() {
    const { answer, element } = this;
    element.dataset.state = answer.state;
    element.setAttribute("aria-busy", answer.running);
    element.querySelector(".state").textContent = stateOf(answer);
  }

  #segment(id) {
    const branch = this.answer.branches.get(id);
    const span = document.createElement("span");
    span.className = "segment open";
    span.dataset.branch = id;
    span.dataset.colour = branch.colour;
    if (id !== MAIN) span.dataset.number = branch.number;
    span.append(document.createTextNode(""));
    this.#growing.set(id, span);
    return span;
  }

  #close(id) {
    this.#growing.get(id).classList.remove("open");
    this.#growing.delete(id);
  }
}

function stateOf({ state, numOpen, report }) {
  if (state === "waiting") return "waiting";
  if (state === "writing") return numOpen === 1 ? "writing" : `writing in ${numOpen} places`;
  if (state !== "done") return state;
  const cut = report.finish_reason === "length" ? ", cut off at the limit" : "";
  return `${report.usage.completion_tokens} tokens in ${report.timing.wall_s.toFixed(2)} s${cut}`;
}
