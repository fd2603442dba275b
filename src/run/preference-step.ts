/** One optimizer step of a reward model on pairs: packed sequences, Bradley-Terry loss, AdamW. */
import { assert, Diverged } from "../core/errors.ts";
import type { PreferencePair } from "../data/preferences.ts";
import { type BradleyTerryLoss, bradleyTerry, preferenceQuality } from "../loss/bradley-terry.ts";
import type { AdamW } from "../nn/optimizer.ts";
import type { Decoder, Transformer } from "../nn/transformer.ts";
import { type Group, packSequences } from "../rollout/pack.ts";
import { forwardRewards } from "../rollout/score.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import { takeStep } from "./optimizer-step.ts";
import { ALONE, deal, type GradientSums, type Ranks } from "./ranks.ts";

export interface PreferenceOptions {
  /** Most packed tokens of one forward and backward pass; a larger pair is one by itself. */
  readonly microBatchTokens: number;
  /** Coefficient of (r_chosen + r_rejected)²; 0 = off. */
  readonly center: number;
  /** Encode what both sequences of a pair begin with once: same numbers, less work. */
  readonly sharePrefix: boolean;
}

/** What a micro-batch of a step said. */
interface PairBatch {
  readonly part: Pick<BradleyTerryLoss, "loss" | "metrics">;
  readonly chosen: Float64Array;
  readonly rejected: Float64Array;
  readonly tokens: number;
}

export class PreferenceStep {
  updating = false;
  constructor(
    readonly memory: StepMemory,
    readonly model: Transformer,
    readonly optimizer: AdamW,
    readonly options: PreferenceOptions,
    readonly ranks: Ranks = ALONE,
  ) {
    assert(model.config.kind === "reward", `${model.config.architecture}: a model without a value head`);
  }

  /** Step `step` (1-based) on all pairs with learning rate `lr`. */
  async update(pairs: readonly PreferencePair[], step: number, lr: number): Promise<Record<string, number>> {
    const begin = performance.now();
    const { model, ranks } = this;
    model.trained.zeroGradients();
    const shares = await ranks.gatherGradients(`gradient of step ${step}`, model.trained, (sums) =>
      this.#gradient(pairs, step, sums),
    );
    const metrics: Record<string, number> = { "train/loss": 0 };
    const seen = { chosen: [] as number[], rejected: [] as number[] };
    let tokens = 0;
    for (const { part, chosen, rejected, ...each } of shares.flat()) {
      const named = { loss: part.loss, ...part.metrics };
      for (const [name, value] of Object.entries(named))
        metrics[`train/${name}`] = (metrics[`train/${name}`] ?? 0) + value;
      for (const reward of chosen) seen.chosen.push(reward);
      for (const reward of rejected) seen.rejected.push(reward);
      tokens += each.tokens;
    }
    const trained = performance.now();
    const gradNorm = takeStep(this, ranks, step, lr);
    const end = performance.now();
    const { calibration_error, brier } = preferenceQuality(
      Float64Array.from(seen.chosen),
      Float64Array.from(seen.rejected),
    );
    return {
      ...metrics,
      "train/calibration_error": calibration_error,
      "train/brier": brier,
      "train/grad_norm": gradNorm,
      "train/lr": lr,
      "train/tokens": tokens,
      "train/step_time": (end - begin) / 1000,
      "train/optimizer_time": (end - trained) / 1000,
    };
  }

