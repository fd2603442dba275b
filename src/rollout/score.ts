/** Log-probabilities of given completions by the packed forward pass: reference, scoring API and training alike. */
import type { DropoutKey, SampledScores, Scores } from "../nn/functional.ts";
import type { Decoder } from "../nn/transformer.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import type { Tensor } from "../tape/tensor.ts";
import {
  type Group,
  microBatches,
  type PackedRow,
  type PackedSequences,
  type PackedTokens,
  packGroups,
  selectGroups,
} from "./pack.ts";

/** Packed tokens on the device: what `Decoder.forward` takes. */
export function uploadTokens(g: Graph, row: PackedTokens) {
  const ids = g.upload(row.ids, "ids");
  const positions = g.upload(row.positions, "positions");
  const segments = g.upload(row.segments, "segments");
  const pages = row.cached ? g.upload(row.cached.pages, "prefix pages") : null;
  const routes = row.routes ? g.upload(row.routes, "routes") : null;
  return {
    ids,
    positions,
    segments: { segments, count: row.segmentCount, pairs: row.pairs, pages },
    routes,
    // No row is written to it.
    cached: row.cached ? { cache: row.cached.store, slots: null } : null,
    release: () => g.release(ids, positions, segments, pages, routes),
  };
}

/** A packed row on the device: what `Decoder.forward` and `score` take. */
export function uploadRow(g: Graph, row: PackedRow) {
  const tokens = uploadTokens(g, row);
  const index = g.upload(row.index, "target rows");
  const targets = g.upload(row.targets, "targets");
  const release = () => {
    tokens.release();
    g.release(index, targets);
  };
  return { ...tokens, index, targets, release };
}

/**
 * Runs the forward pass of one packed row up to log-probabilities and entropies, or with what the sampler
 * recorded for every target of the row in their place; a training pass has a key of its `dropout`. The caller releases
 * them.
 */
export function forwardRow(
  g: Graph,
  model: Decoder,
  row: PackedRow,
  temperature: number,
  sampled: SampledScores | null = null,
  dropout: DropoutKey | null = null,
): Scores {
  const input = uploadRow(g, row);
  const hidden = model.forward(g, { ...input, dropout });
  const result = model.score(g, hidden, input.index, input.targets, temperature, sampled);
  g.release(hidden);
  input.release();
  return result;
}

/** Runs the forward pass of packed sequences up to their rewards [R, 1], float32. The caller releases them. */
export function forwardRewards(
  g: Graph,
  model: Decoder,
  row: PackedSequences,
  dropout: DropoutKey | null = null,
): Tensor {
  const input = uploadTokens(g, row);
  const last = g.upload(row.last, "last rows");
  const hidden = model.forward(g, { ...input, dropout });
  const rewards = model.rewards(g, hidden, last);
  g.release(hidden, last);
  input.release();
  return rewards;
}

export interface GroupScores {
  /** Per group, per completion: natural log-probability of each token. */
  readonly logprobs: Float32Array[][];
  readonly entropies: Float32Array[][];
}

/** Scores every completion without gradients, a prompt encoded once per micro-batch it appears in. */
export function scoreGroups(
  memory: StepMemory,
  model: Decoder,
  groups: readonly Group[],
  temperature: number,
  budget: number,
  sharePrefix = true,
): GroupScores {
  const logprobs: Float32Array[][] = groups.map((g) => new Array(g.completions.length));
  const entropies: Float32Array[][] = groups.map((g) => new Array(g.completions.length));
  for (const parts of microBatches(groups, budget, sharePrefix)) {
    const graph = new Graph(memory, false);
    const row = packGroups(selectGroups(groups, parts), sharePrefix);
    const { logprob, entropy } = forwardRow(graph, model, row, temperature);
    memory.finish();
    const [l, e] = [logprob.float32(), entropy.float32()];
    let i = 0;
    for (const { group, completions } of parts) {
      for (const c of completions) {
        logprobs[group]![c] = l.slice(row.offsets[i]!, row.offsets[i + 1]!);
        entropies[group]![c] = e.slice(row.offsets[i]!, row.offsets[i + 1]!);
        i++;
      }
    }
    graph.release(logprob, entropy);
  }
  return { logprobs, entropies };
}
