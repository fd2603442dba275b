/**
 * Philox4x32-10 (Salmon et al., SC 2011): counter-based random numbers. A draw is a pure function of
 * (seed, purpose, step, prompt, completion, position), so any batch, order or number of processes
 * draws the same. The native sampler has the same function; a test compares the two.
 */
const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

function mulHiLo(a: number, b: number): [hi: number, lo: number] {
  const lo = Math.imul(a, b) >>> 0;
  const ah = a >>> 16;
  const al = a & 0xffff;
  const bh = b >>> 16;
  const bl = b & 0xffff;
  const mid = ah * bl + ((al * bl) >>> 16);
  const mid2 = al * bh + (mid % 65536);
  const hi = (ah * bh + Math.floor(mid / 65536) + Math.floor(mid2 / 65536)) >>> 0;
  return [hi, lo];
}

export function philox(
  key0: number,
  key1: number,
  c0: number,
  c1: number,
  c2: number,
  c3: number,
): [number, number, number, number] {
  let k0 = key0 >>> 0;
  let k1 = key1 >>> 0;
  let x0 = c0 >>> 0;
  let x1 = c1 >>> 0;
  let x2 = c2 >>> 0;
  let x3 = c3 >>> 0;
  for (let round = 0; round < 10; round++) {
    const [hi0, lo0] = mulHiLo(M0, x0);
    const [hi1, lo1] = mulHiLo(M1, x2);
    const y0 = (hi1 ^ x1 ^ k0) >>> 0;
    const y2 = (hi0 ^ x3 ^ k1) >>> 0;
    x0 = y0;
    x1 = lo1;
    x2 = y2;
    x3 = lo0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return [x0, x1, x2, x3];
}

/** What a random number is for; the second key word. Values are part of the reproducibility contract. */
export const Purpose = {
  rollout: 1,
  evaluation: 2,
  shuffle: 3,
  init: 4,
  data: 5,
  generate: 6,
  dropout: 7,
  labels: 8,
} as const;
export type Purpose = (typeof Purpose)[keyof typeof Purpose];

/** Uniform in (0, 1): never 0 and never 1. */
export function uniform(word: number): number {
  return ((word >>> 0) + 0.5) / 4294967296;
}

/** A sequential view of one Philox stream, for shuffles and initial weights. */
export class Random {
  #block: [number, number, number, number] = [0, 0, 0, 0];
  #next = 4;
  #counter = 0;
  constructor(
    readonly seed: number,
    readonly purpose: Purpose,
    readonly a = 0,
    readonly b = 0,
  ) {}

  word(): number {
    if (this.#next === 4) {
      this.#block = philox(this.seed, this.purpose, this.#counter, this.a, this.b, 0);
      this.#counter += 1;
      this.#next = 0;
    }
    return this.#block[this.#next++]!;
  }

  uniform(): number {
    return uniform(this.word());
  }

  /** Uniform integer in [0, n), unbiased by rejection. */
  below(n: number): number {
    const limit = Math.floor(4294967296 / n) * n;
    for (;;) {
      const word = this.word();
      if (word < limit) return word % n;
    }
  }

  /** One of a list, each as likely. */
  oneOf<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }

  /** Standard normal by Box-Muller. */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Fisher-Yates: a permutation of 0..n-1. */
  permutation(n: number): Int32Array {
    const order = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const swap = order[i]!;
      order[i] = order[j]!;
      order[j] = swap;
    }
    return order;
  }
}
