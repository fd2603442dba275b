/** A model with low-rank adapters: what it computes, what it learns, and that its own weights stay. */
import { describe, expect, test } from "bun:test";
import { Purpose, Random } from "../../src/core/rng.ts";
import { initialiseAdapters, type LoraOptions } from "../../src/nn/adapters.ts";
import type { Parameters } from "../../src/nn/parameters.ts";
import type { Decoder, Transformer, TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { RolloutEngine } from "../../src/rollout/engine.ts";
import { type Group, packGroups } from "../../src/rollout/pack.ts";
import { forwardRow, scoreGroups } from "../../src/rollout/score.ts";
import { Reference } from "../../src/run/reference.ts";
import { Graph, type StepMemory } from "../../src/tape/tape.ts";
import { type Family, promptOf, Tiny } from "./tiny.ts";
import { tinyPolicyStep, tinyPrompts } from "./tiny-policy.ts";

const lora: LoraOptions = { r: 5, alpha: 10, targets: "all-linear" };
const some: LoraOptions = { r: 8, alpha: 4, targets: ["q_proj", "down_proj"], rslora: true };

/** A tiny model with adapters; `moved`: B is random, as after training. */
function adapted(
  family: Family,
  options: Partial<TransformerOptions> = {},
  moved = false,
  threads = 2,
): Tiny {
  const tiny = new Tiny(family, { lora, trainable: true, ...options }, threads);
  initialiseAdapters(tiny.model.adapters!, tiny.model.parameters, 11);
  if (moved)
    for (const [i, { name, shape }] of tiny.model.adapters!.list.entries()) {
      if (!name.endsWith("lora_B.weight")) continue;
      const random = new Random(3, Purpose.init, i);
      const values = Float32Array.from({ length: shape[0]! * shape[1]! }, () => 0.1 * random.normal());
      tiny.model.adapters!.load(name, values);
    }
  return tiny;
}

const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];
const groupsOf = (model: Decoder): Group[] =>
  [20, 33].map((n, i) => ({
    prompt: promptOf(n, model.config.vocabSize, i),
    completions: [7, 12, 1].map((c) => promptOf(c, model.config.vocabSize, 10 + c)),
  }));
const scored = (memory: StepMemory, model: Decoder) =>
  scoreGroups(memory, model, groupsOf(model), 1, 4096).logprobs.flat().map(bits);
const valuesOf = (p: Parameters) => new Map(p.list.map(({ name }) => [name, bits(p.read(name))]));

/** Gradients of the trained parameters of -Σ logprob over all completions. */
function gradients(memory: StepMemory, model: Transformer): Map<string, Float32Array> {
  model.trained.zeroGradients();
  const g = new Graph(memory, true);
  const { logprob, entropy } = forwardRow(g, model, packGroups(groupsOf(model)), 1);
  g.backward([[logprob, g.upload(new Float32Array(logprob.size).fill(-1), "seed")]]);
  g.release(logprob, entropy);
  memory.finish();
  expect(memory.used).toBe(0);
  return new Map(model.trained.list.map(({ name }) => [name, model.trained.readGradient(name)]));
}

