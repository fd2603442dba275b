/**
 * Weights as bitsandbytes quantizes and stores them: the rules, value by value, and the tensors of a file.
 *
 *   int8      P.weight I8 [n,k], P.SCB F32 [n], P.weight_format U8 [] = 0.  w is rounded to float16 first;
 *             SCB = max|w| of a row, code = round(w·(127·(1/SCB))), w ≈ code·SCB/127
 *   nf4, fp4  P.weight U8 [⌈nk/2⌉,1]: two codes a byte, the earlier in the high half; blocks run over row ends;
 *             P.weight.absmax, .quant_map F32 [16], .quant_state.bitsandbytes__TYPE: JSON as bytes.
 *             absmax = max|w| of a block, code = table entry next to w/absmax, w ≈ table[code]·absmax
 *   double    absmax is U8: codes of absmax − nested_offset (the mean) in a table of 256 steps, times
 *             nested_absmax of every 256 of them (P.weight.nested_absmax, .nested_quant_map)
 */
import { shown, UsageError } from "../core/errors.ts";
import { f16ToF32, f32ToF16 } from "../core/float-formats.ts";
import { NF4_CODES, NF4_LIMITS, NF4_SMALLEST } from "../core/nf4.ts";
import type { StoredDtype, TensorSource } from "./safetensors.ts";

export type FourBitType = "nf4" | "fp4";

/** The 16 values in the order of their codes. */
const TABLES: Readonly<Record<FourBitType, Float32Array>> = {
  nf4: new Float32Array(NF4_CODES),
  fp4: new Float32Array(
    [1, -1].flatMap((sign) =>
      [0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 6 / 12, 2 / 12, 3 / 12].map((x) => sign * x),
    ),
  ),
};

/** A value above LIMITS[i] lies nearer to ORDER[i + 1] than to ORDER[i]; a tie takes the lower one. */
const ORDER: Readonly<Record<FourBitType, Uint8Array>> = {
  nf4: Uint8Array.from({ length: 16 }, (_, i) => i),
  // Both zeros: 0 before -0.
  fp4: Uint8Array.from({ length: 16 }, (_, i) => i).sort((a, b) => TABLES.fp4[a]! - TABLES.fp4[b]! || a - b),
};
const LIMITS: Readonly<Record<FourBitType, Float32Array>> = {
  nf4: new Float32Array(NF4_LIMITS),
  fp4: Float32Array.from({ length: 15 }, (_, i) => {
    const [a, b] = [TABLES.fp4[ORDER.fp4[i]!]!, TABLES.fp4[ORDER.fp4[i + 1]!]!];
    return Math.fround(Math.fround(a + b) / 2);
  }),
};

export const isNf4Table = (table: Float32Array): boolean =>
  table.length === 16 && table.every((value, i) => value === TABLES.nf4[i]);

/** Scales of a 4-bit tensor that are quantized themselves. */
export interface Nested {
  readonly codes: Uint8Array;
  readonly absmax: Float32Array;
  readonly offset: number;
}

const NESTED_BLOCK = 256;
/** Steps of the table by which the CPU library finds a nested code. */
const FINE = 65536;

/** create_dynamic_map(): 127 magnitudes over seven decades, both signs, 0 and 1, ascending. */
function dynamicMap(): Float32Array {
  const f = Math.fround;
  const values = [0, 1];
  for (let i = 0; i < 7; i++) {
    const steps = 2 ** i;
    const step = f(f(1 - f(0.1)) / steps);
    // torch.linspace: from both ends, each with one rounding.
    const boundary = (j: number) => (2 * j < steps ? f(f(0.1) + step * j) : f(1 - step * (steps - j)));
    for (let j = 0; j < steps; j++) {
      const mean = f(f(boundary(j) + boundary(j + 1)) / 2);
      const value = f(f(10 ** (i - 6)) * mean);
      values.push(value, -value);
    }
  }
  return new Float32Array(values).sort();
}

export const NESTED_MAP: Float32Array = dynamicMap();

