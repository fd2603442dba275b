/** Retain and forget adapters against plain torch: routed gradients, AdamW after them, and the three modes. */
import { describe, expect, test } from "bun:test";
import type { Scored } from "../../src/core/records.ts";
import type { Tokenizer } from "../../src/io/tokenizer.ts";
import { TRL_ADVANTAGE } from "../../src/loss/advantage.ts";
import { policyOptions } from "../../src/loss/options.ts";
import { adapterNames, type DualLoraOptions, dualTensors, putSide, sideOf } from "../../src/nn/adapters.ts";
import { type Linear, linear } from "../../src/nn/functional.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { Parameters } from "../../src/nn/parameters.ts";
import type { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { Route } from "../../src/ops/lora.ts";
import { scoreGroups } from "../../src/rollout/score.ts";
import { PolicyStep } from "../../src/run/policy-step.ts";
import { Reference } from "../../src/run/reference.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { openTestDevice } from "../test-device.ts";
import { largest, norm, Opened, relativeL2 } from "./support.ts";

const ofKind = (kind: string) => goldenCases("routing").filter((c) => c.kind === kind);
const steps = ofKind("dual_lora_step");
const policies = ofKind("dual_lora_grpo");
const adam = { beta1: 0.9, beta2: 0.999, eps: 1e-8, maxGradNorm: 0, seed: 1 };
const MODES = { both: [1, 1], retain_only: [1, 0], forget_only: [0, 1] } as const;

test("there are cases of both kinds", () => {
  expect(steps.length).toBeGreaterThan(0);
  expect(policies.length).toBeGreaterThan(0);
});

function reader(golden: GoldenCase): (name: string) => Float32Array {
  const tensors = loadTensors(golden.dir);
  return (name) => {
    const tensor = tensors.get(name);
    if (!tensor) throw new Error(`${golden.name} has no ${name}`);
    return Float32Array.from(tensor.data);
  };
}

/** Gradients agree relative to their size; those that must be zero are zero. */
function expectGradient(got: Float32Array, want: Float32Array, tolerance: number): void {
  if (norm(want) === 0) expect(norm(got)).toBe(0);
  else expect(relativeL2(got, want)).toBeLessThan(tolerance);
}

/** out = l2(tanh(l1(x))), both with two adapters; loss = mean over samples and outputs of (out - target)². */
class Network implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly frozen: Parameters;
  readonly adapters: Parameters;
  readonly #of: (name: string) => Float32Array;
  readonly #shapes: Record<string, { n: number; k: number; r: number; split: number }> = {};
  constructor(readonly golden: GoldenCase) {
    this.#of = reader(golden);
    const { spec } = golden;
    const [weights, joined] = [new Map<string, number[]>(), new Map<string, number[]>()];
    for (const layer of ["l1", "l2"]) {
      const [n, k] = spec.tensors[`${layer}.W`].shape;
      const [split, rest] = spec.ranks[layer];
      this.#shapes[layer] = { n, k, r: split + rest, split };
      weights.set(layer, [n, k]);
      joined.set(`${layer}.lora_A.weight`, [split + rest, k]);
      joined.set(`${layer}.lora_B.weight`, [n, split + rest]);
    }
    const dtype = Dtype.f32;
    this.frozen = new Parameters(
      this.device,
      weights,
      { dtype, trainable: false, momentDtype: dtype },
      "base",
    );
    this.adapters = new Parameters(
      this.device,
      joined,
      { dtype, trainable: true, momentDtype: dtype },
      "adapters",
    );
    for (const layer of ["l1", "l2"]) this.frozen.load(layer, this.#of(`${layer}.W`));
    for (const { name } of this.adapters.list)
      this.adapters.load(
        name,
        this.joined(name, (n) => `${n}.init`),
      );
  }

  /** Values of good and bad adapter as one parameter. */
  joined(parameter: string, named: (name: string) => string): Float32Array {
    const [layer, letter] = [parameter.slice(0, 2), parameter.includes("lora_A") ? "A" : "B"];
    const { n, k, r, split } = this.#shapes[layer]!;
    const values = new Float32Array(letter === "A" ? r * k : n * r);
    for (const [side, first, rank] of [
      ["good", 0, split],
      ["bad", split, r - split],
    ] as const) {
      const shape = letter === "A" ? ([rank, k] as const) : ([n, rank] as const);
      putSide(
        { name: "", shape, parameter, r, first },
        this.#of(named(`${layer}.${letter}_${side}`)),
        values,
      );
    }
    return values;
  }

  layer(name: string, [good, bad]: readonly [number, number] = [1, 1]): Linear {
    const { r, split } = this.#shapes[name]!;
    const { alpha } = this.golden.spec;
    const adapter = {
      a: this.adapters.tensor(`${name}.lora_A.weight`),
      b: this.adapters.tensor(`${name}.lora_B.weight`),
      ...{ split, scale: (good * alpha) / split, scale2: (bad * alpha) / (r - split), dropout: 0, site: 0 },
    };
    return { w: this.frozen.tensor(name), bias: null, adapters: [adapter] };
  }

  /** Output of the network; with a target also the gradients, of rows flagged as given. */
  run(step: number, scales: readonly [number, number], train: boolean): { out: Float32Array; loss: number } {
    const rows = this.golden.spec.tensors[`x.step${step}`].shape[0] as number;
    const [first, second] = [new Graph(this.memory, true), new Graph(this.memory, true)];
    const matrix = (g: Graph, values: Float32Array) => {
      const flat = g.upload(values, "rows");
      const shaped = g.over(flat) as unknown as { shape: readonly number[] };
      shaped.shape = [rows, values.length / rows];
      g.release(flat);
      return shaped as unknown as ReturnType<Graph["over"]>;
    };
    const flags = this.#of(`is_rh.step${train ? step : 0}`);
    const routes = first.upload(
      Uint32Array.from(flags, (f) => f * Route.skipFirst),
      "routes",
    );
    const pass = { dropout: null, routes };
    const x = matrix(first, this.#of(`x.step${step}`));
    const h = linear(first, x, this.layer("l1", scales), Dtype.f32, pass);
    this.memory.finish();
    const active = h.float32().map(Math.tanh);
    const mid = matrix(second, active);
    mid.requiresGrad = true;
    const y = linear(second, mid, this.layer("l2", scales), Dtype.f32, pass);
    this.memory.finish();
    const out = y.float32().slice();
    const target = this.#of(`target.step${step}`);
    const loss = out.reduce((sum, o, i) => sum + (o - target[i]!) ** 2, 0) / out.length;
    if (train) {
      const seed = Float32Array.from(out, (o, i) => (2 * (o - target[i]!)) / out.length);
      const [back] = second.backward([[y, matrix(second, seed)]], [mid]);
      this.memory.finish();
      const flowed = new Float32Array(back!.buffer.view(back!.offset, active.length * 4));
      const slope = Float32Array.from(flowed, (d, i) => d * (1 - active[i]! ** 2));
      back!.release();
      first.backward([[h, matrix(first, slope)]]);
      this.memory.finish();
    } else {
      first.discard();
      second.discard();
    }
    first.release(x, h, routes);
    second.release(mid, y);
    return { out, loss };
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.frozen.dispose();
    this.adapters.dispose();
    this.device.close();
  }
}

test.each(steps.map((c) => [c.name, c] as const))("%s: routed steps and the three modes", (_name, golden) => {
  using network = new Network(golden);
  const { spec } = golden;
  const of = reader(golden);
  const { adapters, memory } = network;
  const optimizer = new AdamW(adapters, { ...adam, weightDecay: spec.weight_decay });
  for (let step = 0; step < spec.steps; step++) {
    adapters.zeroGradients();
    const { loss } = network.run(step, [1, 1], true);
    expect(Math.abs(loss - of(`loss.step${step}`)[0]!)).toBeLessThan(1e-5 * Math.abs(loss));
    const gradients = new Map(adapters.list.map(({ name }) => [name, adapters.readGradient(name)]));
    for (const [name, gradient] of gradients) {
      const want = network.joined(name, (n) => `grad.${n}.step${step}`);
      expectGradient(gradient, want, spec.tolerance.relative_l2);
    }
    optimizer.step(memory, step + 1, spec.lr);
    for (const { name } of adapters.list) {
      const want = network.joined(name, (n) => `${n}.after.step${step}`);
      expect(largest(adapters.read(name), want)).toBeLessThan(spec.tolerance.after_abs);
    }
    expect(memory.used).toBe(0);
  }
  for (const [mode, scales] of Object.entries(MODES))
    expect(relativeL2(network.run(0, scales, false).out, of(`out.${mode}`))).toBeLessThan(
      spec.tolerance.relative_l2,
    );
});

describe.each(policies.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  const { spec } = golden;
  const of = reader(golden);
  const sides = { retain: "good", forget: "bad" } as const;
  const [retain, forget] = spec.ranks as [number, number];
  const lora: DualLoraOptions = {
    retain: { r: retain, alpha: spec.alpha, targets: "all-linear" },
    forget: { r: forget, alpha: spec.alpha, targets: "all-linear" },
  };
  /** The golden's name of a tensor of a dual folder. */
  const named = (name: string) => {
    const [, module, letter, side] = /^base_model\.model\.(.*)\.lora_([AB])\.(\w+)\.weight$/.exec(name)!;
    return `${module}.${letter}_${sides[side as keyof typeof sides]}`;
  };
  const load = (model: Transformer) => {
    const tensors = dualTensors(model.adaptedMaps);
    for (const { name, shape } of model.trained.list) {
      const values = new Float32Array(shape[0]! * shape[1]!);
      for (const tensor of tensors.filter((t) => t.parameter === name))
        putSide(tensor, of(`${named(tensor.name)}.init`), values);
      model.trained.load(name, values);
    }
  };
  const completions = Array.from({ length: of("is_rh").length }, (_, b) =>
    Int32Array.from(of(`completion.${b}`)),
  );
  const size = 4;
  const prompts = Array.from({ length: completions.length / size }, (_, i) =>
    Int32Array.from(of(`prompt.${i}`)),
  );

  test.each([true, false])("one GRPO step, prompts shared: %p; modes after it", async (sharePrefix) => {
    using opened = new Opened(golden, { lora });
    const { model, memory } = opened;
    load(model);
    const groups = prompts.map((prompt, i) => ({
      prompt,
      completions: completions.slice(i * size, (i + 1) * size),
    }));
    const scored = (decoder: Transformer | Transformer["base"]) =>
      scoreGroups(memory, decoder, groups, 1, 4096).logprobs.flat();
    const [own, reference] = [scored(model), scored(model.base)];
    for (const [b, values] of reference.entries())
      expect(largest(values, of(`ref_logprobs.${b}`))).toBeLessThan(spec.tolerance.logprobs_abs);

    const step = new PolicyStep(
      memory,
      model,
      Reference.kept(model.base, false),
      { decode: () => "" } as unknown as Tokenizer,
      new AdamW(model.trained, { ...adam, weightDecay: 0 }),
      async () => [],
      {
        ...{ seed: 1, groupSize: size, numIterations: 1, stepsPerGeneration: 1, gradAccumSteps: 1 },
        sampling: { temperature: 1, topK: 0, topP: 1, minP: 0, maxNewTokens: 16, eosIds: [] },
        loss: policyOptions({ lossType: "grpo", beta: spec.beta }),
        advantage: TRL_ADVANTAGE,
        ...{ gamma: 1, maskTruncated: false, microBatchTokens: 24, sharePrefix, exactSampler: false },
        routing: "classic",
      },
      { maxBatch: 8, maxLength: 64, prefillTokens: 64 },
    );
    const [flags, rewards] = [of("is_rh"), of("rewards")];
    const rollouts = completions.map((ids, b): Scored => {
      const prompt = {
        index: Math.floor(b / size),
        text: "",
        ids: prompts[Math.floor(b / size)]!,
        fields: {},
      };
      return {
        ...{ prompt, completion: b % size, ids, logprobs: own[b]!, lse: null, entropies: null, text: "" },
        ...{ finish: "eos" as const, reward: rewards[b]!, components: {}, flagged: flags[b] === 1 },
      };
    });
    step.restore(1, step.options, rollouts);
    expect(largest(step.generation!.advantages, of("advantages"))).toBeLessThan(1e-5);
    const metrics = await step.update(1, 1e-3);
    expect(Math.abs(metrics["train/loss"]! - of("loss")[0]!)).toBeLessThan(1e-5);
    expect(metrics["train/rh_rate"]).toBe(flags.reduce((a, b) => a + b, 0) / flags.length);

    const squares = { retain: 0, forget: 0 };
    let certain = 0;
    for (const tensor of dualTensors(model.adaptedMaps)) {
      const name = named(tensor.name);
      const want = of(`grad.${name}`);
      const got = sideOf(tensor, model.trained.readGradient(tensor.parameter));
      expectGradient(got, want, spec.tolerance.grad_relative_l2);
      squares[tensor.name.includes(".retain.") ? "retain" : "forget"] += norm(want) ** 2;
      const [after, values] = [of(`${name}.after`), sideOf(tensor, model.trained.read(tensor.parameter))];
      for (const [i, slope] of want.entries()) {
        if (Math.abs(slope) <= 1e-5) continue;
        certain++;
        expect(Math.abs(values[i]! - after[i]!)).toBeLessThan(1e-5);
      }
    }
    expect(certain).toBeGreaterThan(100);
    for (const side of ["retain", "forget"] as const)
      expect(metrics[`train/grad_norm_${side}`]! / Math.sqrt(squares[side])).toBeCloseTo(1, 3);
    expect(Math.hypot(metrics["train/grad_norm_retain"]!, metrics["train/grad_norm_forget"]!)).toBeCloseTo(
      metrics["train/grad_norm"]!,
      5,
    );
    for (const [mode, scales] of Object.entries(MODES)) {
      model.setScales(scales[0], scales[1]);
      expect(largest(scored(model)[0]!, of(`logprobs_after.${mode}`))).toBeLessThan(
        spec.tolerance.logprobs_abs,
      );
    }
    step.dispose();
  });

  test("there is a tensor for every adapter", () => {
    using opened = new Opened(golden, { lora });
    const own = dualTensors(opened.model.adaptedMaps).map(({ name }) => `${named(name)}.init`);
    expect(own.toSorted()).toEqual(
      Object.keys(spec.tensors)
        .filter((n) => n.endsWith(".init"))
        .toSorted(),
    );
    expect(adapterNames("m").a).toBe("base_model.model.m.lora_A.weight");
  });
});
