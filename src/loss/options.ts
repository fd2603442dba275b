import { UsageError } from "../core/errors.ts";
import type { AdvantageOptions } from "./advantage.ts";
import type { Aggregation } from "./count.ts";
import { KL_ESTIMATORS, type KlEstimator } from "./kl.ts";

export const LOSS_TYPES = [
  "reinforce_kl2",
  "grpo",
  "bnpo",
  "dr_grpo",
  "dapo",
  "cispo",
  "sapo",
  "luspo",
  "vespo",
  "ppo_clip",
] as const;
export type LossType = (typeof LOSS_TYPES)[number];

export interface PolicyOptions {
  readonly lossType: LossType;
  /** Coefficient of the KL term; 0 = no reference model. */
  readonly beta: number;
  readonly klEstimator: KlEstimator;
  /** One ratio a token, or the geometric mean over the row (GSPO, arXiv 2507.18071). */
  readonly importanceSamplingLevel: "token" | "sequence";
  readonly epsilonLow: number;
  /** Upper clip distance; for cispo the absolute cap of the ratio. */
  readonly epsilonHigh: number;
  /** Two-sided clipping: upper bound of the ratio where A < 0 (INTELLECT-2, arXiv 2505.07291); null = none. */
  readonly delta: number | null;
  /** ppo_clip alone: mean over tokens, or over rows of token means. */
  readonly aggregation: "token" | "sequence";
  readonly sapoTemperaturePos: number;
  readonly sapoTemperatureNeg: number;
  readonly vespo: {
    readonly kPos: number;
    readonly lambdaPos: number;
    readonly kNeg: number;
    readonly lambdaNeg: number;
  };
  /** Weight of the mean token entropy, subtracted from the loss. */
  readonly entropyCoef: number;
  /** Share of tokens with the highest entropy that the policy term keeps; 1 = all. */
  readonly topEntropyQuantile: number;
  /** Drop rows with A < 0 whose mean(sampling - new log-probability) exceeds this (DeepSeek-V3.2); null = keep all. */
  readonly offPolicyMaskThreshold: number | null;
  /** "trl": TRL 1.16's conventions to the letter. */
  readonly compat: "none" | "trl";
}

export type PolicyInput = Partial<Omit<PolicyOptions, "epsilonHigh">> & {
  readonly lossType: LossType;
  /** Defaults to epsilonLow, except that cispo needs it in so many words. */
  readonly epsilonHigh?: number | null;
};

/** Aggregation of each loss type; ppo_clip chooses. */
export function aggregationOf(options: PolicyOptions): Aggregation {
  switch (options.lossType) {
    case "grpo":
    case "sapo":
      return "row_mean";
    case "bnpo":
      return "token_mean";
    case "dapo":
    case "cispo":
    case "vespo":
      return "step_token_mean";
    case "dr_grpo":
      return "fixed_length";
    case "luspo":
    case "reinforce_kl2":
      return "row_sum";
    case "ppo_clip":
      return options.aggregation === "token" ? "token_mean" : "row_mean";
  }
}

function need(holds: boolean, flag: string, value: unknown, remedy: string): void {
  if (!holds) throw new UsageError(`bad value ${String(value)}`, flag, remedy);
}

function finite(value: number, from: number): boolean {
  return Number.isFinite(value) && value >= from;
}

