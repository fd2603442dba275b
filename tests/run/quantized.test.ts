/** Models with int8 and nf4 weights: what they compute, and that decoding and the packed forward pass agree. */
import { describe, expect, test } from "bun:test";
import { Purpose } from "../../src/core/rng.ts";
import type { Quantization } from "../../src/nn/quantized.ts";
import { Transformer, type TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype, type DtypeCode, NF4_CODES, NF4_LIMITS } from "../../src/ops/define.ts";
import { RolloutEngine } from "../../src/rollout/engine.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow, scoreGroups } from "../../src/rollout/score.ts";
import { initialise } from "../../src/run/open-model.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { openTestDevice } from "../test-device.ts";
import { configOf } from "./quantize-fixture.ts";
import { promptOf } from "./tiny.ts";

const CONFIG = configOf("causal", { vocab_size: 613 });

class Setup implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly #models: Transformer[] = [];
  model(options: Partial<TransformerOptions>, config = CONFIG): Transformer {
    const all = { dtype: Dtype.f32, trainable: false, maxPositions: 512, ...options };
    const model = new Transformer(this.device, config, all);
    this.#models.push(model);
    initialise(model, 5, 0.12);
    return model;
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    for (const model of this.#models) model.dispose();
    expect(this.device.stats().liveBuffers).toBe(0);
    this.device.close();
  }
}

const TYPES: readonly Quantization["type"][] = ["int8", "nf4"];
const cases = TYPES.flatMap((type) =>
  ([Dtype.f32, Dtype.bf16] as const).map((dtype) => [type, dtype] as [Quantization["type"], DtypeCode]),
);
const prompts = [1, 31, 64, 65].map((n, i) => promptOf(n, CONFIG.vocabSize, i));
const key = { seed: 9, purpose: Purpose.rollout, step: 3 };
const sampling = { temperature: 1, topK: 0, topP: 1, minP: 0, maxNewTokens: 12, eosIds: [3, 11] };

function generate(memory: StepMemory, model: Transformer, maxBatch = 64) {
  const engine = new RolloutEngine(memory, model, { maxBatch, maxLength: 200, prefillTokens: 128 });
  const requests = prompts.map((ids, prompt) => ({ ids, prompt, completions: 4 }));
  const results = engine.generate(requests, sampling, key);
  engine.dispose();
  return results;
}
const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];

/** bitsandbytes' rules, one value after the other: values that codes and scales stand for. */
function roundTrip(values: Float32Array, k: number, type: Quantization["type"]): Float32Array {
  const block = type === "int8" ? k : 64;
  const out = new Float32Array(values.length);
  for (let at = 0; at < values.length; at += block) {
    const part = values.subarray(at, at + block).map((x) => (type === "int8" ? Math.f16round(x) : x));
    const absmax = part.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    const inverse = Math.fround((type === "int8" ? 127 : 1) * Math.fround(1 / absmax));
    part.forEach((x, i) => {
      const scaled = Math.fround(x * inverse);
      if (type === "int8") {
        const floor = Math.floor(scaled);
        const tie = scaled - floor === 0.5;
        const code = tie ? floor + (Math.abs(floor) % 2) : Math.round(scaled);
        out[at + i] = Math.fround(code * Math.fround(absmax / 127));
      } else {
        const code = NF4_LIMITS.filter((limit) => scaled > Math.fround(limit)).length;
        out[at + i] = Math.fround(Math.fround(NF4_CODES[code]!) * absmax);
      }
    });
  }
  return out;
}

const quantizedNames = (model: Transformer) =>
  model.parameters.list.filter((p) => p.quantized !== null).map((p) => p.name);

describe.each(cases)("%s weights, activations of dtype %p", (type, dtype) => {
  const quantization = { type, head: false };

  test("values are bitsandbytes' for the same weights, float32 ones untouched", () => {
    using setup = new Setup();
    const plain = setup.model({});
    const quantized = setup.model({ dtype, quantization: { type, head: true, double: false } });
    const names = quantizedNames(quantized);
    expect(names).toContain("model.embed_tokens.weight");
    expect(names).toContain("model.layers.1.mlp.down_proj.weight");
    expect(names.length).toBe(1 + 2 * 7);
    for (const { name, shape, matrix } of plain.parameters.list) {
      const values = plain.parameters.read(name);
      expect(quantized.parameters.read(name)).toEqual(matrix ? roundTrip(values, shape[1]!, type) : values);
    }
  });

  test("log-probabilities are those of the model with dequantized weights", () => {
    using setup = new Setup();
    const { memory } = setup;
    const quantized = setup.model({ dtype, quantization });
    const plain = setup.model({ dtype });
    plain.copyFrom(quantized);
    const groups = prompts.map((prompt, i) => ({
      prompt,
      completions: [promptOf(20, CONFIG.vocabSize, 7 + i)],
    }));
    const [a, b] = [quantized, plain].map((model) =>
      scoreGroups(memory, model, groups, 1, 4096).logprobs.flat(2),
    );
    let worst = 0;
    let size = 0;
    a!.forEach((row, i) => {
      row.forEach((x, j) => {
        worst = Math.max(worst, Math.abs(x - b![i]![j]!));
        size = Math.max(size, Math.abs(x));
      });
    });
    // Roundings of sums, and in bfloat16 of the weights themselves, through two layers.
    expect(worst / size).toBeLessThan(dtype === Dtype.bf16 ? 0.03 : 2e-6);
    expect(worst).toBeGreaterThan(0);
  });

  test("the sampler is the trainer", () => {
    using setup = new Setup();
    const { memory } = setup;
    const model = setup.model({ dtype, quantization });
    const results = generate(memory, model);
    const groups = prompts.map((prompt, i) => ({ prompt, completions: results[i]!.map((c) => c.ids) }));
    const want = results.map((r) => r.map((c) => bits(c.logprobs)));
    for (const budget of [4096, 300]) {
      const { logprobs } = scoreGroups(memory, model, groups, 1, budget);
      expect(logprobs.map((r) => r.map(bits))).toEqual(want);
    }
    const g = new Graph(memory, true);
    const { logprob, entropy } = forwardRow(g, model, packGroups(groups), 1);
    memory.finish();
    expect(bits(logprob.float32())).toEqual(want.flat(2));
    g.discard();
    g.release(logprob, entropy);
    memory.finish();
    expect(memory.used).toBe(0);
  });

  test("with the head too, any batch limit draws the same tokens", () => {
    using setup = new Setup();
    const model = setup.model({ dtype, quantization: { type, head: true } });
    const drawn = (maxBatch: number) =>
      generate(setup.memory, model, maxBatch).map((r) => r.map((c) => [[...c.ids], bits(c.logprobs)]));
    expect(drawn(3)).toEqual(drawn(64));
    const groups = [{ prompt: prompts[1]!, completions: [prompts[2]!] }];
    expect(() => scoreGroups(setup.memory, model, groups, 1, 4096)).toThrow("head that is not quantized");
  });
});

test("nf4 in rows that are not whole blocks lies dequantized, and says so", () => {
  using setup = new Setup();
  const config = { ...CONFIG, intermediateSize: 96 };
  const model = setup.model({ quantization: { type: "nf4", head: false } }, config);
  expect(model.quantizationNote).toStartWith("2 of 14 quantized matrices (nf4) lie dequantized in memory");
  expect(quantizedNames(model).length).toBe(12);
  const int8 = setup.model({ quantization: { type: "int8", head: false } }, config);
  expect(int8.quantizationNote).toBeNull();
  expect(quantizedNames(int8).length).toBe(14);
});
