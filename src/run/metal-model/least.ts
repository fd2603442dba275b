/**
 * The least device memory that an operation must move: `once` with every byte read or written once, `tiled` with what
 * its kernel's tiles have to read again. Single values in the packed layout of weights and in pages count as a sector.
 */
import { ceilDiv, Dtype, evaluate, NONE, PAGE, SEGMENT_WORDS, sizeOf, VOCAB_TILE } from "../../ops/define.ts";
import { HEAD_ROW_CHUNK, HEAD_VOCAB_CHUNK } from "../../ops/head.ts";
import type { Captured } from "./workload.ts";

export interface Least {
  readonly once: number;
  readonly tiled: number;
}

/** As in metal/kernels: output tiles of products, rows of a skinny product, rows of an attention tile. */
const TILE = 64;
const SKINNY_ROWS = 64;
const ATTENTION_ROWS = 32;
const SECTOR = 32;

type Params = Readonly<Record<string, number>>;

/** Columns of the result that one threadgroup of a skinny product has. */
const skinnyColumns = (k: number) => (k >= 512 ? TILE / 4 : TILE);

/** Products rows x cols over k, `a` and `b` bytes an element of the operands, `c` bytes moved an element of the result. */
function product(rows: number, cols: number, k: number, a: number, b: number, c: number): Least {
  const result = rows * cols * c;
  return {
    once: rows * k * a + cols * k * b + result,
    tiled: rows * k * a * ceilDiv(cols, TILE) + cols * k * b * ceilDiv(rows, TILE) + result,
  };
}

/** A product of few rows: every threadgroup reads all rows, and `extra` bytes more. */
function skinny(rows: number, cols: number, k: number, size: number, result: number, extra = 0): Least {
  const weights = cols * k * size + result;
  const again = rows * k * size + extra;
  return { once: weights + again, tiled: weights + again * ceilDiv(cols, skinnyColumns(k)) };
}

interface Segment {
  readonly len: number;
  readonly parent: number;
}

/** What the host wrote into a tensor of whole numbers. */
function wordsOf(c: Captured, tensor: string): Uint32Array {
  const data = c.tensors[tensor]?.data;
  if (!data) throw new Error(`${c.op.name}: ${tensor} was not captured`);
  return new Uint32Array(data.slice().buffer);
}

function segmentsOf(c: Captured): Segment[] {
  const words = wordsOf(c, "segs");
  return Array.from({ length: c.params.n_segs! }, (_, i) => ({
    len: words[i * SEGMENT_WORDS + 1]!,
    parent: words[i * SEGMENT_WORDS + 2]!,
  }));
}

/** Keys that tiles of 32 rows (a token and a head of the group each) go over, summed over tiles. */
function keysOfTiles(segments: readonly Segment[], group: number): number {
  let keys = 0;
  for (const segment of segments) {
    let before = 0;
    for (let at = segment.parent; at !== NONE; at = segments[at]!.parent) before += segments[at]!.len;
    for (let row = 0; row < segment.len * group; row += ATTENTION_ROWS)
      keys += before + Math.min(segment.len, Math.ceil((row + ATTENTION_ROWS) / group));
  }
  return keys;
}

/** Tokens that attend to keys in tiles of 32 of them, summed over tiles. */
function queriesOfTiles(segments: readonly Segment[]): number {
  const behind = segments.map(() => 0);
  segments.forEach((segment) => {
    for (let at = segment.parent; at !== NONE; at = segments[at]!.parent) behind[at]! += segment.len;
  });
  let queries = 0;
  segments.forEach(({ len }, i) => {
    for (let key = 0; key < len; key += ATTENTION_ROWS) queries += len - key + behind[i]!;
  });
  return queries;
}

/** Sectors of pages that rows of keys and values are written to. */
function appended(c: Captured, p: Params): number {
  const slots = [...wordsOf(c, "slots")].slice(0, p.rows).filter((slot) => slot !== NONE);
  const size = sizeOf(p.dt!);
  const positions = SECTOR / size;
  // Keys of neighbouring positions share a sector if one threadgroup of 16 rows writes them.
  const sectors = new Set(slots.map((slot, i) => `${Math.floor(i / PAGE)} ${Math.floor(slot / positions)}`));
  return p.kv_heads! * p.head_dim! * (sectors.size * SECTOR + slots.length * size);
}

/** Elements of rows of a packed matrix, each the start of a sector; bfloat16 lies in pairs. */
const packedRows = (rows: number, cols: number, dt: number) =>
  rows * (dt === Dtype.bf16 ? Math.ceil(cols / 2) : cols) * SECTOR;

const both = (bytes: number): Least => ({ once: bytes, tiled: bytes });

function attention(c: Captured, p: Params, backward: boolean): Least {
  const size = sizeOf(p.dt!);
  const segments = segmentsOf(c);
  const group = p.heads! / p.kv_heads!;
  const queries = p.rows! * p.heads! * p.head_dim! * size;
  const keys = p.rows! * p.kv_heads! * p.head_dim! * size;
  const lse = p.rows! * p.heads! * 4;
  const keyBytes = p.kv_heads! * p.head_dim! * size;
  const again = 2 * keysOfTiles(segments, group) * keyBytes;
  if (!backward) return { once: 2 * queries + 2 * keys + lse, tiled: 2 * queries + again + lse };
  // dQ reads q, o, dO once and keys by tile; dK, dV read their keys once and q, o, dO by tile.
  const seen = queriesOfTiles(segments) * (3 * group * keyBytes + p.heads! * 4);
  return {
    once: 4 * queries + 4 * keys + lse,
    tiled: 4 * queries + again + lse + (4 * keys + seen),
  };
}

