/** Host copies of operation arguments: typed bytes, random values, the packed layout. */
import { f32ToBf16 } from "../../src/core/float-formats.ts";
import { Purpose, Random } from "../../src/core/rng.ts";
import { bytesNeeded } from "../../src/device/device.ts";
import { Dtype, MomentDtype, type OpDef, PANEL, packedLength } from "../../src/ops/define.ts";

export type Element = "f32" | "bf16" | "u32" | "i16" | "f64" | "u8";

export const elementBytes: Readonly<Record<Element, number>> = {
  f32: 4,
  bf16: 2,
  u32: 4,
  i16: 2,
  f64: 8,
  u8: 1,
};

export interface Data {
  readonly element: Element;
  readonly bytes: Uint8Array;
}

export type Params = Readonly<Record<string, number>>;

const bytesOf = (array: ArrayBufferView) =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength).slice();

export function u32(values: Iterable<number>): Data {
  return { element: "u32", bytes: bytesOf(Uint32Array.from(values)) };
}
export function f64(values: Iterable<number>): Data {
  return { element: "f64", bytes: bytesOf(Float64Array.from(values)) };
}
export function i16(values: Iterable<number>): Data {
  return { element: "i16", bytes: bytesOf(Int16Array.from(values)) };
}
export function floats(element: "f32" | "bf16", values: Iterable<number>): Data {
  const wide = Float32Array.from(values);
  return { element, bytes: bytesOf(element === "f32" ? wide : f32ToBf16(wide)) };
}
export const f32 = (values: Iterable<number>) => floats("f32", values);

/** Every element as float64. */
export function valuesOf(data: Data): Float64Array {
  const { buffer } = data.bytes.slice();
  switch (data.element) {
    case "f32":
      return Float64Array.from(new Float32Array(buffer));
    case "bf16": {
      const halves = new Uint16Array(buffer);
      return Float64Array.from(new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer));
    }
    case "u32":
      return Float64Array.from(new Uint32Array(buffer));
    case "i16":
      return Float64Array.from(new Int16Array(buffer));
    case "f64":
      return new Float64Array(buffer);
    case "u8":
      return Float64Array.from(new Uint8Array(buffer));
  }
}

/** The same values moved by `change`, in the same element type. */
export function mapped(data: Data, change: (value: number, index: number) => number): Data {
  const values = Array.from(valuesOf(data), change);
  if (data.element === "u32") return u32(values);
  if (data.element === "f64") return f64(values);
  if (data.element === "f32" || data.element === "bf16") return floats(data.element, values);
  throw new Error(`no arithmetic on ${data.element}`);
}

export function random(seed: string): Random {
  return new Random(Number(Bun.hash(seed) & 0xffffffffn), Purpose.data);
}

export function normals(rng: Random, n: number, scale = 1, mean = 0): number[] {
  return Array.from({ length: n }, () => mean + scale * rng.normal());
}

/** Tensors of 4-byte elements that are integers; all others are float32. */
const INTEGERS = new Set([
  "ids",
  "index",
  "targets",
  "segs",
  "pages",
  "positions",
  "slots",
  "table",
  "lens",
  "pairs",
  "counters",
  "routes",
]);

const dtypeName = (code: number | undefined): "f32" | "bf16" => (code === Dtype.bf16 ? "bf16" : "f32");
export const u8 = (values: Iterable<number>): Data => ({ element: "u8", bytes: Uint8Array.from(values) });

/** Element type of an operation's tensor, from how its size is written. */
export function elementOf(op: OpDef, tensor: string, params: Params): Element {
  const { bytes } = op.tensors[tensor]!;
  const sized = /size\((\w+)\)/.exec(bytes);
  if (sized) return params[sized[1]!] === MomentDtype.f8 ? "u8" : dtypeName(params[sized[1]!]);
  if (/\*8$/.test(bytes) && !INTEGERS.has(tensor)) return "f64";
  if (/\*2$/.test(bytes)) return "i16";
  if (bytes === "n" || bytes.startsWith("quant_bytes")) return "u8";
  return INTEGERS.has(tensor) ? "u32" : "f32";
}

/** Rows, columns and layout dtype of a packed matrix; null for any other tensor. */
export function packedShape(
  op: OpDef,
  tensor: string,
  params: Params,
): { n: number; k: number; dt: number } | null {
  const match = /packed_len\((\w+),(\w+),(\w+)\)/.exec(op.tensors[tensor]!.bytes);
  if (!match) return null;
  return { n: params[match[1]!]!, k: params[match[2]!]!, dt: params[match[3]!]! };
}

export function packedIndex(row: number, col: number, k: number, dt: number): number {
  const panel = Math.floor(row / PANEL);
  const lane = row % PANEL;
  if (dt !== Dtype.bf16) return (panel * k + col) * PANEL + lane;
  return ((panel * Math.ceil(k / 2) + (col >> 1)) * PANEL + lane) * 2 + (col % 2);
}

/** Row-major [n, k] values in the packed layout, padding zero. */
export function packed(
  values: ArrayLike<number>,
  n: number,
  k: number,
  dt: number,
  element = dtypeName(dt),
): Data {
  const out = new Float32Array(packedLength(n, k, dt));
  for (let row = 0; row < n; row++)
    for (let col = 0; col < k; col++) out[packedIndex(row, col, k, dt)] = values[row * k + col]!;
  return floats(element, out);
}

/** Normal values in the shape and layout of a float tensor. */
export function randomTensor(op: OpDef, tensor: string, params: Params, rng: Random): Data {
  const element = elementOf(op, tensor, params);
  if (element !== "f32" && element !== "bf16") throw new Error(`${op.name}: the case must give ${tensor}`);
  const shape = packedShape(op, tensor, params);
  if (shape) return packed(normals(rng, shape.n * shape.k), shape.n, shape.k, shape.dt, element);
  return floats(
    element,
    normals(rng, bytesNeeded(op, tensor, params as Record<string, number>) / elementBytes[element]),
  );
}
