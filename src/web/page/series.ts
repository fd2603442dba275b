/** A metric of a run as it is here. */
export interface Series {
  readonly step: number[];
  /** Seconds since the run's first row. */
  readonly time: number[];
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

/** Between two steps that say it, in proportion: thinned curves need not have the same steps. */
export function examplesAt({ step, value }: Series, at: number): number {
  let [low, high] = [0, step.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (step[middle]! < at) low = middle + 1;
    else high = middle;
  }
  const [x1, y1] = [step[low]!, value[low] ?? 0];
  if (x1 === at) return y1;
  // Evaluations before the first step, or behind the last, lie on the line of their neighbours.
  const [x0, y0] = low === 0 ? [0, 0] : [step[low - 1]!, value[low - 1] ?? 0];
  return x1 === x0 ? y1 : y0 + ((y1 - y0) * (at - x0)) / (x1 - x0);
}
