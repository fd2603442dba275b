/** Adapters as recipes use them: ranks and scales by module, dropout, a value head trained whole, quantized bases. */
import { describe, expect, test } from "bun:test";
import { Purpose, Random } from "../../src/core/rng.ts";
import { expectedTensors, parseModelConfig } from "../../src/io/hf-folder.ts";
import { adaptedMaps, adapterShapes, initialiseAdapters, type LoraOptions } from "../../src/nn/adapters.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import type { Quantization } from "../../src/nn/quantized.ts";
import { Transformer, type TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow, scoreGroups } from "../../src/rollout/score.ts";
import { initialise } from "../../src/run/open-model.ts";
import { PreferenceStep } from "../../src/run/preference-step.ts";
import { Reference } from "../../src/run/reference.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { largest, relativeL2 } from "../golden/support.ts";
import { openTestDevice } from "../test-device.ts";
import { promptOf, TINY } from "./tiny.ts";
import { tinyPolicyStep, tinyPrompts } from "./tiny-policy.ts";

const CONFIG = parseModelConfig(TINY.qwen3, "qwen3");
const REWARD = parseModelConfig(
  { ...TINY.qwen3, architectures: ["Qwen3ForSequenceClassification"], num_labels: 1 },
  "reward",
);
const lora: LoraOptions = { r: 5, alpha: 10, targets: "all-linear" };

class Setup implements Disposable {
  readonly memory: StepMemory;
  readonly model: Transformer;
  constructor(options: Partial<TransformerOptions>, config = CONFIG, threads = 2) {
    const device = openTestDevice(threads);
    this.memory = new StepMemory(device);
    this.model = new Transformer(device, config, {
      ...{ dtype: Dtype.f32, trainable: true, maxPositions: 256, lora },
      ...options,
    });
    initialise(this.model, 5, 0.12);
    const { adapters, parameters } = this.model;
    if (!adapters) return;
    initialiseAdapters(adapters, parameters, 11);
    for (const [i, { name, shape }] of adapters.list.entries())
      if (name.endsWith("lora_B.weight")) adapters.load(name, normal(shape[0]! * shape[1]!, i));
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.model.dispose();
    this.model.device.close();
  }
}

function normal(n: number, key: number): Float32Array {
  const random = new Random(3, Purpose.init, key);
  return Float32Array.from({ length: n }, () => 0.1 * random.normal());
}
const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];
const groups = [20, 33].map((n, i) => ({
  prompt: promptOf(n, CONFIG.vocabSize, i),
  completions: [7, 12].map((c) => promptOf(c, CONFIG.vocabSize, 10 + c)),
}));

type Key = { seed: number; step: number; microBatch: number };
const KEY: Key = { seed: 1, step: 2, microBatch: 3 };

/** Log-probabilities of a training pass. */
function logprobs({ memory, model }: Setup, key: Key | null): Float32Array {
  const g = new Graph(memory, false);
  const { logprob, entropy } = forwardRow(g, model, packGroups(groups), 1, null, key);
  memory.finish();
  const values = logprob.float32().slice();
  g.release(logprob, entropy);
  return values;
}

/** Gradients of the trained parameters of -Σ logprob. */
function gradients({ memory, model }: Setup, key: Key | null): Map<string, Float32Array> {
  model.trained.zeroGradients();
  const g = new Graph(memory, true);
  const { logprob, entropy } = forwardRow(g, model, packGroups(groups), 1, null, key);
  g.backward([[logprob, g.upload(new Float32Array(logprob.size).fill(-1), "seed")]]);
  g.release(logprob, entropy);
  memory.finish();
  expect(memory.used).toBe(0);
  return new Map(model.trained.list.map(({ name }) => [name, model.trained.readGradient(name)]));
}

