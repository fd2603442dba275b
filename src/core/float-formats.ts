import { assert } from "./errors.ts";

/**
 * bfloat16 and IEEE 754 binary16 against float32, in bulk. Widening is exact; narrowing rounds to nearest,
 * ties to even. Values are carried as their 16-bit patterns.
 */

// Typed arrays are read and written as the little-endian bytes of every file format here.
assert(new Uint8Array(new Uint16Array([1]).buffer)[0] === 1, "rlv runs on little-endian machines only");

/** float32 of each bfloat16 pattern. `target`, if given, has the length of `source`. */
export function bf16ToF32(
  source: Uint16Array,
  target: Float32Array = new Float32Array(source.length),
): Float32Array {
  assert(target.length === source.length, `bf16ToF32: ${source.length} values into ${target.length}`);
  const bits = new Uint32Array(target.buffer, target.byteOffset, target.length);
  for (let i = 0; i < source.length; i++) bits[i] = source[i]! << 16;
  return target;
}

/** bfloat16 patterns of float32 values; NaN stays NaN (quiet, sign kept), overflow rounds to infinity. */
export function f32ToBf16(
  source: Float32Array,
  target: Uint16Array = new Uint16Array(source.length),
): Uint16Array {
  assert(target.length === source.length, `f32ToBf16: ${source.length} values into ${target.length}`);
  const bits = new Uint32Array(source.buffer, source.byteOffset, source.length);
  for (let i = 0; i < source.length; i++) {
    const word = bits[i]!;
    // A NaN whose payload lies in the low half would round to infinity.
    if ((word & 0x7fffffff) > 0x7f800000) target[i] = (word >>> 16) | 0x40;
    else target[i] = (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return target;
}

/** float32 of each binary16 pattern. */
export function f16ToF32(
  source: Uint16Array,
  target: Float32Array = new Float32Array(source.length),
): Float32Array {
  assert(target.length === source.length, `f16ToF32: ${source.length} values into ${target.length}`);
  target.set(new Float16Array(source.buffer, source.byteOffset, source.length));
  return target;
}

/** binary16 patterns of float32 values; beyond 65504 + half a step it is infinity. */
export function f32ToF16(
  source: Float32Array,
  target: Uint16Array = new Uint16Array(source.length),
): Uint16Array {
  assert(target.length === source.length, `f32ToF16: ${source.length} values into ${target.length}`);
  new Float16Array(target.buffer, target.byteOffset, target.length).set(source);
  return target;
}
