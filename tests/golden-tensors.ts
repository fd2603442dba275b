import { readFileSync } from "node:fs";
import { join } from "node:path";

/** One tensor of a golden case, its values widened to float64 (I64 must fit 2^53). */
export interface GoldenTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

type Read = (view: DataView, at: number) => number;

const bits = new DataView(new ArrayBuffer(4));

function bfloat16(half: number): number {
  bits.setUint32(0, half * 65536);
  return bits.getFloat32(0);
}

/** IEEE 754 binary16, subnormals and infinities included. */
function float16(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function exact(value: bigint): number {
  const wide = Number(value);
  if (!Number.isSafeInteger(wide)) throw new Error(`I64 value beyond 2^53: ${value}`);
  return wide;
}

const readers: Readonly<Record<string, { bytes: number; read: Read }>> = {
  F64: { bytes: 8, read: (view, at) => view.getFloat64(at, true) },
  F32: { bytes: 4, read: (view, at) => view.getFloat32(at, true) },
  F16: { bytes: 2, read: (view, at) => float16(view.getUint16(at, true)) },
  BF16: { bytes: 2, read: (view, at) => bfloat16(view.getUint16(at, true)) },
  I64: { bytes: 8, read: (view, at) => exact(view.getBigInt64(at, true)) },
  I32: { bytes: 4, read: (view, at) => view.getInt32(at, true) },
  I8: { bytes: 1, read: (view, at) => view.getInt8(at) },
  U8: { bytes: 1, read: (view, at) => view.getUint8(at) },
  BOOL: { bytes: 1, read: (view, at) => view.getUint8(at) },
};

/**
 * Tensors of `dir/expected.safetensors`, or of another file of that folder. Independent of src/io on purpose:
 * tests must not read their truth through the code under test.
 */
export function loadTensors(dir: string, file = "expected.safetensors"): Map<string, GoldenTensor> {
  const bytes = readFileSync(join(dir, file));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerLength = exact(view.getBigInt64(0, true));
  const header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }> =
    JSON.parse(bytes.subarray(8, 8 + headerLength).toString("utf8"));
  const tensors = new Map<string, GoldenTensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const reader = readers[entry.dtype];
    if (!reader) throw new Error(`${join(dir, file)}: tensor ${name}: dtype ${entry.dtype} is not read here`);
    const [begin, end] = entry.data_offsets;
    const count = entry.shape.reduce((product, size) => product * size, 1);
    if (end - begin !== count * reader.bytes)
      throw new Error(`${join(dir, file)}: tensor ${name}: wrong size`);
    const data = new Float64Array(count);
    for (let i = 0; i < count; i++) data[i] = reader.read(view, 8 + headerLength + begin + i * reader.bytes);
    tensors.set(name, { dtype: entry.dtype, shape: entry.shape, data });
  }
  return tensors;
}