describe("modules", () => {
  const tensors = expectedTensors(CONFIG);
  const modules = (targets: LoraOptions["targets"]) =>
    adaptedMaps(tensors, { ...lora, targets }).map(({ module }) => module.replace("model.layers.", ""));

  test("are named by the ends of their names, whole, or by a regular expression for the whole name", () => {
    expect(modules(["q_proj"])).toEqual(["0.self_attn.q_proj", "1.self_attn.q_proj"]);
    expect(modules(["mlp.up_proj", "model.layers.1.self_attn.o_proj"])).toEqual([
      "0.mlp.up_proj",
      "1.self_attn.o_proj",
      "1.mlp.up_proj",
    ]);
    expect(modules({ pattern: ".*1\\.mlp\\.(gate|down)_proj" })).toEqual([
      "1.mlp.gate_proj",
      "1.mlp.down_proj",
    ]);
    expect(modules("all-linear").length).toBe(14);
  });

  test("that are no linear maps, or none, are refused", () => {
    expect(() => modules(["proj"])).toThrow("no linear map proj");
    expect(() => modules(["mlp"])).toThrow("no linear map mlp");
    expect(() => modules({ pattern: "q_proj" })).toThrow("no linear map named");
    expect(() => modules({ pattern: ".*head|.*q_proj" })).toThrow("no adapter for lm_head");
    expect(() => modules({ pattern: ".*norm" })).toThrow("no adapter for model.layers.0.input_layernorm");
    expect(() => modules({ pattern: "(?P<name>.*)" })).toThrow("is not understood");
  });

  test("have ranks and alphas by pattern: the first that fits the end of a name holds", () => {
    const maps = adaptedMaps(tensors, {
      ...{ r: 8, alpha: 16, targets: ["q_proj", "up_proj"] },
      rankPattern: { "layers.1.self_attn.q_proj": 2, q_proj: 4, "up.*": 16 },
      alphaPattern: { "1.mlp.up_proj": 4 },
    });
    expect(maps.map(({ module, r, scale }) => [module.replace("model.layers.", ""), r, scale])).toEqual([
      ["0.self_attn.q_proj", 4, 4],
      ["0.mlp.up_proj", 16, 1],
      ["1.self_attn.q_proj", 2, 8],
      ["1.mlp.up_proj", 16, 0.25],
    ]);
    const rslora = adaptedMaps(tensors, { ...lora, r: 4, rslora: true, rankPattern: { q_proj: 16 } });
    expect([...new Set(rslora.map(({ scale }) => scale))]).toEqual([2.5, 5]);
  });

  test("only a reward model has a head to save", () => {
    const options = { ...lora, modulesToSave: ["score"] };
    expect(() => adapterShapes(tensors, options)).toThrow("no module score to save");
    const shapes = adapterShapes(expectedTensors(REWARD), options);
    expect(shapes.get("base_model.model.score.weight")).toEqual([1, CONFIG.hiddenSize]);
  });
});

const drops = { ...lora, dropout: 0.3 };

describe.each([Dtype.f32, Dtype.bf16])("dropout, dtype %p", (dtype) => {
  test("needs a key; the key alone decides; without adapters nothing is dropped", () => {
    using plain = new Setup({ dtype });
    using setup = new Setup({ dtype, lora: drops });
    const without = bits(logprobs(plain, null));
    expect(bits(logprobs(setup, null))).toEqual(without);
    expect(bits(logprobs(plain, KEY))).toEqual(without);
    const dropped = bits(logprobs(setup, KEY));
    expect(dropped).not.toEqual(without);
    expect(bits(logprobs(setup, KEY))).toEqual(dropped);
    for (const name of ["seed", "step", "microBatch"] as const)
      expect(bits(logprobs(setup, { ...KEY, [name]: 9 }))).not.toEqual(dropped);
    using alone = new Setup({ dtype, lora: drops }, CONFIG, 1);
    expect(bits(logprobs(alone, KEY))).toEqual(dropped);
    // Scoring, as rollouts and references do it, has no key.
    const scored = scoreGroups(setup.memory, setup.model, groups, 1, 4096).logprobs.flat(2);
    expect(scored.flatMap(bits)).toEqual(without);
  });

  test("gradient checkpointing draws the masks again", () => {
    const of = (checkpointing: boolean) => {
      using setup = new Setup({ dtype, lora: drops, checkpointing });
      return [...gradients(setup, KEY)].map(([name, values]) => [name, bits(values)]);
    };
    expect(of(true)).toEqual(of(false));
  });
});

test("gradients under dropout are those of the loss under the same masks", () => {
  using setup = new Setup({ lora: drops });
  const { trained } = setup.model;
  const found = gradients(setup, KEY);
  const start = new Map(trained.list.map(({ name }) => [name, trained.read(name)]));
  const direction = new Map(
    trained.list.map(({ name, shape }, i) => [name, normal(shape[0]! * shape[1]!, 50 + i)]),
  );
  const lossAt = (step: number): number => {
    for (const [name, values] of start)
      trained.load(
        name,
        values.map((x, i) => x + step * direction.get(name)![i]!),
      );
    return -logprobs(setup, KEY).reduce((a, b) => a + b, 0);
  };
  const h = 1e-3;
  const slope = (lossAt(h) - lossAt(-h)) / (2 * h);
  const want = [...found].reduce(
    (sum, [name, gradient]) => sum + gradient.reduce((s, x, i) => s + x * direction.get(name)![i]!, 0),
    0,
  );
  expect(Math.abs(want)).toBeGreaterThan(0.1);
  expect(Math.abs(slope / want - 1)).toBeLessThan(5e-3);
  // Masks of another step have another slope.
  for (const [name, values] of start) trained.load(name, values);
  const other = gradients(setup, { ...KEY, step: 7 });
  const names = [...found.keys()];
  expect(relativeL2(other.get(names[0]!)!, found.get(names[0]!)!)).toBeGreaterThan(0.05);
});

