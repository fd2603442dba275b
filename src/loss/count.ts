import { assert, Bug } from "../core/errors.ts";
import { checkRows, type MaskedRows, type Reals, rowLength } from "./rows.ts";

/**
 * The only place where losses are normalised. A loss is sum_i w_i sum_t m_it l_it; this file says what w_i is.
 *
 * `global` counts come from every micro-batch of the optimizer step, so any split into micro-batches (and a short
 * last one) gives the same summed loss and gradient. `trl` reproduces TRL 1.16, whose bnpo and row means are local to
 * the micro-batch and divided by the number of accumulation steps.
 */
export type Normaliser = GlobalNormaliser | TrlNormaliser;

export interface GlobalNormaliser {
  readonly kind: "global";
  /** Rows of the optimizer step, fully masked ones included. */
  readonly rows: number;
  /** Rows that keep at least one token: what row means divide by. */
  readonly activeRows: number;
  /** Tokens that count, over the optimizer step. */
  readonly tokens: number;
  /** The configured limit (dr_grpo's constant), not the longest row. */
  readonly maxCompletionLength: number;
  /** Smallest entropy that the top-entropy mask keeps; null = no such mask. */
  readonly entropyThreshold: number | null;
  /** Tokens that the entropy bonus averages over: those kept by the top-entropy mask. */
  readonly entropyTokens: number;
}

export interface TrlNormaliser {
  readonly kind: "trl";
  /** current_gradient_accumulation_steps; 1 in evaluation. */
  readonly accumulation: number;
  /** What dapo, cispo and vespo divide by: N / P * GA / S. */
  readonly stepTokens: number;
  readonly maxCompletionLength: number;
}

/** How the per-token terms of a loss are averaged. */
export type Aggregation =
  /** mean over rows of each row's token mean (grpo, sapo) */
  | "row_mean"
  /** mean over rows of each row's token sum (luspo, reinforce_kl2) */
  | "row_sum"
  /** mean over tokens; in TRL those of the micro-batch (bnpo) */
  | "token_mean"
  /** mean over tokens; in TRL those of the generation batch (dapo, cispo, vespo) */
  | "step_token_mean"
  /** sum over rows * max_completion_length (dr_grpo, arXiv 2503.20783) */
  | "fixed_length";

export interface EntropyShare {
  /** Entropies of each part's tokens, in the order of the parts. */
  readonly entropies: readonly Reals[];
  /** Share of tokens kept, e.g. 0.2 for the top 20 %; 1 keeps all. */
  readonly topQuantile: number;
}

/** Count the whole optimizer step: `parts` are all its micro-batches. */
export function globalNormaliser(
  parts: readonly MaskedRows[],
  maxCompletionLength: number,
  share?: EntropyShare,
): GlobalNormaliser {
  let rows = 0;
  let activeRows = 0;
  let tokens = 0;
  for (const part of parts) {
    checkRows(part);
    rows += part.rows;
    for (let i = 0; i < part.rows; i++) {
      const length = rowLength(part, i);
      tokens += length;
      if (length > 0) activeRows++;
    }
  }
  let entropyThreshold: number | null = null;
  let entropyTokens = tokens;
  if (share && share.topQuantile < 1) {
    entropyThreshold = highEntropyThreshold(parts, share.entropies, share.topQuantile);
    entropyTokens = 0;
    for (const [p, part] of parts.entries()) {
      for (const [t, on] of part.mask.entries()) {
        if (on && share.entropies[p]![t]! >= entropyThreshold) entropyTokens++;
      }
    }
  }
  return { kind: "global", rows, activeRows, tokens, maxCompletionLength, entropyThreshold, entropyTokens };
}

export interface TrlWindow {
  /** Micro-batches in this optimizer step (the last window may be shorter). */
  readonly gradientAccumulationSteps: number;
  readonly stepsPerGeneration: number;
  /** Mask sum of the whole generation batch over all processes (num_items_in_batch). */
  readonly generationTokens: number;
  readonly processes?: number;
  readonly maxCompletionLength: number;
  /** Evaluation divides nothing by accumulation. */
  readonly training?: boolean;
}

export function trlNormaliser(window: TrlWindow): TrlNormaliser {
  const accumulation = window.training === false ? 1 : window.gradientAccumulationSteps;
  const perProcess = Math.max(window.generationTokens, 1) / (window.processes ?? 1);
  return {
    kind: "trl",
    accumulation,
    stepTokens: (perProcess * accumulation) / (window.training === false ? 1 : window.stepsPerGeneration),
    maxCompletionLength: window.maxCompletionLength,
  };
}

/** w_i of every row of one micro-batch. */
export function rowWeights(norm: Normaliser, aggregation: Aggregation, batch: MaskedRows): Float64Array {
  const weights = new Float64Array(batch.rows);
  const lengths = Float64Array.from(weights, (_, i) => rowLength(batch, i));
  const localTokens = lengths.reduce((sum, length) => sum + length, 0);
  const trl = norm.kind === "trl";
  const rowCount = trl ? batch.rows * norm.accumulation : norm.activeRows;
  const fixedRows = trl ? batch.rows * norm.accumulation : norm.rows;
  const localDivisor = trl ? Math.max(localTokens, 1) * norm.accumulation : norm.tokens;
  const stepDivisor = trl ? norm.stepTokens : norm.tokens;
  for (let i = 0; i < batch.rows; i++) {
    const length = lengths[i]!;
    if (length === 0) continue;
    const by = divisor(length);
    assert(by > 0, "the normaliser counts no tokens although a row has some");
    weights[i] = 1 / by;
  }
  return weights;

  function divisor(length: number): number {
    switch (aggregation) {
      case "row_mean":
        return rowCount * length;
      case "row_sum":
        return rowCount;
      case "token_mean":
        return localDivisor;
      case "step_token_mean":
        return stepDivisor;
      case "fixed_length":
        return fixedRows * norm.maxCompletionLength;
      default:
        throw new Bug(`aggregation ${aggregation satisfies never}`);
    }
  }
}

/** Weight of every kept token's entropy in the bonus. `kept` = tokens of this micro-batch under the entropy mask. */
export function entropyWeight(norm: Normaliser, kept: number): number {
  if (norm.kind === "trl") return 1 / (Math.max(kept, 1) * norm.accumulation);
  return 1 / Math.max(norm.entropyTokens, 1);
}

/**
 * Entropy at the (1 - share) quantile of the tokens that count, linear interpolation as numpy and torch do it
 * ("Beyond the 80/20 rule", arXiv 2506.01939). A token is kept when its entropy is at least this.
 */
export function highEntropyThreshold(
  parts: readonly MaskedRows[],
  entropies: readonly Reals[],
  topQuantile: number,
): number {
  assert(parts.length === entropies.length, "one entropy array a part");
  const values: number[] = [];
  for (const [p, part] of parts.entries()) {
    for (const [t, on] of part.mask.entries()) if (on) values.push(entropies[p]![t]!);
  }
  if (values.length === 0) return Number.POSITIVE_INFINITY;
  const sorted = Float64Array.from(values).sort();
  const at = (1 - topQuantile) * (sorted.length - 1);
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below]! + (at - below) * (sorted[above]! - sorted[below]!);
}
