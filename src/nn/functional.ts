/**
 * Differentiable functions on step tensors: each allocates its outputs, emits one operation and records it.
 * Shapes: T packed rows, C hidden, F ffn, V vocabulary, H heads, K kv heads, D head dim.
 */
import { assert } from "../core/errors.ts";
import { Purpose } from "../core/rng.ts";
import { attnDecode, attnFwd, kvAppend } from "../ops/attention.ts";
import {
  linearResidual as linearResidualOp,
  normQkv as normQkvOp,
  normSwiglu as normSwigluOp,
  ropeAppend as ropeAppendOp,
} from "../ops/decode.ts";
import { Dtype, type DtypeCode, VOCAB_TILE } from "../ops/define.ts";
import { dropout as dropoutOp } from "../ops/dropout.ts";
import { add } from "../ops/elementwise.ts";
import { embedFwd, gatherRows } from "../ops/embedding.ts";
import { gemmNt } from "../ops/gemm.ts";
import { logprobFwd } from "../ops/head.ts";
import { loraFwd } from "../ops/lora.ts";
import { swigluFwd } from "../ops/mlp.ts";
import { qkNormRopeFwd, rmsNormFwd } from "../ops/norm.ts";
import { quantEmbed, quantLinear } from "../ops/quant.ts";
import type { Graph } from "../tape/tape.ts";
import { Tensor } from "../tape/tensor.ts";
import { QuantizedWeight } from "./quantized.ts";

/** y[T,C] = table[ids]. */
export function embed(g: Graph, ids: Tensor, table: Tensor | QuantizedWeight, dtype: DtypeCode): Tensor {
  const [rows, cols, vocab] = [ids.size, table.shape[1]!, table.shape[0]!];
  const y = g.empty([rows, cols], dtype, "embedding");
  if (table instanceof QuantizedWeight) {
    const { codes, scales, type: qt } = table;
    g.apply(quantEmbed, { y, ids, codes, scales }, { rows, cols, vocab, qt, dt: dtype });
    return y;
  }
  g.apply(embedFwd, { y, ids, table }, { rows, cols, vocab, dt: dtype, wdt: table.dtype });
  return y;
}

/** h = x + delta, y = RMSNorm(h)·weight. Without delta, h is x itself. */
export function rmsNorm(
  g: Graph,
  x: Tensor,
  delta: Tensor | null,
  weight: Tensor,
  eps: number,
): { y: Tensor; h: Tensor } {
  const [rows, cols] = [x.shape[0]!, x.shape[1]!];
  const y = g.empty(x.shape, x.dtype, "norm");
  const h = delta ? g.empty(x.shape, x.dtype, "residual") : null;
  g.apply(rmsNormFwd, { y, h, x, delta, weight }, { rows, cols, eps, dt: x.dtype });
  return { y, h: h ?? x };
}

/**
 * A low-rank addition to a linear map: scale·(x·aᵀ)·bᵀ with a [R,K] and b [N,R]. The ranks from `split` on are those of
 * a second adapter, scaled by `scale2`.
 */
export interface Adapter {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly split: number;
  readonly scale: number;
  readonly scale2: number;
  /** Probability with which training drops an element of x, and which adapter of the model this is. */
  readonly dropout: number;
  readonly site: number;
}

/** What, beside adapter and element, decides masks of dropout: a pass of training has one, any other pass none. */
export interface DropoutKey {
  readonly seed: number;
  readonly step: number;
  readonly microBatch: number;
}

/** What a pass does with adapters beside computing them. */
export interface AdapterPass {
  /** Masks of a training pass; without a key nothing is dropped. */
  readonly dropout: DropoutKey | null;
  /** For every row the adapters whose weights learn nothing from it (Route in src/ops/lora.ts), u32. */
  readonly routes: Tensor | null;
}
const PLAIN_PASS: AdapterPass = { dropout: null, routes: null };

/** A linear map of the model: its weight [N,K], packed or quantized, its bias [N], and adapters that are added in their order. */
export interface Linear {
  readonly w: Tensor | QuantizedWeight;
  readonly bias: Tensor | null;
  readonly adapters: readonly Adapter[];
}

/** The packed weight that a fused operation reads. */
function packedWeight({ w }: Linear): Tensor {
  assert(w instanceof Tensor, `${w.label}: fused operations take packed weights`);
  return w;
}

