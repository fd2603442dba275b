/** Published figures of Apple's GPUs with all their cores: GB/s of memory, TFLOP/s of float32. */
export interface Chip {
  readonly name: string;
  readonly gbps: number;
  readonly tflops: number;
}

/**
 * Bandwidth: Apple's specifications. Arithmetic: cores x 128 ALUs x 2 x clock; where sources differ, the lower one.
 * bfloat16 products run on the float32 pipes of M1 to M4; the tensor units of M5 are not used.
 */
export const CHIPS: readonly Chip[] = [
  { name: "M1", gbps: 68, tflops: 2.6 },
  { name: "M1 Pro", gbps: 205, tflops: 5.3 },
  { name: "M1 Max", gbps: 410, tflops: 10.6 },
  { name: "M1 Ultra", gbps: 819, tflops: 21.2 },
  { name: "M2", gbps: 102, tflops: 3.6 },
  { name: "M2 Pro", gbps: 205, tflops: 6.8 },
  { name: "M2 Max", gbps: 410, tflops: 13.6 },
  { name: "M2 Ultra", gbps: 819, tflops: 27.2 },
  { name: "M3", gbps: 102, tflops: 3.5 },
  { name: "M3 Pro", gbps: 154, tflops: 6.4 },
  { name: "M3 Max", gbps: 410, tflops: 14.2 },
  { name: "M3 Ultra", gbps: 819, tflops: 28 },
  { name: "M4", gbps: 120, tflops: 3.6 },
  { name: "M4 Pro", gbps: 273, tflops: 8.1 },
  { name: "M4 Max", gbps: 546, tflops: 16 },
  { name: "M5", gbps: 153, tflops: 4 },
  { name: "M5 Pro", gbps: 307, tflops: 8 },
  { name: "M5 Max", gbps: 614, tflops: 18 },
];

/** Of the published peak, what matrix products of this kind have been measured to reach on Apple GPUs. */
export const REACHED = 0.8;
/** Seconds from one dispatch to the next that depends on it, as others measured them. */
export const DISPATCH_SECONDS = 5e-6;
