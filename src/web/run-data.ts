/** What the page asks about runs, answered from their folders. Runs in a process of its own: data-process.ts. */
import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { lastRows, lastValues, metricsPath, sampleOf } from "../report/metrics.ts";
import {
  type CheckpointInfo as Checkpoint,
  configOf,
  listRuns,
  readRun,
  type RunSummary as Summary,
} from "../report/runs.ts";
import type {
  ApiError,
  CheckpointInfo,
  ConfigComparison,
  DiversityReport,
  LogTail,
  MetricRows,
  MetricsAnswer,
  RewardReport,
  RolloutDetail,
  RolloutPage,
  RolloutQuery,
  RolloutTable,
  RolloutTables,
  RunDetail,
  RunList,
  RunMetrics,
  RunSummary,
  SweepCurves,
  SweepReport,
} from "./api.ts";
import type { FoundRun } from "./context.ts";
import { MetricsTable } from "./metrics-table.ts";
import { parseKey, RunRollouts } from "./rollouts.ts";
import { idOf, Roots } from "./roots.ts";
import { HttpError } from "./router.ts";
import { type SpeakingRun, speakingRuns } from "./speakers.ts";
import { groupedReport, readableSweeps, spreadSeries, sweepReport } from "./sweeps.ts";

/** What is kept in memory of runs that were looked at; the ones not looked at for longest go first. */
const MOST_VALUES = 16 << 20;
const MOST_TEXT_BYTES = 800 << 20;
const MOST_INDEXES = 12;
const LAST_BYTES = 64 << 10;
const HEADER_LINES = 60;
const SPARKLINE_POINTS = 40;
const SPARKLINE_BYTES = 6 << 10;
const ROWS_LIMIT = 2000;
/** Points that a curve has at most, and its last step: no limit. */
const ALL = Number.POSITIVE_INFINITY;

/** The part of a summary that takes reading: kept while the metrics are the same. */
interface Digest {
  readonly signature: string;
  readonly last: RunSummary["last"];
  readonly sparkline: RunSummary["sparkline"];
}

export class RunData {
  readonly #roots: Roots;
  readonly #digests = new Map<string, Digest>();
  readonly #tables = new Map<string, MetricsTable>();
  readonly #rollouts = new Map<string, RunRollouts>();

  constructor(folders: readonly string[]) {
    this.#roots = new Roots(folders);
  }

  run(id: string): FoundRun {
    return this.#roots.run(id);
  }

