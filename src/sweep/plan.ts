/** What a sweep runs: every run with its name and its settings, known and checked before anything starts. */
import { basename, join, resolve } from "node:path";
import type { Entry } from "../config/file.ts";
import type { RecipeName, ResolvedConfig } from "../config/recipes.ts";
import { resolveTrain } from "../config/resolve.ts";
import { hash, sweptRunName } from "../config/run-name.ts";
import { checkpointConfigText } from "../config/save.ts";
import { UsageError } from "../core/errors.ts";
import type { SweepRequest } from "./request.ts";

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
 * ends at once with 0. Its name says which, last: a plan may grow, and then places change.
 * @param further flags
 */
export function runArgv(plan: SweepPlan, run: PlannedRun, further: readonly string[] = []): string[] {
  return ["sweep", plan.folder, ...further, "--only", run.name];
}

/** More are a mistake. */
const MOST_RUNS = 10_000;
/** Keys that say where a run is kept: no part of what two runs differ in. */
const PLACES = ["output_dir", "run_name", "log_dir", "threads"];

/** Every combination, the last axis fastest. */
export function product<T>(axes: readonly (readonly T[])[]): T[][] {
  return axes.reduce<T[][]>(
    (rows, values) => rows.flatMap((row) => values.map((value) => [...row, value])),
    [[]],
  );
}

/**
 * The runs of a request in the order variant, then grid, whose last key varies fastest. Each is checked by its recipe.
 * @param name of the sweep's folder; null: the recipe and a hash of the plan
 * @param outputDir null: where the recipe keeps its runs
 */
export function planSweep(request: SweepRequest, name: string | null, outputDir: string | null): SweepPlan {
  const { base, fixed, variants, grid } = request;
  const keys = [...grid.keys()];
  const count = [...grid.values()].reduce((n, { values }) => n * values.length, Math.max(1, variants.size));
  if (count > MOST_RUNS)
    throw new UsageError(`${count} runs are more than ${MOST_RUNS}`, "--grid", "divide the sweep");
  const axes = [...grid].map(([key, { values, where }]) =>
    values.map((value): [string, Entry] => [key, { value, where }]),
  );
  const named = variants.size === 0 ? [[null, new Map<string, Entry>()] as const] : [...variants];
  const drafts = named.flatMap(([variant, settings]) =>
    product(axes).map((point) => {
      const config = resolveTrain(base, new Map(), new Map([...fixed, ...settings, ...point]));
      const all = config as unknown as Readonly<Record<string, unknown>>;
      const values = Object.fromEntries(keys.map((key) => [key, all[key]]));
      return { config, variant, values, text: checkpointConfigText(config) };
    }),
  );
  // What two runs share exactly when they compute the same.
  const texts = new Map<string, (typeof drafts)[number]>();
  for (const draft of drafts) {
    const other = texts.get(draft.text);
    if (other !== undefined)
      throw new UsageError(
        `two runs have the same settings: ${pointText(other)}, and ${pointText(draft)}`,
        "--grid",
        "take one of them out",
      );
    texts.set(draft.text, draft);
  }
  const { recipe } = drafts[0]!.config;
  const sweep = name ?? `${recipe}-sweep-${hash(drafts.map(({ text }) => text).join())}`;
  if (sweep !== basename(sweep) || sweep === "." || sweep === "..")
    throw new UsageError(`name ${JSON.stringify(sweep)} is not the name of a folder`, "--name");
  const folder = resolve(outputDir ?? drafts[0]!.config.output_dir, sweep);
  const names = distinct(
    drafts.map(({ config, variant, text }) => ({ name: sweptRunName(config, variant, keys), text })),
  );
  return {
    recipe,
    name: sweep,
    folder,
    variants: [...variants.keys()],
    keys,
    runs: drafts.map(({ config, variant, values }, index) => ({
      ...{ index, variant, values },
      name: names[index]!,
      settings: placed(config, folder, names[index]!),
    })),
  };
}

/** Settings of a run that lies in a sweep's folder. */
export function placed(config: ResolvedConfig, folder: string, name: string): ResolvedConfig {
  return Object.freeze({
    ...config,
    ...{ output_dir: folder, run_name: name, threads: null },
    ...("log_dir" in config ? { log_dir: join(folder, "logs") } : {}),
  }) as ResolvedConfig;
}

function pointText({ variant, values }: Pick<PlannedRun, "variant" | "values">): string {
  const parts = Object.entries(values).map(([key, value]) => `${key}=${JSON.stringify(value)}`);
  return [...(variant === null ? [] : [variant]), ...parts].join(" ");
}

/** Names that differ, in upper and lower case alone too: those that do not get a hash of their settings. */
function distinct(runs: readonly { readonly name: string; readonly text: string }[]): string[] {
  const counts = new Map<string, number>();
  for (const { name } of runs) counts.set(name.toLowerCase(), (counts.get(name.toLowerCase()) ?? 0) + 1);
  return runs.map(({ name, text }) =>
    counts.get(name.toLowerCase()) === 1 ? name : `${name}_${hash(text)}`,
  );
}

/** Keys in which two settings differ, those of places aside; empty: they are the same experiment. */
export function differences(
  a: Readonly<Record<string, unknown>>,
  b: Readonly<Record<string, unknown>>,
): string[] {
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...keys].filter(
    (key) => key !== "rlv_version" && !PLACES.includes(key) && !Bun.deepEquals(a[key], b[key]),
  );
}
