import { describe, expect, test } from "bun:test";
import { groupAdvantages, REINFORCE_ADVANTAGE, TRL_ADVANTAGE } from "../../src/loss/advantage.ts";
import { globalNormaliser, type Normaliser, trlNormaliser } from "../../src/loss/count.ts";
import { type PolicyInput, type PolicyOptions, policyOptions } from "../../src/loss/options.ts";
import { policyLoss } from "../../src/loss/policy.ts";
import type { PolicyRows } from "../../src/loss/rows.ts";
import { type GoldenTensor, loadTensors } from "../golden-tensors.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";

type Tensors = Map<string, GoldenTensor>;

const cases = goldenCases("grpo", "trainer");
const lossCases = cases.filter((c) => c.kind === "grpo_loss");
const advantageCases = cases.filter((c) => c.kind === "grpo_advantages");

function optionsOf(spec: GoldenCase["spec"]): PolicyOptions {
  const trl = spec.loss_type !== "reinforce_kl2" && spec.loss_type !== "ppo_clip";
  const input: PolicyInput = {
    lossType: spec.loss_type,
    beta: spec.beta,
    klEstimator:
      spec.kl_estimator ??
      (spec.loss_type === "reinforce_kl2" ? "k2" : spec.use_bias_correction_kl ? "k3_ratio" : "k3"),
    importanceSamplingLevel: spec.importance_sampling_level,
    epsilonLow: spec.epsilon_low,
    epsilonHigh: spec.epsilon_high,
    delta: spec.delta,
    aggregation: spec.aggregation,
    entropyCoef: spec.entropy_coef,
    topEntropyQuantile: spec.top_entropy_quantile,
    offPolicyMaskThreshold: spec.off_policy_mask_threshold,
    compat: trl ? "trl" : "none",
  };
  return policyOptions(input);
}

/** Padded [B, C] tensors as rows: the padding dropped (`packed`) or kept under mask 0. */
function rowsOf(
  tensors: Tensors,
  spec: GoldenCase["spec"],
  packed: boolean,
): { batch: PolicyRows; at: number[] } {
  const mask = tensors.get("mask")!;
  const tool = tensors.get("tool_mask");
  const [rows, width] = mask.shape as [number, number];
  const at: number[] = [];
  const offsets = new Int32Array(rows + 1);
  for (let i = 0; i < rows; i++) {
    for (let t = 0; t < width; t++) if (!packed || mask.data[i * width + t]) at.push(i * width + t);
    offsets[i + 1] = at.length;
  }
  const pick = (name: string): Float64Array | null => {
    const tensor = tensors.get(name);
    return tensor ? Float64Array.from(at, (k) => tensor.data[k]!) : null;
  };
  const batch: PolicyRows = {
    rows,
    offsets,
    mask: Uint8Array.from(at, (k) => mask.data[k]! * (tool ? tool.data[k]! : 1)),
    logprobs: pick("new")!,
    oldLogprobs: spec.old_given === false ? null : pick("old"),
    refLogprobs: spec.beta === 0 ? null : pick("ref"),
    entropy: pick("entropies"),
    samplingLogprobs: pick("sampling"),
    advantages: tensors.get("advantages")!.data,
  };
  return { batch, at };
}

function normaliserOf(spec: GoldenCase["spec"], options: PolicyOptions, batch: PolicyRows): Normaliser {
  if (options.compat === "none") return globalNormaliser([batch], spec.max_completion_length);
  return trlNormaliser({
    gradientAccumulationSteps: spec.gradient_accumulation_steps,
    stepsPerGeneration: spec.gradient_accumulation_steps,
    generationTokens: spec.num_items_in_batch,
    maxCompletionLength: spec.max_completion_length,
    training: spec.training,
  });
}

function expectScattered(got: Float64Array, at: number[], want: GoldenTensor, tolerance: number): void {
  const dense = new Float64Array(want.data.length);
  for (const [k, index] of at.entries()) dense[index] = got[k]!;
  for (let k = 0; k < dense.length; k++)
    expect(Math.abs(dense[k]! - want.data[k]!)).toBeLessThanOrEqual(tolerance);
}

