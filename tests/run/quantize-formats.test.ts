/** Folders of every block size, type and storage that bitsandbytes knows, and damaged ones. */
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  blockScales,
  decode4,
  encode4,
  type FourBitType,
  NESTED_MAP,
  nestScales,
  quantState,
  unnestScales,
} from "../../src/io/bitsandbytes.ts";
import {
  checkWeights,
  configToJson,
  expectedTensors,
  openWeights,
  quantizationConfig,
  readModelConfig,
} from "../../src/io/hf-folder.ts";
import { type TensorSource, writeSafetensorsFolder } from "../../src/io/safetensors.ts";
import { Dtype } from "../../src/ops/define.ts";
import { configOf, makeFolder, Opened, outputs } from "./quantize-fixture.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-formats-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const FP4 = [1, -1].flatMap((s) => [0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 0.5, 2 / 12, 0.25].map((x) => s * x));
const NF4 = [
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
];

interface Format {
  readonly type: FourBitType;
  readonly blocksize: number;
  readonly double: boolean;
  /** Bytes may be stored as elements of another type. */
  readonly storage: "U8" | "BF16" | "F32";
}

const plain = makeFolder(join(scratch, "plain"), configOf("causal"), "float32");
const LAYERS = 2 * 7;

/** The plain folder with its linear maps in a format, in two files. Also the values that are left of one map. */
function write(folder: string, { type, blocksize, double, storage }: Format, change?: Change) {
  const config = readModelConfig(plain);
  using weights = openWeights(plain);
  const kept = new Map<string, Float32Array>();
  const table = new Float32Array(type === "nf4" ? NF4 : FP4);
  const bytes = (x: Float32Array | Uint8Array) => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
  const tensors = [...expectedTensors(config)].flatMap(([name, shape]): TensorSource[] => {
    const values = weights.readFloat32(name);
    if (!name.endsWith("_proj.weight")) return [{ name, dtype: "F32", shape, data: bytes(values) }];
    const scales = blockScales(values, blocksize);
    const nested = double ? nestScales(scales) : null;
    const packed = encode4(values, scales, blocksize, type);
    const used = nested ? unnestScales(nested) : scales;
    kept.set(name, decode4(packed, values.length, used, blocksize, table));
    const state = quantState(type, blocksize, shape, "float32", nested);
    const size = { U8: 1, BF16: 2, F32: 4 }[storage];
    const part = (suffix: string, x: Float32Array | Uint8Array): TensorSource => ({
      name: `${name}.${suffix}`,
      dtype: x instanceof Float32Array ? "F32" : "U8",
      shape: [x.length],
      data: bytes(x),
    });
    return [
      { name, dtype: storage, shape: [packed.length / size, 1], data: packed },
      part("quant_map", table),
      part(`quant_state.bitsandbytes__${type}`, state),
      ...(nested
        ? [
            part("absmax", nested.codes),
            part("nested_absmax", nested.absmax),
            part("nested_quant_map", NESTED_MAP),
          ]
        : [part("absmax", scales)]),
    ];
  });
  cpSync(plain, folder, { recursive: true });
  rmSync(join(folder, "model.safetensors"));
  writeSafetensorsFolder(folder, change ? tensors.map(change) : tensors, 900_000);
  const { raw, ...rest } = quantizationConfig("nf4", double);
  const quantization = { ...rest, raw: { ...raw, bnb_4bit_quant_type: type } };
  rmSync(join(folder, "config.json"));
  writeFileSync(join(folder, "config.json"), JSON.stringify(configToJson({ ...config, quantization })));
  return kept;
}
type Change = (tensor: TensorSource) => TensorSource;

const formats: readonly Format[] = [
  ...[32, 64, 128, 256, 4096].map(
    (blocksize) => ({ type: "nf4", blocksize, double: true, storage: "U8" }) as const,
  ),
  { type: "nf4", blocksize: 512, double: false, storage: "U8" },
  { type: "nf4", blocksize: 64, double: true, storage: "BF16" },
  { type: "nf4", blocksize: 64, double: false, storage: "F32" },
  { type: "fp4", blocksize: 64, double: false, storage: "U8" },
  { type: "fp4", blocksize: 128, double: true, storage: "BF16" },
];

