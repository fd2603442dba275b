/**
 * What makes training, prefill and decoding agree bit for bit: a row's result depends on its own inputs alone, not
 * on the batch, its place in it, its neighbours or the number of threads; a key counts by its absolute position,
 * whether it lies in the batch, in an ancestor segment or in a cached page.
 */
import { afterAll, expect, test } from "bun:test";
import fc from "fast-check";
import { Random } from "../../src/core/rng.ts";
import type { Device } from "../../src/device/device.ts";
import { attnDecode, attnFwd } from "../../src/ops/attention.ts";
import { Dtype, type OpDef, PAGE, packedLength, QuantType } from "../../src/ops/define.ts";
import { embedFwd } from "../../src/ops/embedding.ts";
import { gemmNt, gemmTn } from "../../src/ops/gemm.ts";
import { logprobBwd, logprobFwd, sample } from "../../src/ops/head.ts";
import "../../src/ops/index.ts";
import { swigluFwd } from "../../src/ops/mlp.ts";
import { qkNormRopeFwd, rmsNormFwd } from "../../src/ops/norm.ts";
import { quantLinear } from "../../src/ops/quant.ts";
import { openTestDevice } from "../test-device.ts";
import { caseOf } from "./row.ts";
import { randomCodes } from "./rows-quant.ts";
import { type Case, run } from "./run.ts";
import { layout, type Part } from "./shapes.ts";
import { type Data, f32, floats, normals, type Params, u32, valuesOf } from "./tensors.ts";

const devices = [1, 3].map((threads) => openTestDevice(threads));
afterAll(() => {
  for (const device of devices) device.close();
});

// biome-ignore lint/suspicious/noExplicitAny: any operation, whatever its tensors
const plain = (op: OpDef<any, any>) => op as unknown as OpDef;
const dtypeName = (dt: number) => (dt === Dtype.bf16 ? "bf16" : "f32");
const dtype = fc.constantFrom<number>(Dtype.f32, Dtype.bf16);
const size = (max: number) => fc.integer({ min: 1, max });
const RUNS = { numRuns: 40 };

/** Rows `order` of a tensor of `count` rows. */
function rowsAt(data: Data, count: number, order: readonly number[]): Data {
  const width = data.bytes.length / count;
  const bytes = new Uint8Array(order.length * width);
  order.forEach((row, i) => {
    bytes.set(data.bytes.subarray(row * width, (row + 1) * width), i * width);
  });
  return { element: data.element, bytes };
}

const hex = (data: Data) => Buffer.from(data.bytes).toString("hex");

/**
 * Runs a batch, then only the rows `order` in that order, on both devices: their outputs are those of the batch.
 * `batch` is the parameter that counts rows, `tensors` are those with a row each, besides the outputs.
 */
function expectRowsAlone(c: Case, batch: string, tensors: readonly string[], order: readonly number[]): void {
  const count = c.params[batch]!;
  const picked = Object.fromEntries(
    tensors.flatMap((name) => (c.tensors[name] ? [[name, rowsAt(c.tensors[name], count, order)]] : [])),
  );
  const part: Case = {
    ...c,
    params: { ...c.params, [batch]: order.length },
    tensors: { ...c.tensors, ...picked },
  };
  const whole = run(devices[0]!, c);
  for (const device of devices) {
    const alone = run(device, part);
    for (const name of Object.keys(whole))
      expect(hex(alone[name]!)).toBe(hex(rowsAt(whole[name]!, count, order)));
  }
}

/** A batch size and some of its rows, in any order, repeated or not. */
const batches = (max: number) =>
  size(max).chain((rows) =>
    fc.record({
      rows: fc.constant(rows),
      order: fc.array(fc.integer({ min: 0, max: rows - 1 }), { minLength: 1, maxLength: Math.min(rows, 40) }),
      seed: fc.nat(),
    }),
  );

test("gemm_nt: a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(
      batches(80),
      size(70),
      size(100),
      dtype,
      dtype,
      fc.boolean(),
      ({ rows, order, seed }, n, k, dt, ydt, bias) => {
        const params: Params = { m: rows, n, k, dt, ydt, accumulate: 0 };
        const c = caseOf(plain(gemmNt), { name: `${seed}`, params, with: bias ? ["bias"] : [] });
        expectRowsAlone(c, "m", ["x"], order);
      },
    ),
    RUNS,
  );
});

test("quant_linear: a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(
      batches(80),
      size(70),
      size(12),
      fc.constantFrom<number>(QuantType.int8, QuantType.nf4),
      dtype,
      dtype,
      ({ rows, order, seed }, n, blocks, qt, dt, ydt) => {
        const k = qt === QuantType.nf4 ? 64 * blocks : 61 * blocks;
        const params: Params = { m: rows, n, k, qt, dt, ydt };
        const given = (rng: Random) => randomCodes(rng, n, k, qt);
        expectRowsAlone(caseOf(plain(quantLinear), { name: `${seed}`, params, given }), "m", ["x"], order);
      },
    ),
    RUNS,
  );
});

