/** A GRPO recipe as the training loop sees it: which prompts, when to generate, evaluation, checkpoints. */
import type { Prompt, Scored } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Transformer } from "../nn/transformer.ts";
import type { Sampling } from "../rollout/engine.ts";
import { saveCheckpoint, saveGeneration } from "./checkpoint.ts";
import { Shuffle } from "./data.ts";
import type { Task, TaskSample } from "./loop.ts";
import type { PolicyStep } from "./policy-step.ts";
import type { Sinks } from "./sinks.ts";

export interface PolicyTaskOptions {
  readonly recipe: string;
  readonly seed: number;
  /** Prompts of one generated batch. */
  readonly promptsPerBatch: number;
  readonly learningRate: (step: number) => number;
  readonly initialHash: string;
  readonly checkpointConfig: string;
}

export class PolicyTask implements Task {
  readonly #shuffle: Shuffle;
  #shown: Scored | null = null;

  constructor(
    readonly policy: PolicyStep,
    readonly model: Transformer,
    readonly tokenizer: Tokenizer,
    readonly prompts: readonly Prompt[],
    readonly held: readonly Prompt[],
    readonly options: PolicyTaskOptions,
  ) {
    this.#shuffle = new Shuffle(prompts.length, options.seed);
  }

  get consistent(): boolean {
    return !this.policy.updating;
  }

  async step(step: number, sinks: Sinks): Promise<Record<string, number>> {
    const { policy, options } = this;
    const window = policy.window;
    if (!policy.generation || step >= policy.generation.step + window) {
      const batch = Math.floor((step - 1) / window);
      const first = batch * options.promptsPerBatch;
      const items = this.#shuffle.slice(first, options.promptsPerBatch);
      const generation = await policy.generate(
        step,
        items.map((i) => this.prompts[i]!),
      );
      this.#store(generation.scored, generation.advantages, step, first, sinks);
    }
    const metrics = await policy.update(step, options.learningRate(step - 1));
    this.#shown = policy.generation!.scored[0] ?? null;
    return { ...metrics, "device/peak_bytes": this.model.device.stats().residentPeak };
  }

  #store(
    scored: readonly Scored[],
    advantages: Float64Array,
    step: number,
    first: number,
    sinks: Sinks,
  ): void {
    const { groupSize } = this.policy.options;
    scored.forEach((s, i) => {
      if (Number.isNaN(s.reward)) return;
      sinks.rollouts?.add({
        step,
        epoch: this.#shuffle.at(first + Math.floor(i / groupSize)).epoch,
        prompt_index: s.prompt.index,
        rollout_index: s.completion,
        prompt: s.prompt.text,
        completion: s.text,
        reward: s.reward,
        advantage: advantages[i]!,
        components: s.components,
      });
    });
  }

  /** One sampled and one greedy completion of every held-out prompt. */
  async evaluate(step: number, sinks: Sinks): Promise<Record<string, number> | null> {
    if (this.held.length === 0) return null;
    const { sampling } = this.policy.options;
    const sampled = await this.#evaluateWith(sampling, step, "sampled", sinks);
    const greedy = await this.#evaluateWith({ ...sampling, temperature: 0 }, step, "greedy", sinks);
    return { "eval/reward": sampled, "eval/reward_greedy": greedy };
  }

  async #evaluateWith(sampling: Sampling, step: number, mode: string, sinks: Sinks): Promise<number> {
    const rollouts = await this.policy.rollouts(this.held, 1, sampling, {
      purpose: Purpose.evaluation,
      step,
    });
    const scored = await this.policy.score(rollouts, step);
    for (const s of scored) {
      if (Number.isNaN(s.reward)) continue;
      sinks.rollouts?.addEval({
        step,
        epoch: 0,
        mode,
        prompt_index: s.prompt.index,
        rollout_index: 0,
        prompt: s.prompt.text,
        completion: s.text,
        reward: s.reward,
        components: s.components,
      });
    }
    const rewards = scored.map((s) => s.reward).filter((r) => !Number.isNaN(r));
    return rewards.reduce((a, b) => a + b, 0) / rewards.length;
  }

  sample(): TaskSample | null {
    const s = this.#shown;
    return s && { prompt: s.prompt.text, completion: s.text, reward: s.reward };
  }

  save(parent: string, name: string, step: number): string {
    const { policy, options } = this;
    const { generation } = policy;
    const unfinished =
      generation !== null && step < generation.step + policy.window - 1 && step >= generation.step;
    const state = {
      step,
      recipe: options.recipe,
      initial_sha256: options.initialHash,
      generation: unfinished ? saveGeneration(generation) : null,
    };
    return saveCheckpoint(parent, name, this.model, this.tokenizer, state, options.checkpointConfig);
  }
}