/** y[T,N] = x[T,K]·w[N,K]ᵀ + bias[N] + adapters. */
export function linear(
  g: Graph,
  x: Tensor,
  { w, bias, adapters }: Linear,
  ydt: DtypeCode = x.dtype,
  pass: AdapterPass = PLAIN_PASS,
): Tensor {
  const [m, n, k] = [x.shape[0]!, w.shape[0]!, w.shape[1]!];
  const y = g.empty([m, n], ydt, w.label);
  if (w instanceof QuantizedWeight) {
    const { codes, scales, type: qt } = w;
    g.apply(quantLinear, { y, x, codes, scales, bias }, { m, n, k, qt, dt: x.dtype, ydt });
  } else {
    g.apply(gemmNt, { y, x, w, bias }, { m, n, k, dt: x.dtype, ydt, accumulate: 0 });
  }
  return adapters.reduce((base, adapter) => adapt(g, base, x, adapter, pass), y);
}

/** base + scale·(drop(x)·aᵀ)·bᵀ in the memory of `base`, which it takes over. */
function adapt(
  g: Graph,
  base: Tensor,
  input: Tensor,
  { a, b, split, scale, scale2, dropout: p, site }: Adapter,
  { dropout: key, routes }: AdapterPass,
): Tensor {
  assert(base.dtype === input.dtype, `${base.label}: an adapter adds in the dtype of x`);
  const x = key && p > 0 ? dropped(g, input, p, site, key) : input;
  const [m, n, k, r] = [x.shape[0]!, b.shape[0]!, a.shape[1]!, a.shape[0]!];
  const y = g.over(base);
  const u = g.empty([m, r], x.dtype, a.label);
  g.apply(loraFwd, { y, u, base, x, a, b, routes }, { m, n, k, r, split, scale, scale2, dt: x.dtype });
  g.release(u, base, x === input ? null : x);
  return y;
}

/** x with each element zero with probability p < 1, the others times 1/(1−p). */
function dropped(g: Graph, x: Tensor, p: number, site: number, key: DropoutKey): Tensor {
  const y = g.empty(x.shape, x.dtype, "dropout");
  g.apply(
    dropoutOp,
    { y, x },
    {
      n: x.size,
      seed: key.seed,
      purpose: Purpose.dropout,
      site,
      step: key.step,
      part: key.microBatch,
      threshold: Math.min(Math.round(p * 2 ** 32), 2 ** 32 - 1),
      scale: 1 / (1 - p),
      dt: x.dtype,
    },
  );
  return y;
}

/** Whether a fused operation of decoding can stand for these maps: packed weights, nothing added. */
const fusable = (...maps: readonly Linear[]): boolean =>
  maps.every((map) => map.w instanceof Tensor && map.adapters.length === 0);

export interface RopeTable {
  /** [positions, D]: cos then sin of D/2 frequencies. */
  readonly table: Tensor;
  readonly maxPositions: number;
}

/** Per-head RMSNorm (with weight) and rotate-half RoPE. x[T, heads·D]. */
export function qkNormRope(
  g: Graph,
  x: Tensor,
  weight: Tensor | null,
  positions: Tensor,
  rope: RopeTable,
  heads: number,
  eps: number,
): Tensor {
  const rows = x.shape[0]!;
  const y = g.empty(x.shape, x.dtype, "rope");
  g.apply(
    qkNormRopeFwd,
    { y, x, weight, positions, rope: rope.table },
    { rows, heads, head_dim: x.shape[1]! / heads, max_pos: rope.maxPositions, eps, dt: x.dtype },
  );
  return y;
}

/** The segments of a packed row on the device; `pairs` counts query-key pairs. */
export interface PackedSegments {
  readonly segments: Tensor;
  readonly count: number;
  readonly pairs: number;
  /** Pages of cached prefixes, for segments that continue one. */
  readonly pages: Tensor | null;
}

export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** One layer's key-value pages. */
export interface KvLayer {
  readonly kv: Tensor;
  readonly pages: number;
}

export function attention(
  g: Graph,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  rows: PackedSegments,
  shape: HeadShape,
  cache: KvLayer | null,
): Tensor {
  const tokens = q.shape[0]!;
  const o = g.empty(q.shape, q.dtype, "attention");
  const lse = g.recording ? g.empty([tokens, shape.heads], Dtype.f32, "attention lse") : null;
  const prefixed = rows.pages !== null && cache !== null;
  g.apply(
    attnFwd,
    {
      o,
      lse,
      q,
      k,
      v,
      segs: rows.segments,
      kv: prefixed ? cache.kv : null,
      pages: prefixed ? rows.pages : null,
    },
    {
      rows: tokens,
      heads: shape.heads,
      kv_heads: shape.kvHeads,
      head_dim: shape.headDim,
      n_segs: rows.count,
      n_pages: prefixed ? rows.pages!.size : 0,
      kv_pages: prefixed ? cache.pages : 0,
      pairs: Math.min(rows.pairs, 0xffffffff),
      scale: 1 / Math.sqrt(shape.headDim),
      dt: q.dtype,
    },
  );
  g.release(lse);
  return o;
}

