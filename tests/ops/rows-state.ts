/** Rows of the optimizer step, and of backward operations: their forward's gradients run them. */
import type { Random } from "../../src/core/rng.ts";
import * as attention from "../../src/ops/attention.ts";
import { Dtype, MOMENT_BLOCK, MomentDtype, NORM_BLOCK, type OpDef } from "../../src/ops/define.ts";
import * as embedding from "../../src/ops/embedding.ts";
import * as gemm from "../../src/ops/gemm.ts";
import * as head from "../../src/ops/head.ts";
import * as lora from "../../src/ops/lora.ts";
import * as mlp from "../../src/ops/mlp.ts";
import * as norm from "../../src/ops/norm.ts";
import * as optimizer from "../../src/ops/optimizer.ts";
import * as quant from "../../src/ops/quant.ts";
import { type CaseSpec, casesOf, type Row, scaledParam, withParam, withTensor } from "./row.ts";
import { type Data, f32, f64, floats, i16, mapped, normals, u8, valuesOf } from "./tensors.ts";

const { f32: F32, bf16: BF16 } = Dtype;
const F8 = MomentDtype.f8;
const dtypeName = (dt: number) => (dt === BF16 ? "bf16" : "f32");
const momentName = (dt: number) => (dt === F8 ? "8 bit" : dtypeName(dt));

const MAGNITUDES = [[1e-36], [1e-25], [8e-10], [1e-9], [5e8, 2e9], [1e25], [2e38], [1e-30, 1e30, 1]];

const sqNorm: Row = {
  op: optimizer.sqNorm as unknown as OpDef,
  slack: 32,
  cases: casesOf(optimizer.sqNorm as unknown as OpDef, [
    ...[1, 77, 2 * NORM_BLOCK + 5].map((n) => ({
      name: `${n}`,
      params: { n, gdt: F32, slots: 3, slot: 1 },
      given: () => ({ sums: f64([1, 2, 3]) }),
    })),
    ...[1, 77, NORM_BLOCK + 33].map((n) => ({
      name: `bf16 ${n}`,
      params: { n, gdt: BF16, slots: 3, slot: 1 },
      given: () => ({ sums: f64([1, 2, 3]) }),
    })),
    // Squares beyond float32 on either side: sizes side by side, and a whole block of one whose sum is exact.
    ...MAGNITUDES.map((sizes) => ({
      name: `near ${sizes.map((size) => size.toExponential(0)).join(", ")}`,
      params: { n: 4103, gdt: F32, slots: 3, slot: 1 },
      given: (rng: Random) => ({
        sums: f64([0, 0, 0]),
        g: f32(normals(rng, 4103).map((x, i) => (0.1 * x + 1) * sizes[i % sizes.length]!)),
      }),
    })),
    ...[-120, -31, 29, 127].map((power) => ({
      name: `all 2^${power}`,
      params: { n: NORM_BLOCK + 7, gdt: F32, slots: 3, slot: 1 },
      given: () => ({ sums: f64([0, 0, 0]), g: f32(new Array(NORM_BLOCK + 7).fill(2 ** power)) }),
    })),
  ]),
  mutants: [
    { name: "another slot", change: withParam("slot", 2) },
    {
      name: "an element missing",
      change: withTensor("g", (d, c) => mapped(d, (x, i) => (i === c.params.n! - 1 ? 0 : x))),
    },
  ],
  refusals: [{ name: "slot beyond the slots", case: "77", change: (c) => withParam("slot", 3)(c)! }],
};

/** result = {norm, coefficient, nonfinite u32, 0}. */
function clipResult(data: Data): Record<string, Float64Array> {
  const view = new DataView(data.bytes.slice().buffer);
  return {
    norm: Float64Array.of(view.getFloat32(0, true)),
    coef: Float64Array.of(view.getFloat32(4, true)),
    nonfinite: Float64Array.of(view.getUint32(8, true)),
    reserved: Float64Array.of(view.getUint32(12, true)),
  };
}

const clipCoef: Row = {
  op: optimizer.clipCoef as unknown as OpDef,
  slack: 2,
  values: ({ result }) => clipResult(result!),
  cases: casesOf(
    optimizer.clipCoef as unknown as OpDef,
    (
      [
        ["clipped", 1, [4, 9, 0.5]],
        ["below", 10, [4, 9, 0.5]],
        ["off", 0, [4, 9, 0.5]],
        ["zero", 1, [0]],
        ["infinite", 1, [4, Infinity]],
        ["nan", 1, [NaN, 1]],
      ] as const
    ).map(([name, max_norm, sums]) => ({
      name,
      params: { slots: sums.length, max_norm },
      given: () => ({ sums: f64(sums) }),
    })),
  ),
  mutants: [
    {
      name: "max_norm x 1.1",
      change: (c) => (/clipped/.test(c.name) ? scaledParam("max_norm", 1.1)(c) : null),
    },
    {
      name: "a slot missing",
      change: (c) =>
        /clipped|below|off/.test(c.name)
          ? withTensor("sums", (d) => mapped(d, (x, i) => (i === 2 ? 0 : x)))(c)
          : null,
    },
  ],
};

