/** The fused operations of decoding give the bits of the single operations they stand for, on any shape. */
import { afterAll, expect, test } from "bun:test";
import fc from "fast-check";
import { kvAppend } from "../../src/ops/attention.ts";
import { linearResidual, normQkv, normSwiglu, ropeAppend } from "../../src/ops/decode.ts";
import { Dtype, NONE, type OpDef, PAGE } from "../../src/ops/define.ts";
import { add } from "../../src/ops/elementwise.ts";
import { gemmNt } from "../../src/ops/gemm.ts";
import "../../src/ops/index.ts";
import { swigluFwd } from "../../src/ops/mlp.ts";
import { qkNormRopeFwd, rmsNormFwd } from "../../src/ops/norm.ts";
import { openTestDevice } from "../test-device.ts";
import { caseOf } from "./row.ts";
import { type Case, run } from "./run.ts";
import { type Data, f32, type Params, u32 } from "./tensors.ts";

const device = openTestDevice(2);
afterAll(() => device.close());

// biome-ignore lint/suspicious/noExplicitAny: any operation, whatever its tensors
const plain = (op: OpDef<any, any>) => op as unknown as OpDef;
const hex = (data: Data) => Buffer.from(data.bytes).toString("hex");
// biome-ignore lint/suspicious/noExplicitAny: any operation, whatever its tensors
function single(op: OpDef<any, any>, params: Params, tensors: Readonly<Record<string, Data | null>>) {
  return run(device, { op: plain(op), name: op.name, params, tensors });
}
const norm = (c: Case, rows: number) => {
  const { cols, eps, dt } = c.params as Record<string, number>;
  const tensors = { x: c.tensors.h!, weight: c.tensors.weight!, h: null, delta: null };
  return single(rmsNormFwd, { rows, cols: cols!, eps: eps!, dt: dt! }, tensors).y!;
};
const product = (x: Data, w: Data, bias: Data | null, m: number, n: number, k: number, dt: number) =>
  single(gemmNt, { m, n, k, dt, ydt: dt, accumulate: 0 }, { x, w, bias }).y!;

const dtype = fc.constantFrom<number>(Dtype.f32, Dtype.bf16);
const rows = fc.integer({ min: 1, max: 70 });
const width = fc.oneof(fc.integer({ min: 1, max: 80 }), fc.constantFrom(512, 520, 543));
const RUNS = { numRuns: 30 };

test("norm_qkv is rms_norm_fwd and gemm_nt", () => {
  fc.assert(
    fc.property(
      rows,
      width,
      width,
      rows,
      dtype,
      fc.boolean(),
      fc.nat(),
      (m, cols, nq, nkv, dt, bias, seed) => {
        const params = { m, cols, nq, nkv, eps: 1e-6, dt };
        const c = caseOf(plain(normQkv), { name: `${seed}`, params, with: bias ? ["bq", "bk", "bv"] : [] });
        const { q, k, v } = run(device, c);
        const x = norm(c, m);
        const part = (w: string, b: string, n: number) =>
          product(x, c.tensors[w]!, c.tensors[b] ?? null, m, n, cols, dt);
        expect(hex(q!)).toBe(hex(part("wq", "bq", nq)));
        expect(hex(k!)).toBe(hex(part("wk", "bk", nkv)));
        expect(hex(v!)).toBe(hex(part("wv", "bv", nkv)));
      },
    ),
    RUNS,
  );
});

test("linear_residual is gemm_nt and add", () => {
  fc.assert(
    fc.property(rows, width, width, dtype, fc.nat(), (m, n, k, dt, seed) => {
      const c = caseOf(plain(linearResidual), { name: `${seed}`, params: { m, n, k, dt } });
      const b = product(c.tensors.x!, c.tensors.w!, null, m, n, k, dt);
      const sum = single(add, { n: m * n, dt }, { a: c.tensors.residual!, b }).y!;
      expect(hex(run(device, c).y!)).toBe(hex(sum));
    }),
    RUNS,
  );
});

test("norm_swiglu is rms_norm_fwd, gemm_nt and swiglu_fwd", () => {
  fc.assert(
    fc.property(rows, width, width, dtype, fc.nat(), (m, cols, n, dt, seed) => {
      const c = caseOf(plain(normSwiglu), { name: `${seed}`, params: { m, cols, n, eps: 1e-6, dt } });
      const x = norm(c, m);
      const gate = product(x, c.tensors.wgate!, null, m, n, cols, dt);
      const up = product(x, c.tensors.wup!, null, m, n, cols, dt);
      expect(hex(run(device, c).y!)).toBe(hex(single(swigluFwd, { n: m * n, dt }, { gate, up }).y!));
    }),
    RUNS,
  );
});

test("rope_append is qk_norm_rope_fwd and kv_append", () => {
  const size = fc.integer({ min: 1, max: 4 });
  fc.assert(
    fc.property(
      rows,
      size,
      size,
      size,
      fc.integer({ min: 1, max: 40 }),
      dtype,
      fc.boolean(),
      fc.nat(),
      (...drawn) => {
        const [count, group, kv_heads, , half, dt, weighted, seed] = drawn;
        const [head_dim, heads, max_pos, kv_pages] = [2 * half, group * kv_heads, 40, 5];
        const c = caseOf(plain(ropeAppend), {
          name: `${seed}`,
          params: { rows: count, heads, kv_heads, head_dim, max_pos, kv_pages, eps: 1e-6, dt },
          with: weighted ? ["qweight", "kweight"] : [],
          given: (rng) => {
            const order = rng.permutation(kv_pages * PAGE);
            return {
              positions: u32(Array.from({ length: count }, () => rng.below(max_pos))),
              rope: f32(Array.from({ length: max_pos * head_dim }, () => rng.normal())),
              slots: u32(Array.from({ length: count }, (_, i) => (i % 7 === 3 ? NONE : order[i]!))),
            };
          },
        });
        const { positions, rope, slots, kv, v } = c.tensors;
        const rotate = (x: Data, weight: Data | null, n: number) =>
          single(
            qkNormRopeFwd,
            { rows: count, heads: n, head_dim, max_pos, eps: 1e-6, dt },
            { x, weight, positions: positions!, rope: rope! },
          ).y!;
        const k = rotate(c.tensors.k!, c.tensors.kweight ?? null, kv_heads);
        const stored = single(
          kvAppend,
          { rows: count, kv_heads, head_dim, kv_pages, dt },
          { kv: kv!, k, v: v!, slots: slots! },
        ).kv!;
        const got = run(device, c);
        expect(hex(got.y!)).toBe(hex(rotate(c.tensors.q!, c.tensors.qweight ?? null, heads)));
        expect(hex(got.kv!)).toBe(hex(stored));
      },
    ),
    RUNS,
  );
});
