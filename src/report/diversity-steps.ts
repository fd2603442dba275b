/** How different a run's completions were, step by step. */
import type { Database } from "bun:sqlite";
import { type Diversity, diversity } from "./diversity.ts";
import { someSteps } from "./steps.ts";

export interface DiversityStep extends Diversity {
  readonly step: number;
}

type Table = "rollouts" | "eval_rollouts";

/** Completions of a step that the figures are measured on: enough for a curve, little for each of its points. */
const SAMPLE = 64;
const ROWS_OF_A_STEP = 1024;

/** Steps to look at, and how many completions each has now. */
export function diversitySteps(db: Database, table: Table, most: number): { step: number; rows: number }[] {
  const count = db.query(`SELECT COUNT(*) AS rows FROM ${table} WHERE step = ?`);
  return someSteps(db, table, most).map((step) => ({
    step,
    rows: (count.get(step) as { rows: number }).rows,
  }));
}

export function diversityOfStep(db: Database, table: Table, step: number): DiversityStep {
  const rows = db
    .query(
      `SELECT completion AS text, prompt_index AS prompt FROM ${table} WHERE step = ? LIMIT ${ROWS_OF_A_STEP}`,
    )
    .all(step) as { text: string; prompt: number }[];
  return { step, ...diversity(rows, SAMPLE) };
}