let fineCodes: Uint8Array | null = null;
/** The code next to 2i/65535 − 1. */
function fineTable(): Uint8Array {
  if (fineCodes) return fineCodes;
  fineCodes = new Uint8Array(FINE);
  let code = 0;
  for (let i = 0; i < FINE; i++) {
    const x = (2 * i) / (FINE - 1) - 1;
    while (code < 255 && Math.abs(NESTED_MAP[code + 1]! - x) < Math.abs(NESTED_MAP[code]! - x)) code++;
    fineCodes[i] = code;
  }
  return fineCodes;
}

/** Scales as bytes: mean taken off, by the largest magnitude of 256. */
export function nestScales(scales: Float32Array): Nested {
  const f = Math.fround;
  let sum = 0;
  for (let i = 0; i < scales.length; i++) sum += scales[i]!;
  const offset = f(sum / scales.length);
  const codes = new Uint8Array(scales.length);
  const absmax = new Float32Array(Math.ceil(scales.length / NESTED_BLOCK));
  const fine = fineTable();
  for (let block = 0; block < absmax.length; block++) {
    const begin = block * NESTED_BLOCK;
    const end = Math.min(begin + NESTED_BLOCK, scales.length);
    let most = 0;
    for (let i = begin; i < end; i++) most = Math.max(most, Math.abs(f(scales[i]! - offset)));
    absmax[block] = most;
    const inverse = most > 0 ? f(1 / most) : 0;
    for (let i = begin; i < end; i++) {
      const x = f(f(scales[i]! - offset) * inverse);
      codes[i] = fine[Math.floor(f(f(f(x + 1) * 0.5) * (FINE - 1)) + 0.5)]!;
    }
  }
  return { codes, absmax, offset };
}

/** The scales that nested ones stand for. */
export function unnestScales(
  { codes, absmax, offset }: Nested,
  map: Float32Array = NESTED_MAP,
  block: number = NESTED_BLOCK,
): Float32Array {
  const f = Math.fround;
  const scales = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++)
    scales[i] = f(map[codes[i]!]! * absmax[Math.floor(i / block)]!) + offset;
  return scales;
}

/** max|x| of every block of `blocksize` values. */
export function blockScales(values: Float32Array, blocksize: number): Float32Array {
  const scales = new Float32Array(Math.ceil(values.length / blocksize));
  // Bits of magnitudes are in their order, and those of NaN above all others.
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const most = new Uint32Array(scales.buffer);
  for (let b = 0; b < most.length; b++) {
    const end = Math.min(values.length, (b + 1) * blocksize);
    let largest = 0;
    for (let i = b * blocksize; i < end; i++) {
      const magnitude = bits[i]! & 0x7fffffff;
      if (magnitude > largest) largest = magnitude;
    }
    most[b] = largest;
  }
  return scales;
}

/** Two codes a byte by the largest magnitudes of blocks; an odd last half is the code of 0. */
export function encode4(
  values: Float32Array,
  scales: Float32Array,
  blocksize: number,
  type: FourBitType,
): Uint8Array {
  const f = Math.fround;
  const limits = LIMITS[type];
  const order = ORDER[type];
  const packed = new Uint8Array(Math.ceil(values.length / 2));
  for (let b = 0; b < scales.length; b++) {
    const begin = b * blocksize;
    const end = Math.min(values.length, begin + blocksize);
    const most = Math.max(scales[b]!, f(1e-38));
    // A short last block is divided, as the library does it.
    const whole = end - begin === blocksize;
    const inverse = scales[b] === 0 ? 0 : f(1 / most);
    for (let i = begin; i < end; i++) {
      const x = whole || inverse === 0 ? f(values[i]! * inverse) : f(values[i]! / most);
      let at = x > limits[7]! ? 8 : 0;
      if (x > limits[at + 3]!) at += 4;
      if (x > limits[at + 1]!) at += 2;
      if (x > limits[at]!) at += 1;
      packed[i >> 1]! |= order[at]! << (i % 2 === 0 ? 4 : 0);
    }
  }
  if (values.length % 2 === 1) packed[packed.length - 1]! |= type === "nf4" ? 7 : 0;
  return packed;
}

/** table[code]·scale in float32. */
export function decode4(
  packed: Uint8Array,
  count: number,
  scales: Float32Array,
  blocksize: number,
  table: Float32Array,
): Float32Array {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const byte = packed[i >> 1]!;
    values[i] = table[i % 2 === 0 ? byte >> 4 : byte & 15]! * scales[Math.floor(i / blocksize)]!;
  }
  return values;
}

