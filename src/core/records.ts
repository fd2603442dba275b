/**
 * Plain records that cross from rollout to reward to loss to run: arrays and offsets, no tensors.
 */

/** One training or evaluation prompt. `fields` keeps the source row (answer, metadata) for rewards. */
export interface Prompt {
  /** Position in the dataset, the random key of everything drawn for it. */
  readonly index: number;
  readonly text: string;
  readonly ids: Int32Array;
  readonly fields: Readonly<Record<string, unknown>>;
}

export type Finish = "eos" | "length" | "stop";

/** One sampled completion. */
export interface Rollout {
  readonly prompt: Prompt;
  /** Index of the completion within its group, 0..G-1. */
  readonly completion: number;
  /** Completion token ids, the EOS that ended it included. */
  readonly ids: Int32Array;
  /** log pi(token) at the sampling temperature, unfiltered, as sampled. */
  readonly logprobs: Float32Array;
  /** log sum exp of the scaled logits and entropy (nats) at each token, as sampled; null when restored. */
  readonly lse: Float32Array | null;
  readonly entropies: Float32Array | null;
  readonly text: string;
  readonly finish: Finish;
}

/** A rollout with its reward. `components` are the named parts that summed to it. */
export interface Scored extends Rollout {
  readonly reward: number;
  readonly components: Readonly<Record<string, number>>;
  /** What a detector of reward hacks said; absent without one. */
  readonly flagged?: boolean;
  /** What else the reward says of it, kept with the rollout as JSON: a judge's distributions, a test's output. */
  readonly details?: Readonly<Record<string, unknown>>;
}

/** Per-token quantities of `rows` completions laid one after another; row i is [offsets[i], offsets[i+1]). */
export interface TokenRows {
  readonly rows: number;
  readonly offsets: Int32Array;
}

/** Metric name (TensorBoard spelling) to value. */
export type Metrics = Readonly<Record<string, number>>;
