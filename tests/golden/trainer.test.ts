import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { Prompt, Scored } from "../../src/core/records.ts";
import { TRL_ADVANTAGE } from "../../src/loss/advantage.ts";
import { trlNormaliser } from "../../src/loss/count.ts";
import { type PolicyOptions, policyOptions } from "../../src/loss/options.ts";
import { policyLoss } from "../../src/loss/policy.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { learningRateFactor } from "../../src/nn/schedule.ts";
import type { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow } from "../../src/rollout/score.ts";
import { openModel } from "../../src/run/open-model.ts";
import { PolicyStep } from "../../src/run/policy-step.ts";
import { Reference } from "../../src/run/reference.ts";
import { Graph } from "../../src/tape/tape.ts";
import { type GoldenTensor, loadTensors } from "../golden-tensors.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { largest, Opened, relativeL2, someTokenizer } from "./support.ts";

const cases = goldenCases("trainer").filter((c) => c.kind === "grpo_trainer");

/** One row of a micro-batch without its padding. */
interface Row {
  readonly prompt: Int32Array;
  readonly ids: Int32Array;
  /** False where TRL masked the row because it was cut off. */
  readonly counts: boolean;
  readonly advantage: number;
  readonly logprobs: Float32Array;
  readonly entropies: Float32Array;
  readonly old: Float32Array | null;
  readonly reference: Float32Array | null;
}

function readRows(want: ReadonlyMap<string, GoldenTensor>, micro: number): Row[] {
  const of = (name: string) => want.get(`step${micro}.${name}`);
  const prompts = of("prompt_ids")!;
  const promptMask = of("prompt_mask")!.data;
  const ids = of("completion_ids")!;
  const mask = of("completion_mask")!.data;
  const [count, width] = ids.shape as [number, number];
  const promptWidth = prompts.shape[1]!;
  return Array.from({ length: count }, (_, r) => {
    const tokens = mask.subarray(r * width, (r + 1) * width).reduce((a, b) => a + b, 0);
    // A row is masked as a whole, and only one that fills the width can have been cut off.
    const length = tokens === 0 ? width : tokens;
    const cut = (name: string) => {
      const tensor = of(name);
      return tensor ? Float32Array.from(tensor.data.subarray(r * width, r * width + length)) : null;
    };
    return {
      prompt: Int32Array.from(
        prompts.data
          .subarray(r * promptWidth, (r + 1) * promptWidth)
          .filter((_, i) => promptMask[r * promptWidth + i] === 1),
      ),
      ids: Int32Array.from(ids.data.subarray(r * width, r * width + length)),
      counts: tokens > 0,
      advantage: of("advantages")!.data[r]!,
      logprobs: cut("new_per_token_logps")!,
      entropies: cut("entropies")!,
      old: cut("old_per_token_logps"),
      reference: cut("ref_per_token_logps"),
    };
  });
}

const flat = (parts: readonly (Float32Array | null)[]): Float32Array | null =>
  parts[0] ? Float32Array.from(parts.flatMap((part) => [...part!])) : null;

/** Values of the rows that TRL did not mask. */
function counted(rows: readonly Row[], offsets: Int32Array, values: Float32Array): Float32Array {
  return Float32Array.from(
    rows.flatMap((row, i) => (row.counts ? [...values.subarray(offsets[i]!, offsets[i + 1]!)] : [])),
  );
}

function optionsOf(golden: GoldenCase): PolicyOptions {
  const { hyper } = golden.spec;
  return policyOptions({
    lossType: hyper.loss_type,
    beta: hyper.beta,
    epsilonLow: hyper.epsilon,
    epsilonHigh: hyper.epsilon_high,
    delta: hyper.delta,
    importanceSamplingLevel: hyper.importance_sampling_level,
    klEstimator: "k3_ratio",
    compat: "trl",
  });
}

/** Log-probabilities, entropies and loss of one of TRL's micro-batches, its rows in TRL's order. */
function expectMicroBatch(golden: GoldenCase, opened: Opened, rows: readonly Row[], micro: number): void {
  const want = loadTensors(golden.dir);
  const { hyper, tolerance } = golden.spec;
  const packed = packGroups(rows.map((row) => ({ prompt: row.prompt, completions: [row.ids] })));
  const g = new Graph(opened.memory, false);
  const { logprob, entropy } = forwardRow(g, opened.model, packed, hyper.temperature);
  opened.memory.finish();
  const [logprobs, entropies] = [logprob.float32().slice(), entropy.float32().slice()];
  g.release(logprob, entropy);
  const { offsets } = packed;
  const compare = (got: Float32Array, expected: Float32Array, most: number) =>
    expect(largest(counted(rows, offsets, got), counted(rows, offsets, expected))).toBeLessThan(most);
  compare(logprobs, flat(rows.map((r) => r.logprobs))!, tolerance.logps_abs);
  compare(entropies, flat(rows.map((r) => r.entropies))!, tolerance.logps_abs);
  const { loss } = policyLoss(
    {
      rows: rows.length,
      offsets,
      mask: Uint8Array.from(rows.flatMap((r) => Array.from(r.ids, () => (r.counts ? 1 : 0)))),
      logprobs,
      oldLogprobs: flat(rows.map((r) => r.old)),
      refLogprobs: flat(rows.map((r) => r.reference)),
      entropy: null,
      advantages: Float64Array.from(rows, (r) => r.advantage),
    },
    optionsOf(golden),
    trlNormaliser({
      gradientAccumulationSteps: hyper.gradient_accumulation_steps,
      stepsPerGeneration: hyper.steps_per_generation,
      generationTokens: want.get(`step${micro}.num_items_in_batch`)!.data[0]!,
      maxCompletionLength: hyper.max_completion_length,
    }),
  );
  expect(Math.abs(loss - want.get(`step${micro}.loss`)!.data[0]!)).toBeLessThan(tolerance.loss_abs);
}

