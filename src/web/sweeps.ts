/** Sweeps as the page is told of them. */
import { RlvError } from "../core/errors.ts";
import {
  readSweep,
  type SweepSummary as Summary,
  spreadOf,
  sweepSummary,
  valueText,
} from "../report/sweep.ts";
import type { MetricSeries, SpreadSeries, SweepReport, SweepSummary } from "./api.ts";
import type { FoundSweep } from "./context.ts";
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
  const summary = sweepSummary(found.dir);
  return {
    ...sweepOf(found),
    runs: summary.runs.map(({ dir, values, variant, metrics, ...run }) => ({
      ...run,
      id: run.state === "waiting" ? null : idOf(dir),
      group: groupOf(summary, variant, values),
      metrics,
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
