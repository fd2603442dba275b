import type { Database } from "bun:sqlite";

/** Steps that have rollouts, at most `most` (two or more), evenly spread, the first and the last among them. */
export function someSteps(db: Database, table: "rollouts" | "eval_rollouts", most: number): number[] {
  const found = db.query(`SELECT DISTINCT step FROM ${table} ORDER BY step`).all() as { step: number }[];
  const steps = found.map(({ step }) => step);
  if (steps.length <= most) return steps;
  const at = (index: number) => steps[Math.round((index * (steps.length - 1)) / (most - 1))]!;
  return [...new Set(Array.from({ length: most }, (_, index) => at(index)))];
}