describe("goldens of policy losses", () => {
  test("there are cases", () => {
    expect(lossCases.length).toBeGreaterThan(0);
    expect(advantageCases.length).toBeGreaterThan(0);
  });

  for (const golden of lossCases) {
    for (const packed of [true, false]) {
      test(`${golden.name} ${packed ? "packed" : "padded"}`, () => {
        const { spec } = golden;
        const tensors = loadTensors(golden.dir);
        const options = optionsOf(spec);
        const { batch, at } = rowsOf(tensors, spec, packed);
        const result = policyLoss(batch, options, normaliserOf(spec, options, batch));
        const want = tensors.get("loss")!.data[0]!;
        const tolerance = spec.tolerance.loss_relative * Math.abs(want) + 1e-8;
        expect(Math.abs(result.loss - want)).toBeLessThanOrEqual(tolerance);
        expectScattered(result.gradLogprobs, at, tensors.get("grad_new")!, spec.tolerance.grad_abs);
        const gradEntropies = tensors.get("grad_entropies");
        expect(result.gradEntropy !== null).toBe(gradEntropies !== undefined);
        if (gradEntropies) expectScattered(result.gradEntropy!, at, gradEntropies, spec.tolerance.grad_abs);
        for (const [name, value] of Object.entries(spec.metrics ?? {})) {
          expect(name in result.metrics ? name : `no metric ${name}`).toBe(name);
          expect(Math.abs(result.metrics[name]! - (value as number))).toBeLessThanOrEqual(
            spec.tolerance.metrics_abs,
          );
        }
      });
    }
  }
});

/** Global normalisation of two micro-batches must equal one batch; TRL's dapo goldens are that very split. */
describe("accumulation goldens under the default normaliser", () => {
  for (const loss of ["dapo", "dr_grpo", "grpo", "bnpo"]) {
    const parts = [0, 1].map((i) => lossCases.find((c) => c.name === `grpo/${loss}_accumulation_micro${i}`));
    const whole = lossCases.find((c) => c.name === `grpo/${loss}_beta0.04_token`);
    if (!parts[0] || !parts[1] || !whole) continue;
    test(loss, () => {
      const spec = { ...whole.spec };
      const options = policyOptions({ ...optionsOf(spec), compat: "none" });
      const batches = parts.map((part) => rowsOf(loadTensors(part!.dir), spec, true).batch);
      const norm = globalNormaliser(batches, spec.max_completion_length);
      const sum = batches.reduce((total, batch) => total + policyLoss(batch, options, norm).loss, 0);
      expect(Math.abs(sum - loadTensors(whole.dir).get("loss")!.data[0]!)).toBeLessThan(1e-6);
    });
  }
});

/** The references divided in float32: a few units in the last place of values above 1 are theirs. */
function expectClose(got: Float64Array, want: GoldenTensor | undefined, tolerance: number): void {
  expect(got.length).toBe(want!.data.length);
  for (const [i, value] of got.entries()) {
    const expected = want!.data[i]!;
    expect(Math.abs(value - expected)).toBeLessThanOrEqual(tolerance * (1 + Math.abs(expected)));
  }
}

describe("goldens of advantages", () => {
  for (const golden of advantageCases) {
    const { spec } = golden;
    const tensors = loadTensors(golden.dir);
    if (golden.group === "grpo") {
      test(golden.name, () => {
        const tolerance = spec.tolerance.absolute;
        const G = spec.group_size;
        const rewards = tensors.get("rewards")!.data;
        for (const scale of ["group", "batch", "none"] as const) {
          const { advantages } = groupAdvantages(rewards, G, { ...TRL_ADVANTAGE, scale });
          expectClose(advantages, tensors.get(`adv.${scale}`), tolerance);
        }
        const { advantages } = groupAdvantages(rewards, G, REINFORCE_ADVANTAGE);
        expectClose(advantages, tensors.get("adv.reinforce_kl2"), tolerance);
        const penalised = tensors.get("rewards_with_eos_penalty")!.data;
        expectClose(
          groupAdvantages(penalised, G, TRL_ADVANTAGE).advantages,
          tensors.get("adv.eos_penalty_group"),
          tolerance,
        );
        const flat = groupAdvantages(tensors.get("rewards_flat")!.data, G, TRL_ADVANTAGE);
        expectClose(flat.advantages, tensors.get("adv.flat_group"), tolerance);
        expect([...flat.advantages.subarray(0, G)]).toEqual(new Array(G).fill(0));
      });
      continue;
    }
    test(golden.name, () => {
      const missing = tensors.get("missing")!.data;
      const table = Array.from(tensors.get("rewards_per_func")!.data, (r, i) => (missing[i] ? null : r));
      const result = groupAdvantages(table, spec.group_size, {
        ...TRL_ADVANTAGE,
        scale: spec.scale_rewards,
        weights: spec.reward_weights,
        aggregation: spec.multi_objective_aggregation,
      });
      expectClose(result.advantages, tensors.get("advantages"), spec.tolerance.absolute);
      expect(Math.abs(result.rewardMean - spec.metrics.reward)).toBeLessThan(1e-6);
      expect(Math.abs(result.rewardStd - spec.metrics.reward_std)).toBeLessThan(1e-6);
      expect(result.fracZeroStd).toBe(spec.metrics.frac_reward_zero_std);
    });
  }
});