/** Defaults and limits of every option; throws UsageError where a value cannot mean what it says. */
export function policyOptions(input: PolicyInput): PolicyOptions {
  const trl = input.compat === "trl";
  const { lossType } = input;
  need(LOSS_TYPES.includes(lossType), "loss_type", lossType, `one of ${LOSS_TYPES.join(", ")}`);
  const epsilonLow = input.epsilonLow ?? 0.2;
  if (lossType === "cispo" && !trl) {
    const cap = input.epsilonHigh ?? null;
    if (cap === null) {
      throw new UsageError(
        "cispo needs an explicit cap of the ratio",
        "epsilon_high",
        "set epsilon_high to at least 1 (the paper uses 5); the usual 0.2 would scale every gradient by 0.2",
      );
    }
    need(
      cap >= 1,
      "epsilon_high",
      cap,
      "cispo caps the ratio itself at epsilon_high: set it to at least 1, e.g. 5",
    );
  }
  const options: PolicyOptions = {
    lossType,
    beta: input.beta ?? 0,
    klEstimator: input.klEstimator ?? (lossType === "reinforce_kl2" ? "k2" : trl ? "k3_ratio" : "k3"),
    importanceSamplingLevel: input.importanceSamplingLevel ?? "token",
    epsilonLow,
    epsilonHigh: input.epsilonHigh ?? epsilonLow,
    delta: input.delta ?? null,
    aggregation: input.aggregation ?? "token",
    sapoTemperaturePos: input.sapoTemperaturePos ?? 1,
    sapoTemperatureNeg: input.sapoTemperatureNeg ?? 1.05,
    vespo: input.vespo ?? { kPos: 2, lambdaPos: 3, kNeg: 3, lambdaNeg: 2 },
    entropyCoef: input.entropyCoef ?? 0,
    topEntropyQuantile: input.topEntropyQuantile ?? 1,
    offPolicyMaskThreshold: input.offPolicyMaskThreshold ?? null,
    compat: input.compat ?? "none",
  };
  need(finite(options.beta, 0), "beta", options.beta, "0 or more");
  need(
    KL_ESTIMATORS.includes(options.klEstimator),
    "kl_estimator",
    options.klEstimator,
    KL_ESTIMATORS.join(", "),
  );
  need(epsilonLow >= 0 && epsilonLow <= 1, "epsilon", epsilonLow, "between 0 and 1");
  need(options.epsilonHigh >= 0, "epsilon_high", options.epsilonHigh, "0 or more");
  need(
    options.delta === null || options.delta > 1,
    "delta",
    options.delta,
    "above 1: it bounds the ratio itself",
  );
  need(options.sapoTemperaturePos > 0, "sapo_temperature_pos", options.sapoTemperaturePos, "above 0");
  need(options.sapoTemperatureNeg > 0, "sapo_temperature_neg", options.sapoTemperatureNeg, "above 0");
  need(Number.isFinite(options.entropyCoef), "entropy_coef", options.entropyCoef, "a number");
  const share = options.topEntropyQuantile;
  need(share > 0 && share <= 1, "top_entropy_quantile", share, "above 0 and at most 1");
  if (lossType === "reinforce_kl2") {
    need(
      options.klEstimator === "k2",
      "kl_estimator",
      options.klEstimator,
      "reinforce_kl2 has its own: leave it out",
    );
    need(
      options.importanceSamplingLevel === "token",
      "importance_sampling_level",
      "sequence",
      "it has no ratio",
    );
    need(share === 1, "top_entropy_quantile", share, "1: its terms are whole completions");
  }
  if (lossType === "vespo") {
    need(
      options.importanceSamplingLevel === "token" || trl,
      "importance_sampling_level",
      "sequence",
      "vespo has its own",
    );
  }
  return options;
}

export interface LossContext {
  readonly advantage: AdvantageOptions;
  readonly temperature: number;
  readonly groupSize?: number;
  readonly maxCompletionLength?: number;
}

/** The exact formula in use, for the run header. */
export function describeLoss(options: PolicyOptions, context: LossContext): string {
  const lines = [
    `loss ${options.lossType} = ${termText(options)}${averageText(options, context)}`,
    `  KL: ${klText(options)}`,
  ];
  if (options.entropyCoef !== 0) {
    const scope = options.compat === "trl" ? "the micro-batch / accumulation steps" : "the optimizer step";
    lines.push(`  entropy bonus: - ${options.entropyCoef} * mean token entropy over ${scope}`);
  }
  if (options.topEntropyQuantile < 1) {
    const scope = options.compat === "trl" ? "micro-batch" : "optimizer step";
    lines.push(
      `  policy term on the ${options.topEntropyQuantile * 100} % highest-entropy tokens of the ${scope}; divisors unchanged`,
    );
  }
  if (options.offPolicyMaskThreshold !== null) {
    lines.push(`  rows with A < 0 dropped where mean(log old - log pi) > ${options.offPolicyMaskThreshold}`);
  }
  lines.push(`  advantage: ${advantageText(context.advantage, context.groupSize)}`);
  lines.push(
    `  log-probabilities and entropies at temperature ${context.temperature}, not filtered by top-p, top-k, min-p`,
  );
  if (options.compat === "trl") lines.push("  conventions of TRL 1.16 (compat trl)");
  return lines.join("\n");
}

