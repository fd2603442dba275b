/** Runs as lines of text: what `rlv runs` prints and its screen shows. */

import type { PruneEntry } from "../report/manage.ts";
import { metricsOf, type Series, seriesOf, sparkline } from "../report/metrics.ts";
import type { Run, RunSummary } from "../report/runs.ts";
import { tableLines } from "../report/table.ts";
import { brief, bytesText, visible } from "../run/reporter.ts";

/** At most `width` columns of text, its end marked where it is cut. */
export function fit(text: string, width: number): string {
  return cut(visible(text), width);
}

/** The same for a line that may have styles. */
export function cut(line: string, width: number): string {
  if (Bun.stringWidth(line) <= width) return line;
  // A slice that ends within a wide character has all of it.
  for (let end = width - 1; end > 0; end--) {
    const part = `${Bun.sliceAnsi(line, 0, end)}…`;
    if (Bun.stringWidth(part) <= width) return part;
  }
  return "";
}

/** Text of exactly `width` columns. */
export function pad(text: string, width: number): string {
  const shown = fit(text, width);
  return shown + " ".repeat(Math.max(0, width - Bun.stringWidth(shown)));
}

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** A span of seconds in its largest unit. */
export function span(seconds: number): string {
  if (seconds < 0) return "0 s";
  if (seconds < MINUTE) return `${Math.floor(seconds)} s`;
  if (seconds < HOUR) return `${Math.floor(seconds / MINUTE)} min`;
  if (seconds < DAY) return `${Math.floor(seconds / HOUR)} h`;
  return `${Math.floor(seconds / DAY)} d`;
}

export function progressText(run: RunSummary): string {
  return run.steps === null ? String(run.step) : `${run.step}/${run.steps}`;
}

/** `train/reward_mean 0.93`, without its first part where that is train. */
function metricText(run: RunSummary): string {
  if (run.metric === null) return "";
  return `${run.metric.replace(/^train\//, "")} ${brief(run.value!)}`;
}

const HEAD = ["name", "recipe", "state", "step", "last", "age", "tags"] as const;

/** The cells of a run in a list. */
function cells(run: RunSummary, now: number): string[] {
  const marks = [...(run.link ? ["link"] : []), ...(run.problem === null ? [] : [run.problem])];
  const tags = [...run.tags.map((tag) => `#${tag}`), ...marks.map((mark) => `(${mark})`)];
  return [
    run.name,
    run.recipe ?? "?",
    run.state,
    progressText(run),
    metricText(run),
    span(now - run.updated),
    tags.join(" "),
  ];
}

/** A list of runs with its head; at most `width` columns a line. */
export function listLines(runs: readonly RunSummary[], now: number, width: number): string[] {
  const rows = [[...HEAD], ...runs.map((run) => cells(run, now).map(visible))];
  return tableLines(rows, pad, 40).map((line) => fit(line, width));
}

/** One metric of a run along its steps, read on as the run goes on. */
export class Curve {
  #cursor: string | null = null;
  #series: Series = { steps: [], values: [] };

  constructor(
    readonly dir: string,
    readonly metric: string,
  ) {}

  /** With what was written since. */
  read(): Series {
    for (;;) {
      const part = metricsOf(this.dir, this.#cursor);
      if (part.reset) this.#series = { steps: [], values: [] };
      const some = seriesOf(part.rows, this.metric);
      this.#series.steps.push(...some.steps);
      this.#series.values.push(...some.values);
      this.#cursor = part.cursor;
      if (!part.more) return this.#series;
    }
  }
}

/** `train/reward_mean ▁▂▅▇ 0.1 … 0.9, last 0.8`. */
export function curveLine(name: string, series: Series, width: number): string {
  const finite = series.values.filter(Number.isFinite);
  if (finite.length === 0) return `${name}  (no values)`;
  const low = finite.reduce((a, b) => Math.min(a, b));
  const high = finite.reduce((a, b) => Math.max(a, b));
  const figures = `${brief(low)} … ${brief(high)}, last ${brief(series.values.at(-1)!)}`;
  const room = Math.max(8, width - name.length - figures.length - 4);
  return `${name}  ${sparkline(series.values, room)}  ${figures}`;
}

function dateText(seconds: number | null): string {
  if (seconds === null) return "-";
  const date = new Date(seconds * 1000);
  const two = (value: number) => String(value).padStart(2, "0");
  return (
    `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ` +
    `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
  );
}

/** Everything about one run. `metric`: of the curve. */
export function showLines(run: Run, metric: string | null, series: Series | null, width: number): string[] {
  const facts: [string, string][] = [
    ["folder", run.dir],
    ["recipe", run.recipe ?? "?"],
    ["state", run.state + (run.pids.length > 0 ? ` (process ${run.pids.join(", ")})` : "")],
    ["steps", progressText(run)],
    ["began", dateText(run.started)],
    ["ended", run.state === "live" ? "-" : dateText(run.ended)],
    ["size", bytesText(run.bytes)],
    ["tags", run.tags.join(" ") || "-"],
  ];
  if (run.error !== null) facts.push(["error", run.error]);
  if (run.problem !== null) facts.push(["problem", run.problem]);
  const lines = [run.name, ...facts.map(([name, value]) => `  ${pad(name, 9)}${value}`)];
  if (metric !== null && series !== null) lines.push("", curveLine(metric, series, width));
  if (run.saved.length > 0) {
    lines.push("", "checkpoints");
    const wide = Math.max(...run.saved.map(({ name }) => name.length));
    for (const each of run.saved)
      lines.push(
        `  ${pad(each.name, wide)}  ${pad(each.step === null ? "" : `step ${each.step}`, 12)}` +
          `${pad(bytesText(each.bytes), 10)}${each.whole ? "" : "not whole"}`,
      );
  }
  const last = Object.entries(run.last);
  if (last.length > 0) {
    lines.push("", "last values");
    const wide = Math.max(...last.map(([name]) => name.length));
    lines.push(...last.map(([name, value]) => `  ${pad(name, wide)}  ${brief(value)}`));
  }
  return lines.map((line) => fit(line.trimEnd(), width));
}

/** What a rule does to one run. */
export function planLines(name: string, plan: readonly PruneEntry[], done: boolean): string[] {
  const gone = plan.filter(({ keep }) => !keep);
  const bytes = gone.reduce((sum, { checkpoint }) => sum + checkpoint.bytes, 0);
  const verb = done ? "removed" : "would remove";
  return [
    `${name}: ${verb} ${gone.length} of ${plan.length} checkpoints, ${bytesText(bytes)}`,
    ...plan.map(
      ({ checkpoint, keep, reason }) =>
        `  ${keep ? "keep  " : "remove"}  ${pad(checkpoint.name, 14)}${pad(bytesText(checkpoint.bytes), 10)}${reason}`,
    ),
  ];
}
