/** All branches of all answers over one time axis: a lane a branch, a tick wherever it wrote, a line at every sync. */

import { MAIN } from "./answer.js";
import { methodName } from "./panel.js";

const SVG = "http://www.w3.org/2000/svg";
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
const MARK_PX = 75;

export class Timeline {
  #root;
  #groups = [];
  #axis = make("div", "axis");

  constructor(root) {
    this.#root = root;
  }

  show(answers) {
    this.#groups = answers.map((answer) => new Group(answer));
    this.#root.replaceChildren(...this.#groups.map((group) => group.element), this.#axis);
    this.#root.hidden = false;
  }

  /** `now(answer)` is the time in ms up to which it has been running. */
  draw(now) {
    const endMs = Math.max(500, ...this.#groups.map(({ answer }) => now(answer)));
    for (const group of this.#groups) group.draw(now(group.answer), endMs);
    this.#drawAxis(endMs / 1000);
  }

  #drawAxis(endS) {
    const most = Math.max(2, this.#axis.clientWidth / MARK_PX);
    const step = STEPS_S.find((seconds) => endS / seconds <= most) ?? 3600;
    const marks = Array.from({ length: Math.floor(endS / step) + 1 }, (_, index) => index * step);
    this.#axis.replaceChildren(
      ...marks.map((seconds) => {
        const mark = make("span", "", `${+seconds.toFixed(1)} s`);
        mark.style.left = `${(100 * seconds) / endS}%`;
        return mark;
      }),
    );
  }
}

class Group {
  #lanes = new Map();

  constructor(answer) {
    this.answer = answer;
    this.list = make("ul", "lanes");
    this.list.setAttribute("aria-label", `Branches, ${methodName(answer.method)}`);
    this.element = make("div", "group");
    this.element.append(make("h3", "", methodName(answer.method)), this.list);
  }

  draw(nowMs, endMs) {
    for (const branch of this.answer.branches.values()) {
      if (!this.#lanes.has(branch.id)) {
        const lane = new Lane(branch);
        this.#lanes.set(branch.id, lane);
        this.list.append(lane.element);
      }
      this.#lanes.get(branch.id).draw(nowMs, endMs, this.answer.syncs);
    }
  }
}

class Lane {
  constructor(branch) {
    this.branch = branch;
    this.element = make("li", "lane");
    this.element.dataset.branch = branch.id;
    this.element.dataset.colour = branch.colour;
    const label = make("span", "label");
    if (branch.number) label.append(make("b", "", branch.number), " ");
    label.append(branch.id === MAIN ? "main" : (branch.topic ?? "body"));
    this.svg = shape("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
    [this.bar, this.ticks, this.syncs] = ["bar", "ticks", "syncs"].map((name) => shape("path", { class: name }));
    this.svg.append(this.bar, this.ticks, this.syncs);
    this.count = make("span", "count");
    this.element.append(label, this.svg, this.count);
  }

  draw(nowMs, endMs, syncs) {
    const { start, end, written, numTokens } = this.branch;
    this.svg.setAttribute("viewBox", `0 0 ${endMs} 10`);
    this.count.textContent = `${numTokens} tok`;
    if (start === null) return;
    this.bar.setAttribute("d", `M${start} 2H${Math.max(start + 1, end ?? nowMs)}V8H${start}Z`);
    this.ticks.setAttribute("d", written.map((ms) => `M${ms} 2V8`).join(""));
    this.syncs.setAttribute("d", syncs.map((ms) => `M${ms} 0V10`).join(""));
  }
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
