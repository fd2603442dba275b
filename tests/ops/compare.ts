/** How far two results are apart, and how far they may be. */
import type { Case } from "./run.ts";
import { type Data, type Element, valuesOf } from "./tensors.ts";

/** Largest relative error of one rounding to nearest. */
export const roundoff: Readonly<Partial<Record<Element, number>>> = {
  f64: 2 ** -53,
  f32: 2 ** -24,
  bf16: 2 ** -9,
};

/** The coarsest float type that a case stores anything in. */
export function coarsest(c: Case): Element {
  return Object.values(c.tensors).some((data) => data?.element === "bf16") ? "bf16" : "f32";
}

function norm(values: Float64Array): number {
  let sum = 0;
  for (const x of values) sum += x * x;
  return Math.sqrt(sum);
}

/**
 * The larger of the relative distance in the 2-norm and the largest difference relative to the largest value, or
 * to `terms` where the values are smaller; infinite where exactly one of two values is NaN or infinite.
 */
export function distance(got: Float64Array, want: Float64Array, terms = 0): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  const difference = new Float64Array(want.length);
  let largest = 0;
  let value = terms;
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i]!, want[i]!];
    if (Object.is(a, b) || a === b) continue;
    if (!Number.isFinite(a) || !Number.isFinite(b)) return Number.POSITIVE_INFINITY;
    difference[i] = a - b;
    largest = Math.max(largest, Math.abs(a - b));
  }
  const finite = want.filter(Number.isFinite);
  for (const x of finite) value = Math.max(value, Math.abs(x));
  if (largest === 0) return 0;
  const size = Math.max(norm(finite), terms * Math.sqrt(finite.length));
  return Math.max(largest / value, norm(difference) / size);
}

export function sameBits(a: Readonly<Record<string, Data>>, b: Readonly<Record<string, Data>>): boolean {
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length &&
    names.every((name) => b[name] !== undefined && Buffer.compare(a[name]!.bytes, b[name]!.bytes) === 0)
  );
}

/** Whether two stored results agree bit for bit, one NaN being as good as another. */
export function sameValues(a: Data, b: Data): boolean {
  const [x, y] = [valuesOf(a), valuesOf(b)];
  return x.length === y.length && x.every((value, i) => Object.is(value, y[i]));
}
