import { describe, expect, test } from "bun:test";
import { trlNormaliser } from "../../src/loss/count.ts";
import { policyOptions } from "../../src/loss/options.ts";
import { policyLoss } from "../../src/loss/policy.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow } from "../../src/rollout/score.ts";
import { Graph } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { largest, Opened, relativeL2 } from "./support.ts";

const cases = goldenCases("trainer").filter((c) => c.kind === "grpo_trainer");
test("there are runs to check", () => expect(cases.length).toBeGreaterThan(0));

/** Whole optimizer steps of TRL's GRPOTrainer with its own completions: log-probabilities, loss, gradients, weights. */
test.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  using opened = new Opened(golden);
  const { model, memory } = opened;
  const want = loadTensors(golden.dir);
  const { hyper, tolerance, micro_batches, optimizer_steps } = golden.spec;
  const options = policyOptions({
    lossType: hyper.loss_type,
    beta: hyper.beta,
    epsilonLow: hyper.epsilon,
    epsilonHigh: hyper.epsilon_high,
    delta: hyper.delta,
    importanceSamplingLevel: hyper.importance_sampling_level,
    klEstimator: golden.spec.use_bias_correction_kl === false ? "k3" : "k3_ratio",
    compat: "trl",
  });
  const optimizer = new AdamW(model.parameters, {
    beta1: hyper.adam_beta1,
    beta2: hyper.adam_beta2,
    eps: hyper.adam_epsilon,
    weightDecay: hyper.weight_decay,
    maxGradNorm: hyper.max_grad_norm,
    seed: 0,
  });
  const perStep = micro_batches / optimizer_steps;
  let micro = 0;
  for (let opt = 0; opt < optimizer_steps; opt++) {
    model.parameters.zeroGradients();
    for (let i = 0; i < perStep; i++, micro++) {
      const at = (name: string) => want.get(`step${micro}.${name}`);
      const ids = at("completion_ids")!;
      const mask = at("completion_mask")!;
      const [rows, width] = ids.shape as [number, number];
      // A fully masked row was cut at the limit: all its columns are tokens.
      const lengths = Array.from({ length: rows }, (_, r) => {
        const n = mask.data.subarray(r * width, (r + 1) * width).reduce((a: number, b: number) => a + b, 0);
        return n === 0 ? width : n;
      });
      const pick = (name: string): Float64Array | null => {
        const tensor = at(name);
        return tensor
          ? Float64Array.from(lengths.flatMap((n, r) => [...tensor.data.subarray(r * width, r * width + n)]))
          : null;
      };
      const prompts = at("prompt_ids")!;
      const promptMask = at("prompt_mask")!;
      const promptOf = (r: number) => {
        const w = prompts.shape[1]!;
        const row = Array.from(prompts.data.subarray(r * w, (r + 1) * w));
        return Int32Array.from(row.filter((_, j) => promptMask.data[r * w + j] === 1));
      };
      const groups = Array.from({ length: rows }, (_, r) => ({
        prompt: promptOf(r),
        completions: [Int32Array.from(ids.data.subarray(r * width, r * width + lengths[r]!))],
      }));
      const row = packGroups(groups);
      const g = new Graph(memory, true);
      const { logprob, entropy } = forwardRow(g, model, row, hyper.temperature);
      memory.finish();
      const logprobs = logprob.float32().slice();
      const masks = Uint8Array.from(pick("completion_mask")!);
      const counted = (values: Float64Array | Float32Array) =>
        Array.from(values).filter((_, t) => masks[t] === 1);
      expect(largest(counted(logprobs), counted(pick("new_per_token_logps")!))).toBeLessThan(
        tolerance.logps_abs,
      );
      expect(largest(counted(entropy.float32()), counted(pick("entropies")!))).toBeLessThan(
        tolerance.logps_abs,
      );
      const loss = policyLoss(
        {
          rows,
          offsets: row.offsets,
          mask: masks,
          logprobs,
          oldLogprobs: pick("old_per_token_logps"),
          refLogprobs: pick("ref_per_token_logps"),
          entropy: null,
          advantages: at("advantages")!.data,
        },
        options,
        trlNormaliser({
          gradientAccumulationSteps: hyper.gradient_accumulation_steps,
          stepsPerGeneration: hyper.steps_per_generation,
          generationTokens: at("num_items_in_batch")!.data[0]!,
          maxCompletionLength: hyper.max_completion_length,
        }),
      );
      expect(Math.abs(loss.loss - at("loss")!.data[0]!)).toBeLessThan(tolerance.loss_abs);
      g.backward([[logprob, g.upload(Float32Array.from(loss.gradLogprobs), "gradient")]]);
      g.release(logprob, entropy);
      memory.finish();
    }
    const gradients = new Map(
      model.parameters.list.map((p) => [p.name, model.parameters.readGradient(p.name)]),
    );
    const { gradNorm } = optimizer.step(memory, opt + 1, want.get(`opt${opt}.lr`)!.data[0]!);
    const clip = Math.min(1, hyper.max_grad_norm / (gradNorm + 1e-6));
    for (const p of model.parameters.list) {
      const gradient = want.get(`opt${opt}.grad.${p.name}`);
      if (!gradient) continue;
      const clipped = gradients.get(p.name)!.map((x) => x * clip);
      expect(relativeL2(clipped, gradient.data)).toBeLessThan(tolerance.grad_relative_l2);
      const after = want.get(`opt${opt}.after.${p.name}`)!.data;
      const weights = model.parameters.read(p.name);
      // Adam's first steps are sign-like: only where the gradient is not noise do the weights agree.
      gradient.data.forEach((gv: number, j: number) => {
        if (Math.abs(gv) > 1e-4) expect(Math.abs(weights[j]! - after[j]!)).toBeLessThan(1e-4);
      });
    }
  }
  expect(micro).toBe(micro_batches);
});

describe("the same in bfloat16", () => {
  test.each(cases.map((c) => [c.name, c] as const))("%s: log-probabilities stay near", (_name, golden) => {
    using opened = new Opened(golden, { dtype: Dtype.bf16, trainable: false });
    const want = loadTensors(golden.dir);
    const ids = want.get("step0.completion_ids")!;
    const w = want.get("step0.prompt_ids")!.shape[1]!;
    const mask = want.get("step0.prompt_mask")!.data;
    const prompt = Int32Array.from(
      want
        .get("step0.prompt_ids")!
        .data.subarray(0, w)
        .filter((_, j) => mask[j] === 1),
    );
    const n = want
      .get("step0.completion_mask")!
      .data.subarray(0, ids.shape[1]!)
      .reduce((a: number, b: number) => a + b, 0);
    const g = new Graph(opened.memory, false);
    const row = packGroups([{ prompt, completions: [Int32Array.from(ids.data.subarray(0, n))] }]);
    const { logprob, entropy } = forwardRow(g, opened.model, row, golden.spec.hyper.temperature);
    opened.memory.finish();
    expect(
      largest(logprob.float32(), want.get("step0.new_per_token_logps")!.data.subarray(0, n)),
    ).toBeLessThan(0.1);
    g.release(logprob, entropy);
  });
});