export function appendKv(
  g: Graph,
  cache: KvLayer,
  k: Tensor,
  v: Tensor,
  slots: Tensor,
  shape: HeadShape,
): void {
  g.apply(
    kvAppend,
    { kv: cache.kv, k, v, slots },
    {
      rows: k.shape[0]!,
      kv_heads: shape.kvHeads,
      head_dim: shape.headDim,
      kv_pages: cache.pages,
      dt: k.dtype,
    },
  );
}

/** The page table of B sequences that decode one token each. */
export interface DecodeRows {
  /** [B, maxPages] */
  readonly table: Tensor;
  readonly maxPages: number;
  /** Keys of each sequence, the current token included. */
  readonly lens: Tensor;
  readonly pairs: number;
}

export function decodeAttention(
  g: Graph,
  q: Tensor,
  cache: KvLayer,
  rows: DecodeRows,
  shape: HeadShape,
): Tensor {
  const o = g.empty(q.shape, q.dtype, "attention");
  g.apply(
    attnDecode,
    { o, q, kv: cache.kv, table: rows.table, lens: rows.lens },
    {
      batch: q.shape[0]!,
      heads: shape.heads,
      kv_heads: shape.kvHeads,
      head_dim: shape.headDim,
      max_pages: rows.maxPages,
      kv_pages: cache.pages,
      pairs: Math.min(rows.pairs, 0xffffffff),
      scale: 1 / Math.sqrt(shape.headDim),
      dt: q.dtype,
    },
  );
  return o;
}

export function swiglu(g: Graph, gate: Tensor, up: Tensor): Tensor {
  const y = g.empty(gate.shape, gate.dtype, "swiglu");
  g.apply(swigluFwd, { y, gate, up }, { n: gate.size, dt: gate.dtype });
  return y;
}

/** y[R,C] = x[index]. */
export function gather(g: Graph, x: Tensor, index: Tensor): Tensor {
  const [rows, cols] = [index.size, x.shape[1]!];
  const y = g.empty([rows, cols], x.dtype, "gathered rows");
  g.apply(gatherRows, { y, x, index }, { rows, src_rows: x.shape[0]!, cols, dt: x.dtype });
  return y;
}

/** Log-probability of each row's target and entropy (nats) of its distribution at a temperature. */
export function logprobs(
  g: Graph,
  x: Tensor,
  head: Tensor,
  targets: Tensor,
  temperature: number,
): { logprob: Tensor; entropy: Tensor } {
  const [rows, cols, vocab] = [x.shape[0]!, x.shape[1]!, head.shape[0]!];
  const logprob = g.empty([rows], Dtype.f32, "logprob");
  const lse = g.empty([rows], Dtype.f32, "lse");
  const entropy = g.empty([rows], Dtype.f32, "entropy");
  const partial = g.empty([rows, Math.ceil(vocab / VOCAB_TILE), 4], Dtype.f32, "head partials");
  g.apply(
    logprobFwd,
    { logprob, lse, entropy, x, w: head, targets, partial },
    { rows, cols, vocab, inv_temp: 1 / temperature, dt: x.dtype },
  );
  g.release(partial, lse);
  return { logprob, entropy };
}

/** What the sampler recorded of each row's target: the bits that `logprobs` would compute. */
export interface SampledScores {
  readonly logprob: Float32Array;
  readonly lse: Float32Array;
  readonly entropy: Float32Array;
}

/** Log-probabilities and entropies [R] of targets, and where they were assumed what finds them `again`. */
export interface Scores {
  readonly logprob: Tensor;
  readonly entropy: Tensor;
  readonly again: Tensor | null;
}

/** `logprobs` without its forward pass; `again` holds, after the gradient pass, the log-probability found there. */
export function assumedLogprobs(
  g: Graph,
  x: Tensor,
  head: Tensor,
  targets: Tensor,
  temperature: number,
  sampled: SampledScores,
): { logprob: Tensor; entropy: Tensor; again: Tensor } {
  const [rows, cols, vocab] = [x.shape[0]!, x.shape[1]!, head.shape[0]!];
  const logprob = g.upload(sampled.logprob, "logprob");
  const lse = g.upload(sampled.lse, "lse");
  const entropy = g.upload(sampled.entropy, "entropy");
  const again = g.empty([rows], Dtype.f32, "logprob again");
  g.assume(
    logprobFwd,
    { logprob, lse, entropy, x, w: head, targets, again },
    { rows, cols, vocab, inv_temp: 1 / temperature, dt: x.dtype },
  );
  g.release(lse);
  return { logprob, entropy, again };
}

