import { assert } from "../core/errors.ts";
import type { TokenRows } from "../core/records.ts";

/** float64 is what the losses compute in; float32 is what the device hands over. */
export type Reals = Float64Array | Float32Array;

/** Completion rows laid one after another with the tokens that count; row i is [offsets[i], offsets[i+1]). */
export interface MaskedRows extends TokenRows {
  /** 1 = the token counts in the loss. One entry a token. */
  readonly mask: Uint8Array;
}

/** Everything a policy loss reads of one micro-batch. Per-token arrays have offsets[rows] entries. */
export interface PolicyRows extends MaskedRows {
  /** log pi(token) under the weights being trained, at the sampling temperature. */
  readonly logprobs: Reals;
  /** The same when the rollouts were made; null = this is the first update, the ratio is 1. */
  readonly oldLogprobs: Reals | null;
  /** The same under the frozen reference; null = no KL term. */
  readonly refLogprobs: Reals | null;
  /** Entropy in nats of the full distribution at each token; null = unknown. */
  readonly entropy: Reals | null;
  /** As the sampler saw them, when that differs from oldLogprobs (off-policy mask only). */
  readonly samplingLogprobs?: Reals | null;
  /** One advantage a row. */
  readonly advantages: Reals;
  /** Factor of the advantage at each token (gamma^(T-1-t)); absent = 1. */
  readonly discount?: Reals | null;
}

export function rowLength(rows: MaskedRows, row: number): number {
  let length = 0;
  for (let t = rows.offsets[row]!; t < rows.offsets[row + 1]!; t++) length += rows.mask[t]!;
  return length;
}

/** Shapes are ours to keep, so a mismatch is a defect. */
export function checkRows(rows: MaskedRows): void {
  assert(
    rows.offsets.length === rows.rows + 1,
    `offsets has ${rows.offsets.length} entries for ${rows.rows} rows`,
  );
  assert(rows.offsets[0] === 0, "offsets must start at 0");
  for (let i = 0; i < rows.rows; i++) {
    assert(rows.offsets[i]! <= rows.offsets[i + 1]!, `offsets fall at row ${i}`);
  }
  assert(rows.mask.length === rows.offsets[rows.rows], "mask must have one entry a token");
}

export interface MaskOptions {
  /** Per token, 0 = written by a tool, not by the policy. */
  readonly toolMask?: Uint8Array | null;
  /** Per row, 1 = the completion hit the length limit. Given only when truncated completions are to be masked. */
  readonly truncated?: Uint8Array | null;
}

/** Loss mask of completions: every token, less tool tokens, less the rows that were cut off (DAPO, arXiv 2503.14476). */
export function completionMask(rows: TokenRows, options: MaskOptions = {}): Uint8Array {
  const mask = new Uint8Array(rows.offsets[rows.rows]!);
  for (let i = 0; i < rows.rows; i++) {
    if (options.truncated?.[i]) continue;
    for (let t = rows.offsets[i]!; t < rows.offsets[i + 1]!; t++) {
      mask[t] = options.toolMask && !options.toolMask[t] ? 0 : 1;
    }
  }
  return mask;
}