/** Rows as rollouts, those of a prompt consecutive: TRL shuffles its generation batch, rlv's is in groups. */
function inGroups(golden: GoldenCase, rows: readonly Row[]): Scored[] {
  const groups = Map.groupBy(rows, (row) => row.prompt.join());
  return [...groups.values()].flatMap((members, index) => {
    expect(members.length).toBe(golden.spec.hyper.num_generations);
    const prompt: Prompt = { index, text: "", ids: members[0]!.prompt, fields: {} };
    return members.map((row, completion) => ({
      prompt,
      completion,
      ids: row.ids,
      // What TRL calls old log-probabilities is what the sampler gave; without reuse they are the policy's own.
      logprobs: row.old ?? row.logprobs,
      lse: null,
      entropies: null,
      text: "",
      finish: row.ids.at(-1) === golden.spec.eos_id ? ("eos" as const) : ("length" as const),
      // The runs give advantages and not rewards. Theirs have mean 0 in every group: with scale "none" they
      // are their own advantages.
      reward: row.advantage,
      components: {},
    }));
  });
}

/** A step that trains what TRL trained; no tokenizer, reward or sampling takes part. */
function policyStep(golden: GoldenCase, opened: Opened, reference: Transformer | null, sharePrefix: boolean) {
  const { hyper } = golden.spec;
  const optimizer = new AdamW(opened.model.parameters, {
    beta1: hyper.adam_beta1,
    beta2: hyper.adam_beta2,
    eps: hyper.adam_epsilon,
    weightDecay: hyper.weight_decay,
    maxGradNorm: hyper.max_grad_norm,
    seed: 0,
  });
  return new PolicyStep(
    opened.memory,
    opened.model,
    reference && Reference.kept(reference),
    someTokenizer(),
    optimizer,
    () => Promise.reject(new Error("nothing is to be scored")),
    {
      seed: 0,
      groupSize: hyper.num_generations,
      numIterations: hyper.num_iterations,
      // rlv counts optimizer steps here, TRL micro-batches.
      stepsPerGeneration: hyper.steps_per_generation / hyper.gradient_accumulation_steps,
      gradAccumSteps: hyper.gradient_accumulation_steps,
      sampling: {
        temperature: hyper.temperature,
        topK: 0,
        topP: 1,
        minP: 0,
        maxNewTokens: hyper.max_completion_length,
        eosIds: [golden.spec.eos_id],
      },
      loss: optionsOf(golden),
      advantage: { ...TRL_ADVANTAGE, scale: "none" },
      gamma: 1,
      maskTruncated: hyper.mask_truncated_completions,
      microBatchTokens: 4096,
      sharePrefix,
      exactSampler: false,
    },
    { maxBatch: 1, maxLength: 64, prefillTokens: 64 },
  );
}

/**
 * The gradient norm of every step, and clipped gradients and weights of the steps for which the golden has them.
 * `smallest` is the smallest |gradient| of every element so far: Adam's first steps are sign-like, so weights agree
 * where no gradient was noise (the golden's after_abs).
 */
function expectStep(
  golden: GoldenCase,
  opened: Opened,
  opt: number,
  gradNorm: number,
  smallest: Map<string, Float32Array>,
): void {
  const want = loadTensors(golden.dir);
  const { hyper, tolerance } = golden.spec;
  const { parameters } = opened.model;
  const relativeNorm = gradNorm / want.get(`opt${opt}.grad_norm`)!.data[0]! - 1;
  expect(Math.abs(relativeNorm)).toBeLessThan(tolerance.grad_relative_l2);
  const clip = Math.min(1, hyper.max_grad_norm / (gradNorm + 1e-6));
  let compared = 0;
  for (const { name } of parameters.list) {
    const clipped = parameters.readGradient(name).map((x) => x * clip);
    const gradient = want.get(`opt${opt}.grad.${name}`);
    if (gradient) expect(relativeL2(clipped, gradient.data)).toBeLessThan(tolerance.grad_relative_l2);
    const before = smallest.get(name);
    const least = clipped.map((x, i) => Math.min(Math.abs(x), before?.[i] ?? Number.POSITIVE_INFINITY));
    smallest.set(name, least);
    const after = want.get(`opt${opt}.after.${name}`);
    if (!after) continue;
    const weights = parameters.read(name);
    const sure = [...least.keys()].filter((i) => least[i]! > 1e-4);
    const [got, expected] = [weights, after.data].map((values) => sure.map((i) => values[i]!));
    expect(largest(got!, expected!)).toBeLessThan(1e-4);
    compared += sure.length;
  }
  const named = (prefix: string) => [...want.keys()].filter((key) => key.startsWith(prefix)).length;
  for (const prefix of [`opt${opt}.grad.`, `opt${opt}.after.`]) {
    expect([0, parameters.list.length]).toContain(named(prefix));
  }
  if (named(`opt${opt}.after.`) > 0) expect(compared).toBeGreaterThan(parameters.count / 2);
}

