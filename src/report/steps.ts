import type { Database } from "bun:sqlite";

/**
 * Steps that have rollouts, at most `most` (two or more): the first, every 2^k-th from there, and the last. When more
 * come, those of before are chosen again, or every other one of them: what was found out of them holds.
 */
export function someSteps(db: Database, table: "rollouts" | "eval_rollouts", most: number): number[] {
  const found = db.query(`SELECT DISTINCT step FROM ${table} ORDER BY step`).all() as { step: number }[];
  const steps = found.map(({ step }) => step);
  if (steps.length <= most) return steps;
  let stride = 2;
  while (Math.ceil(steps.length / stride) > most - 1) stride *= 2;
  const chosen = steps.filter((_, index) => index % stride === 0);
  const last = steps.at(-1)!;
  return chosen.at(-1) === last ? chosen : [...chosen, last];
}
