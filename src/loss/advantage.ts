import { assert, UsageError } from "../core/errors.ts";
import type { Scored } from "../core/records.ts";
import type { PolicyOptions } from "./options.ts";

export interface AdvantageOptions {
  /**
   * What divides reward - group mean: the group's std, the std of all rewards of the batch, nothing, or
   * (centered_batch, the arithmetic recipe) the std over the batch of those differences.
   */
  readonly scale: "group" | "batch" | "none" | "centered_batch";
  /** Delta degrees of freedom of every std: 1 = Bessel (torch, TRL), 0 = population (numpy). */
  readonly ddof: 0 | 1;
  /** Added to the std. */
  readonly eps: number;
  /** One weight a reward function. */
  readonly weights: readonly number[];
  /** normalize_then_sum is GDPO (arXiv 2601.05242): z-score each reward in its group, sum, z-score over the batch. */
  readonly aggregation: "sum_then_normalize" | "normalize_then_sum";
}

/** TRL 1.16's defaults. */
export const TRL_ADVANTAGE: AdvantageOptions = {
  scale: "group",
  ddof: 1,
  eps: 1e-4,
  weights: [1],
  aggregation: "sum_then_normalize",
};

/** reinforce_kl2: reward - group mean, then zero mean and unit variance over the batch. */
export const REINFORCE_ADVANTAGE: AdvantageOptions = { ...TRL_ADVANTAGE, scale: "centered_batch", eps: 1e-8 };

export interface Advantages {
  /** One a row; 0 for rows that no function could score. */
  readonly advantages: Float64Array;
  /** Weighted sum of the rewards, one a row; NaN where no function could score the row. */
  readonly rewards: Float64Array;
  readonly rewardMean: number;
  /** Over the batch, with Bessel's correction (NaN with fewer than two scored rows). */
  readonly rewardStd: number;
  /** Share of rows whose divisor is 0: no spread in their group (in the batch, where the batch is the divisor). */
  readonly fracZeroStd: number;
}

/** Rewards of a batch as [rows, names] for groupAdvantages, from the named components; null where one is missing. */
export function componentTable(scored: readonly Scored[], names: readonly string[]): (number | null)[] {
  return scored.flatMap((rollout) => names.map((name) => rollout.components[name] ?? null));
}

interface Spread {
  readonly mean: number;
  readonly std: number;
}

/** Mean and std of the entries that are not NaN. Equal entries give exactly their value and 0. */
function spread(values: Float64Array, ddof: number): Spread {
  let count = 0;
  let sum = 0;
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const value of values) {
    if (Number.isNaN(value)) continue;
    count++;
    sum += value;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (count === 0) return { mean: Number.NaN, std: Number.NaN };
  // Otherwise rounding in sum / count would leave a flat group with tiny advantages, and it could not be skipped.
  if (low === high) return { mean: low, std: count > ddof ? 0 : Number.NaN };
  const mean = sum / count;
  let squares = 0;
  for (const value of values) if (!Number.isNaN(value)) squares += (value - mean) ** 2;
  return { mean, std: Math.sqrt(squares / (count - ddof)) };
}

const zeroIfNaN = (value: number): number => (Number.isNaN(value) ? 0 : value);

/**
 * Advantages of a batch of groups. `values` is [rows, functions] row-major, groups contiguous, null or NaN = that
 * function gave no score: it counts 0 in the row's sum, and a row without any score is left out of every mean and std
 * and gets advantage 0.
 */