  list(): RunList {
    const sweeps = this.#roots.sweeps();
    const runs = listRuns(this.#roots.folders).map((summary) => this.#summary(summary, sweeps));
    const there = new Set(runs.map((run) => run.id));
    for (const map of [this.#digests, this.#tables, this.#rollouts])
      for (const id of map.keys()) if (!there.has(id)) map.delete(id);
    return { root: this.#roots.folders.join(", "), runs, sweeps: readableSweeps(sweeps) };
  }

  #summary(summary: Summary, sweeps = this.#roots.sweeps()): RunSummary {
    const { dir } = summary;
    const sweep = sweeps.find((each) => each.dir === dirname(dir));
    const id = idOf(dir);
    const config = configOf(dir);
    const model = config?.model_name ?? config?.model;
    return {
      id,
      name: summary.name,
      sweep: sweep?.id ?? null,
      recipe: summary.recipe,
      state: summary.state,
      step: summary.step,
      total_steps: summary.steps,
      started: milliseconds(summary.started),
      updated: milliseconds(summary.updated),
      tags: summary.tags,
      model: typeof model === "string" ? model : null,
      problem: summary.problem,
      ...this.#digest(id, dir, summary.metric),
    };
  }

  #digest(id: string, dir: string, metric: string | null): Pick<RunSummary, "last" | "sparkline"> {
    const stat = statSync(metricsPath(dir), { throwIfNoEntry: false });
    const signature = `${stat?.ino} ${stat?.size} ${stat?.mtimeMs} ${metric}`;
    let digest = this.#digests.get(id);
    if (digest?.signature !== signature) {
      const { step: _step, time: _time, ...last } = lastValues(lastRows(dir, LAST_BYTES));
      digest = {
        signature,
        last: finiteValues(last),
        sparkline:
          metric === null
            ? null
            : { name: metric, values: sampleOf(dir, metric, SPARKLINE_POINTS, SPARKLINE_BYTES) },
      };
      this.#digests.set(id, digest);
    }
    return { last: digest.last, sparkline: digest.sparkline };
  }

  async detail(id: string): Promise<RunDetail> {
    const { dir } = this.#roots.run(id);
    const run = readRun(dir);
    const table = await this.#table(id);
    return {
      ...this.#summary(run),
      last: finiteValues(run.last),
      config: run.config,
      error: run.error,
      bytes: run.bytes,
      header: headerOf(dir),
      metric_names: table.names,
      metric_rows: table.rows,
      checkpoints: run.saved.map(checkpointOf),
      rollouts: await this.#countRollouts(id),
    };
  }

  /** A database that cannot be read is no reason to show nothing of its run; the rollouts' own page says why. */
  async #countRollouts(id: string): Promise<RolloutTables | null> {
    try {
      return await this.#rolloutsOf(id).tables();
    } catch (error) {
      if (error instanceof HttpError) return { train: 0, eval: 0, modes: [] };
      throw error;
    }
  }

  log(id: string, bytes: number): LogTail {
    const { dir } = this.#roots.run(id);
    const { text, from } = readPart(join(dir, "train.log"), (size) => Math.max(0, size - bytes), bytes);
    const cut = from > 0;
    return { text: cut ? text.slice(text.indexOf("\n") + 1) : text, cut };
  }

  async metrics(
    ids: readonly string[],
    names: readonly string[],
    points: number,
    xMin: number,
    xMax: number,
  ): Promise<MetricsAnswer> {
    const runs: Record<string, RunMetrics | ApiError> = {};
    for (const id of ids) {
      try {
        runs[id] = (await this.#table(id)).curves(names, points, xMin, xMax);
      } catch (error) {
        if (!(error instanceof HttpError)) throw error;
        runs[id] = { error: error.message };
      }
    }
    return { runs };
  }

  /** `from` null: none, to know where the run is. */
  async rows(id: string, generation: string, from: number | null, limit = ROWS_LIMIT): Promise<MetricRows> {
    const table = await this.#table(id);
    return from === null
      ? table.rowsFrom(id, table.generation, table.rows, 0)
      : table.rowsFrom(id, generation, from, limit);
  }

  async #table(id: string): Promise<MetricsTable> {
    const { dir } = this.#roots.run(id);
    const table = recent(this.#tables, id, () => new MetricsTable(dir));
    await table.refresh();
    let values = 0;
    for (const [key, each] of [...this.#tables].reverse()) {
      values += each.values;
      if (values > MOST_VALUES && key !== id) this.#tables.delete(key);
    }
    return table;
  }

  #rolloutsOf(id: string): RunRollouts {
    const { dir } = this.#roots.run(id);
    const rollouts = recent(this.#rollouts, id, () => new RunRollouts(dir));
    let bytes = 0;
    for (const [at, [key, each]] of [...this.#rollouts].reverse().entries()) {
      bytes += each.textBytes;
      if (at >= MOST_INDEXES) this.#rollouts.delete(key);
      else if (bytes > MOST_TEXT_BYTES && at > 0) each.dropTexts();
    }
    return rollouts;
  }

  rolloutTables(id: string): Promise<RolloutTables | null> {
    return this.#rolloutsOf(id).tables();
  }

  async rollouts(id: string, query: RolloutQuery): Promise<RolloutPage> {
    const rollouts = this.#rolloutsOf(id);
    const page = await rollouts.page(query);
    // Who looks at rollouts may search them next. What goes wrong then is said to the search.
    rollouts.warm().catch(() => {});
    return page;
  }

  rollout(id: string, key: string, table: RolloutTable, mode: string): RolloutDetail {
    return this.#rolloutsOf(id).detail(table, mode, parseKey(key));
  }

  diversity(id: string, table: RolloutTable, steps: number): Promise<DiversityReport> {
    return this.#rolloutsOf(id).diversity(table, steps);
  }

  rewards(id: string, steps: number): RewardReport {
    return this.#rolloutsOf(id).rewards(steps);
  }

  sweep(id: string): Promise<SweepReport> {
    return this.#named(sweepReport(this.#roots.sweep(id)));
  }

  sweepCurves(id: string, names: readonly string[], points: number): Promise<SweepCurves> {
    return this.#spread(sweepReport(this.#roots.sweep(id)), names, points);
  }

  grouped(ids: readonly string[]): Promise<SweepReport> {
    return this.#named(groupedReport(ids.map((id) => this.#roots.run(id))));
  }

  groupedCurves(ids: readonly string[], names: readonly string[], points: number): Promise<SweepCurves> {
    return this.#spread(groupedReport(ids.map((id) => this.#roots.run(id))), names, points);
  }

  async #named(report: Omit<SweepReport, "metric_names">): Promise<SweepReport> {
    const names = new Set<string>();
    for (const { id } of report.runs)
      if (id !== null) for (const name of (await this.#table(id)).names) names.add(name);
    return { ...report, metric_names: [...names].sort() };
  }

  async #spread(
    { runs, groups }: Pick<SweepReport, "runs" | "groups">,
    names: readonly string[],
    points: number,
  ): Promise<SweepCurves> {
    const tables: RunMetrics[][] = groups.map(() => []);
    for (const { id, group } of runs)
      if (id !== null) tables[group]!.push((await this.#table(id)).curves(names, ALL, 0, ALL));
    const of = (name: string) =>
      tables.map((members) =>
        spreadSeries(
          members.flatMap(({ series }) => series[name] ?? []),
          points,
        ),
      );
    return { metrics: Object.fromEntries(names.map((name) => [name, of(name)])) };
  }

  speakers(): SpeakingRun[] {
    return speakingRuns(this.#roots.runs());
  }

  compare(a: string, b: string): ConfigComparison {
    const [left, right] = [a, b].map((id) => configOf(this.#roots.run(id).dir) ?? {}) as [
      Record<string, unknown>,
      Record<string, unknown>,
    ];
    const keys = [...new Set([...Object.keys(left), ...Object.keys(right)])];
    return {
      a,
      b,
      keys: keys.map((key) => ({
        key,
        a: left[key],
        b: right[key],
        same: Bun.deepEquals(left[key], right[key]),
      })),
    };
  }
}

/** The value of a key, which becomes the last of the map: maps keep their order. */
function recent<T>(map: Map<string, T>, key: string, make: () => T): T {
  const value = map.get(key) ?? make();
  map.delete(key);
  map.set(key, value);
  return value;
}

const milliseconds = (seconds: number | null): number | null =>
  seconds === null || !Number.isFinite(seconds) ? null : Math.round(seconds * 1000);

function finiteValues(values: Readonly<Record<string, number>>): Record<string, number | null> {
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [name, Number.isFinite(value) ? value : null]),
  );
}

function checkpointOf(checkpoint: Checkpoint): CheckpointInfo {
  const has = (name: string) => statSync(join(checkpoint.dir, name), { throwIfNoEntry: false }) !== undefined;
  const config = readPart(join(checkpoint.dir, "config.json"), () => 0, 1 << 20).text;
  return {
    name: checkpoint.name,
    step: checkpoint.step,
    bytes: checkpoint.bytes,
    written: Math.round(checkpoint.time * 1000),
    whole: checkpoint.whole,
    kind: has("adapter_config.json")
      ? "adapter"
      : config.includes("ForSequenceClassification")
        ? "reward_model"
        : "model",
  };
}

/** Lines before the first step: model, data, device, formula, memory. */
function headerOf(dir: string): string[] {
  const lines = readPart(join(dir, "train.log"), () => 0, 32 << 10).text.split("\n");
  const end = lines.findIndex((line) =>
    /^(step \d|eval at \d|\[Sample @|checkpoint at|rlv: error)/.test(line),
  );
  return lines
    .slice(0, end < 0 ? lines.length : end)
    .slice(0, HEADER_LINES)
    .filter(Boolean);
}

/** A part of a file as text; empty where there is no such file. */
function readPart(
  path: string,
  from: (size: number) => number,
  bytes: number,
): { text: string; from: number } {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return { text: "", from: 0 };
  }
  try {
    const begin = from(fstatSync(fd).size);
    const buffer = new Uint8Array(bytes);
    const count = readSync(fd, buffer, 0, bytes, begin);
    return { text: new TextDecoder().decode(buffer.subarray(0, count)), from: begin };
  } finally {
    closeSync(fd);
  }
}
