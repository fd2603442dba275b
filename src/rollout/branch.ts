/**
 * Tokens behind cached prefixes: prompts from their start, many continuations of one prefix in a packed pass, and single
 * tokens of many sequences. Keys are reduced by absolute position wherever they lie, so every position has the bits of the
 * whole sequence encoded by itself.
 */
import { assert } from "../core/errors.ts";
import type { Decoder } from "../nn/transformer.ts";
import { NONE } from "../ops/define.ts";
import type { Graph } from "../tape/tape.ts";
import type { Tensor } from "../tape/tensor.ts";
import { CachedSequence, type KvStore } from "./kv.ts";

/** Tokens and the snapshot that they continue; null: they begin a sequence. */
export interface Branch {
  readonly prefix: CachedSequence | null;
  readonly ids: Int32Array;
}

export interface EncodedBranches {
  /** In the order of the branches; the caller releases them. */
  readonly caches: CachedSequence[];
  /** [T, C] of all branches laid one after another; the caller releases it. */
  readonly hidden: Tensor;
  /** The row of each branch's last token. */
  readonly last: Uint32Array;
}

/** Tokens behind those in `cache`, which may be empty and is extended. */
export interface Continuation {
  readonly cache: CachedSequence;
  readonly ids: Int32Array;
}

/**
 * Encodes continuations as one packed row and writes their keys and values: hidden states [T, C] of all tokens, which the
 * caller releases, and the row of each continuation's last one.
 */
export function encodeBehind(
  g: Graph,
  model: Decoder,
  store: KvStore,
  continuations: readonly Continuation[],
): { readonly hidden: Tensor; readonly last: readonly number[] } {
  const row = layBehind(g, store, continuations);
  const hidden = model.forward(g, row.input);
  row.release();
  return { hidden, last: row.last };
}

/** The same for the sake of the caches alone. */
export function fillBehind(
  g: Graph,
  model: Decoder,
  store: KvStore,
  continuations: readonly Continuation[],
): void {
  const row = layBehind(g, store, continuations);
  model.fill(g, row.input);
  row.release();
}

/** The same for branches: their caches, in their order. */
export function fillBranches(
  g: Graph,
  model: Decoder,
  store: KvStore,
  branches: readonly Branch[],
): CachedSequence[] {
  const copies: [number, number][] = [];
  const caches: CachedSequence[] = [];
  try {
    for (const { prefix } of branches) caches.push(prefix?.fork(copies) ?? new CachedSequence(store));
    store.copyPages(g, copies);
    fillBehind(
      g,
      model,
      store,
      branches.map(({ ids }, i) => ({ cache: caches[i]!, ids })),
    );
    return caches;
  } catch (error) {
    for (const cache of caches) cache.release();
    throw error;
  }
}

/** Continuations laid in one row on the device; their caches are extended. */
function layBehind(g: Graph, store: KvStore, continuations: readonly Continuation[]) {
  const tokens = continuations.reduce((sum, { ids }) => sum + ids.length, 0);
  const ids = new Uint32Array(tokens);
  const positions = new Uint32Array(tokens);
  const slots = new Uint32Array(tokens);
  const segments: number[] = [];
  const pages: number[] = [];
  const last: number[] = [];
  let row = 0;
  let pairs = 0;
  for (const [i, { cache, ids: own }] of continuations.entries()) {
    assert(own.length > 0, "a continuation needs at least one token");
    const before = cache.length;
    segments.push(row, own.length, NONE, before, before > 0 ? pages.length : NONE, before, i, 0);
    pages.push(...cache.pages);
    ids.set(own, row);
    slots.set(cache.extend(own.length), row);
    for (let t = 0; t < own.length; t++) positions[row + t] = before + t;
    pairs += own.length * before + (own.length * (own.length + 1)) / 2;
    row += own.length;
    last.push(row - 1);
  }
  const on = {
    ids: g.upload(ids, "ids behind a prefix"),
    positions: g.upload(positions, "positions behind a prefix"),
    slots: g.upload(slots, "slots behind a prefix"),
    segments: g.upload(Uint32Array.from(segments), "segments behind a prefix"),
    pages: pages.length > 0 ? g.upload(Uint32Array.from(pages), "prefix pages") : null,
  };
  return {
    input: {
      ids: on.ids,
      positions: on.positions,
      segments: { segments: on.segments, count: continuations.length, pairs, pages: on.pages },
      cached: { cache: store, slots: on.slots },
    },
    last,
    release: () => g.release(...Object.values(on)),
  };
}

/**
 * Encodes branches of a few tokens up to their hidden states: keys are written first, and every token attends by itself to
 * the pages of its sequence, which are read in place where a packed pass would lay out all keys of each branch anew.
 */
export function encodeShortBranches(
  g: Graph,
  model: Decoder,
  store: KvStore,
  branches: readonly { readonly prefix: CachedSequence; readonly ids: Int32Array }[],
): EncodedBranches {
  const copies: [number, number][] = [];
  const caches: CachedSequence[] = [];
  try {
    for (const { prefix } of branches) caches.push(prefix.fork(copies));
    store.copyPages(g, copies);
    const ids = g.upload(Uint32Array.from(branches.flatMap((branch) => [...branch.ids])), "branch ids");
    const hidden = appendTokens(
      g,
      model,
      store,
      caches,
      branches.map((branch) => branch.ids.length),
      ids,
    );
    g.release(ids);
    let rows = 0;
    const last = Uint32Array.from(branches, (branch) => {
      rows += branch.ids.length;
      return rows - 1;
    });
    return { caches, hidden, last };
  } catch (error) {
    for (const cache of caches) cache.release();
    throw error;
  }
}

/** Appends one token to every sequence; hidden states [B, C]. `ids` stays the caller's. */
export function decodeTokens(
  g: Graph,
  model: Decoder,
  store: KvStore,
  caches: readonly CachedSequence[],
  ids: Tensor,
): Tensor {
  return appendTokens(
    g,
    model,
    store,
    caches,
    caches.map(() => 1),
    ids,
  );
}

/** Appends `counts[i]` tokens to sequence i; hidden states [T, C] in the order of `ids`. */
function appendTokens(
  g: Graph,
  model: Decoder,
  store: KvStore,
  caches: readonly CachedSequence[],
  counts: readonly number[],
  ids: Tensor,
): Tensor {
  const batch = counts.reduce((sum, count) => sum + count, 0);
  const positions = new Uint32Array(batch);
  const slots = new Uint32Array(batch);
  const lens = new Uint32Array(batch);
  let pairs = 0;
  let row = 0;
  caches.forEach((cache, i) => {
    const start = cache.length;
    slots.set(cache.extend(counts[i]!), row);
    for (let t = 0; t < counts[i]!; t++, row++) {
      positions[row] = start + t;
      lens[row] = start + t + 1;
      pairs += start + t + 1;
    }
  });
  const maxPages = Math.max(...caches.map((cache) => cache.pages.length));
  const table = new Uint32Array(batch * maxPages);
  row = 0;
  caches.forEach((cache, i) => {
    for (let t = 0; t < counts[i]!; t++, row++) table.set(cache.pages, row * maxPages);
  });
  const input = {
    positions: g.upload(positions, "positions"),
    slots: g.upload(slots, "slots"),
    lens: g.upload(lens, "lens"),
    table: g.upload(table, "page table"),
  };
  const hidden = model.decode(g, {
    ids,
    positions: input.positions,
    rows: { table: input.table, maxPages, lens: input.lens, pairs },
    cache: store,
    slots: input.slots,
  });
  g.release(...Object.values(input));
  return hidden;
}
