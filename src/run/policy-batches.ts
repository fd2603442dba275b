/** How the completions of a generation become micro-batches of an optimizer step, and what each token counts there. */
import { UsageError } from "../core/errors.ts";
import type { Scored } from "../core/records.ts";
import { globalNormaliser, type Normaliser, trlNormaliser } from "../loss/count.ts";
import type { PolicyOptions } from "../loss/options.ts";
import { completionMask, type MaskedRows } from "../loss/rows.ts";
import type { Sampling } from "../rollout/engine.ts";
import { type GroupPart, microBatches } from "../rollout/pack.ts";
import { concat } from "./completion-rows.ts";
import { type Dealt, dealBatches, dealGroups, type Ranks } from "./ranks.ts";
import type { Unit } from "./routing.ts";

/**
 * How a generation becomes optimizer steps. Its prompts, `gradAccumSteps` batches of them, are divided in order into
 * `stepsPerGeneration` minibatches of whole groups; each is one optimizer step, normalised over its own tokens, and all
 * are gone through `numIterations` times. Old log-probabilities are those of sampling throughout.
 */
export interface GenerationPlan {
  readonly groupSize: number;
  readonly numIterations: number;
  readonly stepsPerGeneration: number;
  readonly gradAccumSteps: number;
}

export interface BatchOptions {
  readonly sampling: Sampling;
  readonly loss: PolicyOptions;
  readonly maskTruncated: boolean;
  readonly microBatchTokens: number;
  readonly sharePrefix: boolean;
}

/** A generated batch, as long as optimizer steps are made from it. */
export interface Generation {
  /** First optimizer step that uses it, 1-based. */
  readonly step: number;
  readonly plan: GenerationPlan;
  /** Completions of one prompt are consecutive. */
  readonly scored: readonly Scored[];
  readonly advantages: Float64Array;
  readonly metrics: Record<string, number>;
  /** Per completion, under the reference; filled when first needed. */
  reference: Float32Array[] | null;
}

/** Optimizer steps made from one generation. */
export function windowOf({ numIterations, stepsPerGeneration }: GenerationPlan): number {
  return numIterations * stepsPerGeneration;
}

/** Micro-batches of the units of `prompts` prompts, and whose they are. */
export function cutUnits(
  units: readonly Unit[],
  skip: readonly boolean[],
  prompts: number,
  gradAccumSteps: number,
  { loss, microBatchTokens, sharePrefix }: BatchOptions,
  ranks: Ranks,
): Dealt {
  const groups = units.map(({ group }) => group);
  if (loss.compat !== "trl") return dealGroups(ranks, groups, microBatchTokens, sharePrefix, skip);
  // TRL's conventions are about its own micro-batches: each generated batch is one.
  const perBatch = prompts / gradAccumSteps;
  const batches = Array.from({ length: gradAccumSteps }, (_, i) => {
    const parts = units.flatMap(({ group, prompt }, unit) =>
      Math.floor(prompt / perBatch) === i
        ? [{ group: unit, completions: group.completions.map((_, c) => c) }]
        : [],
    );
    const own = parts.map(({ group }) => groups[group]!);
    const [only, ...more] = microBatches(own, microBatchTokens, sharePrefix);
    if (!only || more.length > 0) {
      throw new UsageError(
        "compat trl needs a generated batch in one piece",
        "micro_batch_tokens",
        `raise it above ${microBatchTokens}`,
      );
    }
    return parts;
  });
  return dealBatches(ranks, batches);
}

/** The completions of `parts` behind each other; `rowAt` is the row of the generation that holds one. */
export function maskOf(
  { scored }: Generation,
  parts: readonly GroupPart[],
  rowAt: (group: number, completion: number) => number,
  maskTruncated: boolean,
): MaskedRows {
  const members = parts.flatMap(({ group, completions }) => completions.map((c) => scored[rowAt(group, c)]!));
  const offsets = new Int32Array(members.length + 1);
  members.forEach((m, i) => {
    offsets[i + 1] = offsets[i]! + m.ids.length;
  });
  const rows = { rows: members.length, offsets };
  const truncated = Uint8Array.from(members, (m) => (m.finish === "length" ? 1 : 0));
  return { ...rows, mask: completionMask(rows, { truncated: maskTruncated ? truncated : null }) };
}

/** `entropies`, by group and completion, are asked for where only the tokens of highest entropy count. */
export async function stepNormaliser(
  { scored, plan }: Generation,
  batches: readonly GroupPart[][],
  masks: readonly MaskedRows[],
  { loss, sampling, maskTruncated }: BatchOptions,
  entropies: () => Promise<readonly (readonly Float32Array[])[]>,
): Promise<Normaliser> {
  const maxCompletionLength = sampling.maxNewTokens;
  if (loss.compat === "trl") {
    const all = scored.filter((s) => !(maskTruncated && s.finish === "length"));
    const { gradAccumSteps, stepsPerGeneration } = plan;
    return trlNormaliser({
      gradientAccumulationSteps: gradAccumSteps,
      stepsPerGeneration: gradAccumSteps * stepsPerGeneration,
      generationTokens: all.reduce((sum, s) => sum + s.ids.length, 0),
      maxCompletionLength,
    });
  }
  if (loss.topEntropyQuantile >= 1) return globalNormaliser(masks, maxCompletionLength);
  // The quantile is one of the whole step, so entropies are needed before the first gradient.
  const scores = await entropies();
  return globalNormaliser(masks, maxCompletionLength, {
    entropies: batches.map((parts) =>
      concat(parts.flatMap(({ group, completions }) => completions.map((c) => scores[group]![c]!))),
    ),
    topQuantile: loss.topEntropyQuantile,
  });
}