const OF: Readonly<Record<string, (c: Captured, p: Params, size: number) => Least>> = {
  gemm_nt: (_, p, size) => {
    const [m, n, k] = [p.m!, p.n!, p.k!];
    const result = sizeOf(p.ydt!) * (1 + p.accumulate!);
    return m <= SKINNY_ROWS ? skinny(m, n, k, size, m * n * result) : product(m, n, k, size, size, result);
  },
  gemm_nn: (_, p, size) => product(p.m!, p.k!, p.n!, size, size, size * (1 + p.accumulate!)),
  gemm_tn: (_, p, size) => product(p.k!, p.n!, p.m!, size, size, 8),
  norm_qkv: (_, p, size) => {
    const n = p.nq! + 2 * p.nkv!;
    return skinny(p.m!, n, p.cols!, size, p.m! * n * size, p.cols! * 4);
  },
  linear_residual: (_, p, size) => skinny(p.m!, p.n!, p.k!, size, 2 * p.m! * p.n! * size),
  norm_swiglu: (_, p, size) => {
    const { once, tiled } = skinny(p.m!, p.n!, p.cols!, size, p.m! * p.n! * size, p.cols! * 4);
    const second = p.n! * p.cols! * size;
    return { once: once + second, tiled: tiled + second };
  },
  rope_append: (c, p, size) => {
    const heads = p.rows! * p.head_dim! * (2 * p.heads! + 2 * p.kv_heads!) * size;
    return both(heads + p.rows! * p.head_dim! * 4 + appended(c, p));
  },
  kv_append: (c, p, size) => both(2 * p.rows! * p.kv_heads! * p.head_dim! * size + appended(c, p)),
  kv_copy: (_, p, size) => both(2 * p.count! * p.kv_heads! * p.head_dim! * 2 * PAGE * size),
  attn_fwd: (c, p) => attention(c, p, false),
  attn_bwd: (c, p) => attention(c, p, true),
  attn_decode: (c, p, size) => {
    const lens = wordsOf(c, "lens");
    const pages = wordsOf(c, "table");
    const used = new Map<number, number>(); // positions by page: sequences share those of their prompt
    let keys = 0;
    for (let b = 0; b < p.batch!; b++) {
      keys += lens[b]!;
      for (let i = 0; i * PAGE < lens[b]!; i++) {
        const page = pages[b * p.max_pages! + i]!;
        used.set(page, Math.max(used.get(page) ?? 0, Math.min(PAGE, lens[b]! - i * PAGE)));
      }
    }
    const distinct = [...used.values()].reduce((sum, n) => sum + n, 0);
    const bytes = (n: number) => (2 * p.batch! * p.heads! + 2 * n * p.kv_heads!) * p.head_dim! * size;
    return { once: bytes(distinct), tiled: bytes(keys) };
  },
  embed_fwd: (_, p, size) => both(packedRows(p.rows!, p.cols!, p.wdt!) + p.rows! * p.cols! * size),
  embed_bwd: (c, p, size) => {
    const data = c.tensors.ids!.data;
    const ids = data ? new Set(new Uint32Array(data.slice().buffer).subarray(0, p.rows)).size : p.rows!;
    return both(2 * packedRows(ids, p.cols!, p.wdt!) + p.rows! * p.cols! * size);
  },
  gather_rows: (_, p, size) => both(p.rows! * (2 * p.cols! * size + 4)),
  qk_norm_rope_fwd: (_, p, size) => both(p.rows! * p.head_dim! * (2 * p.heads! * size + 4)),
  logprob_fwd: (_, p, size) => {
    const x = p.rows! * p.cols! * size;
    const w = p.vocab! * p.cols! * size;
    const partial = 2 * 16 * p.rows! * ceilDiv(p.vocab!, VOCAB_TILE);
    return { once: x + w, tiled: x * ceilDiv(p.vocab!, VOCAB_TILE) + w * ceilDiv(p.rows!, TILE) + partial };
  },
  logprob_bwd: (_, p, size) => {
    const [x, w] = [p.rows! * p.cols! * size, p.vocab! * p.cols! * size];
    const dz = p.rows! * p.vocab! * 4;
    const dw = 8 * p.vocab! * p.cols! * ceilDiv(p.rows!, HEAD_ROW_CHUNK);
    const dx = 4 * p.rows! * p.cols! * (2 * ceilDiv(p.vocab!, HEAD_VOCAB_CHUNK) - 1);
    const [rowTiles, colTiles, vocabTiles] = [p.rows!, p.cols!, p.vocab!].map((n) => ceilDiv(n, TILE)) as [
      number,
      number,
      number,
    ];
    const logits = x * vocabTiles + w * rowTiles + dz;
    const weights = dz * colTiles + x * vocabTiles + dw;
    const inputs = dz * colTiles + w * rowTiles + dx;
    const rounded = p.rows! * p.cols! * (4 + size);
    return { once: x + 2 * w + 2 * x + dw, tiled: logits + weights + inputs + rounded };
  },
  sample: (_, p) => both(p.batch! * (p.vocab! * 4 + 3 * 16 * ceilDiv(p.vocab!, VOCAB_TILE))),
};

/** Every tensor once, and twice where it is updated in place; memory between kernels does not count. */
function eachTensorOnce(c: Captured): number {
  let bytes = 0;
  const times = { in: 1, out: 1, inout: 2, scratch: 0 } as const;
  for (const [name, field] of Object.entries(c.op.tensors))
    if (c.tensors[name]) bytes += times[field.access] * evaluate(field.bytes, c.op, { ...c.params });
  return bytes;
}

export function least(c: Captured): Least {
  const own = OF[c.op.name];
  return own ? own(c, c.params, sizeOf(c.params.dt ?? Dtype.f32)) : both(eachTensorOnce(c));
}
