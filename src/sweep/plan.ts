/** What a sweep runs: every run with its name and its settings, known and checked before anything starts. */
import type { RecipeName, ResolvedConfig } from "../config/recipes.ts";

/** Plans of other versions are refused. */
export const PLAN_VERSION = 1;
/** The plan in a sweep's folder. */
export const PLAN_FILE = "sweep.json";

/** One run of a plan. */
export interface PlannedRun {
  /** Its place in the plan, from 0: the number of its task in a Slurm array. */
  readonly index: number;
  /** Its folder in the sweep's, and its run_name. */
  readonly name: string;
  /** null in a sweep without variants. */
  readonly variant: string | null;
  /** The grid's keys with what this run has. */
  readonly values: Readonly<Record<string, unknown>>;
  /** Every key, resolved and checked: what its train_config.json will say. */
  readonly settings: ResolvedConfig;
}

/** A whole sweep. Its folder holds `sweep.json` (this), one folder a run, and the summary. */
export interface SweepPlan {
  readonly version: typeof PLAN_VERSION;
  readonly recipe: RecipeName;
  /** Name of its folder. */
  readonly name: string;
  /** Absolute path of its folder. */
  readonly folder: string;
  /** Names of the variants; empty without. */
  readonly variants: readonly string[];
  /** The grid's keys in their order. */
  readonly keys: readonly string[];
  readonly runs: readonly PlannedRun[];
}

/**
 * What follows the program's name to run, or to go on with, one run of a plan that lies in its folder; a finished run
 * ends at once with 0. A sweep's array of jobs calls it with its task's number.
 */
export function runArgv(plan: SweepPlan, index: number): string[] {
  return ["sweep", plan.folder, "--only", String(index)];
}
