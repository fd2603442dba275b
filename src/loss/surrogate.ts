import type { PolicyOptions } from "./options.ts";

/** Value of a surrogate loss and its derivative by the log ratio; clip flags for the metrics. */
export interface Surrogate {
  value: number;
  slope: number;
  /** The ratio fell below the clip range and A < 0. */
  low: boolean;
  /** The ratio rose above the clip range (cispo: the cap) and A > 0. */
  high: boolean;
}

/** PPO's clipped objective, -min(min(r, delta) A, clip(r, 1 - low, 1 + high) A); delta bounds r where A < 0. */
export function clippedSurrogate(
  out: Surrogate,
  ratio: number,
  advantage: number,
  low: number,
  high: number,
  delta: number | null,
): void {
  const floor = 1 - low;
  const ceiling = 1 + high;
  const capped = delta === null ? ratio : Math.min(ratio, delta);
  const plain = capped * advantage;
  const clipped = Math.min(Math.max(ratio, floor), ceiling) * advantage;
  const plainMoves = delta === null || ratio <= delta ? 1 : 0;
  const clippedMoves = ratio >= floor && ratio <= ceiling ? 1 : 0;
  // On a tie autograd splits the gradient between the two branches.
  const moves =
    plain < clipped ? plainMoves : plain > clipped ? clippedMoves : (plainMoves + clippedMoves) / 2;
  out.value = -Math.min(plain, clipped);
  out.slope = moves === 0 ? 0 : -moves * ratio * advantage;
  out.low = capped < floor && advantage < 0;
  out.high = capped > ceiling && advantage > 0;
}

/** SAPO (arXiv 2511.20347): -A sigmoid(tau (r - 1)) 4 / tau, a soft gate with its own temperature for each sign. */
export function softSurrogate(out: Surrogate, ratio: number, advantage: number, tau: number): void {
  const gate = 1 / (1 + Math.exp(-tau * (ratio - 1)));
  out.value = (-advantage * gate * 4) / tau;
  const slope = gate * (1 - gate);
  out.slope = slope === 0 ? 0 : -advantage * 4 * slope * ratio;
  out.low = false;
  out.high = false;
}

const LOG_FLOOR = Math.log(1e-8);
const LOG_CEILING = 20;

/**
 * VESPO's gamma weight phi(w) = exp(lambda + k log w - lambda w), phi(1) = 1, of the sequence ratio w; no gradient.
 * `logRatio` = sum over the row's tokens of the log ratio, each clamped to +-20 by the caller.
 */
export function gammaWeight(options: PolicyOptions, logRatio: number, advantage: number): number {
  const logW = Math.min(Math.max(logRatio, LOG_FLOOR), LOG_CEILING);
  const { kPos, lambdaPos, kNeg, lambdaNeg } = options.vespo;
  const k = advantage >= 0 ? kPos : kNeg;
  const lambda = Math.max(advantage >= 0 ? lambdaPos : lambdaNeg, 1e-4);
  const phi = Math.exp(lambda + k * logW - lambda * Math.exp(logW));
  return Number.isFinite(phi) ? phi : 0;
}

export function clampLogRatio(value: number): number {
  return Math.min(Math.max(value, -LOG_CEILING), LOG_CEILING);
}