/** Values of 8-bit codes: 8 in every binade from the scale downwards, 127 of m beside its sign, 255 of v; 0 is 0. */
function ofCodes(codes: Data, scales: Data, count: 127 | 255): Float64Array {
  const scale = valuesOf(scales);
  return valuesOf(codes).map((code, i) => {
    const down = count - (code & count);
    if (down === count) return 0;
    const size = (2 - (down % 8 === 0 ? 8 : down % 8) / 8) * 2 ** -Math.ceil(down / 8);
    return (code > count ? -1 : 1) * scale[Math.floor(i / MOMENT_BLOCK)]! * size;
  });
}

/** Parameters as float32 masters: bfloat16 is joined with its rest. Moments of 8 bits by what their codes mean. */
function masters(outputs: Readonly<Record<string, Data>>): Record<string, Float64Array> {
  const { p, lo, m, v, m_scale, v_scale } = outputs;
  const joined = () => {
    const high = new Uint16Array(p!.bytes.slice().buffer);
    const rest = new Int16Array(lo!.bytes.slice().buffer);
    const bits = Uint32Array.from(high, (h, i) => (h << 16) + rest[i]!);
    return Float64Array.from(new Float32Array(bits.buffer));
  };
  const moments: Record<string, Float64Array> =
    m!.element === "u8"
      ? {
          m: ofCodes(m!, m_scale!, 127),
          v: ofCodes(v!, v_scale!, 255),
          m_scale: valuesOf(m_scale!),
          v_scale: valuesOf(v_scale!),
        }
      : { m: valuesOf(m!), v: valuesOf(v!) };
  return { p: p!.element === "bf16" ? joined() : valuesOf(p!), ...moments };
}

interface AdamCase {
  readonly wdt?: number;
  readonly gdt?: number;
  readonly mdt?: number;
  readonly nonfinite?: number;
  /** Gradients where they are not normal; all moments are zero then. */
  readonly g?: readonly [name: string, of: (x: number, i: number) => number];
}

function adamSpec(n: number, { wdt = F32, gdt = F32, mdt = F32, nonfinite = 0, g }: AdamCase): CaseSpec {
  const blocks = Math.ceil(n / MOMENT_BLOCK);
  const words = [dtypeName(wdt), gdt === BF16 && "gradients bf16", `moments ${momentName(mdt)}`, n, g?.[0]];
  const moments = (rng: Random, of: (x: number) => number) =>
    floats(dtypeName(mdt), normals(rng, n, 0.1).map(of));
  const codes = (rng: Random) => u8(Array.from({ length: n }, () => (g ? 0 : rng.below(256))));
  const scales = (rng: Random) => f32(normals(rng, blocks).map((x) => (g ? 0 : 0.01 * x * x)));
  return {
    name: [...words, nonfinite && "nonfinite"].filter((word) => word).join(" "),
    params: {
      ...{ n, wdt, gdt, mdt, lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 },
      ...{ c1: 1 - 0.9 ** 3, c2: 1 - 0.999 ** 3, seed: 5, tensor: 2, step: 3 },
    },
    given: (rng) => ({
      lo: wdt === BF16 ? i16(Array.from({ length: n }, () => rng.below(60000) - 30000)) : null,
      ...(g ? { g: floats(dtypeName(gdt), normals(rng, n).map(g[1])) } : {}),
      ...(mdt === F8
        ? { m: codes(rng), v: codes(rng), m_scale: scales(rng), v_scale: scales(rng) }
        : { m: moments(rng, (x) => x), v: moments(rng, (x) => x * x) }),
      result: { element: "f32", bytes: f32([2.5, 0.4, nonfinite ? 1e-45 : 0, 0]).bytes },
    }),
  };
}

/** Cases whose change a mutant must not be asked for. */
const special = (name: string) => /nonfinite|zero|spread|cut|below/.test(name);

