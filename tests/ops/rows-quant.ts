/** Rows of quantized weights. */
import type { Random } from "../../src/core/rng.ts";
import { Dtype, NF4_LIMITS, type OpDef, QuantType, quantBytes, quantScales } from "../../src/ops/define.ts";
import * as quant from "../../src/ops/quant.ts";
import { type CaseSpec, casesOf, type Mutant, type Row, withTensor } from "./row.ts";
import type { Case } from "./run.ts";
import { type Data, f32, floats, mapped, normals, packedIndex, u32 } from "./tensors.ts";

const { f32: F32, bf16: BF16 } = Dtype;
const { int8: INT8, nf4: NF4 } = QuantType;
const dtypeName = (dt: number) => (dt === BF16 ? "bf16" : "f32");
const typeName = (qt: number) => (qt === NF4 ? "nf4" : "int8");
const as = (op: unknown) => op as OpDef;

/** Random codes and scales of an [n, k] matrix, padding zero. */
export function randomCodes(rng: Random, n: number, k: number, qt: number): { codes: Data; scales: Data } {
  const bytes = new Uint8Array(quantBytes(n, k, qt));
  const scales = new Float32Array(quantScales(n, k, qt));
  const blocks = qt === NF4 ? Math.ceil(k / 64) : 1;
  for (let row = 0; row < n; row++) {
    for (let b = 0; b < blocks; b++)
      scales[((row >> 5) * blocks + b) * 32 + (row % 32)] = (0.5 + rng.uniform()) * (qt === NF4 ? 1 : 0.01);
    for (let col = 0; col < k; col++) {
      if (qt === INT8) bytes[packedIndex(row, col, k, BF16)] = rng.below(255) - 127;
      else {
        const word = (((row >> 5) * (k >> 3) + (col >> 3)) * 32 + (row % 32)) * 2 + (col % 2);
        const step = (col % 8) >> 1;
        bytes[word * 2 + (step >> 1)]! |= rng.below(16) << ((step % 2) * 4);
      }
    }
  }
  return { codes: { element: "u8", bytes }, scales: f32(scales) };
}

const shiftedCodes: Mutant = {
  name: "shifted codes",
  change: (c) =>
    c.tensors.codes!.bytes.length > 64
      ? withTensor("codes", (data) => ({
          ...data,
          bytes: Uint8Array.from([...data.bytes.subarray(2), ...data.bytes.subarray(0, 2)]),
        }))(c)
      : null,
};
const largerScales: Mutant = {
  name: "scales x 1.1",
  change: withTensor("scales", (data) => mapped(data, (x) => x * 1.1)),
};

/** One column fewer of a float32 case with a single row. */
const shorter = (c: Case, tensor: string): Case => ({
  ...withTensor(tensor, (data) => ({ ...data, bytes: data.bytes.subarray(4) }))(c)!,
  params: { ...c.params, k: c.params.k! - 1 },
});

function linearSpec(
  m: number,
  n: number,
  k: number,
  qt: number,
  dt: number,
  { ydt = dt, bias = false }: { ydt?: number; bias?: boolean } = {},
): CaseSpec {
  return {
    name: [
      typeName(qt),
      dtypeName(dt),
      ...(ydt === dt ? [] : [`to ${dtypeName(ydt)}`]),
      `${m}x${n}x${k}`,
      ...(bias ? ["bias"] : []),
    ].join(" "),
    params: { m, n, k, qt, dt, ydt },
    with: bias ? ["bias"] : [],
    given: (rng) => randomCodes(rng, n, k, qt),
  };
}

const quantLinear: Row = {
  op: as(quant.quantLinear),
  slack: 16,
  cases: casesOf(as(quant.quantLinear), [
    linearSpec(1, 1, 1, INT8, F32),
    linearSpec(7, 33, 65, INT8, F32, { bias: true }),
    linearSpec(31, 127, 33, INT8, F32),
    linearSpec(70, 35, 527, INT8, F32, { bias: true }),
    linearSpec(37, 35, 65, INT8, F32),
    linearSpec(1, 1, 1, INT8, BF16),
    linearSpec(1, 70, 130, INT8, BF16, { ydt: F32 }),
    linearSpec(12, 33, 65, INT8, BF16, { bias: true }),
    linearSpec(127, 33, 31, INT8, BF16),
    linearSpec(3, 40, 530, INT8, BF16, { ydt: F32, bias: true }),
    linearSpec(65, 17, 530, INT8, BF16, { ydt: F32 }),
    linearSpec(1, 1, 64, NF4, F32),
    linearSpec(7, 33, 128, NF4, F32, { bias: true }),
    linearSpec(70, 35, 576, NF4, F32),
    linearSpec(33, 35, 64, NF4, F32),
    linearSpec(1, 1, 64, NF4, BF16),
    linearSpec(1, 70, 640, NF4, BF16, { ydt: F32, bias: true }),
    linearSpec(5, 31, 192, NF4, BF16),
    linearSpec(12, 64, 320, NF4, BF16, { bias: true }),
    linearSpec(127, 33, 64, NF4, BF16, { ydt: F32 }),
    linearSpec(66, 40, 1088, NF4, BF16, { ydt: F32 }),
  ]),
  mutants: [
    shiftedCodes,
    largerScales,
    { name: "no bias", change: withTensor("bias", () => null) },
    {
      name: "the first of x missing",
      change: withTensor("x", (data) => mapped(data, (x, i) => (i === 0 ? 3 : x))),
    },
  ],
  refusals: [
    {
      name: "a block that is not whole",
      case: "nf4 f32 1x1x64",
      change: (c) => shorter(c, "x"),
    },
  ],
  grads: {
    inputs: ["x"],
    slack: 8,
    cases: [
      { case: "int8 f32 1x1x1", from: ["y"] },
      { case: "int8 f32 7x33x65 bias", from: ["y"] },
      { case: "int8 f32 37x35x65", from: ["y"] },
      { case: "int8 bf16 12x33x65 bias", from: ["y"] },
      { case: "nf4 f32 7x33x128 bias", from: ["y"] },
      { case: "nf4 f32 33x35x64", from: ["y"] },
      { case: "nf4 bf16 5x31x192", from: ["y"] },
      { case: "nf4 bf16 12x64x320 bias", from: ["y"] },
    ],
    mutants: [
      {
        name: "accumulate flipped",
        op: "quant_linear_bwd",
        change: (args) => ({ ...args, accumulate: args.accumulate ? 0 : 1 }),
      },
      {
        name: "a row of dy missing",
        op: "quant_linear_bwd",
        change: (args) => ({ ...args, m: (args.m as number) - 1 }),
      },
    ],
  },
};

