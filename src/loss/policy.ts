import { assert, UsageError } from "../core/errors.ts";
import { entropyWeight, highEntropyThreshold, type Normaliser, rowWeights } from "./count.ts";
import { klSlope, klValue } from "./kl.ts";
import { addTallies, emptyTally, type PolicyTally, policyMetrics } from "./metrics.ts";
import { aggregationOf, type PolicyOptions } from "./options.ts";
import { checkRows, type PolicyRows, type Reals } from "./rows.ts";
import { clampLogRatio, clippedSurrogate, gammaWeight, type Surrogate, softSurrogate } from "./surrogate.ts";

export interface PolicyLoss {
  /** This micro-batch's share of the step's loss: shares are summed, never averaged. */
  readonly loss: number;
  /** d loss / d logprobs, one a token, 0 where the mask is 0. */
  readonly gradLogprobs: Float64Array;
  /** d loss / d entropy, one a token; null when there is no entropy bonus. */
  readonly gradEntropy: Float64Array | null;
  readonly tally: PolicyTally;
  readonly metrics: Record<string, number>;
}

/**
 * Loss and hand-derived gradient of one micro-batch: sum_i w_i sum_t m_it (policy_it + beta KL_it) - entropy bonus,
 * with w_i from the Normaliser. Formulas: TRL 1.16's GRPOTrainer, SYSTEMS.md D for reinforce_kl2, PPO (arXiv
 * 1707.06347) for ppo_clip. float64 throughout; masked tokens are never read.
 */
export function policyLoss(batch: PolicyRows, options: PolicyOptions, norm: Normaliser): PolicyLoss {
  checkBatch(batch, options, norm);
  const pass = new Pass(batch, options, norm);
  for (let row = 0; row < batch.rows; row++) {
    if (options.lossType === "reinforce_kl2") pass.reinforceRow(row);
    else pass.ratioRow(row);
  }
  pass.entropyBonus();
  return pass.result();
}

/** Loss and metrics of a whole optimizer step from its micro-batches. */
export function combineLosses(
  parts: readonly Pick<PolicyLoss, "loss" | "tally">[],
  options: PolicyOptions,
): { loss: number; metrics: Record<string, number> } {
  const loss = parts.reduce((sum, part) => sum + part.loss, 0);
  return { loss, metrics: policyMetrics(addTallies(parts.map((part) => part.tally)), options) };
}

function checkBatch(batch: PolicyRows, options: PolicyOptions, norm: Normaliser): void {
  checkRows(batch);
  const tokens = batch.mask.length;
  const perToken: [string, Reals | null | undefined][] = [
    ["logprobs", batch.logprobs],
    ["oldLogprobs", batch.oldLogprobs],
    ["refLogprobs", batch.refLogprobs],
    ["entropy", batch.entropy],
    ["samplingLogprobs", batch.samplingLogprobs],
    ["discount", batch.discount],
  ];
  for (const [name, values] of perToken) {
    assert(!values || values.length === tokens, `${name} has ${values?.length} entries for ${tokens} tokens`);
  }
  assert(batch.advantages.length === batch.rows, "one advantage a row");
  assert(options.beta === 0 || batch.refLogprobs, "beta needs the reference's log-probabilities");
  const readsEntropy = options.entropyCoef !== 0 || options.topEntropyQuantile < 1;
  assert(!readsEntropy || batch.entropy, "the entropy bonus and the top-entropy mask need entropies");
  assert((options.compat === "trl") === (norm.kind === "trl"), "compat trl and its normaliser go together");
  if (options.topEntropyQuantile < 1 && norm.kind === "global" && norm.entropyThreshold === null) {
    throw new UsageError(
      "no entropy threshold for the optimizer step",
      "top_entropy_quantile",
      "count the normaliser with the step's entropies",
    );
  }
}

