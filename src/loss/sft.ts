import { assert } from "../core/errors.ts";
import type { TokenRows } from "../core/records.ts";
import { type Normaliser, rowWeights } from "./count.ts";
import { checkRows, type MaskedRows, type Reals } from "./rows.ts";

export interface SftRows extends MaskedRows {
  /** log pi(token) of every target token. */
  readonly logprobs: Reals;
}

export interface SftLoss {
  /** This micro-batch's share of the step's mean negative log-likelihood. */
  readonly loss: number;
  readonly gradLogprobs: Float64Array;
  /** Sum of -log pi and tokens, so that any number of micro-batches or evaluation batches add up. */
  readonly nll: number;
  readonly tokens: number;
}

/** Targets of prompt-plus-completion rows: the completion alone, or every target with `trainOnPrompt`. */
export function sftMask(
  rows: TokenRows,
  promptLengths: ArrayLike<number>,
  trainOnPrompt: boolean,
): Uint8Array {
  const mask = new Uint8Array(rows.offsets[rows.rows]!);
  for (let i = 0; i < rows.rows; i++) {
    const begin = rows.offsets[i]!;
    const first = begin + (trainOnPrompt ? 0 : promptLengths[i]!);
    assert(first >= begin && first <= rows.offsets[i + 1]!, `row ${i}: prompt longer than its row`);
    mask.fill(1, first, rows.offsets[i + 1]!);
  }
  return mask;
}

/**
 * Mean negative log-likelihood over the target tokens of the whole optimizer step (global token count, so no
 * micro-batch weighs more than its tokens). compat trl's normaliser divides by generation tokens the same way.
 */
export function sftLoss(batch: SftRows, norm: Normaliser): SftLoss {
  checkRows(batch);
  assert(batch.logprobs.length === batch.mask.length, "one log-probability a token");
  const weights = rowWeights(norm, "step_token_mean", batch);
  const gradLogprobs = new Float64Array(batch.mask.length);
  let loss = 0;
  let nll = 0;
  let tokens = 0;
  for (let i = 0; i < batch.rows; i++) {
    const weight = weights[i]!;
    for (let t = batch.offsets[i]!; t < batch.offsets[i + 1]!; t++) {
      if (!batch.mask[t]) continue;
      tokens++;
      nll -= batch.logprobs[t]!;
      loss -= weight * batch.logprobs[t]!;
      gradLogprobs[t] = -weight;
    }
  }
  return { loss, gradLogprobs, nll, tokens };
}