function embedSpec(rows: number, cols: number, vocab: number, qt: number, dt: number): CaseSpec {
  return {
    name: `${typeName(qt)} ${dtypeName(dt)} ${rows}x${cols} of ${vocab}`,
    params: { rows, cols, vocab, qt, dt },
    given: (rng) => ({
      ...randomCodes(rng, vocab, cols, qt),
      ids: u32(Array.from({ length: rows }, () => rng.below(vocab))),
    }),
  };
}

const quantEmbed: Row = {
  op: as(quant.quantEmbed),
  slack: 2,
  cases: casesOf(as(quant.quantEmbed), [
    embedSpec(1, 1, 1, INT8, F32),
    embedSpec(9, 33, 70, INT8, F32),
    embedSpec(31, 127, 33, INT8, BF16),
    embedSpec(1, 64, 1, NF4, F32),
    embedSpec(9, 192, 70, NF4, F32),
    embedSpec(33, 64, 40, NF4, BF16),
  ]),
  mutants: [
    largerScales,
    {
      name: "ids + 1",
      change: (c) =>
        c.params.vocab! > 1
          ? withTensor("ids", (data) => mapped(data, (id) => (id + 1) % c.params.vocab!))(c)
          : null,
    },
  ],
  refusals: [
    {
      name: "id outside the vocabulary",
      case: "int8 f32 9x33 of 70",
      change: (c) => withTensor("ids", (data) => mapped(data, (id, i) => (i === 4 ? 70 : id)))(c)!,
    },
  ],
};

/** Ordinary values with a row of zeros, one of tiny ones, and values on and beside the limits between codes. */
function awkward(rng: Random, n: number, k: number): number[] {
  const values = normals(rng, n * k);
  for (let i = 0; i < k; i++) {
    if (n > 2) values[k + i] = 0;
    if (n > 3) values[2 * k + i]! *= 1e-38;
    if (n > 4) values[3 * k + i] = i === 0 ? 1 : NF4_LIMITS[i % 15]! + ((i % 3) - 1) * 2 ** -25;
    if (n > 5) values[4 * k + i] = i === 0 ? 127 : (i % 254) - 127 + 0.5;
  }
  return values;
}

const quantSpec = (n: number, k: number, qt: number, sdt: number): CaseSpec => ({
  name: `${typeName(qt)} from ${dtypeName(sdt)} ${n}x${k}`,
  params: { n, k, qt, sdt },
  given: (rng) => ({ src: floats(dtypeName(sdt), awkward(rng, n, k)) }),
});

const quantizeWeight: Row = {
  op: as(quant.quantizeWeight),
  slack: 0,
  cases: casesOf(as(quant.quantizeWeight), [
    quantSpec(1, 1, INT8, F32),
    quantSpec(33, 127, INT8, F32),
    quantSpec(64, 256, INT8, F32),
    quantSpec(31, 33, INT8, BF16),
    quantSpec(1, 64, NF4, F32),
    quantSpec(33, 192, NF4, F32),
    quantSpec(70, 128, NF4, BF16),
  ]),
  mutants: [
    {
      name: "a larger value",
      change: withTensor("src", (data) => mapped(data, (x, i) => (i === 0 ? 50 : x))),
    },
  ],
  refusals: [
    { name: "a block that is not whole", case: "nf4 from f32 1x64", change: (c) => shorter(c, "src") },
  ],
};

const dequantizeSpec = (n: number, k: number, qt: number): CaseSpec => ({
  name: `${typeName(qt)} ${n}x${k}`,
  params: { n, k, qt },
  given: (rng) => randomCodes(rng, n, k, qt),
});

const dequantizeWeight: Row = {
  op: as(quant.dequantizeWeight),
  slack: 1,
  cases: casesOf(as(quant.dequantizeWeight), [
    dequantizeSpec(1, 1, INT8),
    dequantizeSpec(33, 127, INT8),
    dequantizeSpec(1, 64, NF4),
    dequantizeSpec(70, 192, NF4),
  ]),
  mutants: [shiftedCodes, largerScales],
};

export const quantRows = { quantLinear, quantEmbed, quantizeWeight, dequantizeWeight };
