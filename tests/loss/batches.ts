import { globalNormaliser, type Normaliser, trlNormaliser } from "../../src/loss/count.ts";
import type { PolicyInput, PolicyOptions } from "../../src/loss/options.ts";
import type { PolicyRows } from "../../src/loss/rows.ts";

/** Small deterministic generator for test data (mulberry32). */
export function randomSource(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface BatchShape {
  readonly seed: number;
  readonly lengths: readonly number[];
  /** Share of tokens under mask 0. */
  readonly masked?: number;
  /** No old log-probabilities: the ratio is 1. */
  readonly onPolicy?: boolean;
}

/** Random rows with ratios on both sides of the clip range and advantages of both signs. */
export function randomBatch({ seed, lengths, masked = 0, onPolicy = false }: BatchShape): PolicyRows {
  const random = randomSource(seed);
  const offsets = new Int32Array(lengths.length + 1);
  for (const [i, length] of lengths.entries()) offsets[i + 1] = offsets[i]! + length;
  const tokens = offsets[lengths.length]!;
  const fill = (draw: (i: number) => number) => Float64Array.from({ length: tokens }, (_, i) => draw(i));
  const logprobs = fill(() => -0.1 - 2.5 * random());
  return {
    rows: lengths.length,
    offsets,
    mask: Uint8Array.from({ length: tokens }, () => (random() < masked ? 0 : 1)),
    logprobs,
    oldLogprobs: onPolicy ? null : fill((i) => logprobs[i]! + 0.8 * (random() - 0.5)),
    refLogprobs: fill((i) => logprobs[i]! + 1.2 * (random() - 0.5)),
    entropy: fill(() => 0.05 + 3 * random()),
    samplingLogprobs: null,
    advantages: Float64Array.from(lengths, () => 3 * (random() - 0.5)),
  };
}

export const EVERY_LOSS: readonly PolicyInput[] = [
  { lossType: "reinforce_kl2" },
  { lossType: "grpo" },
  { lossType: "grpo", delta: 1.25, epsilonHigh: 0.28 },
  { lossType: "bnpo" },
  { lossType: "dr_grpo" },
  { lossType: "dapo", epsilonHigh: 0.28 },
  { lossType: "cispo", epsilonHigh: 1.1 },
  { lossType: "sapo" },
  { lossType: "luspo" },
  { lossType: "vespo" },
  { lossType: "ppo_clip", aggregation: "token" },
  { lossType: "ppo_clip", aggregation: "sequence" },
];

export const MAX_LENGTH = 16;

/** Normaliser of a step made of these micro-batches, as the options want it. */
export function normaliserFor(parts: readonly PolicyRows[], options: PolicyOptions): Normaliser {
  if (options.compat === "trl") {
    const generationTokens = parts.reduce((sum, part) => sum + part.mask.reduce((n, on) => n + on, 0), 0);
    return trlNormaliser({
      gradientAccumulationSteps: parts.length,
      stepsPerGeneration: parts.length,
      generationTokens,
      maxCompletionLength: MAX_LENGTH,
    });
  }
  return globalNormaliser(parts, MAX_LENGTH, {
    entropies: parts.map((part) => part.entropy!),
    topQuantile: options.topEntropyQuantile,
  });
}
