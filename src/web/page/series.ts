/** A metric of a run as it is here. */
export interface Series {
  readonly step: number[];
  /** Seconds since the run's first row. */
  readonly time: number[];
  /** Examples trained on so far; null where the row does not say it. */
  readonly examples: (number | null)[];
  readonly value: (number | null)[];
  /** Only some of its first values are here. */
  readonly thinned: boolean;
}

/** Exponential moving average as TensorBoard has it: m = s·m + (1−s)·y, divided by 1−s^n. */
export function smoothed(y: readonly (number | null)[], weight: number): (number | null)[] {
  let mean = 0;
  let seen = 0;
  return y.map((value) => {
    if (value === null || !Number.isFinite(value)) return null;
    mean = weight * mean + (1 - weight) * value;
    seen += 1;
    return mean / (1 - weight ** seen);
  });
}

/** A band around values; where its half height is not known it is none. */
export function around(middle: readonly (number | null)[], half: readonly (number | null)[]) {
  const edge = (sign: number) => middle.map((v, i) => (v === null ? null : v + sign * (half[i] ?? 0)));
  return { low: edge(-1), high: edge(1) };
}

/** Examples at every place; where a row does not say them (an evaluation), those of the row before. */
export function examplesOf(series: Series): number[] {
  let last = 0;
  return series.step.map((_, at) => {
    last = series.examples[at] ?? last;
    return last;
  });
}

export const countsExamples = (series: Series): boolean => series.examples.some((each) => each !== null);
