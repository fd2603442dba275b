import { describe, expect, test } from "bun:test";
import type { PreferencePair } from "../../src/data/preferences.ts";
import { parseModelConfig } from "../../src/io/hf-folder.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { Transformer, type TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { initialise } from "../../src/run/open-model.ts";
import { type PreferenceOptions, PreferenceStep } from "../../src/run/preference-step.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { openTestDevice } from "../test-device.ts";
import { promptOf, TINY } from "./tiny.ts";

const CONFIG = { ...TINY.qwen3, architectures: ["Qwen3ForSequenceClassification"], num_labels: 1 };
const VOCAB = CONFIG.vocab_size;

/** A random reward model and its step, closed at the end of the block. */
class TinyReward implements Disposable {
  readonly device;
  readonly memory;
  readonly model;
  readonly step;
  constructor(
    options: Partial<PreferenceOptions> = {},
    model: Partial<TransformerOptions> = {},
    threads = 2,
  ) {
    this.device = openTestDevice(threads);
    this.memory = new StepMemory(this.device);
    this.model = new Transformer(this.device, parseModelConfig(CONFIG, "reward"), {
      ...{ dtype: Dtype.f32, trainable: true, maxPositions: 256 },
      ...model,
    });
    initialise(this.model, 5, 0.12);
    const optimizer = new AdamW(this.model.parameters, {
      ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 0, seed: 1 },
    });
    this.step = new PreferenceStep(this.memory, this.model, optimizer, {
      ...{ microBatchTokens: 4096, center: 0, sharePrefix: true },
      ...options,
    });
  }
  [Symbol.dispose](): void {
    expect(this.memory.used).toBe(0);
    this.memory.dispose();
    this.model.dispose();
    this.device.close();
  }
}

const joined = (...parts: readonly Int32Array[]) => Int32Array.from(parts.flatMap((part) => [...part]));

/** Prefixes of 33, 1, all and none of the shorter sequence's tokens. */
const pairs: PreferencePair[] = [
  {
    chosen: joined(promptOf(33, VOCAB, 1), promptOf(7, VOCAB, 2)),
    rejected: joined(promptOf(33, VOCAB, 1), promptOf(19, VOCAB, 3)),
    margin: 0.4,
  },
  { chosen: Int32Array.of(5, 9, 2), rejected: Int32Array.of(5, 4) },
  { chosen: promptOf(20, VOCAB, 4), rejected: joined(promptOf(20, VOCAB, 4), promptOf(31, VOCAB, 5)) },
  { chosen: Int32Array.of(1), rejected: promptOf(17, VOCAB, 6) },
];

describe("rewards", () => {
  test.each([Dtype.f32, Dtype.bf16])(
    "prefix shared or not, batches of any size, threads: the same bits, dtype %p",
    (dtype) => {
      const rewards = (options: Partial<PreferenceOptions>, threads = 2) => {
        using tiny = new TinyReward(options, { dtype }, threads);
        return tiny.step.rewards(pairs);
      };
      const want = rewards({});
      expect(new Set(want.flat()).size).toBe(2 * pairs.length);
      expect(rewards({ sharePrefix: false })).toEqual(want);
      expect(rewards({ microBatchTokens: 16 })).toEqual(want);
      expect(rewards({ microBatchTokens: 90 }, 1)).toEqual(want);
    },
  );

  test("a language model has none", () => {
    using tiny = new TinyReward();
    const language = new Transformer(tiny.device, parseModelConfig(TINY.qwen3, "language"), {
      ...{ dtype: Dtype.f32, trainable: false, maxPositions: 64 },
    });
    const open = () => new PreferenceStep(tiny.memory, language, tiny.step.optimizer, tiny.step.options);
    expect(open).toThrow("without a value head");
    language.dispose();
  });
});

describe("gradients", () => {
  const gradients = async (options: Partial<PreferenceOptions>, model: Partial<TransformerOptions> = {}) => {
    using tiny = new TinyReward({ center: 0.02, ...options }, model);
    const metrics = await tiny.step.update(pairs, 1, 0);
    const { parameters } = tiny.model;
    return { metrics, of: new Map(parameters.list.map((p) => [p.name, parameters.readGradient(p.name)])) };
  };

  test("finite differences of the loss", async () => {
    const { of } = await gradients({});
    using tiny = new TinyReward({ center: 0.02 });
    const { model, step } = tiny;
    const loss = async () => (await step.update(pairs, 1, 0))["train/loss"]!;
    for (const [name, at] of [
      ["score.weight", 11],
      ["model.norm.weight", 40],
      ["model.embed_tokens.weight", 48 * 9 + 3],
      ["model.layers.1.mlp.down_proj.weight", 72 * 5 + 1],
      ["model.layers.0.self_attn.k_proj.weight", 48 * 30 + 7],
    ] as const) {
      const values = model.parameters.read(name);
      const moved = async (by: number) => {
        const copy = values.slice();
        copy[at]! += by;
        model.parameters.load(name, copy);
        return loss();
      };
      const h = 4e-3;
      const want = ((await moved(h)) - (await moved(-h))) / (2 * h);
      model.parameters.load(name, values);
      const got = of.get(name)![at]!;
      expect(Math.abs(got)).toBeGreaterThan(1e-4);
      expect(Math.abs(got - want)).toBeLessThan(1e-4 + 0.01 * Math.abs(want));
    }
  });

  test("micro-batches, unshared prefixes and checkpointing change rounding alone", async () => {
    const want = await gradients({});
    for (const other of [
      await gradients({ microBatchTokens: 16 }),
      await gradients({ sharePrefix: false }),
      await gradients({}, { checkpointing: true }),
    ]) {
      for (const [name, value] of Object.entries(want.metrics))
        if (!/time|tokens|grad_norm/.test(name)) expect(other.metrics[name]!).toBeCloseTo(value, 12);
      for (const [name, values] of want.of) {
        const got = other.of.get(name)!;
        const scale = Math.max(...values.map(Math.abs));
        expect(Math.max(...values.map((v, i) => Math.abs(v - got[i]!)))).toBeLessThan(2e-5 * scale);
      }
    }
  });
});

test.each([Dtype.f32, Dtype.bf16])("the loss falls where one token decides, dtype %p", async (dtype) => {
  using tiny = new TinyReward({ microBatchTokens: 200 }, { dtype });
  const toy = Array.from({ length: 8 }, (_, i): PreferencePair => {
    const prompt = promptOf(9 + i, VOCAB, i);
    const end = promptOf(4, VOCAB, 40 + i);
    return { chosen: joined(prompt, Int32Array.of(7), end), rejected: joined(prompt, Int32Array.of(8), end) };
  });
  const first = await tiny.step.update(toy, 1, 3e-3);
  let last = first;
  for (let step = 2; step <= 30; step++) last = await tiny.step.update(toy, step, 3e-3);
  expect(first["train/loss"]).toBeGreaterThan(0.4);
  expect(last["train/loss"]).toBeLessThan(0.1);
  expect(last["train/accuracy"]).toBe(1);
  expect(last["train/margin"]).toBeGreaterThan(2);
});