describe("adapters", () => {
  test("carry PEFT's names, A in ±1/√k, B zero; only the named maps have one", () => {
    using tiny = adapted("qwen3");
    const { adapters } = tiny.model;
    expect(adapters!.list.length).toBe(2 * 7 * 2);
    const stem = "base_model.model.model.layers.1.mlp.down_proj";
    expect(adapters!.get(`${stem}.lora_A.weight`).shape).toEqual([5, 72]);
    expect(adapters!.get(`${stem}.lora_B.weight`).shape).toEqual([48, 5]);
    const a = adapters!.read(`${stem}.lora_A.weight`);
    const most = a.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0) * Math.sqrt(72);
    expect(most).toBeGreaterThan(0.95);
    expect(most).toBeLessThanOrEqual(1);
    expect(adapters!.read(`${stem}.lora_B.weight`).every((x) => x === 0)).toBe(true);
    using other = adapted("qwen3", { lora: some });
    const modules = other.model.adapters!.list.map(({ name }) => name.split(".").at(-3));
    expect([...new Set(modules)].sort()).toEqual(["down_proj", "q_proj"]);
  });

  test("an unknown map, no map and a bad rank are refused", () => {
    const open = (change: Partial<LoraOptions>) => () => {
      using _ = adapted("qwen3", { lora: { ...lora, ...change } });
    };
    expect(open({ targets: ["qproj"] })).toThrow("no linear map qproj");
    expect(open({ targets: [] })).toThrow("no linear map named");
    expect(open({ r: 0 })).toThrow("bad rank 0");
    expect(open({ alpha: 0 })).toThrow("bad value 0");
  });

  test("only they have gradients and moments", () => {
    using tiny = adapted("qwen3", { dtype: Dtype.bf16 });
    const { model } = tiny;
    expect(model.parameters.list.every((p) => !p.gradient && !p.moments && !p.remainder)).toBe(true);
    expect(model.adapters!.list.every((p) => p.gradient && p.moments && p.remainder)).toBe(true);
    expect(model.bytes.gradients).toBe(model.adapters!.bytes.gradients);
  });
});

describe.each([Dtype.f32, Dtype.bf16])("dtype %p", (dtype) => {
  test("with B zero the model is its base, and the base is a model without adapters, bit for bit", () => {
    using plain = new Tiny("qwen3", { dtype });
    const want = scored(plain.memory, plain.model);
    using tiny = adapted("qwen3", { dtype });
    expect(scored(tiny.memory, tiny.model)).toEqual(want);
    using moved = adapted("qwen3", { dtype }, true);
    expect(scored(moved.memory, moved.model.base)).toEqual(want);
    expect(scored(moved.memory, moved.model)).not.toEqual(want);
  });

  test.each([
    ["qwen3", lora],
    ["qwen2", some],
    ["llama", some],
  ] as const)("the sampler is the trainer: %s", (family, options) => {
    const sampled: unknown[] = [];
    for (const threads of [1, 2]) {
      using tiny = adapted(family, { dtype, lora: options }, true, threads);
      const { model, memory } = tiny;
      const prompts = [1, 31, 65].map((n, i) => promptOf(n, model.config.vocabSize, i));
      const engine = new RolloutEngine(memory, model, { maxBatch: 13, maxLength: 300, prefillTokens: 256 });
      const results = engine.generate(
        prompts.map((ids, prompt) => ({ ids, prompt, completions: 5 })),
        { temperature: 1, topK: 0, topP: 1, minP: 0, maxNewTokens: 12, eosIds: [3, 11] },
        { seed: 9, purpose: Purpose.rollout, step: 3 },
      );
      engine.dispose();
      const groups = prompts.map((prompt, i) => ({ prompt, completions: results[i]!.map((c) => c.ids) }));
      const want = results.flat().map((c) => bits(c.logprobs));
      for (const budget of [4096, 60])
        expect(scoreGroups(memory, model, groups, 1, budget).logprobs.flat().map(bits)).toEqual(want);
      const g = new Graph(memory, true);
      const { logprob, entropy } = forwardRow(g, model, packGroups(groups), 1);
      memory.finish();
      expect(bits(logprob.float32())).toEqual(want.flat());
      g.discard();
      g.release(logprob, entropy);
      memory.finish();
      expect(memory.used).toBe(0);
      sampled.push(want);
    }
    expect(sampled[1]).toEqual(sampled[0]);
  });
});

/** c[n,k] = a[n,r]·b[r,k]; `T` means the stored matrix is its transpose. */
function product(
  a: (i: number, j: number) => number,
  b: (i: number, j: number) => number,
  n: number,
  r: number,
  k: number,
) {
  return Float32Array.from({ length: n * k }, (_, at) => {
    let sum = 0;
    for (let j = 0; j < r; j++) sum += a(Math.floor(at / k), j) * b(j, at % k);
    return sum;
  });
}
function relative(got: Float32Array, want: Float32Array): number {
  let [difference, size] = [0, 0];
  want.forEach((w, i) => {
    difference += (got[i]! - w) ** 2;
    size += w ** 2;
  });
  return Math.sqrt(difference / size);
}

