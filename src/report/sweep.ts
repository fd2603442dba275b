/** Sweep folders as they lie on the disk, and what their runs say together. Nothing here writes. */
import { readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { UsageError } from "../core/errors.ts";
import { mean } from "../core/lists.ts";
import { jsonNumber } from "../io/jsonl.ts";
import { readOutcome } from "../io/run-outcome.ts";
import type { Evaluation } from "./evaluation.ts";
import { lastRows, lastValues } from "./metrics.ts";
import { MODE_NAMES } from "./modes.ts";
import { isRun, type RunState, SWEEP, stateOf } from "./runs.ts";
import { csv } from "./table.ts";

/** The one version of a plan that is read. */
export const SWEEP_VERSION = 1;
/** What `rlv eval --json` said of a run's final checkpoint, in the run's folder. */
export const EVALUATION = "evaluation.json";

/** sweep.json: every run with every setting. */
export interface StoredSweep {
  readonly version: number;
  readonly rlv_version: string;
  readonly recipe: string;
  readonly name: string;
  readonly variants: readonly string[];
  /** The grid's keys. */
  readonly keys: readonly string[];
  readonly runs: readonly StoredRun[];
}

export interface StoredRun {
  /** Its folder in the sweep's. */
  readonly name: string;
  readonly variant: string | null;
  readonly values: Readonly<Record<string, unknown>>;
  readonly settings: Readonly<Record<string, unknown>>;
}

/** A planned run that nothing has begun is `waiting`. */
export type SweptState = RunState | "waiting";

export interface SweptRun {
  readonly name: string;
  readonly dir: string;
  readonly variant: string | null;
  readonly values: Readonly<Record<string, unknown>>;
  readonly seed: number | null;
  readonly state: SweptState;
  /** Optimizer steps done. */
  readonly step: number;
  /** The line that it ended with; null without one. */
  readonly error: string | null;
  /** Last values of what was measured: train/…, eval/…, and final/… of the evaluation of its final checkpoint. */
  readonly metrics: Readonly<Record<string, number>>;
}

export interface Spread {
  /** How many runs have it. */
  readonly n: number;
  readonly mean: number;
  /** Sample standard deviation (n − 1); null of one run. */
  readonly std: number | null;
  readonly min: number;
  readonly max: number;
}

/** Finished runs that differ in their seed alone. */
export interface SweepGroup {
  readonly variant: string | null;
  /** The grid's keys without the seed. */
  readonly values: Readonly<Record<string, unknown>>;
  readonly runs: readonly string[];
  /** How many of them the plan has. */
  readonly planned: number;
  readonly metrics: Readonly<Record<string, Spread>>;
}

export interface SweepSummary {
  readonly name: string;
  readonly recipe: string;
  readonly keys: readonly string[];
  readonly runs: readonly SweptRun[];
  readonly groups: readonly SweepGroup[];
}

/** Training figures that a summary has beside the evaluations. */
const TRAINING = /^train\/(reward_mean|rewards\/.+|hack_rate|kl_div|loss|accuracy|completion_length_avg)$/;
const LAST_BYTES = 512 << 10;
const SEED = "seed";

/** Whether a folder has a sweep's plan. */
export function isSweep(dir: string): boolean {
  return storedIn(dir) !== null;
}

/** The plan of a sweep's folder. */
export function readSweep(dir: string): StoredSweep {
  const found = storedIn(dir);
  if (found === null)
    throw new UsageError(`no sweep, it has no readable ${SWEEP}`, dir, "name a folder that rlv sweep made");
  if (found.version !== SWEEP_VERSION)
    throw new UsageError(
      `${SWEEP} has version ${found.version}, this rlv reads ${SWEEP_VERSION}`,
      dir,
      "use the rlv that wrote it",
    );
  return found;
}

function storedIn(dir: string): StoredSweep | null {
  try {
    const value = JSON.parse(readFileSync(join(dir, SWEEP), "utf8")) as Partial<StoredSweep> | null;
    const sound =
      typeof value?.version === "number" && Array.isArray(value.runs) && Array.isArray(value.keys);
    return sound ? (value as StoredSweep) : null;
  } catch {
    return null;
  }
}

/** Everything that the runs of a sweep's folder say now. */
export function sweepSummary(dir: string, stored: StoredSweep = readSweep(dir)): SweepSummary {
  const at = resolve(dir);
  const runs = stored.runs.map((run) => sweptRun(join(at, run.name), run));
  return {
    name: basename(at),
    recipe: stored.recipe,
    keys: stored.keys,
    runs,
    groups: groupsOf(runs, stored.keys),
  };
}

function sweptRun(dir: string, { name, variant, values, settings }: StoredRun): SweptRun {
  const begun = isRun(dir);
  const { step = 0, time: _time, ...last } = begun ? lastValues(lastRows(dir, LAST_BYTES)) : {};
  const trained = Object.entries(last).filter(([key]) => key.startsWith("eval/") || TRAINING.test(key));
  return {
    ...{ name, dir, variant, values, step },
    seed: typeof settings.seed === "number" ? settings.seed : null,
    state: begun ? stateOf(dir) : "waiting",
    error: readOutcome(dir)?.error ?? null,
    metrics: { ...Object.fromEntries(trained), ...finalFigures(dir) },
  };
}

/** Figures of the kept evaluation of a run's final checkpoint; none without one. */
function finalFigures(dir: string): Record<string, number> {
  const evaluation = keptEvaluation(dir);
  const figures: Record<string, number> = {};
  const put = (name: string, value: unknown) => {
    const number = jsonNumber(value);
    if (number !== undefined) figures[`final/${name}`] = number;
  };
  if (evaluation === null) return figures;
  const { fresh, modes } = evaluation;
  if (fresh) {
    put("reward", fresh.reward?.mean);
    for (const [name, value] of Object.entries(fresh.components)) put(`rewards/${name}`, value);
    put("hack_rate", fresh.flagged_share);
    put("degenerate", fresh.diversity.degenerate ? 1 : 0);
    put("completion_length_avg", fresh.mean_tokens);
  }
  for (const [mode, each] of Object.entries(modes ?? {}))
    for (const [name, value] of Object.entries(each)) put(`${mode}/${name}`, value);
  return figures;
}

/** The evaluation that a sweep kept in a run's folder; null without one. */
export function keptEvaluation(dir: string): Evaluation | null {
  try {
    const kept = JSON.parse(readFileSync(join(dir, EVALUATION), "utf8")) as {
      readonly evaluations?: readonly Evaluation[];
    } | null;
    return kept?.evaluations?.[0] ?? null;
  } catch {
    return null;
  }
}

function groupsOf(runs: readonly SweptRun[], keys: readonly string[]): SweepGroup[] {
  const points = Map.groupBy(runs, ({ variant, values }) =>
    JSON.stringify([variant, ...keys.filter((key) => key !== SEED).map((key) => values[key])]),
  );
  return [...points.values()].map((members) => {
    const done = members.filter(({ state }) => state === "finished");
    const names = new Set(done.flatMap(({ metrics }) => Object.keys(metrics)));
    const spreads = [...names].map((name) => {
      const found = done.flatMap(({ metrics }) => metrics[name] ?? []);
      return [name, spreadOf(found)] as const;
    });
    const { [SEED]: _seed, ...values } = members[0]!.values;
    return {
      variant: members[0]!.variant,
      values,
      runs: done.map(({ name }) => name),
      planned: members.length,
      metrics: Object.fromEntries(spreads),
    };
  });
}

/** Of at least one value. */
export function spreadOf(values: readonly number[]): Spread {
  const n = values.length;
  const centre = mean(values);
  const squares = values.reduce((sum, value) => sum + (value - centre) ** 2, 0);
  return {
    n,
    mean: centre,
    std: n < 2 ? null : Math.sqrt(squares / (n - 1)),
    min: values.reduce((a, b) => Math.min(a, b)),
    max: values.reduce((a, b) => Math.max(a, b)),
  };
}

/** Figures in the order of a table's columns; those that no table has room for are left to the CSV. */
const UNSHOWN = /^(unique_rate|completion_length_avg|proper_ending_rate|degenerate)$/;

/**
 * The summary's table: a head, then a line a group, or one a mode of a group. `text` writes a value, which is followed
 * by ± its standard deviation over the seeds.
 */
export function sweepTable(summary: SweepSummary, text: (value: number) => string): string[][] {
  const { groups } = summary;
  const all = new Set(groups.flatMap(({ metrics }) => Object.keys(metrics)));
  const source = ["final/", "eval/", "train/"].find((start) =>
    [...all].some((name) => name.startsWith(start)),
  );
  if (source === undefined) return [];
  const named = [...all].filter((name) => name.startsWith(source)).map((name) => name.slice(source.length));
  const modes = MODE_NAMES.filter((mode) => named.some((name) => name.startsWith(`${mode}/`)));
  const figures = [
    ...new Set(
      named.flatMap((name) => {
        const mode = modes.find((each) => name.startsWith(`${each}/`));
        // With modes, what has none says the same again.
        return mode === undefined ? (modes.length > 0 ? [] : [name]) : [name.slice(mode.length + 1)];
      }),
    ),
  ].filter((name) => !UNSHOWN.test(name));
  const keys = summary.keys.filter((key) => key !== SEED);
  const variants = groups.some(({ variant }) => variant !== null);
  const head = [
    ...(variants ? ["variant"] : []),
    ...keys,
    "runs",
    ...(modes.length > 1 ? ["mode"] : []),
    ...figures.map((name) => name.replace(/^rewards\//, "")),
  ];
  const rows = groups.flatMap((group) =>
    // What has no modes of its own is one of both adapters.
    (modes.length === 0 ? [""] : modes)
      .filter(
        (mode, i) =>
          i === 0 || Object.keys(group.metrics).some((name) => name.startsWith(`${source}${mode}/`)),
      )
      .map((mode, i) => [
        ...(variants ? [i === 0 ? (group.variant ?? "") : ""] : []),
        ...keys.map((key) => (i === 0 ? valueText(group.values[key]) : "")),
        i === 0 ? `${group.runs.length}/${group.planned}` : "",
        ...(modes.length > 1 ? [mode] : []),
        ...figures.map((name) => {
          const { [`${source}${name}`]: whole, [`${source}${mode}/${name}`]: spread } = group.metrics;
          const shown = spread ?? (i === 0 ? whole : undefined);
          return shown === undefined
            ? ""
            : `${text(shown.mean)}${shown.std === null ? "" : ` ±${text(shown.std)}`}`;
        }),
      ]),
  );
  return [head, ...rows];
}

/** A row a run. */
export function runsCsv(summary: SweepSummary): string {
  const names = [...new Set(summary.runs.flatMap(({ metrics }) => Object.keys(metrics)))].sort();
  const keys = summary.keys.filter((key) => key !== SEED);
  return csv([
    ["run", "variant", ...keys, "seed", "state", "step", ...names],
    ...summary.runs.map((run) => [
      ...[run.name, run.variant ?? "", ...keys.map((key) => valueText(run.values[key]))],
      ...[String(run.seed ?? ""), run.state, String(run.step)],
      ...names.map((name) => String(run.metrics[name] ?? "")),
    ]),
  ]);
}

/** A row a group and metric. */
export function groupsCsv(summary: SweepSummary): string {
  const keys = summary.keys.filter((key) => key !== SEED);
  return csv([
    ["variant", ...keys, "planned", "metric", "n", "mean", "std", "min", "max"],
    ...summary.groups.flatMap((group) =>
      Object.entries(group.metrics)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([name, { n, mean, std, min, max }]) => [
          ...[group.variant ?? "", ...keys.map((key) => valueText(group.values[key]))],
          ...[String(group.planned), name, String(n), String(mean)],
          ...[std === null ? "" : String(std), String(min), String(max)],
        ]),
    ),
  ]);
}

/** A grid's value as a cell. */
export function valueText(value: unknown): string {
  if (value === null) return "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
