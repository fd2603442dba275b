/** Rows of matrix products, norms and element-wise families. */
import { Dtype, type OpDef } from "../../src/ops/define.ts";
import * as elementwise from "../../src/ops/elementwise.ts";
import * as gemm from "../../src/ops/gemm.ts";
import * as mlp from "../../src/ops/mlp.ts";
import * as norm from "../../src/ops/norm.ts";
import {
  type CaseSpec,
  casesOf,
  droppedArg,
  type Row,
  replacedArg,
  scaledArg,
  scaledParam,
  swapped,
  swappedArgs,
  withParam,
  withTensor,
} from "./row.ts";
import { type Data, f32, floats, i16, mapped, normals, packed, u32 } from "./tensors.ts";

const { f32: F32, bf16: BF16 } = Dtype;
const dtypeName = (dt: number) => (dt === BF16 ? "bf16" : "f32");

/** A tensor that is not used. */
const dropped = (name: string) => withTensor(name, () => null);
/** Rows of a tensor rotated by one element. */
const rotated = (name: string) =>
  withTensor(name, (data) => {
    const size = data.bytes.length / (data.element === "bf16" ? 2 : 4);
    if (size < 2) return data;
    const unit = data.bytes.length / size;
    return {
      ...data,
      bytes: Uint8Array.from([...data.bytes.subarray(unit), ...data.bytes.subarray(0, unit)]),
    };
  });

function gemmSpec(m: number, n: number, k: number, dt: number, ydt = dt, extra: string[] = []): CaseSpec {
  const accumulate = extra.includes("accumulate") ? 1 : 0;
  return {
    name: [dtypeName(dt), ...(ydt === dt ? [] : [`to ${dtypeName(ydt)}`]), `${m}x${n}x${k}`, ...extra].join(
      " ",
    ),
    params: { m, n, k, dt, ydt, accumulate },
    with: extra.includes("bias") ? ["bias"] : [],
    given: (rng): Record<string, Data> =>
      accumulate ? { y: floats(dtypeName(ydt), normals(rng, m * n, 3)) } : {},
  };
}

const gemmNt: Row = {
  op: gemm.gemmNt as unknown as OpDef,
  slack: 16,
  cases: casesOf(gemm.gemmNt as unknown as OpDef, [
    gemmSpec(1, 1, 1, F32),
    gemmSpec(7, 33, 65, F32, F32, ["bias"]),
    gemmSpec(70, 35, 17, F32, F32, ["bias"]),
    gemmSpec(13, 64, 32, F32, F32, ["accumulate"]),
    gemmSpec(1, 1, 1, BF16),
    gemmSpec(7, 33, 65, BF16, BF16, ["bias"]),
    gemmSpec(66, 32, 16, BF16),
    gemmSpec(5, 31, 40, BF16, BF16, ["accumulate"]),
    gemmSpec(5, 70, 48, BF16, F32),
    gemmSpec(17, 1, 40, BF16, F32),
    gemmSpec(3, 40, 31, BF16, F32, ["bias", "accumulate"]),
    gemmSpec(31, 127, 33, F32, F32, ["bias"]),
    gemmSpec(127, 33, 31, BF16, BF16, ["bias"]),
    gemmSpec(33, 31, 35, F32),
    gemmSpec(130, 65, 33, F32, F32, ["accumulate"]),
    gemmSpec(2, 17, 527, F32),
    gemmSpec(65, 17, 530, BF16, F32),
  ]),
  mutants: [
    { name: "no bias", change: dropped("bias") },
    { name: "shifted x", change: (c) => (c.params.m! * c.params.k! > 1 ? rotated("x")(c) : null) },
    {
      name: "accumulate flipped",
      change: (c) => (c.params.accumulate ? withParam("accumulate", 0)(c) : null),
    },
    { name: "shifted w", change: (c) => (c.params.n! * c.params.k! > 1 ? rotated("w")(c) : null) },
  ],
  grads: {
    inputs: ["x", "w", "bias"],
    slack: 8,
    cases: [
      { case: "f32 1x1x1", from: ["y"] },
      { case: "f32 7x33x65 bias", from: ["y"] },
      { case: "f32 70x35x17 bias", from: ["y"] },
      { case: "f32 13x64x32 accumulate", from: ["y"], to: ["x"] },
      { case: "bf16 7x33x65 bias", from: ["y"] },
      { case: "bf16 66x32x16", from: ["y"] },
      { case: "f32 33x31x35", from: ["y"] },
      { case: "bf16 5x31x40 accumulate", from: ["y"], to: ["w"] },
      // A value head: a float32 result, whose gradient is rounded to the operands' type.
      { case: "bf16 to f32 17x1x40", from: ["y"] },
    ],
    mutants: [
      {
        name: "accumulate flipped",
        op: "gemm_nn",
        change: (args) => ({ ...args, accumulate: args.accumulate ? 0 : 1 }),
      },
      {
        name: "a row of dw missing",
        op: "gemm_tn",
        change: (args) => ({ ...args, m: (args.m as number) - 1 }),
      },
      {
        name: "a row of dbias missing",
        op: "bias_bwd",
        change: (args) => ({ ...args, m: (args.m as number) - 1 }),
      },
    ],
  },
};