test("there are runs to check", () => expect(cases.length).toBeGreaterThan(0));

/** Whole runs of TRL's GRPOTrainer on its own completions, trained by the step that `rlv train` takes. */
describe.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  const want = loadTensors(golden.dir);
  const { hyper, tolerance, micro_batches, optimizer_steps, metrics } = golden.spec;

  test.each([true, false])("every optimizer step, shared prefixes %p", async (sharePrefix) => {
    using opened = new Opened(golden);
    const folder = join(golden.dir, golden.spec.model);
    const frozen = { ...opened.model.options, trainable: false };
    const reference = hyper.beta === 0 ? null : openModel(folder, opened.device, frozen, "reference");
    const step = policyStep(golden, opened, reference, sharePrefix);
    const smallest = new Map<string, Float32Array>();
    const perStep = micro_batches / optimizer_steps;
    expect(perStep).toBe(hyper.gradient_accumulation_steps);
    const factor = learningRateFactor({ schedule: hyper.lr_scheduler, totalSteps: hyper.max_steps });
    for (let opt = 0; opt < optimizer_steps; opt++) {
      const first = opt * perStep;
      const rows = Array.from({ length: perStep }, (_, i) => readRows(want, first + i));
      rows.forEach((batch, i) => {
        expectMicroBatch(golden, opened, batch, first + i);
      });
      const fresh = opt + 1 > step.lastStep;
      if (fresh) step.restore(opt + 1, step.options, inGroups(golden, rows.flat()));
      const { generation } = step;
      const advantages = generation!.scored.map((s) => s.reward);
      expect(largest(generation!.advantages, advantages)).toBeLessThan(1e-6);

      const lr = hyper.learning_rate * factor(opt);
      expect(lr).toBeCloseTo(want.get(`opt${opt}.lr`)!.data[0]!, 12);
      const got = await step.update(opt + 1, lr);
      if (fresh && !hyper.mask_truncated_completions) {
        expect(got["train/sampler_logp_diff_max"]).toBeLessThan(tolerance.logps_abs);
      }
      if (generation!.reference) {
        const order = Map.groupBy(rows.flat(), (row) => row.prompt.join());
        const expected = [...order.values()].flat().map((row) => row.reference);
        expect(largest(flat(generation!.reference)!, flat(expected)!)).toBeLessThan(tolerance.logps_abs);
      }
      const loss = rows.reduce((sum, _, i) => sum + want.get(`step${first + i}.loss`)!.data[0]!, 0);
      expect(Math.abs(got["train/loss"]! - loss)).toBeLessThan(perStep * tolerance.loss_abs);
      expect(Math.abs(got["train/loss"]! - metrics[opt].loss)).toBeLessThan(perStep * tolerance.loss_abs);
      expectStep(golden, opened, opt, got["train/grad_norm"]!, smallest);
      // TRL averages these over micro-batches, and over several it cuts them elsewhere than rlv.
      if (perStep === 1) {
        const names = ["kl", "entropy"].concat(
          Object.keys(metrics[opt]).filter((name) => name.startsWith("clip_ratio/")),
        );
        for (const name of names) {
          const expected = metrics[opt][name];
          const most = 1e-4 * Math.max(1, Math.abs(expected));
          expect(Math.abs(got[`train/${name}`]! - expected)).toBeLessThan(most);
        }
      }
      expect(opened.memory.used).toBe(0);
    }
    step.dispose();
    reference?.dispose();
  });

  test("bfloat16 stays near", () => {
    using opened = new Opened(golden, { dtype: Dtype.bf16, trainable: false });
    const rows = readRows(want, 0);
    const packed = packGroups(rows.map((row) => ({ prompt: row.prompt, completions: [row.ids] })));
    const g = new Graph(opened.memory, false);
    const { logprob, entropy } = forwardRow(g, opened.model, packed, hyper.temperature);
    opened.memory.finish();
    expect(largest(logprob.float32(), flat(rows.map((r) => r.logprobs))!)).toBeLessThan(0.1);
    g.release(logprob, entropy);
  });
});