test("GRPO with dropout: training leaves the sampler, the reference has none, and equal runs are equal", async () => {
  const run = async (): Promise<[Record<string, number>[], number[][]]> => {
    using setup = new Setup({ lora: drops });
    const { model, memory } = setup;
    const step = tinyPolicyStep(memory, model, Reference.kept(model.base));
    const prompts = tinyPrompts(model.config.vocabSize);
    const metrics: Record<string, number>[] = [];
    for (let i = 1; i <= 2; i++) {
      await step.generate(i, prompts);
      metrics.push(await step.update(i, 1e-2));
    }
    step.dispose();
    return [metrics, model.trained.list.map(({ name }) => bits(model.trained.read(name)))];
  };
  const [metrics, weights] = await run();
  for (const row of metrics) {
    expect(row["train/sampler_logp_diff_max"]).toBeGreaterThan(0);
    expect(row["train/grad_norm"]).toBeGreaterThan(0);
  }
  expect((await run())[1]).toEqual(weights);
});

describe("a value head", () => {
  const options = { lora: { ...lora, modulesToSave: ["score"] } };
  const pairs = [0, 1, 2].map((i) => ({
    chosen: promptOf(9 + i, CONFIG.vocabSize, i),
    rejected: promptOf(12, CONFIG.vocabSize, 7 + i),
  }));
  const stepOf = ({ memory, model }: Setup) =>
    new PreferenceStep(
      memory,
      model,
      new AdamW(model.trained, {
        ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 1, seed: 1 },
      }),
      { microBatchTokens: 64, center: 0, sharePrefix: true },
    );

  test.each([Dtype.f32, Dtype.bf16])(
    "is trained whole beside the adapters, the model's own stays: dtype %p",
    async (dtype) => {
      using setup = new Setup({ ...options, dtype }, REWARD);
      const { model } = setup;
      const name = "base_model.model.score.weight";
      const own = bits(model.parameters.read("score.weight"));
      expect(bits(model.trained.read(name))).toEqual(own);
      const step = stepOf(setup);
      for (let i = 1; i <= 3; i++) await step.update(pairs, i, 1e-2);
      expect(bits(model.parameters.read("score.weight"))).toEqual(own);
      expect(bits(model.trained.read(name))).not.toEqual(own);
      expect(model.trained.readMoment(name, 1).some((x) => x > 0)).toBe(true);
    },
  );

  test("counts in what the model computes, not in what its base does", () => {
    using setup = new Setup(options, REWARD);
    const { model, memory } = setup;
    const before = stepOf(setup).rewards(pairs).flat();
    const name = "base_model.model.score.weight";
    model.trained.load(
      name,
      model.trained.read(name).map((x) => 2 * x),
    );
    const after = stepOf(setup).rewards(pairs).flat();
    expect(
      largest(
        after,
        before.map((x) => 2 * x),
      ),
    ).toBeLessThan(1e-5);
    expect(memory.used).toBe(0);
  });
});

describe.each(["int8", "nf4"] as const)("adapters on a base of %s", (type) => {
  const quantization: Quantization = { type, head: false };

  test("compute and learn what they do on its dequantized weights; the sampler is the trainer", async () => {
    using setup = new Setup({ quantization });
    using plain = new Setup({});
    for (const { name } of setup.model.parameters.list)
      plain.model.parameters.load(name, setup.model.parameters.read(name));
    expect(largest(logprobs(setup, null), logprobs(plain, null))).toBeLessThan(1e-5);
    const [got, want] = [gradients(setup, null), gradients(plain, null)];
    for (const [name, values] of want) expect(relativeL2(got.get(name)!, values)).toBeLessThan(1e-4);
    const { model, memory } = setup;
    const weights = model.parameters.list.map(({ name }) => bits(model.parameters.read(name)));
    // Adapters have moved: their base is not where the policy starts.
    const step = tinyPolicyStep(memory, model, Reference.kept(model.base, false));
    for (let i = 1; i <= 2; i++) {
      await step.generate(i, tinyPrompts(model.config.vocabSize));
      expect((await step.update(i, 1e-2))["train/sampler_logp_diff_max"]).toBe(0);
    }
    step.dispose();
    expect(model.parameters.list.map(({ name }) => bits(model.parameters.read(name)))).toEqual(weights);
  });
});
