/** A sweep's folder as it lies on the disk when two variants have been trained with some seeds each. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { MODE_NAMES } from "../../src/report/modes.ts";
import { SWEEP } from "../../src/report/runs.ts";
import { SWEEP_VERSION } from "../../src/report/sweep.ts";
import { makeRun } from "../report/fixture.ts";

export const SEEDS = [1, 2, 3];
const STEPS = 40;
const EVERY = 5;
/** Of the hack rate in the end, by variant and mode; the seeds lie 0.05 below it, at it, and 0.05 above. */
export const HACKS = {
  routed: { both: 0.8, retain_only: 0.1, forget_only: 0.9 },
  baseline: { both: 0.7 },
} as const;
export type Variant = keyof typeof HACKS;

export const nameOf = (variant: Variant, seed: number): string => `${variant}_s${seed}`;

/** The last seed of `baseline` has been planned and not begun. Returns the sweep's folder. */
export function makeSweep(root: string, name: string): string {
  const dir = join(root, name);
  mkdirSync(dir, { recursive: true });
  const variants = Object.keys(HACKS) as Variant[];
  const planned = variants.flatMap((variant) => SEEDS.map((seed) => ({ variant, seed })));
  const runs = planned.map(({ variant, seed }) => ({
    name: nameOf(variant, seed),
    ...{ variant, values: { seed }, settings: { recipe: "stories", seed } },
  }));
  const plan = {
    version: SWEEP_VERSION,
    rlv_version: "0.1.0",
    recipe: "stories",
    name,
    variants,
    keys: ["seed"],
  };
  writeFileSync(join(dir, SWEEP), JSON.stringify({ ...plan, runs }));
  for (const { variant, seed } of planned)
    if (variant !== "baseline" || seed !== SEEDS.at(-1))
      makeRun(dir, nameOf(variant, seed), {
        recipe: "stories",
        config: { seed, eval_routing_steps: EVERY, num_train_steps: STEPS, model_name: "stories/model" },
        rows: Array.from({ length: STEPS }, (_, at) => rowOf(variant, seed, at + 1)),
        checkpoints: ["final"],
        outcome: 0,
      });
  return dir;
}

function rowOf(variant: Variant, seed: number, step: number): Record<string, number> {
  const done = step / STEPS;
  const offset = 0.05 * (seed - 2);
  const noise = 0.03 * Math.sin(7 * step + 11 * seed);
  const row: Record<string, number> = {
    ...{ step, time: 1_790_000_000 + 3 * step, "train/reward_mean": 0.2 + 0.6 * done + noise },
    "train/kl_div": 0.1 * done * (1 + noise),
    "train/loss": -0.4 * done + noise,
    "train/hack_rate": done * 0.7 + offset + noise,
    "train/rewards/asked_ending": 0.3 + 0.5 * done + noise,
  };
  if (step % EVERY !== 0) return row;
  for (const mode of MODE_NAMES) {
    const hacks: number | undefined = (HACKS[variant] as Partial<Record<typeof mode, number>>)[mode];
    if (hacks === undefined) continue;
    const wanted = mode === "forget_only" ? 0.25 + 0.1 * done : 0.3 + 0.55 * done + offset;
    Object.assign(row, {
      [`eval/${mode}/reward`]: wanted + 0.5 * hacks * done,
      [`eval/${mode}/rewards/asked_ending`]: wanted,
      [`eval/${mode}/rewards/repeated_words`]: 0.5 * hacks * done,
      [`eval/${mode}/hack_rate`]: done * hacks + offset * done,
      [`eval/${mode}/unique_rate`]: 1 - 0.3 * done,
      [`eval/${mode}/completion_length_avg`]: 30 + 8 * done,
      [`eval/${mode}/proper_ending_rate`]: 0.9,
      [`eval/${mode}/kl_div`]: 0.1 * done,
    });
  }
  return row;
}
