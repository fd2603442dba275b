/**
 * Estimators of KL(pi || pi_ref) from one sampled token, d = log pi - log pi_ref (Schulman, "Approximating KL
 * divergence", 2020), as loss terms:
 *
 * | name | value | derivative by log pi |
 * |---|---|---|
 * | k1 | d | 1 (no signal in expectation: fine as a metric, useless as a loss) |
 * | k2 | d^2 / 2 | d |
 * | k3 | exp(-d) + d - 1 | 1 - exp(-d) |
 * | k3_ratio | r k3, r = pi / pi_old | r (1 - exp(-d) + k3), which is d at r = 1: k2's gradient |
 *
 * k3_ratio is TRL's use_bias_correction_kl, on by default there since 2026-07.
 */
export const KL_ESTIMATORS = ["k1", "k2", "k3", "k3_ratio"] as const;
export type KlEstimator = (typeof KL_ESTIMATORS)[number];

/** Value of the estimator without any ratio: k3_ratio gives its k3 factor. */
export function klValue(estimator: KlEstimator, d: number): number {
  if (estimator === "k1") return d;
  if (estimator === "k2") return 0.5 * d * d;
  // expm1 keeps k3 accurate (and never negative) where pi is close to pi_ref
  return Math.expm1(-d) + d;
}

/** d klValue / d log pi. */
export function klSlope(estimator: KlEstimator, d: number): number {
  if (estimator === "k1") return 1;
  if (estimator === "k2") return d;
  return -Math.expm1(-d);
}
