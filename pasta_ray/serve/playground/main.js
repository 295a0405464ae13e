/** The page: a prompt goes in, and its answer is seen coming, in parallel and one token after the other. */

import { Answer } from "./answer.js";
import { figuresOf, showFigures } from "./figures.js";
import { Key } from "./key.js";
import { Panel } from "./panel.js";
import { answerInto, playInto } from "./run.js";
import { readFragment, readRun, writeFragment } from "./share.js";
import { ServiceError, fetchModels } from "./stream.js";
import { startTheme } from "./theme.js";
import { Timeline } from "./timeline.js";

const DRAW_MS = 100; // often enough for the eye, seldom enough to leave the machine to the model
const FIELDS = {
  prompt: "prompt",
  model: "model",
  max_tokens: "max-tokens",
  temperature: "temperature",
  seed: "seed",
  order: "order",
};
const AT_ONCE = "Both ran at once and slowed each other down. Run one after the other, their times can be compared.";
const FROM_LINK = "This run came with the link: it was recorded elsewhere, not measured here.";

const at = (id) => document.getElementById(id);
const timeline = new Timeline(at("timeline"));
const key = new Key(at("key-form"), () => {
  showError(null);
  loadModels();
});
let models = [];
let wantedModel = null; // of a link, until the models are known
let ranWith = {}; // the settings of what is shown; the form may say something else by now
let panels = [];
let caveat = "";
let control = null; // of what is running
let drawing = null;

function settings() {
  return Object.fromEntries(Object.entries(FIELDS).map(([name, id]) => [name, at(id).value]));
}

/** The chosen model's own method, and beside it one token after the other. */
function methods() {
  const { method } = models.find((model) => model.id === at("model").value);
  return method === "sequential" ? [method] : [method, "sequential"];
}

async function loadModels() {
  try {
    models = await fetchModels(key.value);
  } catch (error) {
    showError(error);
    return;
  }
  const chosen = wantedModel ?? at("model").value;
  at("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  if (models.some((model) => model.id === chosen)) at("model").value = chosen;
  else if (wantedModel) showError(new ServiceError(`The link's model, ${wantedModel}, is not served here.`));
  wantedModel = null;
}

async function run() {
  stop();
  if (!models.length) await loadModels();
  if (!models.length) return;
  ranWith = settings();
  const { prompt, model, max_tokens, temperature, seed, order } = ranWith;
  const body = {
    model,
    messages: [{ role: "user", content: prompt }],
    max_tokens: Number(max_tokens),
    temperature: Number(temperature),
    seed: Number(seed),
  };
  caveat = order === "at-once" && methods().length > 1 ? AT_ONCE : "";
  begin(methods());
  const { signal } = control;
  const one = (panel) => answerInto(panel, body, key.value, signal);
  try {
    if (order === "at-once") await Promise.all(panels.map(one));
    else for (const panel of panels) await one(panel);
  } catch (error) {
    if (signal.aborted) return;
    showError(error);
    control.abort();
  }
  finish(signal);
}

async function replay(events, atOnce = false) {
  stop();
  begin(events.map(({ method }) => method));
  const { signal } = control;
  await Promise.all(panels.map((panel, index) => playInto(panel, events[index].events, signal, atOnce)));
  finish(signal);
}

function begin(newMethods) {
  panels = newMethods.map((method) => new Panel(new Answer(method)));
  at("answers").replaceChildren(...panels.map((panel) => panel.element));
  timeline.show(panels.map((panel) => panel.answer));
  at("result").hidden = true;
  at("error").hidden = true;
  at("stop").disabled = false;
  at("status").textContent = "Running";
  control = new AbortController();
  drawing = setInterval(draw, DRAW_MS);
}

/** The end of what runs under `signal`, unless something else runs already. */
function finish(signal) {
  if (control?.signal !== signal) return;
  control = null;
  clearInterval(drawing);
  for (const panel of panels) if (panel.answer.running) panel.end("stopped", panel.answer.lastMs);
  draw();
  at("stop").disabled = true;
  const figures = figuresOf(panels.map((panel) => panel.answer));
  const complete = panels.every((panel) => panel.answer.state === "done");
  showFigures(at("figures"), figures);
  at("caveat").textContent = caveat;
  at("result").hidden = figures.length === 0;
  at("replay").disabled = at("share").disabled = !complete;
  const outcome = figures.map(([name, figure]) => `${name} ${figure}`).join(", ");
  at("status").textContent = complete ? `Done: ${outcome || "one answer"}.` : "Stopped.";
}

function stop() {
  if (!control) return;
  const { signal } = control;
  control.abort();
  finish(signal);
}

function draw() {
  const nowOf = ({ answer, startedAt }) =>
    answer.running && startedAt !== undefined ? performance.now() - startedAt : answer.lastMs;
  const nows = new Map(panels.map((panel) => [panel.answer, nowOf(panel)]));
  timeline.draw((answer) => nows.get(answer));
  for (const panel of panels) panel.showState();
}

function showError(error) {
  const shown = at("error");
  shown.hidden = error === null;
  if (error === null) return;
  if (!(error instanceof ServiceError)) console.error(error);
  if (error.status === 401) key.ask();
  const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  shown.textContent = `${error.message}${again}`;
}

async function share() {
  const fragment = await writeFragment(ranWith, panels.map((panel) => panel.answer));
  history.replaceState(null, "", fragment);
  const what = fragment.includes("run=") ? "this run" : "these settings (the run itself is too long for a link)";
  try {
    await navigator.clipboard.writeText(location.href);
    at("status").textContent = `A link to ${what} has been copied.`;
  } catch {
    at("status").textContent = `The address bar now holds a link to ${what}.`;
  }
}

/** Fill the page in from the link that it was opened with. A link never asks the service anything by itself. */
async function openLink() {
  const link = readFragment(location.hash);
  for (const [name, id] of Object.entries(FIELDS)) {
    if (name !== "model" && link[name] !== undefined) at(id).value = link[name];
  }
  if (!at("order").value) at("order").selectedIndex = 0;
  wantedModel = link.model ?? null;
  if (!link.run) return;
  try {
    const answers = await readRun(link.run);
    const { run: _, ...others } = link;
    ranWith = others;
    caveat = FROM_LINK;
    await replay(answers, true);
  } catch (error) {
    console.warn(error);
    showError(new ServiceError("The run in this link cannot be read; its settings have been filled in."));
  }
}

function mark(branch, on) {
  for (const element of document.querySelectorAll("[data-branch]")) {
    element.classList.toggle("marked", on && element.dataset.branch === branch);
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
at("stop").addEventListener("click", stop);
at("replay").addEventListener("click", () => replay(panels.map((panel) => panel.answer)));
at("share").addEventListener("click", share);
at("examples").addEventListener("click", ({ target }) => {
  if (target.matches("button")) at("prompt").value = target.textContent;
});
for (const id of ["answers", "timeline"]) {
  at(id).addEventListener("pointerover", ({ target }) => mark(target.closest("[data-branch]")?.dataset.branch, true));
  at(id).addEventListener("pointerleave", () => mark(null, false));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    at("form").requestSubmit();
  } else if (event.key === "Escape") stop();
});
window.addEventListener("hashchange", openLink);

startTheme(at("theme"));
await openLink();
await loadModels();