  /** Adds the gradients of this rank's micro-batches to the model's; what each of them said. */
  async #gradient(pairs: readonly PreferencePair[], step: number, sums: GradientSums): Promise<PairBatch[]> {
    const { memory, model, options, ranks } = this;
    const { seed } = this.optimizer.options;
    const done: PairBatch[] = [];
    const { batches, owners } = deal(
      ranks,
      pairs.map(({ chosen, rejected }) => chosen.length + rejected.length),
      (begin, end) => pairBatches(pairs.slice(begin, end), options),
    );
    for (const [microBatch, batch] of batches.entries()) {
      if (owners[microBatch] !== ranks.rank) continue;
      const row = packSequences(batch.flatMap(groupsOf), options.sharePrefix);
      const g = new Graph(memory, true);
      const rewards = forwardRewards(g, model, row, { seed, step, microBatch });
      memory.finish();
      const { chosen, rejected } = split(rewards.float32());
      const margins = Float64Array.from(batch, (pair) => pair.margin ?? 0);
      const part = bradleyTerry(
        { chosen, rejected, margins },
        { pairs: pairs.length, center: options.center },
      );
      if (memory.device.hasMemory && !Number.isFinite(part.loss)) {
        g.discard();
        g.release(rewards);
        throw new Diverged(`loss is ${part.loss}`, `step ${step}`, "lower the learning rate");
      }
      const { loss, metrics } = part;
      done.push({ part: { loss, metrics }, chosen, rejected, tokens: row.ids.length });
      const gradient = new Float32Array(2 * batch.length);
      batch.forEach((_, i) => {
        gradient[2 * i] = part.gradChosen[i]!;
        gradient[2 * i + 1] = part.gradRejected[i]!;
      });
      const last = microBatch === owners.lastIndexOf(ranks.rank);
      g.backward([[rewards, g.upload(gradient, "reward gradient")]], [], last ? sums.final : undefined);
      g.release(rewards);
      memory.device.submit();
      // Signals and messages are served between micro-batches.
      await Bun.sleep(0);
    }
    // What is left of the gradients is not the optimizer's time.
    await sums.finish();
    memory.finish();
    return done;
  }

  /** Loss and quality on held-out pairs, `step` steps into the run. */
  async evaluate(pairs: readonly PreferencePair[], step: number): Promise<Record<string, number>> {
    const shares = await this.ranks.gather("evaluation", async () => {
      const own = pairs.slice(...this.ranks.share(pairs.length));
      const found: [number, number][] = [];
      // A batch at a time: signals and messages are served in between.
      for (const batch of pairBatches(own, this.options)) {
        found.push(...this.rewards(batch));
        await Bun.sleep(0);
      }
      return found;
    });
    const rewards = shares.flat();
    const chosen = Float64Array.from(rewards, ([c]) => c);
    const rejected = Float64Array.from(rewards, ([, r]) => r);
    const margins = Float64Array.from(pairs, (pair) => pair.margin ?? 0);
    const { loss } = bradleyTerry(
      { chosen, rejected, margins },
      { pairs: pairs.length, center: this.options.center },
    );
    if (!Number.isFinite(loss))
      throw this.ranks.everywhere(
        new Diverged(`evaluation loss is ${loss}`, `step ${step}`, "lower the learning rate"),
      );
    const quality = preferenceQuality(chosen, rejected);
    const named = Object.entries(quality).map(([name, value]) => [`eval/${name}`, value] as const);
    return { "eval/loss": loss, ...Object.fromEntries(named) };
  }

  /** Rewards without gradients, [chosen, rejected] by pair. */
  rewards(pairs: readonly PreferencePair[]): [chosen: number, rejected: number][] {
    const { memory, model, options } = this;
    return pairBatches(pairs, options).flatMap((batch) =>
      pairRewards(memory, model, batch, options.sharePrefix),
    );
  }
}

/** Rewards of pairs in one pass without gradients, [chosen, rejected] of each. */
export function pairRewards(
  memory: StepMemory,
  model: Decoder,
  pairs: readonly PreferencePair[],
  sharePrefix: boolean,
): [chosen: number, rejected: number][] {
  const g = new Graph(memory, false);
  const rewards = forwardRewards(g, model, packSequences(pairs.flatMap(groupsOf), sharePrefix));
  memory.finish();
  const { chosen, rejected } = split(rewards.float32());
  g.release(rewards);
  return pairs.map((_, i): [number, number] => [chosen[i]!, rejected[i]!]);
}

/** Rewards of packed pairs lie chosen, rejected, chosen, … */
function split(rewards: Float32Array): { chosen: Float64Array; rejected: Float64Array } {
  const pairs = rewards.length / 2;
  return {
    chosen: Float64Array.from({ length: pairs }, (_, i) => rewards[2 * i]!),
    rejected: Float64Array.from({ length: pairs }, (_, i) => rewards[2 * i + 1]!),
  };
}

function commonPrefix({ chosen, rejected }: PreferencePair): number {
  const most = Math.min(chosen.length, rejected.length);
  let n = 0;
  while (n < most && chosen[n] === rejected[n]) n++;
  return n;
}

/** What both begin with, and the rest of each; two sequences by themselves if they have nothing in common. */
function groupsOf(pair: PreferencePair): Group[] {
  const { chosen, rejected } = pair;
  const common = commonPrefix(pair);
  if (common > 0) {
    return [
      {
        prompt: chosen.subarray(0, common),
        completions: [chosen.subarray(common), rejected.subarray(common)],
      },
    ];
  }
  return [chosen, rejected].map((ids) => ({ prompt: ids, completions: [new Int32Array(0)] }));
}

/** Cuts pairs into micro-batches of at most microBatchTokens packed tokens, in order; a pair stays together. */
function pairBatches(pairs: readonly PreferencePair[], options: PreferenceOptions): PreferencePair[][] {
  const batches: PreferencePair[][] = [];
  let used = Number.POSITIVE_INFINITY;
  for (const pair of pairs) {
    const whole = pair.chosen.length + pair.rejected.length;
    const cost = options.sharePrefix ? whole - commonPrefix(pair) : whole;
    if (used + cost > options.microBatchTokens) {
      batches.push([]);
      used = 0;
    }
    batches.at(-1)!.push(pair);
    used += cost;
  }
  return batches;
}
