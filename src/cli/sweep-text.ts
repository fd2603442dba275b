/** A sweep as text: its plan, its table while it goes, its summary. */
import { colours } from "../core/env.ts";
import { type SweepSummary, sweepTable, valueText } from "../report/sweep.ts";
import { tableLines } from "../report/table.ts";
import { brief, visible } from "../run/reporter.ts";
import type { SweepPlan } from "../sweep/plan.ts";
import {
  type PoolScreen,
  type PoolState,
  type RunView,
  secondsLeft,
  stepText,
  sweepSecondsLeft,
} from "../sweep/pool.ts";
import { cut, fit, pad, span } from "./runs-text.ts";

/** Columns of cells, a line at most `width` columns. */
function columns(rows: readonly (readonly string[])[], width: number): string[] {
  return tableLines(rows, pad).map((line) => fit(line, width));
}

/** What would run: `--dry_run`. */
export function planLines(plan: SweepPlan, atOnce: string, width: number): string[] {
  const variants = plan.variants.length > 0;
  const rows = [
    ["#", ...(variants ? ["variant"] : []), ...plan.keys, "run"],
    ...plan.runs.map((run) => [
      String(run.index),
      ...(variants ? [run.variant ?? ""] : []),
      ...plan.keys.map((key) => visible(valueText(run.values[key]))),
      run.name,
    ]),
  ];
  return [`${plan.folder}: ${plan.runs.length} runs of ${plan.recipe}, ${atOnce}`, ...columns(rows, width)];
}

/** Means over the seeds with their spread, and what is missing from them. */
export function summaryLines(summary: SweepSummary, width: number): string[] {
  const short = (value: number) => brief(Number(value.toPrecision(3)));
  const rows = sweepTable(summary, short).map((row) => row.map(visible));
  return rows.length === 0 ? ["no run has finished yet"] : columns(rows, width);
}

interface Out {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
}

const REDRAW_MS = 125;
/** Between two lines about the steps of one run where there is no terminal. */
const QUIET_MS = 30_000;
const COLOURS: Readonly<Partial<Record<PoolState, number>>> = {
  running: 36,
  evaluating: 36,
  finished: 32,
  failed: 31,
  diverged: 31,
  interrupted: 33,
};

/** Shows a pool: a table in its place on a terminal, lines elsewhere. */
export class SweepScreen implements PoolScreen {
  #drawn = 0;
  #last = 0;
  #timer: Timer | undefined;
  readonly #said = new Set<string>();
  readonly #quiet = new Map<RunView, number>();
  readonly #live: boolean;
  readonly #colours: boolean;

  constructor(
    readonly out: Out,
    readonly views: readonly RunView[],
    readonly atOnce: number,
  ) {
    this.#live = out.isTTY === true;
    this.#colours = colours(out);
    if (this.#live) this.#timer = setInterval(() => this.#draw(), 1000);
  }

  changed(view: RunView, step: boolean): void {
    const now = performance.now();
    if (this.#live) {
      if (!step || now - this.#last >= REDRAW_MS) this.#draw();
      return;
    }
    if (step && now - (this.#quiet.get(view) ?? Number.NEGATIVE_INFINITY) < QUIET_MS) return;
    this.#quiet.set(view, now);
    const left = secondsLeft(view, now);
    const parts = [
      `${view.run.name}: ${view.state}`,
      ...(view.began === null ? [] : [stepText(view)]),
      ...(view.state === "running" && left !== null ? [`${span(left)} left`] : []),
      ...(view.error === null ? [] : [view.error]),
    ];
    this.out.write(`${visible(parts.join(", "))}\n`);
  }

  /** Each line once: every engine's parent says the same. */
  line(text: string): void {
    if (this.#said.has(text)) return;
    this.#said.add(text);
    this.#clear();
    this.out.write(`${text}\n`);
    if (this.#live) this.#draw();
  }

  close(): void {
    clearInterval(this.#timer);
    if (this.#live) this.#draw();
    this.#drawn = 0;
  }

  #clear(): void {
    if (this.#drawn > 0) this.out.write(`\r\u001b[${this.#drawn}A\u001b[J`);
    this.#drawn = 0;
  }

  #draw(): void {
    this.#last = performance.now();
    const lines = this.#lines(this.out.columns ?? 80, this.out.rows ?? 24);
    // What the terminal echoed, as ^C, stands in the line.
    const up = this.#drawn > 0 ? `\r\u001b[${this.#drawn}A` : "";
    this.out.write(`${up}\u001b[J${lines.map((line) => `${line}\n`).join("")}`);
    this.#drawn = lines.length;
  }

  /** What fits: runs that go on first, then those that ended badly, then waiting ones, then finished ones. */
  #lines(width: number, rows: number): string[] {
    const now = performance.now();
    const order: readonly PoolState[] = [
      ...(["running", "evaluating", "starting", "failed", "diverged", "interrupted"] as const),
      ...(["elsewhere", "waiting", "finished"] as const),
    ];
    const room = Math.max(1, rows - 4);
    const fits = this.views.length <= room;
    const shown = fits
      ? [...this.views]
      : [...this.views].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state)).slice(0, room);
    const nameWidth = Math.max(
      12,
      Math.min(Math.max(...shown.map(({ run }) => run.name.length)), width - 44),
    );
    const lines = shown.map((view) => {
      const left = view.state === "running" ? secondsLeft(view, now) : null;
      const cells = [
        pad(shorten(view.run.name, nameWidth), nameWidth),
        this.#tint(pad(view.state, 11), view.state),
        view.error === null ? pad(view.began === null ? "" : stepText(view), 22) : visible(view.error),
        left === null ? "" : `${span(left)} left`,
      ];
      return cut(cells.join("  ").trimEnd(), width - 1);
    });
    const counts = order.flatMap((state) => {
      const count = this.views.filter((view) => view.state === state).length;
      return count === 0 ? [] : [`${count} ${state}`];
    });
    const left = sweepSecondsLeft(this.views, this.atOnce, now);
    const total = `${this.views.length} runs: ${counts.join(", ")}${left === null || left === 0 ? "" : `; ${span(left)} left`}`;
    return [...lines, ...(fits ? [] : [`… ${this.views.length - shown.length} more`]), cut(total, width - 1)];
  }

  #tint(text: string, state: PoolState): string {
    const colour = this.#colours ? COLOURS[state] : undefined;
    return colour === undefined ? text : `\u001b[${colour}m${text}\u001b[39m`;
  }
}

/** Names differ at their ends as often as at their beginnings: the middle is what is left out. */
function shorten(name: string, width: number): string {
  if (name.length <= width) return name;
  const end = Math.floor((width - 1) / 2);
  return `${name.slice(0, width - 1 - end)}…${name.slice(-end)}`;
}