function termText(o: PolicyOptions): string {
  const ratio =
    o.importanceSamplingLevel === "sequence"
      ? "s = exp(row mean of log pi - log old)"
      : "r = exp(log pi - log old)";
  const symbol = o.importanceSamplingLevel === "sequence" ? "s" : "r";
  switch (o.lossType) {
    case "reinforce_kl2":
      return "-A * S, S = sum over completion tokens of log pi, no ratio, no clipping; ";
    case "cispo":
      return `-stop_gradient(min(${symbol}, ${o.epsilonHigh})) * A * log pi, ${ratio}; `;
    case "sapo":
      return (
        `-A * sigmoid(tau (${symbol} - 1)) * 4 / tau, tau = ${o.sapoTemperaturePos} if A > 0 else ` +
        `${o.sapoTemperatureNeg}, ${ratio}; `
      );
    case "vespo":
      return (
        `-stop_gradient(phi(w)) * A * log pi, phi = exp(lambda + k log w - lambda w), w = product of r over the row, ` +
        `(k, lambda) = (${o.vespo.kPos}, ${o.vespo.lambdaPos}) if A >= 0 else (${o.vespo.kNeg}, ${o.vespo.lambdaNeg}); `
      );
    default: {
      const capped = o.delta === null ? symbol : `min(${symbol}, ${o.delta})`;
      return `-min(${capped} * A, clip(${symbol}, 1 - ${o.epsilonLow}, 1 + ${o.epsilonHigh}) * A), ${ratio}; `;
    }
  }
}

function averageText(o: PolicyOptions, context: LossContext): string {
  const trl = o.compat === "trl";
  const rows = trl
    ? "rows of the micro-batch (fully masked ones count) / accumulation steps"
    : "rows of the optimizer step that keep a token";
  switch (aggregationOf(o)) {
    case "row_mean":
      return `token mean of each row, then mean over ${rows}`;
    case "row_sum":
      return o.lossType === "reinforce_kl2"
        ? `mean over ${rows}`
        : `token sum of each row, then mean over ${rows}`;
    case "token_mean":
      return `mean over tokens of the ${trl ? "micro-batch / accumulation steps" : "optimizer step"}`;
    case "step_token_mean":
      return trl
        ? "token sum / (tokens of the generation batch / processes * accumulation steps / steps per generation)"
        : "mean over tokens of the optimizer step";
    case "fixed_length":
      return `token sum / (rows * ${context.maxCompletionLength ?? "max_completion_length"})${trl ? " / accumulation steps" : " of the optimizer step"}`;
  }
}

function klText(o: PolicyOptions): string {
  if (o.beta === 0) return "none (beta 0, no reference model)";
  if (o.lossType === "reinforce_kl2")
    return `+ ${o.beta} * mean over rows of (S - S_ref)^2, on sums of log-probabilities`;
  const formula = {
    k1: "k1, k1 = d (a loss without expected gradient)",
    k2: "k2, k2 = d^2 / 2",
    k3: "k3, k3 = exp(-d) + d - 1",
    k3_ratio: "k3_ratio, k3_ratio = (pi / pi_old) * (exp(-d) + d - 1) with the ratio differentiated",
  }[o.klEstimator];
  return `+ ${o.beta} * ${formula}, d = log pi - log pi_ref, per token, averaged as the policy term`;
}

function advantageText(a: AdvantageOptions, groupSize?: number): string {
  const std = `(std with ddof ${a.ddof} + ${a.eps})`;
  const group = groupSize === undefined ? "group" : `group of ${groupSize}`;
  if (a.aggregation === "normalize_then_sum") {
    return `each reward minus its ${group} mean over its group ${std}, weighted sum, then over the batch ${std}`;
  }
  const scaled = {
    group: ` / group ${std}`,
    batch: ` / batch ${std} of rewards`,
    centered_batch: "",
    none: "",
  }[a.scale];
  if (a.scale === "centered_batch")
    return `(reward - ${group} mean) / ${std} of those differences over the batch`;
  return `(reward - ${group} mean)${scaled}`;
}