function normSpec(rows: number, cols: number, dt: number, fused: boolean, eps = 1e-2): CaseSpec {
  return {
    name: `${dtypeName(dt)} ${rows}x${cols}${fused ? " residual" : ""}`,
    params: { rows, cols, eps, dt },
    with: fused ? ["delta", "h"] : [],
    given: (rng) => ({ weight: f32(normals(rng, cols, 0.3, 1)) }),
  };
}

const rmsNormFwd: Row = {
  op: norm.rmsNormFwd as unknown as OpDef,
  slack: 8,
  cases: casesOf(norm.rmsNormFwd as unknown as OpDef, [
    // With one column and a small eps nothing but rounding would be left of the gradient.
    normSpec(1, 1, F32, false, 0.5),
    normSpec(3, 33, F32, false),
    normSpec(67, 40, F32, true),
    normSpec(2, 129, BF16, true),
    normSpec(66, 48, BF16, false),
    normSpec(31, 127, F32, true),
    normSpec(127, 31, BF16, true),
    normSpec(2, 1025, F32, false),
  ]),
  mutants: [
    { name: "eps x 100", change: scaledParam("eps", 100) },
    {
      name: "x for the residual",
      change: (c) => (c.tensors.delta ? { ...c, tensors: { ...c.tensors, delta: c.tensors.x! } } : null),
    },
    { name: "shifted weight", change: (c) => (c.params.cols! > 1 ? rotated("weight")(c) : null) },
  ],
  refusals: [
    {
      name: "residual without h",
      case: "f32 67x40 residual",
      change: (c) => ({ ...c, tensors: { ...c.tensors, h: null } }),
    },
  ],
  grads: {
    inputs: ["x", "delta", "weight"],
    slack: 12,
    cases: [
      { case: "f32 1x1", from: ["y"] },
      { case: "f32 3x33", from: ["y"] },
      { case: "f32 67x40 residual", from: ["y", "h"] },
      { case: "f32 67x40 residual", from: ["y"], to: ["x", "delta"] },
      { case: "f32 67x40 residual", from: ["h"], to: ["x", "delta"] },
      { case: "bf16 2x129 residual", from: ["y", "h"] },
      { case: "bf16 66x48", from: ["y"] },
      { case: "f32 31x127 residual", from: ["y"], to: ["weight"] },
    ],
    mutants: [
      { name: "eps x 100", op: "rms_norm_bwd", change: scaledArg("eps", 100) },
      { name: "no cotangent of h", op: "rms_norm_bwd", change: droppedArg("dres") },
      {
        name: "h for dy",
        op: "rms_norm_bwd",
        change: replacedArg("dy", "h"),
      },
    ],
  },
};

function ropeSpec(rows: number, heads: number, dim: number, dt: number, weighted: boolean): CaseSpec {
  const max_pos = 50;
  return {
    name: `${dtypeName(dt)} ${rows}x${heads}x${dim}${weighted ? " weight" : ""}`,
    params: { rows, heads, head_dim: dim, max_pos, eps: 1e-2, dt },
    given: (rng) => ({
      weight: weighted ? f32(normals(rng, dim, 0.3, 1)) : null,
      positions: u32(Array.from({ length: rows }, () => rng.below(max_pos - 1))),
      rope: f32(
        Array.from({ length: max_pos }, (_, p) => {
          const angles = Array.from({ length: dim / 2 }, (_, i) => p * 10 ** ((-4 * i) / dim));
          return [...angles.map(Math.cos), ...angles.map(Math.sin)];
        }).flat(),
      ),
    }),
  };
}