export interface Int8Rows {
  readonly codes: Int8Array;
  /** SCB: the largest magnitude of each row. */
  readonly scales: Float32Array;
}

/** SCB of rows of k values: rounding to float16 keeps their order, so it is that of the largest magnitude. */
function rowScales(values: Float32Array, k: number): Float32Array {
  return f16ToF32(f32ToF16(blockScales(values, k)));
}

/** Rows of k values as bytes; rows of zeros have scale and codes 0. */
export function encode8(values: Float32Array, k: number): Int8Rows {
  const f = Math.fround;
  const half = f16ToF32(f32ToF16(values));
  const scales = rowScales(values, k);
  const codes = new Int8Array(values.length);
  const grid = 12582912; // 1.5·2²³: adding it in float32 rounds to whole numbers, ties to even
  for (let row = 0; row < scales.length; row++) {
    const inverse = scales[row]! > 0 ? f(127 * f(1 / scales[row]!)) : 0;
    for (let i = row * k; i < (row + 1) * k; i++) codes[i] = f(f(half[i]! * inverse) + grid) - grid;
  }
  return { codes, scales };
}

/** code·(SCB/127) in float32. */
export function decode8({ codes, scales }: Int8Rows, k: number): Float32Array {
  const values = new Float32Array(codes.length);
  for (let row = 0; row < scales.length; row++) {
    const scale = Math.fround(scales[row]! / 127);
    for (let i = row * k; i < (row + 1) * k; i++) values[i] = codes[i]! * scale;
  }
  return values;
}

// ---- tensors of a file ----------------------------------------------------------------------------------------

/** Named tensors, wherever they lie. */
export interface TensorReader {
  readonly folder: string;
  has(name: string): boolean;
  names(): string[];
  shape(name: string): readonly number[];
  dtype(name: string): StoredDtype;
  bytes(name: string): number;
  read(name: string): Uint8Array;
  readFloat32(name: string): Float32Array;
}

/** What a folder says about one quantized tensor. */
export interface StoredFormat {
  readonly type: "int8" | FourBitType;
  readonly shape: readonly [n: number, k: number];
  /** Values that share a scale: k of int8. */
  readonly blocksize: number;
  /** The 16 values of a 4-bit type. */
  readonly table: Float32Array | null;
  readonly nested: { readonly blocksize: number; readonly offset: number } | null;
  /** All tensors that belong to it. */
  readonly names: readonly string[];
}

const REMEDY =
  "the folder is damaged, or was written after a forward pass changed the weights; save it again";
const BLOCKSIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/** The format of `name` (…weight) in a folder; null where it is stored as it is. */
export function storedFormat(from: TensorReader, name: string): StoredFormat | null {
  if (!from.has(name)) return null;
  if (from.dtype(name) === "I8") return int8Format(from, name);
  const type = (["nf4", "fp4"] as const).find((t) => from.has(stateName(name, t)));
  return type ? fourBitFormat(from, name, type) : null;
}

const stateName = (name: string, type: FourBitType) => `${name}.quant_state.bitsandbytes__${type}`;

function refuse(from: TensorReader, what: string): never {
  throw new UsageError(what, from.folder, REMEDY);
}

/** Asks that a tensor is there, of this type and number of elements. */
function need(from: TensorReader, name: string, dtype: StoredDtype, count: number): void {
  if (!from.has(name)) refuse(from, `missing ${name}`);
  const shape = from.shape(name);
  const got = shape.reduce((a, b) => a * b, 1);
  if (from.dtype(name) !== dtype || got !== count)
    refuse(from, `${name} is ${from.dtype(name)} [${shape}], expected ${count} of ${dtype}`);
}

function int8Format(from: TensorReader, name: string): StoredFormat {
  const stem = name.replace(/weight$/, "");
  const [scb, format] = [`${stem}SCB`, `${stem}weight_format`];
  const shape = from.shape(name);
  if (shape.length !== 2) refuse(from, `${name} has shape [${shape}]`);
  need(from, scb, "F32", shape[0]!);
  const names = [name, scb];
  if (from.has(format)) {
    need(from, format, "U8", 1);
    if (from.read(format)[0] !== 0)
      throw new UsageError(
        `${format} ${from.read(format)[0]} is not row-major`,
        from.folder,
        "save it again with a recent bitsandbytes",
      );
    names.push(format);
  }
  return {
    type: "int8",
    shape: shape as [number, number],
    blocksize: shape[1]!,
    table: null,
    nested: null,
    names,
  };
}

