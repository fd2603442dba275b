/**
 * One generation batch of GRPO and the optimizer steps made from it: rollouts, rewards, advantages, reference,
 * then per micro-batch forward, loss, backward; one AdamW step.
 */

import { assert, Bug, Diverged, UsageError } from "../core/errors.ts";
import { mean, sum } from "../core/lists.ts";
import type { Prompt, Rollout, Scored } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { type AdvantageOptions, groupAdvantages, zeroAdvantageGroups } from "../loss/advantage.ts";
import type { Normaliser } from "../loss/count.ts";
import { klValue } from "../loss/kl.ts";
import { combineLosses, type PolicyLoss, policyLoss } from "../loss/policy.ts";
import type { MaskedRows } from "../loss/rows.ts";
import { dualGradientNorms } from "../nn/adapters.ts";
import type { SampledScores } from "../nn/functional.ts";
import type { AdamW } from "../nn/optimizer.ts";
import type { Decoder, Transformer } from "../nn/transformer.ts";
import { judgeMetrics } from "../report/judge.ts";
import { asRollouts, type DrawKey, RolloutEngine, type Sampling } from "../rollout/engine.ts";
import { type Group, packGroups, selectGroups } from "../rollout/pack.ts";
import { forwardRow, scoreGroups } from "../rollout/score.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import type { Tensor } from "../tape/tensor.ts";
import { concat, discounts, groupsOf, largestDifference } from "./completion-rows.ts";
import { takeStep } from "./optimizer-step.ts";
import {
  type BatchOptions,
  cutUnits,
  type Generation,
  type GenerationPlan,
  maskOf,
  stepNormaliser,
  windowOf,
} from "./policy-batches.ts";
import { ALONE, type Dealt, type GradientSums, type Ranks } from "./ranks.ts";
import type { Reference } from "./reference.ts";
import {
  flaggedShare,
  hackShare,
  type Routing,
  type RoutingAdvantages,
  requireLabels,
  routedAdvantages,
  unitsOf,
} from "./routing.ts";

export interface PolicyStepOptions extends GenerationPlan, BatchOptions {
  readonly seed: number;
  readonly advantage: AdvantageOptions;
  readonly gamma: number;
  /**
   * The rollouts are our own: on-policy their log-probabilities must equal the trainer's, unless dropout makes a training
   * pass another function.
   */
  readonly exactSampler: boolean;
  /** Without it, flags are counted and change nothing. */
  readonly routing?: Routing;
  readonly routingAdvantages?: RoutingAdvantages;
}

export type Score = (rollouts: readonly Rollout[], step: number) => Promise<readonly Scored[]>;

/** What a run has beside a policy and its reward. */
export interface PolicyCompany {
  readonly ranks?: Ranks;
  /** Labels all completions of a step, when every one of them has its reward. */
  readonly label?: (scored: readonly Scored[], step: number) => readonly Scored[];
}

/** Log-probabilities that a gradient pass finds again, and those that were assumed. */
interface Recheck {
  readonly again: Tensor;
  readonly sampled: Float32Array;
}

/** What the gradient of a step is made of. */
interface Work {
  readonly generation: Generation;
  readonly groups: readonly Group[];
  /** Row of the generation that holds a completion of a group. */
  readonly rowAt: (group: number, completion: number) => number;
  /** By group: it has no gradient. */
  readonly skip: readonly boolean[];
  readonly dealt: Dealt;
  readonly masks: readonly MaskedRows[];
  readonly normaliser: Normaliser;
  readonly onPolicy: boolean;
  readonly step: number;
}

/** Seconds spent in each phase since the last `take`. */
class Clock {
  #times: Record<string, number> = {};
  async time<T>(phase: string, body: () => T | Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await body();
    } finally {
      this.add(phase, (performance.now() - start) / 1000);
    }
  }
  add(phase: string, seconds: number): void {
    this.#times[phase] = (this.#times[phase] ?? 0) + seconds;
  }
  take(): Record<string, number> {
    const times = this.#times;
    this.#times = {};
    return times;
  }
}

export class PolicyStep {
  readonly engine: RolloutEngine;
  readonly #clock = new Clock();
  /** True while the optimizer writes: a checkpoint of that moment would be torn. */
  updating = false;
  generation: Generation | null = null;
  readonly #ranks: Ranks;
  /** What the ranks had exchanged at the end of the last step, in seconds. */
  #exchangedBefore = 0;
  readonly #label: NonNullable<PolicyCompany["label"]>;

