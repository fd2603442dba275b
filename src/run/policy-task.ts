/** A GRPO recipe as the training loop sees it: which prompts, when to generate, evaluation, checkpoints. */
import { mean } from "../core/lists.ts";
import type { Metrics, Prompt, Scored } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import { drawItems, type ItemSource } from "../data/prompts.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Transformer } from "../nn/transformer.ts";
import { judgeMetrics } from "../report/judge.ts";
import type { Sampling } from "../rollout/engine.ts";
import {
  type DataCursor,
  loadGeneration,
  saveCheckpoint,
  saveGeneration,
  type TrainState,
} from "./checkpoint.ts";
import type { Task, TaskSample } from "./loop.ts";
import { evaluateModes } from "./mode-evaluation.ts";
import type { Generation } from "./policy-batches.ts";
import type { PolicyStep, Score } from "./policy-step.ts";
import type { Sinks } from "./sinks.ts";

export interface PolicyTaskOptions {
  readonly recipe: string;
  /** Prompts of one generation. */
  readonly promptsPerBatch: number;
  readonly learningRate: (step: number) => number;
  readonly initialHash: string;
  readonly checkpointConfig: string;
  /** Scores evaluations, which are then of every mode of retain and forget adapters. */
  readonly modeScore?: Score;
}

export class PolicyTask implements Task {
  /** Where the next generation's prompts are drawn. */
  #cursor: DataCursor;
  /** Where those of the current one were. */
  #drawnAt: number;
  #shown: Scored | null = null;

  constructor(
    readonly policy: PolicyStep,
    readonly model: Transformer,
    readonly tokenizer: Tokenizer,
    readonly prompts: ItemSource<Prompt>,
    readonly held: readonly Prompt[],
    readonly options: PolicyTaskOptions,
    /** Of the checkpoint a run goes on from. */
    state: Pick<TrainState, "cursor" | "generation">,
  ) {
    this.#cursor = state.cursor;
    this.#drawnAt = state.cursor.position;
    const { generation } = state;
    if (generation === null) return;
    this.#drawnAt = generation.position;
    const count = generation.rollouts.length / generation.plan.groupSize;
    const { items } = drawItems(prompts, generation.position, count);
    const drawn = items.map(({ item }) => item);
    policy.restore(generation.step, generation.plan, loadGeneration(generation, drawn));
  }

  get consistent(): boolean {
    return !this.policy.updating;
  }

  async step(step: number, sinks: Sinks): Promise<Record<string, number>> {
    const { policy, options } = this;
    if (!policy.generation || step > policy.lastStep) {
      const { position, examples } = this.#cursor;
      const { items, next } = drawItems(this.prompts, position, options.promptsPerBatch);
      const generation = await policy.generate(
        step,
        items.map(({ item }) => item),
      );
      this.#drawnAt = position;
      this.#cursor = { position: next, examples: examples + items.length };
      this.#store(
        generation,
        items.map(({ epoch }) => epoch),
        sinks,
      );
    }
    const metrics = await policy.update(step, options.learningRate(step - 1));
    this.#shown = policy.generation!.scored[0] ?? null;
    return metrics;
  }

  /** `epochs`: of each prompt of the generation. */
  #store({ step, plan, scored, advantages }: Generation, epochs: readonly number[], sinks: Sinks): void {
    scored.forEach((s, i) => {
      if (Number.isNaN(s.reward)) return;
      sinks.rollouts?.add({
        step,
        epoch: epochs[Math.floor(i / plan.groupSize)]!,
        rollout_index: s.completion,
        advantage: advantages[i]!,
        ...rowOf(s, this.tokenizer),
      });
    });
    sinks.rollouts?.flushSoon();
  }

  /** One sampled and one greedy completion of every held-out prompt, or a sampled one in every mode. */
  async evaluate(step: number, sinks: Sinks): Promise<Record<string, number> | null> {
    if (this.held.length === 0) return null;
    const { modeScore } = this.options;
    if (modeScore)
      return evaluateModes(this.policy, this.held, modeScore, step, (mode, scored) =>
        this.#storeEval(step, mode, scored, sinks),
      );
    const { sampling } = this.policy.options;
    const sampled = await this.#evaluateWith(sampling, step, "sampled", sinks);
    const greedy = await this.#evaluateWith({ ...sampling, temperature: 0 }, step, "greedy", sinks);
    return {
      "eval/reward": sampled.reward,
      "eval/reward_greedy": greedy.reward,
      ...(this.policy.reference ? { "eval/kl_div": await this.policy.divergence(sampled.scored) } : {}),
      "eval/completion_length_avg": sampled.length,
      "eval/proper_ending_rate": sampled.ended,
      ...judgeMetrics(sampled.scored, "eval"),
    };
  }

  async #evaluateWith(sampling: Sampling, step: number, mode: string, sinks: Sinks) {
    const scored = await this.policy.scored(this.held, 1, sampling, { purpose: Purpose.evaluation, step });
    this.#storeEval(step, mode, scored, sinks);
    const rewards = scored.map((s) => s.reward).filter((r) => !Number.isNaN(r));
    return {
      scored,
      reward: mean(rewards),
      length: mean(scored.map((s) => s.ids.length)),
      ended: mean(scored.map((s) => (s.finish === "eos" ? 1 : 0))),
    };
  }

  #storeEval(step: number, mode: string, scored: readonly Scored[], sinks: Sinks): void {
    for (const s of scored) {
      if (Number.isNaN(s.reward)) continue;
      sinks.rollouts?.addEval({ step, epoch: 0, mode, rollout_index: 0, ...rowOf(s, this.tokenizer) });
    }
  }

  sample(): TaskSample | null {
    const s = this.#shown;
    return s && { prompt: s.prompt.text, completion: s.text, reward: s.reward };
  }

  save(parent: string, name: string, step: number, unrecorded?: Metrics): string {
    const { policy, options } = this;
    const { generation } = policy;
    const unfinished = generation !== null && step < policy.lastStep && step >= generation.step;
    const state = {
      step,
      recipe: options.recipe,
      initial_sha256: options.initialHash,
      cursor: this.#cursor,
      generation: unfinished ? saveGeneration(generation, this.#drawnAt) : null,
      unrecorded,
    };
    return saveCheckpoint(parent, name, this.model, this.tokenizer, state, options.checkpointConfig);
  }
}

/** What rollouts.sqlite keeps of any completion. */
function rowOf(s: Scored, tokenizer: Tokenizer) {
  return {
    prompt_index: s.prompt.index,
    prompt: s.prompt.text,
    completion: s.text,
    reward: s.reward,
    components: s.components,
    finish: s.finish,
    logprobs: s.logprobs,
    token_ends: tokenEnds(tokenizer, s.ids),
    ...(s.flagged === undefined ? {} : { flagged: s.flagged }),
    ...(s.details === undefined ? {} : { details: s.details }),
  };
}

/** Where the text of each token ends in what the tokens say together, in UTF-16 units. */
function tokenEnds(tokenizer: Tokenizer, ids: Int32Array): Uint32Array {
  const stream = tokenizer.stream({ skipSpecialTokens: true });
  let end = 0;
  return Uint32Array.from(ids, (id, i) => {
    end += stream.push(id).length;
    if (i === ids.length - 1) end += stream.end().length;
    return end;
  });
}