function fourBitFormat(from: TensorReader, name: string, type: FourBitType): StoredFormat {
  const state = stateName(name, type);
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(new TextDecoder().decode(from.read(state)));
  } catch {
    return refuse(from, `${state} is not JSON`);
  }
  const { shape, blocksize } = json as { shape?: unknown; blocksize?: number };
  if (
    json.quant_type !== type ||
    !Array.isArray(shape) ||
    shape.length !== 2 ||
    !shape.every((size) => Number.isSafeInteger(size) && size > 0) ||
    !BLOCKSIZES.includes(blocksize as number)
  )
    return refuse(from, `${state} says ${shown(json)}`);
  const count = shape[0] * shape[1];
  // Packed bytes may be stored as elements of another type (bnb_4bit_quant_storage).
  if (from.bytes(name) !== Math.ceil(count / 2))
    refuse(from, `${name} is ${from.bytes(name)} bytes, expected ${Math.ceil(count / 2)}`);
  const part = (suffix: string) => `${name}.${suffix}`;
  const blocks = Math.ceil(count / blocksize!);
  need(from, part("quant_map"), "F32", 16);
  const names = [name, state, part("quant_map"), part("absmax")];
  let nested: StoredFormat["nested"] = null;
  if ("nested_blocksize" in json) {
    const { nested_blocksize: size, nested_offset: offset } = json;
    if (!Number.isSafeInteger(size) || (size as number) < 1 || typeof offset !== "number")
      return refuse(from, `${state} says ${shown(json)}`);
    nested = { blocksize: size as number, offset };
    need(from, part("absmax"), "U8", blocks);
    need(from, part("nested_absmax"), "F32", Math.ceil(blocks / (size as number)));
    need(from, part("nested_quant_map"), "F32", 256);
    names.push(part("nested_absmax"), part("nested_quant_map"));
  } else need(from, part("absmax"), "F32", blocks);
  return {
    type,
    shape: shape as [number, number],
    blocksize: blocksize!,
    table: from.readFloat32(part("quant_map")),
    nested,
    names,
  };
}

/** Nested scales as they are stored; null where scales are float32. */
export function readNested(from: TensorReader, name: string, format: StoredFormat): Nested | null {
  if (!format.nested) return null;
  return {
    codes: from.read(`${name}.absmax`),
    absmax: from.readFloat32(`${name}.nested_absmax`),
    offset: Math.fround(format.nested.offset),
  };
}

/** SCB of int8; of 4-bit types the absmax of each block as dequantization uses it. */
export function readScales(from: TensorReader, name: string, format: StoredFormat): Float32Array {
  if (format.type === "int8") return from.readFloat32(format.names[1]!);
  const nested = readNested(from, name, format);
  if (!nested) return from.readFloat32(`${name}.absmax`);
  return unnestScales(nested, from.readFloat32(`${name}.nested_quant_map`), format.nested!.blocksize);
}

/** The values of a quantized tensor, row-major. */
export function dequantize(from: TensorReader, name: string, format: StoredFormat): Float32Array {
  const [n, k] = format.shape;
  const bytes = from.read(name);
  const scales = readScales(from, name, format);
  if (format.type === "int8") return decode8({ codes: new Int8Array(bytes.buffer), scales }, k);
  return decode4(bytes, n * k, scales, format.blocksize, format.table!);
}

/** What int8 and int4 (nf4, double quantization) are when weights are quantized here. */
export interface QuantizationScheme {
  readonly type: "int8" | "nf4";
  /** Scales of nf4 are quantized too. */
  readonly double: boolean;
}
const BLOCKSIZE = 64;

/** Scales of nf4 as kernels make them: blocks of nothing but tiny values count as zeros. */
function nf4Scales(values: Float32Array): Float32Array {
  return blockScales(values, BLOCKSIZE).map((x) => (x < NF4_SMALLEST ? 0 : x));
}