test("rms_norm_fwd: a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(batches(80), size(150), dtype, fc.boolean(), ({ rows, order, seed }, cols, dt, fused) => {
      const params: Params = { rows, cols, eps: 1e-6, dt };
      const c = caseOf(plain(rmsNormFwd), { name: `${seed}`, params, with: fused ? ["delta", "h"] : [] });
      expectRowsAlone(c, "rows", ["x", "delta"], order);
    }),
    RUNS,
  );
});

test("qk_norm_rope_fwd: a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(
      batches(50),
      size(4),
      size(40),
      dtype,
      fc.boolean(),
      ({ rows, order, seed }, heads, half, dt, norm) => {
        const params: Params = { rows, heads, head_dim: 2 * half, max_pos: 30, eps: 1e-6, dt };
        const c = caseOf(plain(qkNormRopeFwd), {
          name: `${seed}`,
          params,
          with: norm ? ["weight"] : [],
          given: (rng) => ({ positions: u32(Array.from({ length: rows }, () => rng.below(30))) }),
        });
        expectRowsAlone(c, "rows", ["x", "positions"], order);
      },
    ),
    RUNS,
  );
});

test("swiglu_fwd: an element alone is the element in a batch", () => {
  fc.assert(
    fc.property(batches(200), dtype, ({ rows, order, seed }, dt) => {
      const c = caseOf(plain(swigluFwd), { name: `${seed}`, params: { n: rows, dt } });
      expectRowsAlone(c, "n", ["gate", "up"], order);
    }),
    RUNS,
  );
});

test("embed_fwd: a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(batches(50), size(90), size(70), dtype, ({ rows, order, seed }, cols, vocab, dt) => {
      const c = caseOf(plain(embedFwd), {
        name: `${seed}`,
        params: { rows, cols, vocab, dt, wdt: dt },
        given: (rng) => ({ ids: u32(Array.from({ length: rows }, () => rng.below(vocab))) }),
      });
      expectRowsAlone(c, "rows", ["ids"], order);
    }),
    RUNS,
  );
});

const headCase = (seed: number, rows: number, cols: number, vocab: number, dt: number, inv_temp: number) =>
  caseOf(plain(logprobFwd), {
    name: `${seed}`,
    params: { rows, cols, vocab, inv_temp, dt },
    given: (rng) => ({ targets: u32(Array.from({ length: rows }, () => rng.below(vocab))) }),
  });

test("logprob_fwd: a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(batches(80), size(40), size(1300), dtype, ({ rows, order, seed }, cols, vocab, dt) => {
      expectRowsAlone(headCase(seed, rows, cols, vocab, dt, 0.8), "rows", ["x", "targets"], order);
    }),
    RUNS,
  );
});

const filters = fc.constantFrom<Params>(
  { top_k: 0, top_p: 1, min_p: 0, greedy: 0 },
  { top_k: 7, top_p: 0.8, min_p: 0.01, greedy: 0 },
  { top_k: 0, top_p: 1, min_p: 0, greedy: 1 },
);

test("sample: a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(batches(20), size(1300), filters, ({ rows, order, seed }, vocab, filter) => {
      const params: Params = { batch: rows, vocab, seed: 3, purpose: 1, inv_temp: 1.25, ...filter };
      const c = caseOf(plain(sample), {
        name: `${seed}`,
        params,
        given: (rng) => ({ counters: u32(Array.from({ length: 4 * rows }, () => rng.below(1000))) }),
      });
      expectRowsAlone(c, "batch", ["logits", "counters"], order);
    }),
    RUNS,
  );
});