describe("gradients", () => {
  test.each([lora, some])("are those of the merged weights, through the chain rule: %p", (options) => {
    using tiny = adapted("qwen3", { lora: options }, true);
    const { model } = tiny;
    const got = gradients(tiny.memory, model);
    using full = new Tiny("qwen3", { trainable: true });
    const { r } = options;
    const scale = options.rslora ? options.alpha / Math.sqrt(r) : options.alpha / r;
    const modules = [...got.keys()].filter((name) => name.endsWith(".lora_A.weight"));
    const parts = modules.map((name) => {
      const weight = name.replace("base_model.model.", "").replace(".lora_A", "");
      const [n, k] = full.model.parameters.get(weight).shape as [number, number];
      const a = model.adapters!.read(name);
      const b = model.adapters!.read(name.replace("lora_A", "lora_B"));
      return { name, weight, n, k, a, b };
    });
    for (const { weight, n, k, a, b } of parts) {
      const w = full.model.parameters.read(weight);
      const delta = product(
        (i, j) => b[i * r + j]!,
        (i, j) => a[i * k + j]!,
        n,
        r,
        k,
      );
      full.model.parameters.load(
        weight,
        w.map((x, i) => x + scale * delta[i]!),
      );
    }
    const dense = gradients(full.memory, full.model);
    for (const { name, weight, n, k, a, b } of parts) {
      const dw = dense.get(weight)!;
      const da = product(
        (i, j) => scale * b[j * r + i]!,
        (i, j) => dw[i * k + j]!,
        r,
        n,
        k,
      );
      const db = product(
        (i, j) => dw[i * k + j]!,
        (i, j) => scale * a[j * k + i]!,
        n,
        k,
        r,
      );
      expect(relative(got.get(name)!, da)).toBeLessThan(2e-5);
      expect(relative(got.get(name.replace("lora_A", "lora_B"))!, db)).toBeLessThan(2e-5);
    }
  });

  test.each([Dtype.f32, Dtype.bf16])("are the same with checkpointing, dtype %p", (dtype) => {
    const of = (checkpointing: boolean) => {
      using tiny = adapted("llama", { dtype, checkpointing }, true);
      return [...gradients(tiny.memory, tiny.model)].map(([name, values]) => [name, bits(values)]);
    };
    expect(of(true)).toEqual(of(false));
  });
});

describe.each([Dtype.f32, Dtype.bf16])("GRPO, dtype %p", (dtype) => {
  test("three steps train the adapters alone; the reference is the base", async () => {
    using tiny = adapted("qwen3", { dtype });
    const { model, memory } = tiny;
    const [weights, adapters] = [valuesOf(model.parameters), valuesOf(model.adapters!)];
    const reference = scored(memory, model.base);
    const step = tinyPolicyStep(memory, model, Reference.kept(model.base));
    const prompts = tinyPrompts(model.config.vocabSize);
    const divergence: number[] = [];
    for (let i = 1; i <= 3; i++) {
      await step.generate(i, prompts);
      const metrics = await step.update(i, 1e-2);
      expect(metrics["train/sampler_logp_diff_max"]).toBe(0);
      expect(metrics["train/grad_norm"]).toBeGreaterThan(0);
      expect(memory.used).toBe(0);
      divergence.push(metrics["train/kl"]!);
    }
    expect(divergence[0]).toBe(0);
    expect(divergence[2]).toBeGreaterThan(0);
    expect(valuesOf(model.parameters)).toEqual(weights);
    for (const [name, values] of valuesOf(model.adapters!)) expect(values).not.toEqual(adapters.get(name)!);
    expect(scored(memory, model.base)).toEqual(reference);
    expect(scored(memory, model)).not.toEqual(reference);
    step.dispose();
  });
});