const adamw: Row = {
  op: optimizer.adamw as unknown as OpDef,
  slack: 8,
  values: masters,
  cases: casesOf(optimizer.adamw as unknown as OpDef, [
    adamSpec(1, {}),
    adamSpec(131, {}),
    adamSpec(131, { gdt: BF16 }),
    adamSpec(131, { wdt: BF16 }),
    adamSpec(131, { wdt: BF16, mdt: BF16 }),
    adamSpec(70, { mdt: BF16 }),
    adamSpec(70, { wdt: BF16, gdt: BF16, mdt: BF16 }),
    adamSpec(70, { wdt: BF16, mdt: BF16, nonfinite: 1 }),
    ...[1, 31, 255, 256, 257, 1333].map((n) => adamSpec(n, { mdt: F8 })),
    adamSpec(513, { wdt: BF16, mdt: F8 }),
    adamSpec(513, { gdt: BF16, mdt: F8 }),
    adamSpec(769, { wdt: BF16, gdt: BF16, mdt: F8 }),
    adamSpec(300, { mdt: F8, nonfinite: 1 }),
    adamSpec(300, { mdt: F8, g: ["zero", () => 0] }),
    adamSpec(300, { mdt: F8, g: ["zero but one", (_, i) => (i === 7 ? 1 : 0)] }),
    adamSpec(600, { mdt: F8, g: ["spread over decades", (x, i) => x * 10 ** -(i % 13)] }),
    adamSpec(300, { mdt: F8, g: ["cut v", (x) => 8e20 * (1 + 0.01 * x)] }),
    adamSpec(300, { mdt: F8, g: ["below scales of v", (x, i) => 1e-13 * (1 + 0.1 * x) * 10 ** -(i % 4)] }),
    adamSpec(300, { mdt: F8, g: ["below scales of m", (x) => 1e-28 * x] }),
  ]),
  mutants: [
    ...(["lr", "beta1", "beta2", "weight_decay", "c1", "c2"] as const).map((name) => ({
      name: `${name} x 0.9`,
      change: (c: Parameters<Row["mutants"][number]["change"]>[0]) =>
        special(c.name) ? null : scaledParam(name, 0.9)(c),
    })),
    {
      name: "not scaled by the coefficient",
      change: (c) =>
        special(c.name) ? null : withTensor("result", (d) => mapped(d, (x, i) => (i === 1 ? 1 : x)))(c),
    },
    {
      name: "another step's random bits",
      change: (c) =>
        c.params.mdt !== F32 && c.params.n! > 1 && !special(c.name) ? withParam("step", 4)(c) : null,
    },
    {
      name: "the scale of the block before",
      change: (c) =>
        c.params.n! > MOMENT_BLOCK && !special(c.name)
          ? withTensor("v_scale", (d) => mapped(d, (_, i) => valuesOf(d)[Math.max(i - 1, 0)]!))(c)
          : null,
    },
    {
      name: "a sign of m lost",
      change: (c) =>
        c.params.mdt === F8 && c.params.n! > 1 && !special(c.name)
          ? withTensor("m", (d) => u8(d.bytes.map((code) => code & 127)))(c)
          : null,
    },
    {
      name: "nonfinite ignored",
      change: (c) =>
        /nonfinite/.test(c.name)
          ? withTensor("result", (d) => mapped(d, (x, i) => (i === 2 ? 0 : x)))(c)
          : null,
    },
  ],
  refusals: [
    {
      name: "8-bit moments without scales",
      case: "f32 moments 8 bit 257",
      change: (c) => withTensor("v_scale", () => null)(c)!,
    },
    {
      name: "bfloat16 without its remainder",
      case: "bf16 moments f32 131",
      change: (c) => withTensor("lo", () => null)(c)!,
    },
  ],
};

const backward = (op: unknown, coveredBy: string): Row => ({
  op: op as OpDef,
  cases: [],
  slack: 0,
  mutants: [],
  coveredBy,
});

export const stateRows = { sqNorm, clipCoef, adamw };

export const backwardRows = {
  attnBwd: backward(attention.attnBwd, "attnFwd"),
  gemmNn: backward(gemm.gemmNn, "gemmNt"),
  gemmTn: backward(gemm.gemmTn, "gemmNt"),
  biasBwd: backward(gemm.biasBwd, "gemmNt"),
  rmsNormBwd: backward(norm.rmsNormBwd, "rmsNormFwd"),
  qkNormRopeBwd: backward(norm.qkNormRopeBwd, "qkNormRopeFwd"),
  loraBwd: backward(lora.loraBwd, "loraFwd"),
  swigluBwd: backward(mlp.swigluBwd, "swigluFwd"),
  embedBwd: backward(embedding.embedBwd, "embedFwd"),
  gatherRowsBwd: backward(embedding.gatherRowsBwd, "gatherRows"),
  logprobBwd: backward(head.logprobBwd, "logprobFwd"),
  quantLinearBwd: backward(quant.quantLinearBwd, "quantLinear"),
};
