/** Run folders as they lie on the disk: which there are, how each stands, what it holds. Nothing here writes. */
import { lstatSync, readdirSync, readFileSync, type Stats, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { UsageError } from "../core/errors.ts";
import { MANIFEST, TRAIN_STATE } from "../io/checkpoint-folder.ts";
import { liveHolders } from "../io/run-lock.ts";
import { type RunOutcome, readOutcome } from "../io/run-outcome.ts";
import { firstRow, lastRows, lastValues } from "./metrics.ts";

/** Where recipes keep their runs unless told otherwise. */
export const RUN_ROOTS = ["runs", "checkpoints/rm", "checkpoints/grpo"] as const;

/** The folders that --dir names, separated by commas; the recipes' own without it. */
export function rootsOf(dir: string | null): readonly string[] {
  return dir === null ? RUN_ROOTS : dir.split(",").filter((part) => part !== "");
}

export const CONFIG = "train_config.json";
export const TAGS = "tags.json";
/** The plan in a sweep's folder, whose runs lie in it. */
export const SWEEP = "sweep.json";

/** live: a process holds it. crashed: it ended with an error, or without anybody saying how. */
export type RunState = "live" | "finished" | "interrupted" | "crashed" | "diverged";

/** What a list shows of a run. Times are seconds since 1970. */
export interface RunSummary {
  /** Absolute path. */
  readonly dir: string;
  readonly name: string;
  /** The folder that it lies in, as it was given to `listRuns`. */
  readonly root: string;
  /** null: its config says none. */
  readonly recipe: string | null;
  readonly state: RunState;
  /** Optimizer steps done. */
  readonly step: number;
  /** Of the whole run; null where its config counts epochs. */
  readonly steps: number | null;
  /** The metric that says most of such a run, and its last value; null without rows. */
  readonly metric: string | null;
  readonly value: number | null;
  /** Of the first row of metrics. */
  readonly started: number | null;
  /** Of the last row of metrics, or of the config before there is one. */
  readonly updated: number;
  /** When it ended; null while it is live. */
  readonly ended: number | null;
  readonly tags: readonly string[];
  /** Names in RUN/checkpoints, in the order of their steps. */
  readonly checkpoints: readonly string[];
  /** A link that leads to the run: it is read, never changed. */
  readonly link: boolean;
  /** Why this is no run that rlv would change; null for a sound one. */
  readonly problem: string | null;
}

export interface CheckpointInfo {
  readonly name: string;
  readonly dir: string;
  readonly kind: "step" | "final" | "diverged";
  /** null: it does not say. */
  readonly step: number | null;
  /** Of all its files. */
  readonly bytes: number;
  /** It has a manifest, and every file of it with that size. */
  readonly whole: boolean;
  /** Seconds since 1970. */
  readonly time: number;
}

export interface Run extends RunSummary {
  /** train_config.json; null where it cannot be read. */
  readonly config: Readonly<Record<string, unknown>> | null;
  readonly saved: readonly CheckpointInfo[];
  /** The last value of each metric. */
  readonly last: Readonly<Record<string, number>>;
  /** Of all files, checkpoints included. */
  readonly bytes: number;
  /** Processes that hold it. */
  readonly pids: readonly number[];
  /** The line that it ended with; null without one. */
  readonly error: string | null;
}

/** Enough for the last row of any run; and for evaluations every hundred steps. */
const TAIL_BYTES = 16 << 10;
const LAST_BYTES = 512 << 10;

/** The runs in some folders, newest first. Folders that do not exist have none; what is no run is passed over. */
export function listRuns(roots: readonly string[] = RUN_ROOTS): RunSummary[] {
  const found = new Map<string, RunSummary>();
  for (const root of roots)
    for (const { dir } of runsIn(root)) {
      // Two roots may be the same folder.
      if (!found.has(dir)) found.set(dir, summarize(dir, root));
    }
  return [...found.values()].sort((a, b) => b.updated - a.updated || a.name.localeCompare(b.name));
}

/** The runs of a folder in the order of their names, those of the sweeps in it as SWEEP/RUN. */
export function runsIn(root: string): { readonly name: string; readonly dir: string }[] {
  const at = resolve(root);
  return entries(at)
    .filter((name) => !name.startsWith("."))
    .map((name) => join(at, name))
    .flatMap((dir) => {
      if (isRun(dir)) return [dir];
      if (!hasPlan(dir)) return [];
      return entries(dir)
        .filter((name) => !name.startsWith("."))
        .map((name) => join(dir, name))
        .filter(isRun);
    })
    .map((dir) => ({ name: nameOf(dir), dir }));
}

/** Whether a run's folder lies in a sweep's. */
export function inSweep(runDir: string): boolean {
  return hasPlan(dirname(runDir));
}

const hasPlan = (dir: string): boolean => statOf(join(dir, SWEEP))?.isFile() === true;

/** RUN, or SWEEP/RUN. */
function nameOf(runDir: string): string {
  return inSweep(runDir) ? `${basename(dirname(runDir))}/${basename(runDir)}` : basename(runDir);
}

/** A folder with a training config that is no checkpoint: those have manifests. */
export function isRun(dir: string): boolean {
  return statOf(join(dir, CONFIG))?.isFile() === true && statOf(join(dir, MANIFEST)) === null;
}

/** Everything about one run. */
export function readRun(dir: string): Run {
  const at = resolve(dir);
  if (!isRun(at))
    throw new UsageError("no run of rlv", dir, "name a folder that rlv train made, see rlv runs list");
  const standing = standingOf(at);
  const { step: _step, time: _time, ...last } = lastValues(lastRows(at, LAST_BYTES));
  return {
    ...summarize(at, dirname(at), standing),
    config: standing.config,
    saved: checkpointsOf(at),
    last,
    bytes: bytesBelow(at),
    pids: standing.pids,
    error: standing.outcome?.error ?? null,
  };
}

/** A run by its path, or by its name in one of the roots. */
export function findRun(name: string, roots: readonly string[] = RUN_ROOTS): string {
  if (isRun(name)) return resolve(name);
  const parts = name.split("/");
  const plain = parts.length <= 2 && !parts.some((part) => ["", ".", ".."].includes(part));
  const found = plain
    ? roots
        .map((root) => join(resolve(root), name))
        .filter((dir) => isRun(dir) && (parts.length === 1 || inSweep(dir)))
    : [];
  const distinct = [...new Set(found)];
  if (distinct.length === 1) return distinct[0]!;
  if (distinct.length > 1)
    throw new UsageError(`${distinct.length} runs are called ${name}`, distinct.join(", "), "give its path");
  throw new UsageError(
    `no run ${JSON.stringify(name)}`,
    roots.join(", "),
    "rlv runs list shows the runs; --dir names another folder",
  );
}

/** train_config.json of a run; null where it cannot be read. */
export function configOf(runDir: string): Record<string, unknown> | null {
  return objectIn(join(runDir, CONFIG));
}

/** A run's checkpoints in the order of their steps, `final` last. */
export function checkpointsOf(runDir: string): CheckpointInfo[] {
  const parent = join(runDir, "checkpoints");
  return checkpointNames(parent).map((name) => {
    const dir = join(parent, name);
    return {
      name,
      dir,
      kind:
        name === "final"
          ? ("final" as const)
          : name.startsWith("step-")
            ? ("step" as const)
            : ("diverged" as const),
      step: stepOf(dir),
      bytes: bytesBelow(dir),
      whole: isWhole(dir),
      time: (statOf(dir)?.mtimeMs ?? 0) / 1000,
    };
  });
}

/** Whether a checkpoint is a model that somebody may use: all of it is there, and it was not saved at a divergence. */
export function usable({ whole, kind }: CheckpointInfo): boolean {
  return whole && kind !== "diverged";
}

/** The metric that says most of a run of this recipe, among those it has. */
export function mainMetric(names: Iterable<string>): string | null {
  const there = new Set(names);
  const preferred = ["train/reward_mean", "train/accuracy", "eval/reward", "eval/accuracy", "train/loss"];
  return preferred.find((name) => there.has(name)) ?? null;
}

/** What its small files say of a run, read once. */
interface Standing {
  readonly config: Record<string, unknown> | null;
  readonly outcome: RunOutcome | null;
  /** Processes that hold it. */
  readonly pids: readonly number[];
  readonly checkpoints: readonly string[];
}

function standingOf(dir: string): Standing {
  // Holders first: one that ends now has written its outcome before.
  const pids = liveHolders(dir);
  return {
    pids,
    outcome: readOutcome(dir),
    config: configOf(dir),
    checkpoints: checkpointNames(join(dir, "checkpoints")),
  };
}

function summarize(dir: string, root: string, standing = standingOf(dir)): RunSummary {
  const { config, outcome, checkpoints } = standing;
  const last = lastValues(lastRows(dir, TAIL_BYTES));
  const metric = mainMetric(Object.keys(last));
  const state = stateBy(standing);
  const updated = last.time ?? (statOf(join(dir, CONFIG))?.mtimeMs ?? 0) / 1000;
  const total = config?.num_train_steps ?? config?.max_steps;
  return {
    dir,
    name: nameOf(dir),
    root,
    recipe: typeof config?.recipe === "string" ? config.recipe : null,
    state,
    step: last.step ?? 0,
    steps: typeof total === "number" ? total : null,
    metric,
    value: metric === null ? null : last[metric]!,
    started: firstRow(dir)?.time ?? null,
    updated,
    ended: state === "live" ? null : (outcome?.time ?? updated),
    tags: tagsOf(dir),
    checkpoints,
    link: lstatSync(dir).isSymbolicLink(),
    problem: problemOf(config),
  };
}

function problemOf(config: Record<string, unknown> | null): string | null {
  if (config === null) return `${CONFIG} cannot be read`;
  if (typeof config.recipe !== "string" || typeof config.rlv_version !== "string")
    return `${CONFIG} is not of rlv`;
  return null;
}

/** How a run stands, by what its folder says. */
export function stateOf(dir: string): RunState {
  return stateBy(standingOf(dir));
}

function stateBy({ pids, outcome, checkpoints }: Standing): RunState {
  if (pids.length > 0) return "live";
  switch (outcome?.exit_code) {
    case 0:
      return "finished";
    case 3:
      return "diverged";
    case 130:
      return "interrupted";
    case undefined:
      // Nobody was left to say.
      return checkpoints.includes("final") ? "finished" : "crashed";
    default:
      return "crashed";
  }
}

/** Tags of a run; none where the file is missing or not ours. */
export function tagsOf(dir: string): string[] {
  const tags = objectIn(join(dir, TAGS))?.tags;
  return Array.isArray(tags) ? tags.filter((tag) => typeof tag === "string") : [];
}

const CHECKPOINT = /^(?:step-(\d+)|diverged-(\d+)|final)$/;

function checkpointNames(parent: string): string[] {
  const order = (name: string) => Number(name.replace(/^\D+/, "") || Number.POSITIVE_INFINITY);
  return entries(parent)
    .filter((name) => CHECKPOINT.test(name))
    .sort((a, b) => order(a) - order(b) || a.localeCompare(b));
}

function stepOf(dir: string): number | null {
  const [, step, diverged] = CHECKPOINT.exec(basename(dir))!;
  const named = step ?? diverged;
  if (named !== undefined) return Number(named);
  const state = objectIn(join(dir, TRAIN_STATE))?.step;
  return typeof state === "number" ? state : null;
}

/** Sizes alone: contents are checked by whoever loads it. */
function isWhole(dir: string): boolean {
  const files = objectIn(join(dir, MANIFEST))?.files;
  if (typeof files !== "object" || files === null) return false;
  return Object.entries(files as Record<string, { bytes?: unknown } | null>).every(
    ([name, file]) => statOf(join(dir, name))?.size === file?.bytes,
  );
}

/** Bytes of the files below a folder; links count as nothing. */
function bytesBelow(dir: string): number {
  let bytes = 0;
  for (const name of entries(dir)) {
    const path = join(dir, name);
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat?.isFile()) bytes += stat.size;
    else if (stat?.isDirectory()) bytes += bytesBelow(path);
  }
  return bytes;
}

function entries(dir: string): string[] {
  try {
    return readdirSync(dir).sort();
  } catch {
    return [];
  }
}

/** null: nothing is there, or nothing that may be looked at. */
function statOf(path: string): Stats | null {
  try {
    return statSync(path);
  } catch {
    return null;
  }
}

function objectIn(path: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(readFileSync(path, "utf8"));
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null;
  } catch {
    return null;
  }
}
