/** Log-probabilities of continuations: many of one prompt on one pass over it. */
import type { Transformer } from "../nn/transformer.ts";
import { RolloutEngine } from "../rollout/engine.ts";
import type { CachedSequence } from "../rollout/kv.ts";
import { type Group, microBatches, selectGroups } from "../rollout/pack.ts";
import { scoreGroups } from "../rollout/score.ts";
import type { StepMemory } from "../tape/tape.ts";

export interface ContinuationScore {
  readonly ids: Int32Array;
  /** Natural log-probability of each of `ids` behind the prompt and the ids before it. */
  readonly logprobs: Float32Array;
  /** Their sum: log p(continuation | prompt), in nats; 0 of an empty one. */
  readonly total: number;
}

/** An open model. */
export interface Scorer {
  readonly memory: StepMemory;
  readonly model: Transformer;
  /** Most packed tokens of a forward pass. */
  readonly packedTokens: number;
}

/** A prompt without its last token, in the engine's store; null where nothing is left. */
export async function encodePrefix(engine: RolloutEngine, ids: Int32Array): Promise<CachedSequence | null> {
  if (ids.length < 2) return null;
  return (await engine.encodeAsync(ids.subarray(0, -1))) ?? null;
}

/** Continuations of one prompt whose beginning is cached. */
export async function scoreBehind(
  opened: Scorer,
  ids: Int32Array,
  prefix: CachedSequence | null,
  completions: readonly Int32Array[],
  temperature: number,
): Promise<ContinuationScore[]> {
  const group: Group = { prompt: ids.subarray(-1), completions, ...(prefix ? { prefix } : {}) };
  const [scores] = await scorePacked(opened, [group], temperature);
  return scores!;
}

/**
 * Groups in packed passes. One that does not fit in a pass would have its prompt repeated in each of its parts: its
 * prompt is kept instead.
 */
export async function scoreMany(
  opened: Scorer,
  groups: readonly Group[],
  temperature: number,
): Promise<ContinuationScore[][]> {
  const results: ContinuationScore[][] = new Array(groups.length);
  const tokens = ({ prompt, completions }: Group) =>
    completions.reduce((sum, { length }) => sum + Math.max(0, length - 1), prompt.length);
  const large = (group: Group) => group.completions.length > 1 && tokens(group) > opened.packedTokens;
  const small = groups.flatMap((group, i) => (large(group) ? [] : [i]));
  const packed = await scorePacked(
    opened,
    small.map((i) => groups[i]!),
    temperature,
  );
  for (const [at, i] of small.entries()) results[i] = packed[at]!;
  for (const [i, group] of groups.entries()) {
    if (!large(group)) continue;
    const { prompt: ids } = group;
    const engine = new RolloutEngine(opened.memory, opened.model, {
      maxBatch: 1,
      maxLength: ids.length,
      prefillTokens: opened.packedTokens,
    });
    try {
      const prefix = await encodePrefix(engine, ids);
      results[i] = await scoreBehind(opened, ids, prefix, group.completions, temperature);
      prefix?.release();
    } finally {
      engine.dispose();
    }
  }
  return results;
}

async function scorePacked(
  { memory, model, packedTokens }: Scorer,
  groups: readonly Group[],
  temperature: number,
): Promise<ContinuationScore[][]> {
  const results = groups.map(({ completions }) =>
    completions.map((ids): ContinuationScore => ({ ids, logprobs: new Float32Array(0), total: 0 })),
  );
  for (const parts of microBatches(groups, packedTokens)) {
    const { logprobs } = scoreGroups(
      memory,
      model,
      selectGroups(groups, parts),
      temperature,
      Number.POSITIVE_INFINITY,
    );
    for (const [i, { group, completions }] of parts.entries())
      for (const [j, c] of completions.entries()) {
        const scored = logprobs[i]![j]!;
        const total = scored.reduce((sum, logprob) => sum + logprob, 0);
        results[group]![c] = { ids: groups[group]!.completions[c]!, logprobs: scored, total };
      }
    // Signals and messages are served between passes.
    await Bun.sleep(0);
  }
  return results;
}