/** q[B, H·D], k and v [B, K·D] of rows h[B, C] before their norm, in one operation where it can be. */
export function normQkv(
  g: Graph,
  h: Tensor,
  weight: Tensor,
  q: Linear,
  k: Linear,
  v: Linear,
  eps: number,
): { q: Tensor; k: Tensor; v: Tensor } {
  if (!fusable(q, k, v)) {
    const { y } = rmsNorm(g, h, null, weight, eps);
    const out = { q: linear(g, y, q), k: linear(g, y, k), v: linear(g, y, v) };
    g.release(y);
    return out;
  }
  const [m, cols, nq, nkv] = [h.shape[0]!, h.shape[1]!, q.w.shape[0]!, k.w.shape[0]!];
  const out = {
    q: g.empty([m, nq], h.dtype, "queries"),
    k: g.empty([m, nkv], h.dtype, "keys"),
    v: g.empty([m, nkv], h.dtype, "values"),
  };
  const work = g.empty([m, cols], h.dtype, "norm");
  g.apply(
    normQkvOp,
    {
      ...{ ...out, h, weight, work },
      ...{ wq: packedWeight(q), wk: packedWeight(k), wv: packedWeight(v) },
      ...{ bq: q.bias, bk: k.bias, bv: v.bias },
    },
    { m, cols, nq, nkv, eps, dt: h.dtype },
  );
  g.release(work);
  return out;
}

/** Rotated queries; rotated keys, and values, go to the cache. */
export function ropeAppend(
  g: Graph,
  input: { readonly q: Tensor; readonly k: Tensor; readonly v: Tensor },
  qNorm: Tensor | null,
  kNorm: Tensor | null,
  positions: Tensor,
  rope: RopeTable,
  cache: KvLayer,
  slots: Tensor,
  shape: HeadShape,
  eps: number,
): Tensor {
  const { q, k, v } = input;
  const y = g.empty(q.shape, q.dtype, "rope");
  const work = g.empty(k.shape, k.dtype, "rotated keys");
  g.apply(
    ropeAppendOp,
    { y, kv: cache.kv, q, k, v, qweight: qNorm, kweight: kNorm, positions, rope: rope.table, slots, work },
    {
      rows: q.shape[0]!,
      heads: shape.heads,
      kv_heads: shape.kvHeads,
      head_dim: shape.headDim,
      max_pos: rope.maxPositions,
      kv_pages: cache.pages,
      eps,
      dt: q.dtype,
    },
  );
  g.release(work);
  return y;
}

/** residual + linear(x). */
export function linearResidual(g: Graph, residual: Tensor, x: Tensor, map: Linear): Tensor {
  if (!fusable(map)) {
    const b = linear(g, x, map);
    const y = g.over(b);
    g.apply(add, { y, a: residual, b }, { n: b.size, dt: b.dtype });
    g.release(b);
    return y;
  }
  const w = packedWeight(map);
  const [m, n, k] = [x.shape[0]!, w.shape[0]!, w.shape[1]!];
  const y = g.empty([m, n], x.dtype, "residual");
  const work = g.empty([m, n], x.dtype, w.label);
  g.apply(linearResidualOp, { y, residual, x, w, work }, { m, n, k, dt: x.dtype });
  g.release(work);
  return y;
}

/** silu(gate)·up of rows h[B, C] before their norm. */
export function normSwiglu(
  g: Graph,
  h: Tensor,
  weight: Tensor,
  gate: Linear,
  up: Linear,
  eps: number,
): Tensor {
  if (!fusable(gate, up)) {
    const { y: x } = rmsNorm(g, h, null, weight, eps);
    const [gated, raised] = [linear(g, x, gate), linear(g, x, up)];
    const act = swiglu(g, gated, raised);
    g.release(x, gated, raised);
    return act;
  }
  const [m, cols, n] = [h.shape[0]!, h.shape[1]!, gate.w.shape[0]!];
  const y = g.empty([m, n], h.dtype, "swiglu");
  const work = g.empty([m * cols + 2 * m * n], Dtype.f32, "swiglu parts");
  const [wgate, wup] = [packedWeight(gate), packedWeight(up)];
  g.apply(normSwigluOp, { y, h, weight, wgate, wup, work }, { m, cols, n, eps, dt: h.dtype });
  g.release(work);
  return y;
}