test("sample: what it records of the drawn token is logprob_fwd's, bit for bit, and found again by logprob_bwd", () => {
  fc.assert(
    fc.property(
      size(20),
      size(40),
      size(1300),
      dtype,
      fc.nat(),
      filters,
      (rows, cols, vocab, dt, seed, filter) => {
        const inv_temp = 0.8;
        const scored = headCase(seed, rows, cols, vocab, dt, inv_temp);
        const logits = run(devices[1]!, {
          op: plain(gemmNt),
          name: "logits",
          params: { m: rows, n: vocab, k: cols, dt, ydt: Dtype.f32, accumulate: 0 },
          tensors: { x: scored.tensors.x!, w: scored.tensors.w!, bias: null },
        }).y!;
        const drawn = run(devices[0]!, {
          op: plain(sample),
          name: "draw",
          params: { batch: rows, vocab, seed: 3, purpose: 1, inv_temp, ...filter },
          tensors: { logits, counters: u32(Array.from({ length: 4 * rows }, (_, i) => i)) },
        });
        const again = run(devices[1]!, { ...scored, tensors: { ...scored.tensors, targets: drawn.ids! } });
        for (const name of ["logprob", "lse", "entropy"]) expect(hex(drawn[name]!)).toBe(hex(again[name]!));
        const rule = run(devices[0]!, {
          op: plain(logprobBwd),
          name: "gradient",
          params: { rows, cols, vocab, inv_temp, dt },
          tensors: {
            x: scored.tensors.x!,
            w: scored.tensors.w!,
            dw: f32(new Array(packedLength(vocab, cols, dt)).fill(0)),
            targets: drawn.ids!,
            lse: drawn.lse!,
            entropy: drawn.entropy!,
            dlogprob: drawn.logprob!,
            dentropy: null,
          },
        });
        expect(hex(rule.logprob!)).toBe(hex(drawn.logprob!));
      },
    ),
    RUNS,
  );
});

interface Sequence {
  readonly q: Data;
  readonly k: Data;
  readonly v: Data;
}
interface Shape {
  readonly heads: number;
  readonly kv_heads: number;
  readonly head_dim: number;
  readonly dt: number;
}

const shapes = fc
  .record({ group: size(4), kv_heads: size(3), head_dim: fc.constantFrom(5, 8, 16, 33), dt: dtype })
  .map(({ group, ...rest }): Shape => ({ ...rest, heads: group * rest.kv_heads }));

function sequence(rows: number, s: Shape, rng: Random): Sequence {
  const of = (heads: number) => floats(dtypeName(s.dt) as "f32", normals(rng, rows * heads * s.head_dim));
  return { q: of(s.heads), k: of(s.kv_heads), v: of(s.kv_heads) };
}

/** attn_fwd over packed rows; pages of the cache as given. */
function attend(
  device: Device,
  s: Shape,
  parts: readonly Part[],
  rows: Sequence,
  cache: { kv: Data; pages: readonly number[]; count: number } | null = null,
): { o: Data; lse: Data; rows: number } {
  const l = layout(parts, new Random(1, 5));
  const { o, lse } = run(device, {
    op: plain(attnFwd),
    name: "attention",
    params: {
      ...{ ...s, rows: l.rows, n_segs: l.count, pairs: l.pairs, scale: s.head_dim ** -0.5 },
      ...{ n_pages: cache ? cache.pages.length : 0, kv_pages: cache ? cache.count : 0 },
    },
    tensors: { ...rows, segs: l.segs, kv: cache?.kv ?? null, pages: cache ? u32(cache.pages) : null },
  });
  return { o: o!, lse: lse!, rows: l.rows };
}

/** Positions [0, length) of a sequence as pages in the given order of a cache of `count` pages. */
function cacheOf(
  rows: Sequence,
  length: number,
  total: number,
  s: Shape,
  pages: readonly number[],
  count: number,
): Data {
  const bytes = s.dt === Dtype.bf16 ? 2 : 4;
  const { kv_heads, head_dim } = s;
  const kv = floats(
    dtypeName(s.dt) as "f32",
    new Float32Array(count * kv_heads * head_dim * 2 * PAGE).fill(7),
  );
  const put = (element: number, source: Data, from: number) =>
    kv.bytes.set(source.bytes.subarray(from * bytes, (from + 1) * bytes), element * bytes);
  expect(rows.k.bytes.length).toBe(total * kv_heads * head_dim * bytes);
  for (let t = 0; t < length; t++)
    for (let head = 0; head < kv_heads; head++)
      for (let d = 0; d < head_dim; d++) {
        const base = (pages[Math.floor(t / PAGE)]! * kv_heads + head) * 2 * PAGE * head_dim;
        const from = (t * kv_heads + head) * head_dim + d;
        put(base + d * PAGE + (t % PAGE), rows.k, from);
        put(base + (PAGE + (t % PAGE)) * head_dim + d, rows.v, from);
      }
  return kv;
}

const each = (rows: Sequence, total: number, order: readonly number[]): Sequence => ({
  q: rowsAt(rows.q, total, order),
  k: rowsAt(rows.k, total, order),
  v: rowsAt(rows.v, total, order),
});
const range = (begin: number, end: number) => Array.from({ length: end - begin }, (_, i) => begin + i);

