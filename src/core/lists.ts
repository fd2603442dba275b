export function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** The mean; NaN of nothing. */
export function mean(values: readonly number[]): number {
  return sum(values) / values.length;
}

/** At most `most` of a list, evenly spread over it. */
export function evenly<T>(list: readonly T[], most: number): T[] {
  const count = Math.min(most, list.length);
  return Array.from({ length: count }, (_, i) => list[Math.floor((i * list.length) / count)]!);
}

/** A list in at most `most` parts of about the same length, in order. */
export function parts<T>(list: readonly T[], most: number): T[][] {
  const count = Math.min(most, list.length);
  const edge = (i: number) => Math.floor((i * list.length) / count);
  return Array.from({ length: count }, (_, i) => list.slice(edge(i), edge(i + 1)));
}
