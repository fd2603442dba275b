/** Run folders as training leaves them, made by hand. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { jsonLine } from "../../src/io/jsonl.ts";

export interface MadeRun {
  readonly recipe?: string;
  readonly config?: Record<string, unknown>;
  /** Rows of metrics.jsonl. */
  readonly rows?: readonly Record<string, unknown>[];
  readonly checkpoints?: readonly string[];
  readonly outcome?: number;
  /** Bytes of each checkpoint's weights. */
  readonly weights?: number;
}

export function makeRun(root: string, name: string, made: MadeRun = {}): string {
  const dir = join(root, name);
  mkdirSync(dir, { recursive: true });
  const config = { rlv_version: "0.1.0", recipe: made.recipe ?? "arithmetic", ...made.config };
  writeFileSync(join(dir, "train_config.json"), JSON.stringify(config));
  if (made.rows)
    writeFileSync(join(dir, "metrics.jsonl"), made.rows.map((row) => `${jsonLine(row)}\n`).join(""));
  for (const checkpoint of made.checkpoints ?? [])
    writeCheckpoint(join(dir, "checkpoints"), checkpoint, (at) => {
      writeFileSync(join(at, "model.safetensors"), new Uint8Array(made.weights ?? 1000));
      const step = Number(checkpoint.replace(/\D+/, "")) || (made.rows?.length ?? 0);
      writeFileSync(join(at, "train_state.json"), JSON.stringify({ step }));
    });
  if (made.outcome !== undefined)
    writeFileSync(
      join(dir, "outcome.json"),
      JSON.stringify({ exit_code: made.outcome, error: made.outcome ? "it failed" : null, time: 5000 }),
    );
  return dir;
}

/** Steps 1..n at one second each. */
export const steps = (n: number, more: (step: number) => Record<string, unknown> = () => ({})) =>
  Array.from({ length: n }, (_, i) => ({
    step: i + 1,
    time: 1000 + i,
    "train/reward_mean": (i + 1) / n,
    "train/loss": -i,
    ...more(i + 1),
  }));
