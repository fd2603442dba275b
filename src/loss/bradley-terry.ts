/** The Bradley-Terry loss of a reward model: -log σ(r_chosen − r_rejected − margin), and TRL's centring term. */
import { assert } from "../core/errors.ts";
import type { Reals } from "./rows.ts";

export interface RewardPairs {
  readonly chosen: Reals;
  readonly rejected: Reals;
  /** By how much a chosen sequence should win; null: 0. */
  readonly margins: Reals | null;
}

export interface BradleyTerryOptions {
  /** Pairs of the whole optimizer step: every number is a share of the mean over them. */
  readonly pairs: number;
  /** Coefficient of (r_chosen + r_rejected)², which keeps rewards around 0; 0 = off. */
  readonly center: number;
}

/** One micro-batch's share of the step's means: the parts of a step add up. */
export interface BradleyTerryLoss {
  readonly loss: number;
  readonly gradChosen: Float64Array;
  readonly gradRejected: Float64Array;
  readonly metrics: {
    /** Pairs whose chosen sequence has the larger reward; ties are wrong. */
    readonly accuracy: number;
    /** r_chosen − r_rejected. */
    readonly margin: number;
    readonly reward_chosen: number;
    readonly reward_rejected: number;
  };
}

/** log(1 + eˣ) for x of any size. */
function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** 1 / (1 + e⁻ˣ) for x of any size. */
function sigmoid(x: number): number {
  const small = Math.exp(-Math.abs(x));
  return x >= 0 ? 1 / (1 + small) : small / (1 + small);
}

export function bradleyTerry(batch: RewardPairs, { pairs, center }: BradleyTerryOptions): BradleyTerryLoss {
  const { chosen, rejected, margins } = batch;
  const count = chosen.length;
  assert(rejected.length === count, `${count} chosen rewards, ${rejected.length} rejected`);
  assert(margins === null || margins.length === count, `${count} pairs, ${margins?.length} margins`);
  assert(pairs >= count, `${count} pairs of a step of ${pairs}`);
  const gradChosen = new Float64Array(count);
  const gradRejected = new Float64Array(count);
  let loss = 0;
  let correct = 0;
  let sumChosen = 0;
  let sumRejected = 0;
  for (let i = 0; i < count; i++) {
    const [c, r] = [chosen[i]!, rejected[i]!];
    const x = c - r - (margins?.[i] ?? 0);
    const sum = c + r;
    loss += softplus(-x) + center * sum * sum;
    const slope = sigmoid(-x);
    gradChosen[i] = (2 * center * sum - slope) / pairs;
    gradRejected[i] = (2 * center * sum + slope) / pairs;
    if (c > r) correct++;
    sumChosen += c;
    sumRejected += r;
  }
  return {
    loss: loss / pairs,
    gradChosen,
    gradRejected,
    metrics: {
      accuracy: correct / pairs,
      margin: (sumChosen - sumRejected) / pairs,
      reward_chosen: sumChosen / pairs,
      reward_rejected: sumRejected / pairs,
    },
  };
}

/** What a reward model's margins say of its pairs, as means over them. */
export interface PreferenceQuality {
  readonly accuracy: number;
  /** r_chosen − r_rejected. */
  readonly margin: number;
  /**
   * Expected calibration error (Guo et al. 2017): how far the probability σ(|margin|) of the sequence that wins is from
   * the share of those in which the right one does, by ten bins of probability from 1/2 to 1.
   */
  readonly calibration_error: number;
  /** Brier score (1950): (1 − σ(margin))². 1/4 where nothing is known. */
  readonly brier: number;
}

const CALIBRATION_BINS = 10;

export function preferenceQuality(chosen: Reals, rejected: Reals): PreferenceQuality {
  const count = chosen.length;
  assert(count > 0 && rejected.length === count, `${count} chosen rewards, ${rejected.length} rejected`);
  const bins = Array.from({ length: CALIBRATION_BINS }, () => ({ confidence: 0, correct: 0 }));
  let correct = 0;
  let sum = 0;
  let brier = 0;
  for (let i = 0; i < count; i++) {
    const margin = chosen[i]! - rejected[i]!;
    const confidence = sigmoid(Math.abs(margin));
    const bin = bins[Math.min(CALIBRATION_BINS - 1, Math.floor((confidence - 0.5) * 2 * CALIBRATION_BINS))]!;
    // A tie is a coin's throw, and said with the confidence of one.
    const right = margin > 0 ? 1 : margin === 0 ? 0.5 : 0;
    bin.confidence += confidence;
    bin.correct += right;
    if (margin > 0) correct++;
    sum += margin;
    brier += (1 - sigmoid(margin)) ** 2;
  }
  const error = bins.reduce((total, b) => total + Math.abs(b.confidence - b.correct), 0);
  return {
    accuracy: correct / count,
    margin: sum / count,
    calibration_error: error / count,
    brier: brier / count,
  };
}
