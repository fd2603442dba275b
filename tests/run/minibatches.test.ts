/** Several optimizer steps of one generation against the objective written out in float64. */
import { expect, test } from "bun:test";
import type { Tokenizer } from "../../src/io/tokenizer.ts";
import { TRL_ADVANTAGE } from "../../src/loss/advantage.ts";
import { policyOptions } from "../../src/loss/options.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { Transformer } from "../../src/nn/transformer.ts";
import { scoreGroups } from "../../src/rollout/score.ts";
import { PolicyStep } from "../../src/run/policy-step.ts";
import { Reference } from "../../src/run/reference.ts";
import { promptOf, Tiny } from "./tiny.ts";

const [GROUP, BATCH, ACCUMULATE, MINIBATCHES, ITERATIONS] = [4, 2, 2, 2, 2];
const [BETA, CLIP] = [0.3, 0.2];

test("n_minibatches with accumulation: each step is the clipped objective over its own tokens", async () => {
  using tiny = new Tiny("qwen3", { trainable: true });
  const { model, memory, device } = tiny;
  const frozen = new Transformer(device, model.config, { ...model.options, trainable: false }, "reference");
  frozen.copyFrom(model);
  const rewards = Array.from({ length: BATCH * ACCUMULATE * GROUP }, (_, i) => ((i * 7) % 5) / 4 - (i % 3));
  const step = new PolicyStep(
    memory,
    model,
    Reference.kept(frozen),
    { decode: () => "" } as unknown as Tokenizer,
    new AdamW(model.trained, {
      ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 0, seed: 1 },
    }),
    async (rollouts) => rollouts.map((r, i) => ({ ...r, reward: rewards[i]!, components: {} })),
    {
      seed: 3,
      groupSize: GROUP,
      numIterations: ITERATIONS,
      stepsPerGeneration: MINIBATCHES,
      gradAccumSteps: ACCUMULATE,
      sampling: { temperature: 1, topK: 0, topP: 1, minP: 0, maxNewTokens: 9, eosIds: [7, 21, 300, 512] },
      loss: policyOptions({ lossType: "ppo_clip", beta: BETA, epsilonLow: CLIP, klEstimator: "k3" }),
      advantage: TRL_ADVANTAGE,
      gamma: 1,
      maskTruncated: false,
      microBatchTokens: 40,
      sharePrefix: true,
      exactSampler: true,
    },
    { maxBatch: 8, maxLength: 40, prefillTokens: 64 },
  );
  const vocab = model.config.vocabSize;
  const prompts = Array.from({ length: BATCH * ACCUMULATE }, (_, index) => ({
    ...{ index, text: "", fields: {} },
    ids: promptOf(6 + index, vocab, index),
  }));
  await step.generate(1, prompts);
  const { scored } = step.generation!;
  const sampled = scored.map(({ logprobs }) => logprobs.slice());
  const groupsOf = (rows: readonly number[]) =>
    Array.from({ length: rows.length / GROUP }, (_, g) => {
      const members = rows.slice(g * GROUP, (g + 1) * GROUP).map((row) => scored[row]!);
      return { prompt: members[0]!.prompt.ids, completions: members.map(({ ids }) => ids) };
    });
  const every = scored.map((_, i) => i);
  const reference = scoreGroups(memory, frozen, groupsOf(every), 1, 4096).logprobs.flat();
  const advantage = every.map((row) => {
    const first = row - (row % GROUP);
    const group = rewards.slice(first, first + GROUP);
    const mean = group.reduce((a, b) => a + b, 0) / GROUP;
    const variance = group.reduce((a, b) => a + (b - mean) ** 2, 0) / (GROUP - 1);
    return (rewards[row]! - mean) / (Math.sqrt(variance) + 1e-4);
  });
  /** Of a minibatch under the weights that the model has now. */
  const objective = (rows: readonly number[]): number => {
    const now = scoreGroups(memory, model, groupsOf(rows), 1, 4096).logprobs.flat();
    let sum = 0;
    let tokens = 0;
    rows.forEach((row, i) => {
      now[i]!.forEach((logprob, t) => {
        const ratio = Math.exp(logprob - sampled[row]![t]!);
        const clipped = Math.min(Math.max(ratio, 1 - CLIP), 1 + CLIP);
        const d = logprob - reference[row]![t]!;
        sum -= Math.min(ratio * advantage[row]!, clipped * advantage[row]!);
        sum += BETA * (Math.exp(-d) + d - 1);
        tokens++;
      });
    });
    return sum / tokens;
  };
  const perStep = (BATCH * ACCUMULATE * GROUP) / MINIBATCHES;
  let clipped = 0;
  expect(step.lastStep).toBe(MINIBATCHES * ITERATIONS);
  for (let n = 1; n <= MINIBATCHES * ITERATIONS; n++) {
    const first = ((n - 1) % MINIBATCHES) * perStep;
    const rows = every.slice(first, first + perStep);
    const want = objective(rows);
    const last = n === MINIBATCHES * ITERATIONS;
    const metrics = await step.update(n, last ? 0 : 2e-3);
    expect(Math.abs(metrics["train/loss"]! - want)).toBeLessThan(2e-6);
    clipped += metrics["train/clip_ratio"]!;
    if (!last) continue;
    // With rate 0 the weights are still those of the gradient.
    for (const [name, at] of [
      ["model.norm.weight", 5],
      ["model.layers.0.self_attn.q_proj.weight", 48 * 3 + 17],
      ["model.layers.1.mlp.down_proj.weight", 72 * 11 + 30],
    ] as const) {
      const values = model.parameters.read(name);
      const movedBy = (by: number) => {
        const moved = values.slice();
        moved[at]! += by;
        model.parameters.load(name, moved);
        return objective(rows);
      };
      const h = 2e-3;
      const slope = (movedBy(h) - movedBy(-h)) / (2 * h);
      model.parameters.load(name, values);
      const got = model.parameters.readGradient(name)[at]!;
      expect(Math.abs(got - slope)).toBeLessThan(2e-5 + 0.02 * Math.abs(slope));
      expect(Math.abs(got)).toBeGreaterThan(1e-5);
    }
  }
  expect(clipped).toBeGreaterThan(0);
  step.dispose();
  frozen.dispose();
});