describe.each(
  formats.map((f) => [`${f.type} ${f.blocksize} ${f.double ? "double" : "single"} ${f.storage}`, f] as const),
)("%s", (name, format) => {
  test("values, and codes in memory where products take them", () => {
    const folder = join(scratch, name);
    const kept = write(folder, format);
    using opened = new Opened();
    const model = opened.open(folder);
    for (const [map, values] of kept) expect(model.parameters.read(map)).toEqual(values);
    const held = format.type === "nf4" && format.blocksize >= 64;
    expect(model.parameters.list.filter(({ quantized }) => quantized).length).toBe(held ? LAYERS : 0);
    expect(model.quantizationNote === null).toBe(held);
    if (!held) expect(model.quantizationNote).toStartWith(`14 of 14 quantized matrices (${format.type})`);
    // The same numbers as the plain model's over those values; in bfloat16 too.
    const dequantized = opened.open(plain);
    for (const [map, values] of kept) dequantized.parameters.load(map, values);
    const [a, b] = [model, dequantized].map((m) => outputs(opened.memory, m).flatMap((x) => [...x]));
    const worst = Math.max(...a!.map((x, i) => Math.abs(x - b![i]!)));
    expect(worst).toBeLessThan(1e-5);
    outputs(opened.memory, opened.open(folder, { dtype: Dtype.bf16 }));
  });
});

test("another table than nf4's is taken as it is, dequantized", () => {
  const folder = join(scratch, "table");
  const other = new Float32Array(NF4.map((x, i) => (i === 3 ? -0.4 : x)));
  write(folder, { type: "nf4", blocksize: 64, double: false, storage: "U8" }, (tensor) =>
    tensor.name.endsWith("quant_map") ? { ...tensor, data: new Uint8Array(other.buffer) } : tensor,
  );
  using opened = new Opened();
  const model = opened.open(folder);
  expect(model.quantizationNote).toStartWith("14 of 14");
  const values = model.parameters.read("model.layers.0.self_attn.q_proj.weight");
  const scale = Math.max(...values.subarray(0, 64).map(Math.abs));
  expect(values.subarray(0, 64).some((x) => x === Math.fround(Math.fround(-0.4) * scale))).toBe(true);
});

const Q = "model.layers.0.self_attn.q_proj.weight";
const damages: readonly (readonly [string, Change, string])[] = [
  [
    "a short absmax",
    (t) => (t.name === `${Q}.absmax` ? { ...t, shape: [3], data: new Uint8Array(3) } : t),
    `${Q}.absmax is U8 [3], expected 64 of U8`,
  ],
  ["another absmax", (t) => (t.name === `${Q}.absmax` ? { ...t, dtype: "I8" } : t), `${Q}.absmax is I8 [64]`],
  [
    "few bytes",
    (t) => (t.name === Q ? { ...t, shape: [9, 1], data: new Uint8Array(9) } : t),
    `${Q} is 9 bytes, expected 2048`,
  ],
  ["no map", (t) => (t.name === `${Q}.quant_map` ? { ...t, name: `${Q}.map` } : t), `missing ${Q}.quant_map`],
  [
    "no JSON",
    (t) => (t.name.startsWith(`${Q}.quant_state`) ? { ...t, shape: [2], data: new Uint8Array(2) } : t),
    "is not JSON",
  ],
  [
    "a block size that does not exist",
    (t) => {
      if (!t.name.startsWith(`${Q}.quant_state`)) return t;
      const data = quantState("nf4", 48, [64, 64], "float32", null);
      return { ...t, shape: [data.length], data };
    },
    'says {"quant_type":"nf4","blocksize":48',
  ],
  [
    "another shape",
    (t) => {
      if (!t.name.startsWith(`${Q}.quant_state`)) return t;
      const data = quantState("nf4", 64, [32, 128], "float32", {
        codes: new Uint8Array(0),
        absmax: new Float32Array(0),
        offset: 1,
      });
      return { ...t, shape: [data.length], data };
    },
    `${Q} is [32,128], expected [64,64]`,
  ],
  [
    "a part of another format",
    (t) => (t.name === `${Q}.nested_quant_map` ? { ...t, name: "model.layers.0.self_attn.q_proj.SCB" } : t),
    `missing ${Q}.nested_quant_map`,
  ],
  [
    "a part of nothing",
    (t) => (t.name === "model.norm.weight" ? { ...t, name: "model.norm.SCB" } : t),
    "unexpected model.norm.SCB",
  ],
];
test.each(damages)("refused: %s", (name, change, message) => {
  const folder = join(scratch, `damaged ${name}`);
  write(folder, { type: "nf4", blocksize: 64, double: true, storage: "U8" }, change);
  expect(() => {
    const config = readModelConfig(folder);
    using weights = openWeights(folder);
    checkWeights(config, weights);
  }).toThrow(message);
});
