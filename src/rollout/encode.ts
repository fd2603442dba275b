/** The packed forward pass over tokens that continue cached sequences: prompts from their start, or behind a prefix. */
import type * as F from "../nn/functional.ts";
import type { Decoder } from "../nn/transformer.ts";
import { NONE } from "../ops/define.ts";
import type { Graph } from "../tape/tape.ts";
import type { Tensor } from "../tape/tensor.ts";
import type { CachedSequence, KvStore } from "./kv.ts";

/** Tokens behind those in `cache`, which may be empty and is extended. */
export interface Continuation {
  readonly cache: CachedSequence;
  readonly ids: Int32Array;
}

/** Hidden states [T, C] of all tokens in one row, and the row of each continuation's last one. */
export interface Encoded {
  readonly hidden: Tensor;
  readonly last: readonly number[];
}

/**
 * Encodes continuations as one packed row and writes their keys and values. Keys are reduced by absolute position
 * wherever they lie, so the bits are those of a pass over the whole sequences.
 */
export function encodeBehind(
  g: Graph,
  model: Decoder,
  store: KvStore,
  continuations: readonly Continuation[],
): Encoded {
  const ids: number[] = [];
  const positions: number[] = [];
  const slots: number[] = [];
  const segments: number[] = [];
  const pages: number[] = [];
  const last: number[] = [];
  let pairs = 0;
  continuations.forEach(({ cache, ids: tokens }, index) => {
    const [cached, length] = [cache.length, tokens.length];
    segments.push(ids.length, length, NONE, cached, cached > 0 ? pages.length : NONE, cached, index, 0);
    if (cached > 0) pages.push(...cache.pages);
    slots.push(...cache.extend(length));
    tokens.forEach((id, i) => {
      ids.push(id);
      positions.push(cached + i);
    });
    last.push(ids.length - 1);
    pairs += length * cached + (length * (length + 1)) / 2;
  });
  const upload = (values: readonly number[], label: string) => g.upload(Uint32Array.from(values), label);
  const inputs = {
    ids: upload(ids, "prompt ids"),
    positions: upload(positions, "prompt positions"),
    segments: upload(segments, "prompt segments"),
    slots: upload(slots, "prompt slots"),
  };
  const prefix = pages.length > 0 ? upload(pages, "prefix pages") : null;
  const rows: F.PackedSegments = {
    ...{ segments: inputs.segments, count: continuations.length },
    ...{ pairs, pages: prefix },
  };
  const hidden = model.forward(g, {
    ids: inputs.ids,
    positions: inputs.positions,
    segments: rows,
    write: { cache: store, slots: inputs.slots },
  });
  g.release(prefix, ...Object.values(inputs));
  return { hidden, last };
}