/** The values that are left of `values` [.., k]. */
export function roundTrip(
  values: Float32Array,
  k: number,
  { type, double }: QuantizationScheme,
): Float32Array {
  if (type === "int8") return decode8(encode8(values, k), k);
  const scales = nf4Scales(values);
  const packed = encode4(values, scales, BLOCKSIZE, "nf4");
  const used = double ? unnestScales(nestScales(scales)) : scales;
  return decode4(packed, values.length, used, BLOCKSIZE, TABLES.nf4);
}

/** A number as Python's json writes a float. */
function pythonFloat(x: number): string {
  const [digits, exponent] = x.toExponential().split("e") as [string, string];
  const e = Number(exponent);
  if (e >= -4 && e < 16) {
    const text = e < 0 ? x.toFixed(Math.max(0, digits.replace(/[-.]/g, "").length - 1 - e)) : String(x);
    return text.includes(".") ? text : `${text}.0`;
  }
  return `${digits}e${e < 0 ? "-" : "+"}${String(Math.abs(e)).padStart(2, "0")}`;
}

/** quant_state.bitsandbytes__nf4: JSON as Python spells it. */
export function quantState(
  type: FourBitType,
  blocksize: number,
  shape: readonly number[],
  dtype: string,
  nested: Nested | null,
): Uint8Array {
  const fields = [
    `"quant_type": "${type}"`,
    `"blocksize": ${blocksize}`,
    `"dtype": "${dtype}"`,
    `"shape": [${shape.join(", ")}]`,
  ];
  if (nested)
    fields.push(
      `"nested_blocksize": ${NESTED_BLOCK}`,
      '"nested_dtype": "float32"',
      `"nested_offset": ${pythonFloat(nested.offset)}`,
    );
  return new TextEncoder().encode(`{${fields.join(", ")}}`);
}

const bytesOf = (values: Float32Array | Int8Array | Uint8Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/**
 * The tensors in the place of `name` [n, k], whose values `read` gives: scales are made here, codes when they are
 * written. `dtype`: what the values are stored as now.
 */
export function quantizedTensors(
  name: string,
  shape: readonly [n: number, k: number],
  dtype: string,
  { type, double }: QuantizationScheme,
  read: () => Float32Array,
): TensorSource[] {
  const [n, k] = shape;
  const small = (
    key: string,
    dt: StoredDtype,
    size: readonly number[],
    values: Float32Array | Uint8Array,
  ) => ({
    name: key,
    dtype: dt,
    shape: size,
    data: bytesOf(values),
  });
  const check = (scales: Float32Array) => {
    if (scales.every(Number.isFinite)) return;
    const what = type === "int8" ? "not finite, or beyond float16" : "not finite";
    throw new UsageError(`weights that are ${what}`, name, "they cannot be quantized");
  };
  if (type === "int8") {
    const stem = name.replace(/weight$/, "");
    const scales = rowScales(read(), k);
    check(scales);
    return [
      { name, dtype: "I8", shape, data: () => bytesOf(encode8(read(), k).codes) },
      small(`${stem}SCB`, "F32", [n], scales),
      small(`${stem}weight_format`, "U8", [], new Uint8Array(1)),
    ];
  }
  const scales = nf4Scales(read());
  check(scales);
  const nested = double ? nestScales(scales) : null;
  const state = quantState("nf4", BLOCKSIZE, shape, dtype, nested);
  const packed = Math.ceil((n * k) / 2);
  return [
    { name, dtype: "U8", shape: [packed, 1], data: () => encode4(read(), scales, BLOCKSIZE, "nf4") },
    ...(nested
      ? [
          small(`${name}.absmax`, "U8", [scales.length], nested.codes),
          small(`${name}.nested_absmax`, "F32", [nested.absmax.length], nested.absmax),
          small(`${name}.nested_quant_map`, "F32", [NESTED_MAP.length], NESTED_MAP),
        ]
      : [small(`${name}.absmax`, "F32", [scales.length], scales)]),
    small(`${name}.quant_map`, "F32", [16], TABLES.nf4),
    small(stateName(name, "nf4"), "U8", [state.length], state),
  ];
}
