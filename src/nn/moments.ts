/**
 * AdamW's moments between float32, as checkpoints hold them, and 8-bit codes (src/ops/optimizer.ts), and between
 * row-major order and the packed layout. Codes are rounded to nearest here: stored values get their bytes again.
 */
import { Dtype, type DtypeCode, MOMENT_BLOCK, PANEL, packedLength } from "../ops/define.ts";

const SHIFT = 20;
const ONE = 0x3f800000;
/** Codes of m (without its sign) and of v; the largest is 1. */
const CODES = [127, 255] as const;
const LEAST_SCALE = 2 ** -90;
const LARGEST = 2 ** 126;

/** What codes stand for, relative to the scale; those of m from 128 on are negative. */
const VALUES = CODES.map((codes, which) => {
  const bits = Uint32Array.from({ length: 256 }, (_, code) => {
    const k = which === 0 ? code & 127 : code;
    const sign = which === 0 && code > 127 ? 0x80000000 : 0;
    return k === 0 ? 0 : sign + ONE - ((codes - k) << SHIFT);
  });
  return new Float32Array(bits.buffer);
});

/** float32 of codes of m (`which` 0) or v (1). */
export function decodeMoments(codes: Uint8Array, scales: Float32Array, which: 0 | 1): Float32Array {
  const values = VALUES[which]!;
  return Float32Array.from(codes, (code, i) => scales[Math.floor(i / MOMENT_BLOCK)]! * values[code]!);
}

/** Codes and scales of values in the order of packed memory. */
export function encodeMoments(
  values: Float32Array,
  which: 0 | 1,
  codes: Uint8Array,
  scales: Float32Array,
): void {
  for (let begin = 0; begin < values.length; begin += MOMENT_BLOCK) {
    const end = begin + MOMENT_BLOCK;
    scales[begin / MOMENT_BLOCK] = encodeBlock(
      values.subarray(begin, end),
      which,
      codes.subarray(begin, end),
    );
  }
}

/** Codes of one block; returns its scale. */
function encodeBlock(values: Float32Array, which: 0 | 1, codes: Uint8Array): number {
  let largest = 0;
  for (const x of values) largest = Math.max(largest, Math.abs(x));
  let scale = Math.min(largest, LARGEST);
  if (scale < LEAST_SCALE) scale = which === 1 && scale > 0 ? LEAST_SCALE : 0;
  if (scale === 0) {
    codes.fill(0);
    return 0;
  }
  const parts = values.map((x) => Math.min(Math.abs(x) / scale, 1));
  const bits = new Int32Array(parts.buffer);
  const least = VALUES[which]![1]!;
  for (let i = 0; i < values.length; i++) {
    let k = (bits[i]! - ONE + (CODES[which] << SHIFT) + (1 << (SHIFT - 1))) >> SHIFT;
    // A v that is not 0 stays so.
    if (parts[i]! < least) k = (which === 1 ? values[i]! > 0 : parts[i]! >= least / 2) ? 1 : 0;
    codes[i] = which === 0 && k > 0 && values[i]! < 0 ? k | 128 : k;
  }
  return scale;
}

/** Calls visit(packed, row, column) with the indices of every element of an [n, k] matrix. */
function forElements(
  n: number,
  k: number,
  layout: DtypeCode,
  visit: (packed: number, row: number, col: number) => void,
): void {
  const pairs = layout === Dtype.bf16;
  const depth = pairs ? Math.ceil(k / 2) * 2 : k;
  for (let panel = 0; panel < n; panel += PANEL)
    for (let col = 0; col < k; col++) {
      const first = panel * depth + (pairs ? (col >> 1) * 2 * PANEL + (col & 1) : col * PANEL);
      for (let row = panel; row < Math.min(panel + PANEL, n); row++)
        visit(first + (row - panel) * (pairs ? 2 : 1), row, col);
    }
}

/** Row-major [n, k] values in the packed layout of dtype `layout`, padding zero. */
export function packRows(values: Float32Array, n: number, k: number, layout: DtypeCode): Float32Array {
  const out = new Float32Array(packedLength(n, k, layout));
  forElements(n, k, layout, (packed, row, col) => {
    out[packed] = values[row * k + col]!;
  });
  return out;
}

export function unpackRows(values: Float32Array, n: number, k: number, layout: DtypeCode): Float32Array {
  const out = new Float32Array(n * k);
  forElements(n, k, layout, (packed, row, col) => {
    out[row * k + col] = values[packed]!;
  });
  return out;
}

/** The sum of squares, in float64, of every row or every column of packed [n, k] values. */
export function packedSquares(
  values: Float32Array,
  n: number,
  k: number,
  layout: DtypeCode,
  of: "rows" | "columns",
): Float64Array {
  const sums = new Float64Array(of === "rows" ? n : k);
  forElements(n, k, layout, (packed, row, col) => {
    sums[of === "rows" ? row : col]! += values[packed]! ** 2;
  });
  return sums;
}