const qkNormRopeFwd: Row = {
  op: norm.qkNormRopeFwd as unknown as OpDef,
  slack: 8,
  cases: casesOf(norm.qkNormRopeFwd as unknown as OpDef, [
    ropeSpec(1, 1, 2, F32, false),
    ropeSpec(5, 3, 10, F32, true),
    ropeSpec(66, 2, 16, F32, true),
    ropeSpec(4, 3, 64, BF16, false),
    ropeSpec(65, 2, 16, BF16, true),
  ]),
  mutants: [
    { name: "eps x 100", change: (c) => (c.tensors.weight ? scaledParam("eps", 100)(c) : null) },
    { name: "positions + 1", change: withTensor("positions", (data) => mapped(data, (p) => p + 1)) },
    { name: "no norm", change: dropped("weight") },
    {
      name: "sines and cosines exchanged",
      change: withTensor("rope", (data, c) => {
        const dim = c.params.head_dim!;
        const swap = (i: number) => (i % dim < dim / 2 ? i + dim / 2 : i - dim / 2);
        const before = new Float32Array(data.bytes.slice().buffer);
        return mapped(data, (_, i) => before[swap(i)]!);
      }),
    },
  ],
  refusals: [
    {
      name: "position beyond the table",
      case: "f32 5x3x10 weight",
      change: (c) => withTensor("positions", (data) => mapped(data, (p, i) => (i === 2 ? 50 : p)))(c)!,
    },
  ],
  grads: {
    inputs: ["x", "weight"],
    slack: 12,
    cases: [
      { case: "f32 1x1x2", from: ["y"] },
      { case: "f32 5x3x10 weight", from: ["y"] },
      { case: "f32 66x2x16 weight", from: ["y"] },
      { case: "f32 66x2x16 weight", from: ["y"], to: ["x"] },
      { case: "bf16 4x3x64", from: ["y"] },
      { case: "bf16 65x2x16 weight", from: ["y"] },
    ],
    mutants: [
      {
        name: "no norm",
        op: "qk_norm_rope_bwd",
        change: (args) => (args.weight ? { ...args, weight: null, dweight: null } : null),
      },
      {
        name: "eps x 100",
        op: "qk_norm_rope_bwd",
        change: (args) => (args.weight ? { ...args, eps: (args.eps as number) * 100 } : null),
      },
      { name: "x for dy", op: "qk_norm_rope_bwd", change: replacedArg("dy", "x") },
    ],
  },
};

const flat = (n: number, dt: number): CaseSpec => ({ name: `${dtypeName(dt)} ${n}`, params: { n, dt } });

const swigluFwd: Row = {
  op: mlp.swigluFwd as unknown as OpDef,
  slack: 8,
  cases: casesOf(mlp.swigluFwd as unknown as OpDef, [
    flat(1, F32),
    flat(37, F32),
    flat(200, F32),
    flat(1, BF16),
    flat(133, BF16),
    {
      name: "f32 extremes",
      params: { n: 6, dt: F32 },
      given: () => ({ gate: f32([-200, -80, -1e-30, 1e-30, 80, 200]), up: f32([1, 2, 3, 4, 5, 6]) }),
    },
  ]),
  mutants: [{ name: "gate and up exchanged", change: swapped("gate", "up") }],
  grads: {
    inputs: ["gate", "up"],
    slack: 8,
    cases: ["f32 1", "f32 37", "f32 200", "bf16 1", "bf16 133", "f32 extremes"].map((name) => ({
      case: name,
      from: ["y"],
    })),
    mutants: [
      { name: "gate and up exchanged", op: "swiglu_bwd", change: swappedArgs("gate", "up") },
      { name: "dgate and dup exchanged", op: "swiglu_bwd", change: swappedArgs("dgate", "dup") },
      { name: "up for dy", op: "swiglu_bwd", change: replacedArg("dy", "up") },
    ],
  },
};

const add: Row = {
  op: elementwise.add as unknown as OpDef,
  slack: 0,
  cases: casesOf(elementwise.add as unknown as OpDef, [
    flat(1, F32),
    flat(77, F32),
    flat(1, BF16),
    flat(133, BF16),
  ]),
  mutants: [{ name: "a twice", change: (c) => ({ ...c, tensors: { ...c.tensors, b: c.tensors.a! } }) }],
  grads: {
    inputs: ["a", "b"],
    slack: 0,
    cases: ["f32 77", "bf16 133"].map((name) => ({ case: name, from: ["y"] })),
    // The rule emits nothing; the tape adds.
    mutants: [],
  },
};

const fill: Row = {
  op: elementwise.fill as unknown as OpDef,
  slack: 0,
  cases: casesOf(elementwise.fill as unknown as OpDef, [
    { name: "1", params: { n: 1, value: 1.5 } },
    { name: "77", params: { n: 77, value: -0.1 } },
  ]),
  mutants: [{ name: "another value", change: scaledParam("value", 2) }],
};

const copy: Row = {
  op: elementwise.copy as unknown as OpDef,
  slack: 0,
  cases: casesOf(
    elementwise.copy as unknown as OpDef,
    [1, 15, 1000].map((n) => ({
      name: `${n}`,
      params: { n },
      given: (rng) => ({ x: { element: "u8", bytes: Uint8Array.from({ length: n }, () => rng.below(256)) } }),
    })),
  ),
  mutants: [
    {
      name: "another byte",
      change: withTensor("x", (data) => ({
        ...data,
        bytes: data.bytes.map((b, i) => (i === 0 ? b ^ 1 : b)),
      })),
    },
  ],
};

