import type { Tokenizer } from "../../src/io/tokenizer.ts";
import { TRL_ADVANTAGE } from "../../src/loss/advantage.ts";
import { policyOptions } from "../../src/loss/options.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import type { Transformer } from "../../src/nn/transformer.ts";
import { PolicyStep, type PolicyStepOptions } from "../../src/run/policy-step.ts";
import type { Reference } from "../../src/run/reference.ts";
import type { StepMemory } from "../../src/tape/tape.ts";
import { promptOf } from "./tiny.ts";

interface Variation {
  readonly options?: Partial<PolicyStepOptions>;
  /** Labels of a batch's completions; none without it. */
  readonly flagged?: (completion: number) => boolean;
  /** Rewards of a batch's completions; without it every second one earns 1. */
  readonly reward?: (completion: number) => number;
  readonly optimizer?: AdamW;
}

/** GRPO with a divergence term on groups of 4. */
export function tinyPolicyStep(
  memory: StepMemory,
  model: Transformer,
  reference: Reference,
  { options = {}, flagged, optimizer, reward = (i) => i % 2 }: Variation = {},
): PolicyStep {
  return new PolicyStep(
    memory,
    model,
    reference,
    { decode: () => "" } as unknown as Tokenizer,
    optimizer ??
      new AdamW(model.trained, {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weightDecay: 0,
        maxGradNorm: 1,
        seed: 1,
      }),
    async (rollouts) =>
      rollouts.map((r, i) => ({
        ...{ ...r, reward: reward(i), components: {} },
        ...(flagged ? { flagged: flagged(i) } : {}),
      })),
    {
      seed: 1,
      groupSize: 4,
      numIterations: 1,
      stepsPerGeneration: 1,
      gradAccumSteps: 1,
      sampling: { temperature: 1, topK: 0, topP: 1, minP: 0, maxNewTokens: 10, eosIds: [] },
      loss: policyOptions({ lossType: "grpo", beta: 0.02 }),
      advantage: TRL_ADVANTAGE,
      gamma: 1,
      maskTruncated: false,
      microBatchTokens: 64,
      sharePrefix: true,
      exactSampler: true,
      ...options,
    },
    { maxBatch: 8, maxLength: 40, prefillTokens: 64 },
  );
}

/** Three prompts of 9 to 11 tokens. */
export function tinyPrompts(vocab: number) {
  return [0, 1, 2].map((index) => ({ index, text: "", ids: promptOf(9 + index, vocab, index), fields: {} }));
}
