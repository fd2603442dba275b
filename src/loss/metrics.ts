import type { PolicyOptions } from "./options.ts";

/** Sums over the tokens and rows that count, so that micro-batches add up exactly. */
export interface PolicyTally {
  /** Policy term of the loss as scaled there (without KL and entropy); compat trl: L as TRL logs it, KL included. */
  policyLoss: number;
  tokens: number;
  rows: number;
  parts: number;
  entropy: number;
  /** Tokens whose entropy is known. */
  entropyTokens: number;
  /** The KL term before beta: per token, except reinforce_kl2's, which is per row. */
  kl: number;
  klCount: number;
  k1: number;
  k2: number;
  k3: number;
  lowClipped: number;
  highClipped: number;
  /** What the clip counts are shares of: tokens, or rows where the ratio is per row. */
  clipUnits: number;
  /** Smallest share of low-clipped units of a row, largest share of high-clipped ones. */
  lowMin: number;
  highMax: number;
  phi: number;
  droppedRows: number;
}

export function emptyTally(): PolicyTally {
  return {
    policyLoss: 0,
    tokens: 0,
    rows: 0,
    parts: 0,
    entropy: 0,
    entropyTokens: 0,
    kl: 0,
    klCount: 0,
    k1: 0,
    k2: 0,
    k3: 0,
    lowClipped: 0,
    highClipped: 0,
    clipUnits: 0,
    lowMin: Number.POSITIVE_INFINITY,
    highMax: Number.NEGATIVE_INFINITY,
    phi: 0,
    droppedRows: 0,
  };
}

/** Tally of several micro-batches of one optimizer step. */
export function addTallies(tallies: readonly PolicyTally[]): PolicyTally {
  const total = emptyTally();
  for (const tally of tallies) {
    for (const key of Object.keys(total) as (keyof PolicyTally)[]) {
      if (key === "lowMin") total.lowMin = Math.min(total.lowMin, tally.lowMin);
      else if (key === "highMax") total.highMax = Math.max(total.highMax, tally.highMax);
      else total[key] += tally[key];
    }
  }
  return total;
}

const CLIPPED = new Set(["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "ppo_clip"]);

/**
 * Metrics by name, without the prefix train/ or eval/: policy_loss, clip_ratio, entropy and kl_div where they are
 * known, and TRL's finer ones (kl, clip_ratio/..., cispo_clip_ratio, vespo/phi_seq_mean, entropy_coef).
 */
export function policyMetrics(tally: PolicyTally, options: PolicyOptions): Record<string, number> {
  const share = (sum: number, count: number): number => sum / Math.max(count, 1);
  const trl = options.compat === "trl";
  const metrics: Record<string, number> = {
    policy_loss: trl ? share(tally.policyLoss, tally.parts) : tally.policyLoss,
    clip_ratio: share(tally.lowClipped + tally.highClipped, tally.clipUnits),
  };
  if (tally.entropyTokens > 0) metrics.entropy = share(tally.entropy, tally.entropyTokens);
  if (tally.klCount > 0) {
    metrics.kl_div = share(tally.kl, tally.klCount);
    metrics.kl = metrics.kl_div;
    metrics.kl_k1 = share(tally.k1, tally.tokens);
    metrics.kl_k2 = share(tally.k2, tally.tokens);
    metrics.kl_k3 = share(tally.k3, tally.tokens);
  }
  if (CLIPPED.has(options.lossType)) {
    metrics["clip_ratio/low_mean"] = share(tally.lowClipped, tally.clipUnits);
    metrics["clip_ratio/high_mean"] = share(tally.highClipped, tally.clipUnits);
    metrics["clip_ratio/region_mean"] = metrics.clip_ratio!;
    metrics["clip_ratio/low_min"] = Number.isFinite(tally.lowMin) ? tally.lowMin : 0;
    metrics["clip_ratio/high_max"] = Number.isFinite(tally.highMax) ? tally.highMax : 0;
  }
  if (options.lossType === "cispo") metrics.cispo_clip_ratio = metrics.clip_ratio!;
  if (options.lossType === "vespo") metrics["vespo/phi_seq_mean"] = share(tally.phi, tally.rows);
  if (options.entropyCoef !== 0) metrics.entropy_coef = options.entropyCoef;
  if (options.offPolicyMaskThreshold !== null)
    metrics.off_policy_dropped = share(tally.droppedRows, tally.rows);
  return metrics;
}
