/** Shapes of attention: packed segments, trees, cached prefixes, page tables. */
import type { Random } from "../../src/core/rng.ts";
import { NONE, PAGE } from "../../src/ops/define.ts";
import { type Data, u32 } from "./tensors.ts";

export interface Part {
  readonly len: number;
  /** Index of the segment it continues. */
  readonly parent?: number;
  /** Tokens of a root's cached prefix. */
  readonly cached?: number;
}

export interface Layout {
  readonly rows: number;
  readonly segs: Data;
  readonly count: number;
  readonly pages: Data;
  readonly pageCount: number;
  /** Pages of the cache, some of them unused. */
  readonly cachePages: number;
  /** Query-key pairs. */
  readonly pairs: number;
}

/** Lays segments out one after another; prefixes take pages in random order. */
export function layout(parts: readonly Part[], rng: Random): Layout {
  const words: number[] = [];
  const starts: number[] = [];
  const roots: number[] = [];
  const ends: number[] = [];
  const prefixPages = parts.map((part) => Math.ceil((part.cached ?? 0) / PAGE));
  const needed = prefixPages.reduce((a, b) => a + b, 0);
  const cachePages = needed === 0 ? 0 : needed + 2;
  const order = rng.permutation(cachePages);
  let row = 0;
  let page = 0;
  let pairs = 0;
  parts.forEach((part, i) => {
    const parent = part.parent ?? NONE;
    const cached = part.cached ?? 0;
    const pos0 = parent === NONE ? cached : ends[parent]!;
    roots.push(parent === NONE ? i : roots[parent]!);
    starts.push(row);
    ends.push(pos0 + part.len);
    words.push(row, part.len, parent, pos0, cached > 0 ? page : NONE, cached, roots[i]!, 0);
    pairs += part.len * pos0 + (part.len * (part.len + 1)) / 2;
    row += part.len;
    page += prefixPages[i]!;
  });
  return {
    rows: row,
    segs: u32(words),
    count: parts.length,
    pages: u32([...order.slice(0, needed)]),
    pageCount: needed,
    cachePages,
    pairs,
  };
}

/** Page tables [batch, maxPages] for given lengths, disjoint and in random order; NONE beyond a sequence's end. */
export function pageTable(
  lens: readonly number[],
  maxPages: number,
  rng: Random,
): { table: Data; pages: number } {
  const pages = lens.reduce((sum, len) => sum + Math.ceil(len / PAGE), 0) + 1;
  const order = rng.permutation(pages);
  let next = 0;
  const table = lens.flatMap((len) =>
    Array.from({ length: maxPages }, (_, p) => (p < Math.ceil(len / PAGE) ? order[next++]! : NONE)),
  );
  return { table: u32(table), pages };
}
