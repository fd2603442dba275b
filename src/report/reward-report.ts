/** What `rewardReport` (rewards.ts) finds: types alone, which the page is compiled with too. */

/** What a judge said of one criterion in the rollouts of a step. */
export interface JudgePoint {
  /** Means over those it scored: of the expected score, and of the written one (null: it wrote none). */
  readonly expected: number;
  readonly text: number | null;
  /** Share of answers without a score. */
  readonly invalid: number;
  /** Mean probability of each value of the scale. */
  readonly probabilities: readonly number[];
}

export interface RewardPoint {
  readonly step: number;
  readonly rollouts: number;
  /** Share of the rollouts in each bin of the report's range. */
  readonly histogram: readonly number[];
  /** Means, in the order of the report's names; null where the step has none. */
  readonly components: readonly (number | null)[];
  readonly judge: readonly (JudgePoint | null)[];
}

/** Rewards of the training rollouts at some steps, evenly spread over the run. */
export interface RewardReport {
  readonly points: readonly RewardPoint[];
  readonly components: readonly string[];
  /** Names of the judge's criteria. */
  readonly judge: readonly string[];
  /** Of the rewards at these steps; null without any. */
  readonly range: { readonly min: number; readonly max: number } | null;
  readonly bins: number;
}
