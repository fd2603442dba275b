/** Rows of the fused operations of decoding. That they equal the single ones bit for bit: invariance.test.ts. */
import * as decode from "../../src/ops/decode.ts";
import { Dtype, NONE, type OpDef, PAGE } from "../../src/ops/define.ts";
import { type CaseSpec, casesOf, type Row, scaledParam, swapped, withTensor } from "./row.ts";
import { f32, mapped, u32 } from "./tensors.ts";

const { f32: F32, bf16: BF16 } = Dtype;
const dtypeName = (dt: number) => (dt === BF16 ? "bf16" : "f32");
const as = (op: unknown) => op as OpDef;

const qkvSpec = (m: number, cols: number, nq: number, nkv: number, dt: number, bias = false): CaseSpec => ({
  name: `${dtypeName(dt)} ${m}x${cols} to ${nq}+${nkv}${bias ? " bias" : ""}`,
  params: { m, cols, nq, nkv, eps: 1e-6, dt },
  with: bias ? ["bq", "bk", "bv"] : [],
});

const normQkv: Row = {
  op: as(decode.normQkv),
  slack: 16,
  cases: casesOf(as(decode.normQkv), [
    qkvSpec(1, 1, 1, 1, F32),
    qkvSpec(5, 33, 31, 17, F32, true),
    qkvSpec(70, 48, 40, 33, F32),
    qkvSpec(9, 127, 64, 32, BF16, true),
    qkvSpec(3, 530, 16, 8, F32),
    qkvSpec(17, 512, 33, 16, BF16),
  ]),
  mutants: [
    { name: "k and v exchanged", change: (c) => (c.params.m! > 1 ? swapped("wk", "wv")(c) : null) },
    { name: "another weight", change: withTensor("weight", (d) => mapped(d, (x) => x * 1.1)) },
  ],
};

const heads = { heads: 4, kv_heads: 2 };
const appendSpec = (rows: number, dim: number, dt: number, norm: boolean): CaseSpec => ({
  name: `${dtypeName(dt)} ${rows}x${dim}${norm ? " norm" : ""}`,
  params: { rows, ...heads, head_dim: dim, max_pos: 50, kv_pages: 5, eps: 1e-6, dt },
  with: norm ? ["qweight", "kweight"] : [],
  given: (rng) => {
    const order = rng.permutation(5 * PAGE);
    const angles = Array.from({ length: 50 * dim }, () => rng.normal());
    return {
      positions: u32(Array.from({ length: rows }, () => rng.below(50))),
      rope: f32(angles),
      slots: u32(Array.from({ length: rows }, (_, i) => (i % 5 === 3 ? NONE : order[i]!))),
    };
  },
});

const ropeAppend: Row = {
  op: as(decode.ropeAppend),
  slack: 8,
  cases: casesOf(as(decode.ropeAppend), [
    appendSpec(1, 2, F32, false),
    appendSpec(7, 16, F32, true),
    appendSpec(33, 10, F32, true),
    appendSpec(5, 66, BF16, true),
    appendSpec(31, 16, BF16, false),
  ]),
  mutants: [
    { name: "k and v exchanged", change: swapped("k", "v") },
    { name: "positions + 1", change: withTensor("positions", (d) => mapped(d, (p) => (p + 1) % 50)) },
    {
      name: "slot + 1",
      change: withTensor("slots", (d) => mapped(d, (s) => (s === NONE ? s : (s + 1) % (5 * PAGE)))),
    },
  ],
};

const residualSpec = (m: number, k: number, n: number, dt: number): CaseSpec => ({
  name: `${dtypeName(dt)} ${m}x${k} to ${n}`,
  params: { m, n, k, dt },
});

const linearResidual: Row = {
  op: as(decode.linearResidual),
  slack: 16,
  cases: casesOf(as(decode.linearResidual), [
    residualSpec(1, 1, 1, F32),
    residualSpec(31, 33, 35, F32),
    residualSpec(66, 20, 64, F32),
    residualSpec(7, 127, 33, BF16),
    residualSpec(2, 600, 17, F32),
    residualSpec(16, 528, 40, BF16),
  ]),
  mutants: [
    { name: "residual x 3", change: withTensor("residual", (d) => mapped(d, (x) => x * 3)) },
    { name: "product x 1.1", change: withTensor("x", (d) => mapped(d, (x) => x * 1.1)) },
  ],
};

const swigluSpec = (m: number, cols: number, n: number, dt: number): CaseSpec => ({
  name: `${dtypeName(dt)} ${m}x${cols} to ${n}`,
  params: { m, cols, n, eps: 1e-6, dt },
});

const normSwiglu: Row = {
  op: as(decode.normSwiglu),
  slack: 16,
  cases: casesOf(as(decode.normSwiglu), [
    swigluSpec(1, 1, 1, F32),
    swigluSpec(31, 33, 35, F32),
    swigluSpec(66, 20, 64, F32),
    swigluSpec(7, 127, 33, BF16),
    swigluSpec(2, 600, 17, F32),
    swigluSpec(16, 528, 40, BF16),
  ]),
  mutants: [
    { name: "gate and up exchanged", change: swapped("wgate", "wup") },
    { name: "eps x 1e5", change: scaledParam("eps", 1e5) },
  ],
};

export const decodeRows = { normQkv, ropeAppend, linearResidual, normSwiglu };