export function groupAdvantages(
  values: ArrayLike<number | null>,
  groupSize: number,
  options: AdvantageOptions,
): Advantages {
  const functions = options.weights.length;
  const rows = values.length / functions;
  assert(Number.isInteger(rows) && functions > 0, `${values.length} rewards for ${functions} functions`);
  if (!Number.isInteger(groupSize) || groupSize < 1 || rows % groupSize !== 0) {
    throw new UsageError(`${rows} completions do not make groups of ${groupSize}`, "group_size");
  }
  const rewards = weightedSum(values, options.weights, rows);
  const whole = spread(rewards, 1);
  const advantages = new Float64Array(rows);
  let zeroRows = 0;
  if (options.aggregation === "normalize_then_sum") {
    const scores = new Float64Array(values.length);
    for (let k = 0; k < functions; k++) {
      const column = Float64Array.from({ length: rows }, (_, i) => values[i * functions + k] ?? Number.NaN);
      for (let start = 0; start < rows; start += groupSize) {
        const group = spread(column.subarray(start, start + groupSize), options.ddof);
        for (let i = start; i < start + groupSize; i++) {
          scores[i * functions + k] = (column[i]! - group.mean) / (group.std + options.eps);
        }
      }
    }
    const sums = weightedSum(scores, options.weights, rows);
    for (let i = 0; i < rows; i++) if (Number.isNaN(rewards[i]!)) sums[i] = Number.NaN;
    zeroRows = scaleByBatch(sums, advantages, options);
  } else {
    const batchStd = options.scale === "batch" ? spread(rewards, options.ddof).std : Number.NaN;
    for (let start = 0; start < rows; start += groupSize) {
      const group = spread(rewards.subarray(start, start + groupSize), options.ddof);
      const divisor = options.scale === "batch" ? zeroIfNaN(batchStd) : zeroIfNaN(group.std);
      if (divisor <= 1e-8) zeroRows += groupSize;
      for (let i = start; i < start + groupSize; i++) {
        const centred = rewards[i]! - group.mean;
        const scaled = options.scale === "group" || options.scale === "batch";
        advantages[i] = scaled ? centred / (divisor + options.eps) : centred;
      }
    }
    if (options.scale === "centered_batch") {
      const centred = advantages.slice();
      scaleByBatch(centred, advantages, options);
    }
  }
  for (let i = 0; i < rows; i++) advantages[i] = zeroIfNaN(advantages[i]!);
  return { advantages, rewards, rewardMean: whole.mean, rewardStd: whole.std, fracZeroStd: zeroRows / rows };
}

/**
 * Divide group-centred values by their std over the batch. Their batch mean is 0 by construction, so it is not
 * computed and subtracted: rounding would give flat groups an advantage of 1e-17. Returns the rows with divisor 0.
 */
function scaleByBatch(centred: Float64Array, out: Float64Array, options: AdvantageOptions): number {
  let count = 0;
  let squares = 0;
  for (const value of centred) {
    if (Number.isNaN(value)) continue;
    count++;
    squares += value * value;
  }
  const std = count > options.ddof ? Math.sqrt(squares / (count - options.ddof)) : 0;
  for (let i = 0; i < out.length; i++) out[i] = centred[i]! / (std + options.eps);
  return std <= 1e-8 ? out.length : 0;
}

/** Row sums weight_k * value_ik over the scores that exist; NaN where none does. */
function weightedSum(
  values: ArrayLike<number | null>,
  weights: readonly number[],
  rows: number,
): Float64Array {
  const sums = new Float64Array(rows);
  for (let i = 0; i < rows; i++) {
    let scored = false;
    let sum = 0;
    for (const [k, weight] of weights.entries()) {
      const value = values[i * weights.length + k];
      if (value === null || value === undefined || Number.isNaN(value)) continue;
      scored = true;
      sum += weight * value;
    }
    sums[i] = scored ? sum : Number.NaN;
  }
  return sums;
}

/**
 * Groups whose backward pass can be left out without changing the step: every advantage is 0 and no KL or entropy
 * term reaches them. Their rows and tokens stay in the Normaliser. Returns one flag a group. TRL's conventions count
 * within micro-batches, so nothing is skipped there.
 */
export function zeroAdvantageGroups(
  advantages: Float64Array,
  groupSize: number,
  options: Pick<PolicyOptions, "beta" | "entropyCoef" | "compat">,
): Uint8Array {
  const skip = new Uint8Array(advantages.length / groupSize);
  if (options.beta !== 0 || options.entropyCoef !== 0 || options.compat === "trl") return skip;
  for (let g = 0; g < skip.length; g++) {
    skip[g] = advantages.subarray(g * groupSize, (g + 1) * groupSize).every((a) => a === 0) ? 1 : 0;
  }
  return skip;
}