test("attn_fwd: continuations of a shared prefix are what each sequence is alone", () => {
  fc.assert(
    fc.property(
      shapes,
      size(40),
      fc.array(size(20), { minLength: 1, maxLength: 4 }),
      fc.nat(),
      (s, prefix, lens, seed) => {
        const parts: Part[] = [{ len: 3 }, { len: prefix }, ...lens.map((len) => ({ len, parent: 1 }))];
        const total = parts.reduce((sum, part) => sum + part.len, 0);
        const rows = sequence(total, s, new Random(seed, 5));
        const packed = attend(devices[1]!, s, parts, rows);
        let start = 3 + prefix;
        for (const len of lens) {
          const path = [...range(3, 3 + prefix), ...range(start, start + len)];
          const alone = attend(devices[0]!, s, [{ len: prefix + len }], each(rows, total, path));
          expect(hex(alone.o)).toBe(hex(rowsAt(packed.o, total, path)));
          expect(hex(alone.lse)).toBe(hex(rowsAt(packed.lse, total, path)));
          start += len;
        }
      },
    ),
    RUNS,
  );
});

test("attn_fwd: a cached prefix is what the same tokens in the batch are", () => {
  fc.assert(
    fc.property(shapes, size(50), size(20), fc.nat(), (s, prefix, len, seed) => {
      const rng = new Random(seed, 5);
      const total = prefix + len;
      const rows = sequence(total, s, rng);
      const whole = attend(devices[0]!, s, [{ len: total }], rows);
      const count = Math.ceil(prefix / PAGE) + 2;
      const pages = [...rng.permutation(count)].slice(0, Math.ceil(prefix / PAGE));
      const kv = cacheOf(rows, prefix, total, s, pages, count);
      for (const device of devices) {
        const rest = attend(device, s, [{ len, cached: prefix }], each(rows, total, range(prefix, total)), {
          ...{ kv, pages, count },
        });
        expect(hex(rest.o)).toBe(hex(rowsAt(whole.o, total, range(prefix, total))));
        expect(hex(rest.lse)).toBe(hex(rowsAt(whole.lse, total, range(prefix, total))));
      }
    }),
    RUNS,
  );
});

test("attn_decode: a token decoded is the token prefilled", () => {
  fc.assert(
    fc.property(shapes, size(60), fc.nat(), (s, total, seed) => {
      const rng = new Random(seed, 5);
      const rows = sequence(total, s, rng);
      const whole = attend(devices[0]!, s, [{ len: total }], rows);
      const used = Math.ceil(total / PAGE);
      const count = used + 2;
      const pages = [...rng.permutation(count)].slice(0, used);
      // Three queries of different lengths over the same pages.
      const lens = [total, Math.ceil(total / 2), 1];
      const last = lens.map((n) => n - 1);
      for (const device of devices) {
        const { o } = run(device, {
          op: plain(attnDecode),
          name: "decode",
          params: {
            ...{ ...s, batch: lens.length, max_pages: used, kv_pages: count, scale: s.head_dim ** -0.5 },
            pairs: lens.reduce((a, b) => a + b, 0),
          },
          tensors: {
            q: rowsAt(rows.q, total, last),
            kv: cacheOf(rows, total, total, s, pages, count),
            table: u32(lens.flatMap(() => pages)),
            lens: u32(lens),
          },
        });
        expect(hex(o!)).toBe(hex(rowsAt(whole.o, total, last)));
      }
    }),
    RUNS,
  );
});

test("invariance: the comparison sees one different bit", () => {
  const c = caseOf(plain(swigluFwd), { name: "bit", params: { n: 8, dt: Dtype.f32 } });
  const other = { ...c.tensors.gate!, bytes: c.tensors.gate!.bytes.map((b, i) => (i === 6 ? b ^ 1 : b)) };
  const [a, b] = [c, { ...c, tensors: { ...c.tensors, gate: other } }].map(
    (each) => run(devices[0]!, each).y!,
  );
  expect(hex(a!)).not.toBe(hex(b!));
  expect(hex(rowsAt(f32([1, 2, 3, 4]), 2, [1, 0]))).toBe(hex(f32([3, 4, 1, 2])));
});

test("gemm_tn: a bfloat16 gradient is the float32 one, rounded once", () => {
  const shape = fc.tuple(fc.oneof(size(40), fc.constantFrom(1023, 1100)), size(70), size(70), fc.nat());
  fc.assert(
    fc.property(shape, ([m, n, k, seed]) => {
      const params = { m, n, k, dt: Dtype.bf16, gdt: Dtype.bf16 };
      const spec = caseOf(plain(gemmTn), { name: `rounded ${seed}`, params });
      for (const device of devices) {
        const rounded = run(device, spec).dw!;
        const before = floats("f32", valuesOf(spec.tensors.dw!));
        const exact = run(device, {
          ...spec,
          params: { ...params, gdt: Dtype.f32 },
          tensors: { ...spec.tensors, dw: before },
        }).dw!;
        expect(hex(rounded)).toBe(hex(floats("bf16", valuesOf(exact))));
      }
    }),
    { numRuns: 12 },
  );
});
