/** Sweeps as the page is told of them. */
import { RlvError } from "../core/errors.ts";
import { VERSION } from "../core/version.ts";
import { configOf } from "../report/runs.ts";
import {
  readSweep,
  type SweepSummary as Summary,
  SWEEP_VERSION,
  spreadOf,
  sweepSummary,
  valueText,
} from "../report/sweep.ts";
import type { MetricSeries, SpreadSeries, SweepReport, SweepSummary } from "./api.ts";
import type { FoundRun, FoundSweep } from "./context.ts";
import { idOf } from "./roots.ts";

/** A list has those that this version can read; runs of others are runs like any. */
export const readableSweeps = (found: readonly FoundSweep[]): SweepSummary[] =>
  found.flatMap((sweep) => {
    try {
      return [sweepOf(sweep)];
    } catch (error) {
      if (error instanceof RlvError) return [];
      throw error;
    }
  });

function sweepOf({ id, name, dir }: FoundSweep): SweepSummary {
  const { recipe, runs } = readSweep(dir);
  return { id, name, recipe, planned: runs.length };
}

/** How its runs stand, and what those that differ in their seed alone say together. */
export function sweepReport(found: FoundSweep): Omit<SweepReport, "metric_names"> {
  return { ...sweepOf(found), ...partsOf(sweepSummary(found.dir)) };
}

/** Settings in which runs differ and are the same experiment. */
const NO_SETTINGS = new Set(["output_dir", "run_name", "log_dir", "threads", "device", "rlv_version"]);

/** The same of runs that somebody has chosen: what their settings differ in is what they are grouped by. */
export function groupedReport(runs: readonly FoundRun[]): Omit<SweepReport, "metric_names"> {
  const configs = runs.map(({ dir }) => configOf(dir) ?? {});
  const keys = [...new Set(configs.flatMap(Object.keys))].filter(
    (key) =>
      !NO_SETTINGS.has(key) && configs.some((config) => !Bun.deepEquals(config[key], configs[0]![key])),
  );
  const recipes = [...new Set(configs.map(({ recipe }) => String(recipe ?? "")))];
  const parts = partsOf(
    sweepSummary("/", {
      ...{ version: SWEEP_VERSION, rlv_version: VERSION, recipe: "", name: "", variants: [], keys },
      runs: runs.map(({ dir }, at) => ({
        name: dir,
        variant: null,
        values: Object.fromEntries(keys.map((key) => [key, configs[at]![key] ?? null])),
        settings: configs[at]!,
      })),
    }),
  );
  return {
    ...{ id: "", name: `${runs.length} runs`, recipe: recipes.join(", "), planned: runs.length },
    groups: parts.groups,
    runs: parts.runs.map((run, at) => ({ ...run, name: runs[at]!.name })),
  };
}

function partsOf(summary: Summary): Pick<SweepReport, "runs" | "groups"> {
  return {
    runs: summary.runs.map(({ dir, values, variant, ...run }) => ({
      ...run,
      id: run.state === "waiting" ? null : idOf(dir),
      group: groupOf(summary, variant, values),
    })),
    groups: summary.groups.map(({ variant, values, runs, planned, metrics }) => ({
      name: groupName(variant, values),
      planned,
      finished: runs.length,
      metrics,
    })),
  };
}

function groupOf({ groups }: Summary, variant: string | null, values: Readonly<Record<string, unknown>>) {
  const { seed: _seed, ...others } = values;
  return groups.findIndex((group) => group.variant === variant && Bun.deepEquals(group.values, others));
}

function groupName(variant: string | null, values: Readonly<Record<string, unknown>>): string {
  const parts = Object.entries(values).map(([key, value]) => `${key} ${valueText(value)}`);
  return [...(variant === null ? [] : [variant]), ...parts].join(", ") || "every run";
}

/** Mean and spread of several curves at every step that one of them has, thinned to `points`; null without a value. */
export function spreadSeries(curves: readonly MetricSeries[], points: number): SpreadSeries | null {
  const byStep = new Map<number, number[]>();
  for (const { step, value } of curves)
    for (const [at, each] of value.entries()) {
      if (each === null) continue;
      const known = byStep.get(step[at]!);
      if (known === undefined) byStep.set(step[at]!, [each]);
      else known.push(each);
    }
  if (byStep.size === 0) return null;
  const all = [...byStep.keys()].sort((a, b) => a - b);
  const stride = Math.ceil(all.length / points);
  // A live curve ends where the runs are.
  const step = all.filter((_, at) => (all.length - 1 - at) % stride === 0);
  const spreads = step.map((each) => spreadOf(byStep.get(each)!));
  return {
    step,
    runs: spreads.map(({ n }) => n),
    mean: spreads.map(({ mean }) => mean),
    std: spreads.map(({ std }) => std ?? 0),
    min: spreads.map(({ min }) => min),
    max: spreads.map(({ max }) => max),
  };
}