  constructor(
    readonly memory: StepMemory,
    readonly model: Transformer,
    readonly reference: Reference | null,
    readonly tokenizer: Tokenizer,
    readonly optimizer: AdamW,
    readonly score: Score,
    readonly options: PolicyStepOptions,
    engine: { readonly maxBatch: number; readonly maxLength: number; readonly prefillTokens: number },
    { ranks = ALONE, label = (scored) => scored }: PolicyCompany = {},
  ) {
    this.#ranks = ranks;
    this.#label = label;
    this.engine = new RolloutEngine(memory, model, engine);
    assert(options.loss.beta === 0 || reference !== null, "a KL term needs a reference model");
    if ((this.#routing === "classic" || this.#routing === "exclusive") && !model.dual)
      throw new UsageError(
        "nothing to route between",
        `routing ${this.#routing}`,
        "train a retain and a forget adapter",
      );
  }

  get #routing(): Routing {
    return this.options.routing ?? "none";
  }

  /** Whether a training pass on policy computes what the sampler recorded. */
  get #exact(): boolean {
    return this.options.exactSampler && this.model.dropout === 0;
  }

  /** The step that is the last of the current generation; 0 before the first. */
  get lastStep(): number {
    return this.generation === null ? 0 : this.generation.step + windowOf(this.generation.plan) - 1;
  }

