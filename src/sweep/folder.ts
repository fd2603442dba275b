/** A sweep's folder: its plan, how each run stands, and who runs it. */
import { mkdirSync, readdirSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { RECIPES, type ResolvedConfig } from "../config/recipes.ts";
import { RlvError, UsageError } from "../core/errors.ts";
import { VERSION } from "../core/version.ts";
import { withFileErrors, writeFileAtomic } from "../io/atomic.ts";
import { takeLock } from "../io/run-lock.ts";
import { readOutcome } from "../io/run-outcome.ts";
import { configOf, isRun, SWEEP, stateOf } from "../report/runs.ts";
import {
  groupsCsv,
  isSweep,
  keptEvaluation,
  readSweep,
  runsCsv,
  type StoredSweep,
  SWEEP_VERSION,
  type SweepSummary,
  sweepSummary,
  valueText,
} from "../report/sweep.ts";
import { waitForOrphan } from "../run/folder.ts";
import { differences, type PlannedRun, placed, type SweepPlan } from "./plan.ts";

/** What is left to do of a run. */
export type Todo =
  /** Nothing has begun. */
  | "start"
  /** It was interrupted, or failed and is tried again: from its newest checkpoint. */
  | "resume"
  /** It is finished, its evaluation is not. */
  | "evaluate"
  | "nothing"
  /** It failed or diverged, and is left as it is. */
  | "failed"
  /** Another process trains it. */
  | "live";

/** Writes the plan; one that lies there already may only grow. Returns a lock on the folder to be released. */
export function openSweep(plan: SweepPlan): { release(): void } {
  withFileErrors("make the sweep's folder", plan.folder, () => mkdirSync(plan.folder, { recursive: true }));
  const lock = lockSweep(plan.folder);
  try {
    if (isSweep(plan.folder)) refuseOther(readSweep(plan.folder), plan);
    else refuseForeign(plan.folder);
    writeFileAtomic(join(plan.folder, SWEEP), `${JSON.stringify(storedOf(plan), null, 1)}\n`);
    return lock;
  } catch (error) {
    lock.release();
    throw error;
  }
}

/** Holds a sweep's folder: two sweeps at once would run the same runs. */
export function lockSweep(folder: string): { release(): void } {
  const lock = withFileErrors("lock the sweep", folder, () => takeLock(folder));
  if (typeof lock !== "number") return lock;
  throw new UsageError(
    `process ${lock} runs this sweep`,
    folder,
    "wait for it, stop it, or choose another --name",
  );
}

/** A sweep goes on as it was planned, or with more runs. */
function refuseOther(stored: StoredSweep, plan: SweepPlan): void {
  const planned = new Map(plan.runs.map((run) => [run.name, run]));
  for (const { name, settings } of stored.runs) {
    const run = planned.get(name);
    if (run === undefined)
      throw new UsageError(
        `the folder holds another sweep: run ${name} is not in this plan`,
        plan.folder,
        "choose another --name, or give what it was started with",
      );
    const other = differences(settings, recordOf(run.settings))[0];
    if (other !== undefined)
      throw new UsageError(
        `the folder holds another sweep: ${differenceText(name, other, settings, recordOf(run.settings))}`,
        plan.folder,
        "choose another --name",
      );
  }
}

function refuseForeign(folder: string): void {
  const strange = readdirSync(folder).find((name) => !name.startsWith("."));
  if (strange !== undefined)
    throw new UsageError(
      `the folder is no sweep and holds ${strange}`,
      folder,
      "choose another --name, or remove it",
    );
}

function storedOf(plan: SweepPlan): StoredSweep {
  const { recipe, name, variants, keys } = plan;
  return {
    version: SWEEP_VERSION,
    rlv_version: VERSION,
    ...{ recipe, name, variants, keys },
    runs: plan.runs.map(({ name, variant, values, settings }) => ({
      ...{ name, variant, values },
      settings: recordOf(settings),
    })),
  };
}

/** The plan that lies in a sweep's folder. */
export function storedPlan(folder: string): SweepPlan {
  const stored = readSweep(folder);
  if (!Object.hasOwn(RECIPES, stored.recipe))
    throw new UsageError(`${SWEEP} names no recipe of this rlv: ${stored.recipe}`, folder);
  const at = resolve(folder);
  return {
    recipe: stored.recipe as SweepPlan["recipe"],
    name: basename(at),
    folder: at,
    variants: stored.variants,
    keys: stored.keys,
    runs: stored.runs.map((run, index) => ({
      ...run,
      index,
      // The folder may have been moved since.
      settings: placed(run.settings as unknown as ResolvedConfig, at, run.name),
    })),
  };
}

/**
 * What is left to do of a run, by its folder. A folder of other settings is an error: its figures would be taken for
 * those of the plan.
 */
export function todoOf(plan: SweepPlan, run: PlannedRun, retry: boolean, evaluated: boolean): Todo {
  const dir = join(plan.folder, run.name);
  if (!isRun(dir)) return "start";
  const config = configOf(dir) ?? {};
  const other = differences(config, recordOf(run.settings))[0];
  if (other !== undefined)
    throw new RlvError(
      `the run's folder has other settings than the plan: ${differenceText(run.name, other, config, recordOf(run.settings))}`,
      dir,
      "remove that folder, or choose another --name",
    );
  // A sweep that was killed leaves engines that still save.
  waitForOrphan(dir);
  switch (stateOf(dir)) {
    case "live":
      return "live";
    case "finished":
      return evaluated && keptEvaluation(dir) === null ? "evaluate" : "nothing";
    case "diverged":
      return "failed";
    case "crashed":
      // Without an outcome nobody was left to say: the whole sweep was killed, and goes on.
      return retry || readOutcome(dir) === null ? "resume" : "failed";
    case "interrupted":
      return "resume";
  }
}

function differenceText(
  name: string,
  key: string,
  there: Readonly<Record<string, unknown>>,
  planned: Readonly<Record<string, unknown>>,
): string {
  const text = (value: unknown) => (value === undefined ? "missing" : valueText(value));
  return `${name} has ${key} ${text(there[key])}, the plan ${text(planned[key])}`;
}

function recordOf(settings: ResolvedConfig): Readonly<Record<string, unknown>> {
  return settings as unknown as Readonly<Record<string, unknown>>;
}

/** Writes summary.json, summary.csv (a row a run) and groups.csv (a row a group and metric). */
export function writeSummary(plan: SweepPlan): SweepSummary {
  const summary = sweepSummary(plan.folder);
  // As in metrics.jsonl: JSON has no NaN.
  const value = (_: string, inner: unknown) =>
    typeof inner === "number" && !Number.isFinite(inner) ? String(inner) : inner;
  writeFileAtomic(join(plan.folder, "summary.json"), `${JSON.stringify(summary, value, 1)}\n`);
  writeFileAtomic(join(plan.folder, "summary.csv"), runsCsv(summary));
  writeFileAtomic(join(plan.folder, "groups.csv"), groupsCsv(summary));
  return summary;
}