/** One evaluation of the loss: the state that its rows share. */
class Pass {
  private readonly grad: Float64Array;
  private readonly gradEntropy: Float64Array | null;
  private readonly weights: Float64Array;
  private readonly threshold: number;
  private readonly tally = emptyTally();
  private readonly surrogate: Surrogate = { value: 0, slope: 0, low: false, high: false };
  private policy = 0;
  private kl = 0;
  private bonus = 0;

  constructor(
    private readonly batch: PolicyRows,
    private readonly options: PolicyOptions,
    private readonly norm: Normaliser,
  ) {
    this.grad = new Float64Array(batch.mask.length);
    this.gradEntropy = options.entropyCoef === 0 ? null : new Float64Array(batch.mask.length);
    this.weights = rowWeights(norm, aggregationOf(options), batch);
    this.threshold = Number.NEGATIVE_INFINITY;
    if (options.topEntropyQuantile < 1) {
      this.threshold =
        norm.kind === "trl"
          ? highEntropyThreshold([batch], [batch.entropy!], options.topEntropyQuantile)
          : norm.entropyThreshold!;
    }
    this.tally.rows = batch.rows;
    this.tally.parts = 1;
  }

  /** -A S + beta (S - S_ref)^2 with S the sum of the row's log-probabilities. */
  reinforceRow(row: number): void {
    const { offsets, mask, logprobs, refLogprobs } = this.batch;
    const { beta } = this.options;
    const begin = offsets[row]!;
    const end = offsets[row + 1]!;
    const weight = this.weights[row]!;
    const advantage = this.batch.advantages[row]!;
    let sum = 0;
    let distance = 0;
    let length = 0;
    for (let t = begin; t < end; t++) {
      if (!mask[t]) continue;
      length++;
      sum += this.discount(t) * logprobs[t]!;
      if (refLogprobs) {
        const d = logprobs[t]! - refLogprobs[t]!;
        distance += d;
        this.countKl(d);
      }
      this.countEntropy(t);
    }
    this.tally.tokens += length;
    if (length === 0) return;
    this.policy += weight * (advantage === 0 ? 0 : -advantage * sum);
    this.kl += beta * weight * distance * distance;
    if (refLogprobs) {
      this.tally.kl += distance * distance;
      this.tally.klCount++;
    }
    for (let t = begin; t < end; t++) {
      if (mask[t]) this.grad[t] = weight * (2 * beta * distance - advantage * this.discount(t));
    }
  }

  private discount(t: number): number {
    return this.batch.discount?.[t] ?? 1;
  }

