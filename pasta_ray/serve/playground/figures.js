/** What a finished run comes to. Seconds are the service's own: from the request's arrival to its last token. */

const times = (ratio) => `${ratio.toFixed(2)}×`;
const seconds = (value) => `${value.toFixed(2)} s`;

/** `[name, figure, explanation]` of the answers that have ended. */
export function figuresOf(answers) {
  const reports = answers.map((answer) => answer.report).filter(Boolean);
  const sequential = reports.find((report) => report.method === "sequential");
  const parallel = reports.find((report) => report.method !== "sequential");
  const figures = [];
  if (parallel && sequential) {
    const [ours, theirs] = [parallel.timing.wall_s, sequential.timing.wall_s];
    figures.push(["by the clock", times(theirs / ours), `${seconds(ours)} against ${seconds(theirs)}`]);
    const [each, eachOther] = [parallel, sequential].map(msPerToken);
    const explanation = `${each.toFixed(1)} ms against ${eachOther.toFixed(1)} ms a token`;
    figures.push(["for the same length", times(eachOther / each), explanation]);
  }
  if (parallel) {
    const { critical_path: path, sequential_tokens: tokens, theoretical_speedup: speedup, ...rest } = parallel.parallel;
    figures.push(["in theory", times(speedup), `critical path ${path} of ${tokens} steps`]);
    const syncs = `${rest.num_syncs} ${rest.num_syncs === 1 ? "sync" : "syncs"}`;
    figures.push(["promises", String(rest.num_promises), `up to ${rest.max_branches} branches at once, ${syncs}`]);
  }
  return figures;
}

function msPerToken(report) {
  return (1000 * report.timing.wall_s) / report.usage.completion_tokens;
}

export function showFigures(list, figures) {
  list.replaceChildren(
    ...figures.map(([name, figure, explanation]) => {
      const item = document.createElement("div");
      for (const [tag, text] of [["dt", name], ["dd", figure], ["dd", explanation]]) {
        const element = document.createElement(tag);
        element.textContent = text;
        item.append(element);
      }
      return item;
    }),
  );
}
