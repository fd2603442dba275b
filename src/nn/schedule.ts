import { UsageError } from "../core/errors.ts";

/** Learning-rate schedules, names and factors of transformers 5. */
export const SCHEDULES = ["constant", "linear", "cosine", "inverse_sqrt"] as const;
export type ScheduleName = (typeof SCHEDULES)[number];

export interface ScheduleOptions {
  readonly schedule: ScheduleName;
  /** Optimizer steps of the run. */
  readonly totalSteps: number;
  /** Steps if 1 or more, a share of the run if below 1. */
  readonly warmup?: number;
  /** Floor of the decaying schedules as a share of the base rate (transformers' cosine_with_min_lr). */
  readonly minLrRatio?: number;
}

/** Warm-up length in steps: a count as given, a share below 1 as ceil(share * total). */
export function warmupSteps(warmup: number, totalSteps: number): number {
  if (!(warmup >= 0) || (warmup >= 1 && !Number.isInteger(warmup))) {
    throw new UsageError(
      `bad value ${warmup}`,
      "warmup_steps",
      "a number of steps, or a share of the run below 1",
    );
  }
  return warmup < 1 ? Math.ceil(warmup * totalSteps) : warmup;
}

/**
 * Factor on the base learning rate at optimizer step 0, 1, ...: (step) => factor. With warm-up W it rises linearly from
 * 0 at step 0 (that step changes nothing but the moments) to 1 at step W; then linear falls to the floor at
 * totalSteps, cosine along half a wave, inverse_sqrt as sqrt(timescale / step). Past totalSteps linear stays at its
 * floor and cosine rises again: never step past the end.
 */
export function learningRateFactor(options: ScheduleOptions): (step: number) => number {
  const { schedule, totalSteps, minLrRatio: floor = 0 } = options;
  if (!SCHEDULES.includes(schedule)) {
    throw new UsageError(`unknown schedule ${schedule}`, "lr_schedule", `one of ${SCHEDULES.join(", ")}`);
  }
  if (!Number.isInteger(totalSteps) || totalSteps < 0) {
    throw new UsageError(`bad value ${totalSteps}`, "num_train_steps", "a whole number of steps");
  }
  if (!(floor >= 0 && floor <= 1)) {
    throw new UsageError(`bad value ${floor}`, "min_lr_ratio", "between 0 and 1");
  }
  const warmup = warmupSteps(options.warmup ?? 0, totalSteps);
  return (step) => {
    if (step < warmup) return step / Math.max(1, warmup);
    return decay(schedule, step, warmup, totalSteps) * (1 - floor) + floor;
  };
}

function decay(schedule: ScheduleName, step: number, warmup: number, total: number): number {
  const remaining = Math.max(1, total - warmup);
  switch (schedule) {
    case "constant":
      return 1;
    case "linear":
      return Math.max(0, (total - step) / remaining);
    case "cosine":
      return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * ((step - warmup) / remaining))));
    case "inverse_sqrt": {
      // transformers' timescale: the warm-up length, 10000 without one
      const timescale = warmup || 10_000;
      return 1 / Math.sqrt((step + timescale - warmup) / timescale);
    }
  }
}