  /** Every loss made of a ratio pi / pi_old: value and derivative by log pi, per token or per row (GSPO). */
  ratioRow(row: number): void {
    const { batch, options, tally } = this;
    const { offsets, mask, logprobs, oldLogprobs, refLogprobs } = batch;
    const begin = offsets[row]!;
    const end = offsets[row + 1]!;
    const weight = this.weights[row]!;
    const advantage = batch.advantages[row]!;
    const bySequence = options.importanceSamplingLevel === "sequence";
    let length = 0;
    let logRatioSum = 0;
    let clampedSum = 0;
    for (let t = begin; t < end; t++) {
      if (!mask[t]) continue;
      length++;
      const logRatio = oldLogprobs ? logprobs[t]! - oldLogprobs[t]! : 0;
      logRatioSum += logRatio;
      clampedSum += clampLogRatio(logRatio);
    }
    const rowLogRatio = logRatioSum / Math.max(length, 1);
    const phi = options.lossType === "vespo" ? gammaWeight(options, clampedSum, advantage) : 0;
    tally.tokens += length;
    tally.phi += phi;
    const kept = this.keepsRow(row, length, advantage);
    if (!kept) tally.droppedRows++;
    if (bySequence) this.evaluate(Math.exp(rowLogRatio), advantage, phi, 0);
    const rowLow = this.surrogate.low;
    const rowHigh = this.surrogate.high;
    let low = 0;
    let high = 0;
    // What flows to the whole row through the sequence ratio: d loss / d (mean log ratio).
    let shared = 0;
    for (let t = begin; t < end; t++) {
      if (!mask[t]) continue;
      const x = logprobs[t]!;
      const logRatio = oldLogprobs ? x - oldLogprobs[t]! : 0;
      const ratio = Math.exp(bySequence ? rowLogRatio : logRatio);
      this.evaluate(ratio, advantage * this.discount(t), phi, x);
      low += this.surrogate.low ? 1 : 0;
      high += this.surrogate.high ? 1 : 0;
      if (kept && this.inEntropyMask(t)) {
        this.policy += weight * this.surrogate.value;
        if (bySequence && hasRatioGradient(options)) shared += weight * this.surrogate.slope;
        else this.grad[t]! += weight * this.surrogate.slope;
      }
      if (refLogprobs) {
        const d = x - refLogprobs[t]!;
        this.countKl(d);
        shared += this.addKl(t, d, weight, ratio, Math.exp(logRatio), bySequence);
      }
      this.countEntropy(t);
    }
    if (shared !== 0) {
      for (let t = begin; t < end; t++) if (mask[t]) this.grad[t]! += shared / length;
    }
    if (bySequence) {
      tally.clipUnits++;
      tally.lowClipped += rowLow ? 1 : 0;
      tally.highClipped += rowHigh ? 1 : 0;
      tally.lowMin = Math.min(tally.lowMin, rowLow ? 1 : 0);
      tally.highMax = Math.max(tally.highMax, rowHigh ? 1 : 0);
    } else {
      tally.clipUnits += length;
      tally.lowClipped += low;
      tally.highClipped += high;
      if (length > 0) {
        tally.lowMin = Math.min(tally.lowMin, low / length);
        tally.highMax = Math.max(tally.highMax, high / length);
      }
    }
  }

  /** Policy term of one token into `this.surrogate`; the slope is by log ratio, or by log pi for cispo and vespo. */
  private evaluate(ratio: number, advantage: number, phi: number, x: number): void {
    const { options, surrogate } = this;
    surrogate.low = false;
    surrogate.high = false;
    // An infinite ratio times a zero advantage is no loss, not NaN.
    if (advantage === 0) {
      surrogate.value = 0;
      surrogate.slope = 0;
      return;
    }
    switch (options.lossType) {
      case "cispo": {
        const coefficient = Math.min(ratio, options.epsilonHigh) * advantage;
        surrogate.value = -coefficient * x;
        surrogate.slope = -coefficient;
        surrogate.high = ratio > options.epsilonHigh && advantage > 0;
        return;
      }
      case "vespo":
        surrogate.value = -phi * advantage * x;
        surrogate.slope = -phi * advantage;
        return;
      case "sapo": {
        const tau = advantage > 0 ? options.sapoTemperaturePos : options.sapoTemperatureNeg;
        softSurrogate(surrogate, ratio, advantage, tau);
        return;
      }
      default:
        clippedSurrogate(surrogate, ratio, advantage, options.epsilonLow, options.epsilonHigh, options.delta);
    }
  }

  /**
   * beta KL of one token. k3_ratio weighs k3 by the ratio and differentiates it. The estimator is per token, so the
   * ratio is the token's; TRL at sequence level broadcasts the row's (compat trl), which adds a spurious term.
   * Returns what flows to the row's mean log ratio.
   */
  private addKl(
    t: number,
    d: number,
    weight: number,
    ratio: number,
    tokenRatio: number,
    bySequence: boolean,
  ): number {
    const { klEstimator, beta, compat } = this.options;
    let value = klValue(klEstimator, d);
    let slope = klSlope(klEstimator, d);
    let shared = 0;
    if (klEstimator === "k3_ratio") {
      const broadcast = bySequence && compat === "trl";
      const r = broadcast ? ratio : tokenRatio;
      if (broadcast) shared = beta * weight * r * value;
      slope = broadcast ? r * slope : r * (slope + value);
      value *= r;
    }
    this.tally.kl += value;
    this.tally.klCount++;
    this.kl += beta * weight * value;
    this.grad[t]! += beta * weight * slope;
    return shared;
  }