/** Ties, subnormals, infinities and NaN beside ordinary values. */
const SPECIAL = [
  0,
  -0,
  1 + 2 ** -8,
  1 + 3 * 2 ** -8,
  2 ** -130,
  2 ** -134,
  2 ** -149,
  3.4e38,
  Infinity,
  -Infinity,
  NaN,
];

const cast: Row = {
  op: elementwise.cast as unknown as OpDef,
  slack: 0,
  cases: casesOf(
    elementwise.cast as unknown as OpDef,
    [
      [F32, BF16],
      [BF16, F32],
      [F32, F32],
      [BF16, BF16],
    ].map(([dt, ydt]) => ({
      name: `${dtypeName(dt!)} to ${dtypeName(ydt!)}`,
      params: { n: 77, dt: dt!, ydt: ydt! },
      given: (rng) => ({ x: floats(dtypeName(dt!), [...SPECIAL, ...normals(rng, 77 - SPECIAL.length)]) }),
    })),
  ),
  mutants: [{ name: "shifted", change: rotated("x") }],
};

/** High half (nearest, ties up) and signed rest of float32 values, in the packed layout. */
function splitWeight(values: readonly number[], n: number, k: number) {
  const whole = new Uint32Array(new Float32Array(packedValues(values, n, k)).buffer);
  const high = Uint16Array.from(whole, (bits) => (bits + 0x8000) >>> 16);
  const lo = i16(Int16Array.from(whole, (bits) => (bits << 16) >> 16));
  return { w: { element: "bf16" as const, bytes: new Uint8Array(high.buffer) }, lo };
}
function packedValues(values: readonly number[], n: number, k: number): ArrayBuffer {
  return packed(values, n, k, BF16, "f32").bytes.slice().buffer as ArrayBuffer;
}

const packShapes: readonly [number, number][] = [
  [1, 1],
  [33, 7],
  [64, 32],
];

const packWeight: Row = {
  op: elementwise.packWeight as unknown as OpDef,
  slack: 0,
  cases: casesOf(
    elementwise.packWeight as unknown as OpDef,
    packShapes.flatMap(([n, k]): CaseSpec[] => [
      { name: `f32 ${n}x${k}`, params: { n, k, dt: F32, sdt: F32 } },
      { name: `bf16 ${n}x${k}`, params: { n, k, dt: BF16, sdt: BF16 } },
      { name: `f32 from bf16 ${n}x${k}`, params: { n, k, dt: F32, sdt: BF16 } },
      { name: `bf16 from f32 ${n}x${k}`, params: { n, k, dt: BF16, sdt: F32 } },
      { name: `bf16 and rest from f32 ${n}x${k}`, params: { n, k, dt: BF16, sdt: F32 }, with: ["lo"] },
    ]),
  ),
  mutants: [{ name: "shifted", change: (c) => (c.params.n! > 1 ? rotated("src")(c) : null) }],
};

const unpackWeight: Row = {
  op: elementwise.unpackWeight as unknown as OpDef,
  slack: 0,
  cases: casesOf(
    elementwise.unpackWeight as unknown as OpDef,
    packShapes.flatMap(([n, k]): CaseSpec[] => [
      ...[
        [F32, F32, F32],
        [F32, F32, BF16],
        [BF16, BF16, F32],
        [BF16, BF16, BF16],
      ].map(([dt, edt, ddt]) => ({
        name: `${dtypeName(dt!)} to ${dtypeName(ddt!)} ${n}x${k}`,
        params: { n, k, dt: dt!, edt: edt!, ddt: ddt! },
      })),
      {
        name: `f32 in bf16 layout ${n}x${k}`,
        params: { n, k, dt: BF16, edt: F32, ddt: F32 },
        given: (rng) => ({ w: packed(normals(rng, n * k), n, k, BF16, "f32") }),
      },
      {
        name: `bf16 and rest ${n}x${k}`,
        params: { n, k, dt: BF16, edt: BF16, ddt: F32 },
        given: (rng) => splitWeight(normals(rng, n * k), n, k),
      },
    ]),
  ),
  mutants: [
    { name: "no rest", change: dropped("lo") },
    { name: "shifted", change: (c) => (c.params.n! > 1 ? rotated("w")(c) : null) },
  ],
};

export const denseRows = {
  gemmNt,
  rmsNormFwd,
  qkNormRopeFwd,
  swigluFwd,
  add,
  fill,
  copy,
  cast,
  packWeight,
  unpackWeight,
};