  /**
   * Completions of prompts with their scores. Every rank makes those of its share of the prompts, and has all of them
   * afterwards, in one order.
   */
  async scored(
    prompts: readonly Prompt[],
    completions: number,
    sampling: Sampling,
    key: Omit<DrawKey, "seed">,
    score = this.score,
    clock = new Clock(),
  ): Promise<Scored[]> {
    const before = this.#ranks.exchanged;
    const parts = await this.#ranks.gather(`completions of step ${key.step}`, async () => {
      const [begin, end] = this.#ranks.share(prompts.length);
      if (begin === end) return [];
      const rollouts = await clock.time("rollout", () =>
        this.rollouts(prompts.slice(begin, end), completions, sampling, key),
      );
      const scored = await clock.time("reward", () => score(rollouts, key.step));
      return scored.map(({ prompt: _, ...each }) => each);
    });
    clock.add("exchange", this.#ranks.exchanged - before);
    return parts.flat().map((each, i) => ({ ...each, prompt: prompts[Math.floor(i / completions)]! }));
  }

  /** Samples completions of prompts. `key` names the random key's step and purpose. */
  async rollouts(
    prompts: readonly Prompt[],
    completions: number,
    sampling: Sampling,
    key: Omit<DrawKey, "seed">,
  ): Promise<Rollout[]> {
    // The same draws either way; each completion by itself encodes the prompt once more.
    const each = this.options.sharePrefix ? completions : 1;
    const requests = prompts.flatMap((p) =>
      Array.from({ length: completions / each }, (_, i) => ({
        ids: p.ids,
        prompt: p.index,
        completions: each,
        firstCompletion: i * each,
      })),
    );
    const results = (
      await this.engine.generateAsync(requests, sampling, { seed: this.options.seed, ...key })
    ).flat();
    this.engine.store.rest();
    const drawn = prompts.map((_, i) => results.slice(i * completions, (i + 1) * completions));
    return asRollouts(prompts, drawn, this.tokenizer);
  }

  /** Makes the batch that the steps from `step` on train on. */
  async generate(step: number, prompts: readonly Prompt[]): Promise<Generation> {
    const { options } = this;
    const key = { purpose: Purpose.rollout, step };
    const { groupSize, numIterations, stepsPerGeneration, gradAccumSteps } = options;
    const scored = this.#label(
      await this.scored(prompts, groupSize, options.sampling, key, this.score, this.#clock),
      step,
    );
    const plan = { groupSize, numIterations, stepsPerGeneration, gradAccumSteps };
    this.generation = this.#weigh(step, plan, scored);
    return this.generation;
  }

  /** Puts back a generation from a checkpoint. */
  restore(step: number, plan: GenerationPlan, scored: readonly Scored[]): void {
    this.generation = this.#weigh(step, plan, scored);
  }

  #weigh(step: number, plan: GenerationPlan, scored: readonly Scored[]): Generation {
    const { options } = this;
    const rewards = scored.map((s) => (Number.isNaN(s.reward) ? null : s.reward));
    const result = groupAdvantages(rewards, plan.groupSize, options.advantage);
    const lengths = scored.map((s) => s.ids.length);
    const tokens = sum(lengths);
    const metrics: Record<string, number> = {
      "train/reward_mean": result.rewardMean,
      "train/reward_std": result.rewardStd,
      "train/frac_zero_std": result.fracZeroStd,
      "train/completion_length_avg": tokens / scored.length,
      "train/completion_length_max": Math.max(...lengths),
      "train/proper_ending_rate": scored.filter((s) => s.finish === "eos").length / scored.length,
    };
    for (const name of Object.keys(scored[0]?.components ?? {})) {
      if (Object.keys(scored[0]!.components).length < 2) break;
      const values = scored.map((s) => s.components[name] ?? 0);
      metrics[`train/rewards/${name}`] = mean(values);
    }
    Object.assign(metrics, judgeMetrics(scored, "train"));
    const flagged = flaggedShare(scored);
    if (flagged !== null) metrics["train/rh_rate"] = flagged;
    const hacks = hackShare(scored);
    if (hacks !== null) metrics["train/hack_rate"] = hacks;
    if (this.#routing !== "none") requireLabels(scored, step);
    const advantages = routedAdvantages(
      result.advantages,
      rewards,
      (row) => scored[row]!.flagged === true,
      plan.groupSize,
      options.advantage,
      this.#routing,
      options.routingAdvantages ?? "all",
    );
    return { step, plan, scored, advantages, metrics, reference: null };
  }

  /** Optimizer step `step` of the current generation with learning rate `lr`. */
  async update(step: number, lr: number): Promise<Record<string, number>> {
    const generation = this.generation;
    assert(generation, "update before generate");
    const { options } = this;
    const begin = performance.now();
    const { plan } = generation;
    const within = step - generation.step;
    assert(within >= 0 && within < windowOf(plan), `step ${step} is outside its generation`);
    const onPolicy = within === 0;
    const prompts = generation.scored.length / plan.groupSize;
    const slice = within % plan.stepsPerGeneration;
    const perSlice = prompts / plan.stepsPerGeneration;
    const first = slice * perSlice * plan.groupSize;
    const rows = Array.from({ length: perSlice * plan.groupSize }, (_, i) => first + i);

    if (options.loss.beta !== 0 && !generation.reference) {
      await this.#clock.time("reference", async () => {
        const all = generation.scored.map((_, i) => i);
        generation.reference = await this.#referenceLogprobs(this.#groups(generation, all));
      });
    }
    const outcome = await this.#clock.time("train", () => this.#train(generation, rows, onPolicy, step, lr));
    const times = this.#clock.take();
    const exchanged = this.#ranks.exchanged - this.#exchangedBefore;
    this.#exchangedBefore = this.#ranks.exchanged;
    const seconds = sum(Object.values(times));
    const tokens = generation.scored.reduce((sum, s) => sum + s.ids.length, 0);
    return {
      ...generation.metrics,
      ...outcome,
      "train/lr": lr,
      "train/step_time": Math.max(seconds, (performance.now() - begin) / 1000),
      "train/tokens_per_second": onPolicy ? tokens / seconds : 0,
      "train/rollout_time": times.rollout ?? 0,
      "train/reward_time": times.reward ?? 0,
      "train/reference_time": times.reference ?? 0,
      "train/train_time": times.train ?? 0,
      ...(this.#ranks.count > 1 ? { "train/exchange_time": exchanged } : {}),
    };
  }

  #groups(generation: Generation, rows: readonly number[]): Group[] {
    return groupsOf(
      rows.map((row) => generation.scored[row]!),
      generation.plan.groupSize,
    );
  }

  /** The mean over completion tokens of k3 (Schulman 2020) between policy and reference, for rollouts just sampled. */
  async divergence(rollouts: readonly Rollout[]): Promise<number> {
    const reference = await this.#referenceLogprobs(groupsOf(rollouts, 1));
    let sum = 0;
    let tokens = 0;
    for (const [i, { logprobs }] of rollouts.entries())
      for (const [t, logprob] of logprobs.entries()) {
        sum += klValue("k3", logprob - reference[i]![t]!);
        tokens++;
      }
    return sum / Math.max(tokens, 1);
  }

  async #referenceLogprobs(groups: readonly Group[]): Promise<Float32Array[]> {
    const { reference } = this;
    assert(reference, "a divergence needs a reference model");
    const parts = await this.#ranks.gather(
      "reference",
      () => reference.use((model) => this.#scoreShare(model, groups)).logprobs,
    );
    return parts.flat(2);
  }

  /** What a model says of this rank's share of the groups. */
  #scoreShare(model: Decoder, groups: readonly Group[]) {
    const { sampling, microBatchTokens, sharePrefix } = this.options;
    const own = groups.slice(...this.#ranks.share(groups.length));
    return scoreGroups(this.memory, model, own, sampling.temperature, microBatchTokens, sharePrefix);
  }

  /** Entropies of the policy as it is, by group and completion. */
  async #entropies(groups: readonly Group[]): Promise<Float32Array[][]> {
    const shares = await this.#ranks.gather(
      "entropies",
      () => this.#scoreShare(this.model, groups).entropies,
    );
    return shares.flat();
  }

  async #train(
    generation: Generation,
    rows: readonly number[],
    onPolicy: boolean,
    step: number,
    lr: number,
  ): Promise<Record<string, number>> {
    const { memory, model, options } = this;
    const { groupSize } = generation.plan;
    const isFlagged = (row: number) => generation.scored[row]!.flagged === true;
    const units = unitsOf(this.#groups(generation, rows), rows, isFlagged, this.#routing);
    const groups = units.map(({ group }) => group);
    const rowAt = (unit: number, completion: number) => units[unit]!.rows[completion]!;
    // Groups without any gradient are left out after the counts have been taken.
    const advantages = Float64Array.from(rows, (row) => generation.advantages[row]!);
    const skipped = zeroAdvantageGroups(advantages, groupSize, options.loss);
    const skip = units.map(({ prompt }) => skipped[prompt] === 1);
    const dealt = cutUnits(
      units,
      skip,
      rows.length / groupSize,
      generation.plan.gradAccumSteps,
      options,
      this.#ranks,
    );
    const { batches } = dealt;
    const masks = batches.map((parts) => maskOf(generation, parts, rowAt, options.maskTruncated));
    const normaliser = await stepNormaliser(generation, batches, masks, options, () =>
      this.#entropies(groups),
    );

    model.trained.zeroGradients();
    const work = { generation, groups, rowAt, skip, dealt, masks, normaliser, onPolicy, step };
    const what = `gradient of step ${step}`;
    const shares = await this.#ranks.gatherGradients(what, model.trained, (sums) =>
      this.#gradient(work, sums),
    );
    const parts = shares.flatMap((share) => share.parts);
    const trained = shares.reduce((sum, share) => sum + share.trained, 0);
    const metrics: Record<string, number> = { "train/loss": 0, "train/groups_trained": trained };
    if (parts.length > 0) {
      const combined = combineLosses(parts, options.loss);
      metrics["train/loss"] = combined.loss;
      for (const [name, value] of Object.entries(combined.metrics)) metrics[`train/${name}`] = value;
    }
    if (model.dual && memory.device.hasMemory) {
      const { retain, forget } = dualGradientNorms(model.trained, model.adaptedMaps);
      metrics["train/grad_norm_retain"] = retain;
      metrics["train/grad_norm_forget"] = forget;
    }
    const summed = performance.now();
    metrics["train/grad_norm"] = takeStep(this, this.#ranks, step, lr);
    metrics["train/optimizer_time"] = (performance.now() - summed) / 1000;
    if (onPolicy)
      metrics["train/sampler_logp_diff_max"] = Math.max(...shares.map(({ difference }) => difference));
    return metrics;
  }

  /** Adds the gradients of this rank's micro-batches to the model's. */
  async #gradient(
    { generation, groups, rowAt, skip, dealt, masks, normaliser, onPolicy, step }: Work,
    sums: GradientSums,
  ): Promise<{
    readonly parts: Pick<PolicyLoss, "loss" | "tally">[];
    readonly difference: number;
    readonly trained: number;
  }> {
    const { memory, model, options } = this;
    const parts: Pick<PolicyLoss, "loss" | "tally">[] = [];
    let difference = 0;
    const rechecks: Recheck[] = [];
    let trained = 0;
    const own = dealt.batches
      .map((batch, i) => ({ i, batch, kept: batch.filter(({ group }) => !skip[group]) }))
      .filter(({ i, kept }) => dealt.owners[i] === this.#ranks.rank && kept.length > 0);
    for (const { i, batch, kept } of own) {
      trained += kept.length;
      const members = kept.flatMap(({ group, completions }) => completions.map((c) => rowAt(group, c)));
      const recorded = onPolicy ? this.#recorded(generation, members) : null;
      const sampled = recorded?.logprob ?? concat(members.map((m) => generation.scored[m]!.logprobs));
      const g = new Graph(memory, true);
      const row = packGroups(selectGroups(groups, kept), options.sharePrefix);
      const { logprob, entropy, again } = forwardRow(g, model, row, options.sampling.temperature, recorded, {
        seed: options.seed,
        step,
        microBatch: i,
      });
      if (again) rechecks.push({ again, sampled });
      else memory.finish();
      const masked =
        kept.length === batch.length ? masks[i]! : maskOf(generation, kept, rowAt, options.maskTruncated);
      const logprobs = recorded ? sampled : logprob.float32().slice();
      const reference = generation.reference ? concat(members.map((m) => generation.reference![m]!)) : null;
      if (onPolicy && memory.device.hasMemory) {
        if (!again) difference = Math.max(difference, largestDifference(logprobs, sampled));
        if (step === 1 && reference && this.reference!.isStart && model.dropout === 0) {
          this.#mustAgree(largestDifference(logprobs, reference), "the reference's log-probabilities", step);
        }
      }
      const loss = policyLoss(
        {
          ...masked,
          logprobs,
          oldLogprobs: windowOf(generation.plan) > 1 || model.dropout > 0 ? sampled : null,
          refLogprobs: reference,
          entropy: recorded?.entropy ?? entropy.float32().slice(),
          samplingLogprobs: sampled,
          advantages: Float64Array.from(members, (m) => generation.advantages[m]!),
          discount: options.gamma === 1 ? null : discounts(masked.offsets, options.gamma),
        },
        options.loss,
        normaliser,
      );
      if (memory.device.hasMemory && !Number.isFinite(loss.loss)) {
        g.discard();
        g.release(logprob, entropy, ...rechecks.map((r) => r.again));
        throw new Diverged(`loss is ${loss.loss}`, `step ${step}`, "lower the learning rate or raise beta");
      }
      parts.push({ loss: loss.loss, tally: loss.tally });
      const seeds: [typeof logprob, typeof logprob][] = [
        [logprob, g.upload(Float32Array.from(loss.gradLogprobs), "logprob gradient")],
      ];
      if (loss.gradEntropy) {
        seeds.push([entropy, g.upload(Float32Array.from(loss.gradEntropy), "entropy gradient")]);
      }
      g.backward(seeds, [], i === own.at(-1)!.i ? sums.final : undefined);
      g.release(logprob, entropy);
      memory.device.submit();
      // Signals and messages are served between micro-batches.
      await Bun.sleep(0);
    }
    await sums.finish();
    if (rechecks.length > 0) difference = this.#recheck(rechecks);
    if (onPolicy && this.#exact && memory.device.hasMemory) {
      this.#mustAgree(difference, "the sampler's log-probabilities", step);
    }
    // What is left of the gradients is not the optimizer's time.
    memory.finish();
    return { parts, difference, trained };
  }

  /**
   * What the sampler recorded, in the order of `members`. The trainer's head would compute the same bits, so its
   * forward pass is left out; its gradient pass tells whether that was true.
   */
  #recorded(generation: Generation, members: readonly number[]): SampledScores | null {
    const scored = members.map((m) => generation.scored[m]!);
    if (!this.#exact || !scored.every((s) => s.lse && s.entropies)) return null;
    return {
      logprob: concat(scored.map((s) => s.logprobs)),
      lse: concat(scored.map((s) => s.lse!)),
      entropy: concat(scored.map((s) => s.entropies!)),
    };
  }

  /** The largest difference between what was assumed and what the gradient pass found. */
  #recheck(rechecks: readonly Recheck[]): number {
    const { memory } = this;
    memory.finish();
    const differences = rechecks.map(({ again, sampled }) =>
      memory.device.hasMemory ? largestDifference(again.float32(), sampled) : 0,
    );
    new Graph(memory, false).release(...rechecks.map((r) => r.again));
    return Math.max(...differences);
  }

  /** With the same weights every path computes the same bits; the reference is the policy of step 0. */
  #mustAgree(difference: number, what: string, step: number): void {
    if (difference === 0) return;
    if (Number.isNaN(difference))
      throw new Diverged("log-probabilities are NaN", `step ${step}`, "lower the learning rate");
    throw new Bug(`${what} differ from the trainer's by ${difference}`, `step ${step}`, "please report it");
  }

  dispose(): void {
    this.engine.dispose();
  }
}