  private keepsRow(row: number, length: number, advantage: number): boolean {
    const { options, batch } = this;
    if (options.offPolicyMaskThreshold === null || advantage >= 0) return true;
    const sampling = batch.samplingLogprobs ?? batch.oldLogprobs;
    if (!sampling) return options.offPolicyMaskThreshold >= 0;
    let drift = 0;
    for (let t = batch.offsets[row]!; t < batch.offsets[row + 1]!; t++) {
      if (batch.mask[t]) drift += sampling[t]! - batch.logprobs[t]!;
    }
    return drift / Math.max(length, 1) <= options.offPolicyMaskThreshold;
  }

  private inEntropyMask(t: number): boolean {
    return this.options.topEntropyQuantile >= 1 || this.batch.entropy![t]! >= this.threshold;
  }

  private countKl(d: number): void {
    this.tally.k1 += klValue("k1", d);
    this.tally.k2 += klValue("k2", d);
    this.tally.k3 += klValue("k3", d);
  }

  private countEntropy(t: number): void {
    if (!this.batch.entropy) return;
    this.tally.entropy += this.batch.entropy[t]!;
    this.tally.entropyTokens++;
  }

  /** loss -= coef * mean entropy of the tokens under the entropy mask. */
  entropyBonus(): void {
    const { batch, gradEntropy, options } = this;
    if (!gradEntropy || !batch.entropy) return;
    let kept = 0;
    let sum = 0;
    for (const [t, on] of batch.mask.entries()) {
      if (!on || !this.inEntropyMask(t)) continue;
      kept++;
      sum += batch.entropy[t]!;
    }
    const weight = options.entropyCoef * entropyWeight(this.norm, kept);
    this.bonus = weight * sum;
    for (const [t, on] of batch.mask.entries()) if (on && this.inEntropyMask(t)) gradEntropy[t] = -weight;
  }

  result(): PolicyLoss {
    const { norm, tally, options } = this;
    tally.policyLoss = this.policy;
    if (norm.kind === "trl") {
      const perStep = aggregationOf(options) === "step_token_mean" ? 1 : norm.accumulation;
      tally.policyLoss = (this.policy + this.kl) * perStep;
    }
    return {
      loss: this.policy + this.kl - this.bonus,
      gradLogprobs: this.grad,
      gradEntropy: this.gradEntropy,
      tally,
      metrics: policyMetrics(tally, options),
    };
  }
}

/** cispo and vespo differentiate log pi itself, so their slope stays with the token at sequence level too. */
function hasRatioGradient(options: PolicyOptions): boolean {
  return options.lossType !== "cispo" && options.lossType !== "vespo";
}

/** Rows given by index, in that order, as a micro-batch of their own. */
export function selectRows(batch: PolicyRows, rows: readonly number[]): PolicyRows {
  const offsets = new Int32Array(rows.length + 1);
  for (const [i, row] of rows.entries()) {
    offsets[i + 1] = offsets[i]! + rowSpan(batch, row);
  }
  const pick = <T extends Reals | Uint8Array>(source: T): T => {
    const out = source.slice(0, offsets[rows.length]!) as T;
    for (const [i, row] of rows.entries()) {
      out.set(source.subarray(batch.offsets[row]!, batch.offsets[row + 1]!), offsets[i]!);
    }
    return out;
  };
  return {
    rows: rows.length,
    offsets,
    mask: pick(batch.mask),
    logprobs: pick(batch.logprobs),
    oldLogprobs: batch.oldLogprobs && pick(batch.oldLogprobs),
    refLogprobs: batch.refLogprobs && pick(batch.refLogprobs),
    entropy: batch.entropy && pick(batch.entropy),
    samplingLogprobs: batch.samplingLogprobs && pick(batch.samplingLogprobs),
    advantages: Float64Array.from(rows, (row) => batch.advantages[row]!),
  };
}

function rowSpan(batch: PolicyRows, row: number): number {
  return batch.offsets[row + 1]! - batch.offsets[row]!;
}
