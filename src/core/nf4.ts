/** Constants of nf4 (Dettmers et al. 2023), as bitsandbytes has them: shared by file formats and kernels. */

/** Values of an nf4 weight along k that share a scale on a device. */
export const QUANT_BLOCK = 64;
/** The 16 values of nf4: quantiles of the normal distribution, bitsandbytes' table. */
export const NF4_CODES: readonly number[] = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
];
/** A value above NF4_LIMITS[i] has a code above i: midpoints in float32, as bitsandbytes' CPU library has them. */
export const NF4_LIMITS: readonly number[] = NF4_CODES.slice(1).map((code, i) =>
  Math.fround((NF4_CODES[i]! + code) / 2),
);
/**
 * A block whose largest magnitude is below this counts as zeros where models are quantized: GPUs may take subnormal
 * numbers for 0, and above this no subnormal one has another code than 0.
 */
export const NF4_SMALLEST = 2 ** -120;
