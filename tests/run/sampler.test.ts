import { describe, expect, test } from "bun:test";
import { Purpose } from "../../src/core/rng.ts";
import { Dtype, type DtypeCode } from "../../src/ops/define.ts";
import { type Completion, RolloutEngine, type Sampling } from "../../src/rollout/engine.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow, scoreGroups } from "../../src/rollout/score.ts";
import { Graph } from "../../src/tape/tape.ts";
import { type Family, promptOf, Tiny } from "./tiny.ts";

const key = { seed: 9, purpose: Purpose.rollout, step: 3 };
const sampling = (extra: Partial<Sampling> = {}): Sampling => ({
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  maxNewTokens: 12,
  eosIds: [3, 11],
  ...extra,
});

function generate(
  tiny: Tiny,
  prompts: readonly Int32Array[],
  group: number,
  options: Sampling,
  maxBatch = 64,
) {
  const engine = new RolloutEngine(tiny.memory, tiny.model, { maxBatch, maxLength: 300, prefillTokens: 256 });
  const requests = prompts.map((ids, prompt) => ({ ids, prompt, completions: group }));
  const results = engine.generate(requests, options, key);
  engine.dispose();
  return results;
}

const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];
const sampled = (results: readonly Completion[][]) =>
  results.map((r) => r.map((c) => ({ ids: [...c.ids], logprobs: bits(c.logprobs), finish: c.finish })));

const cases: [Family, DtypeCode][] = (["qwen3", "llama", "qwen2"] as const).flatMap((family) => [
  [family, Dtype.f32] as [Family, DtypeCode],
  [family, Dtype.bf16] as [Family, DtypeCode],
]);

describe.each(cases)("the sampler is the trainer: %s, dtype %p", (family, dtype) => {
  test.each([1, 8, 16])("group size %p, prompts of 1, 31, 64, 65 and 200 tokens", (group) => {
    using tiny = new Tiny(family, { dtype, trainable: true });
    const { model, memory } = tiny;
    const prompts = [1, 31, 64, 65, 200].map((n, i) => promptOf(n, model.config.vocabSize, i));
    for (const options of [sampling(), sampling({ temperature: 0.7, topP: 0.9, topK: 40 })]) {
      const results = generate(tiny, prompts, group, options);
      const groups = prompts.map((prompt, i) => ({ prompt, completions: results[i]!.map((c) => c.ids) }));
      const want = results.map((r) => r.map((c) => bits(c.logprobs)));
      // A prompt encoded for each completion by itself costs most; sixteen would show what eight do.
      const apart = group < 16 ? [[4096, false] as const] : [];
      for (const [budget, share] of [[4096, true] as const, [300, true] as const, ...apart]) {
        const { logprobs } = scoreGroups(memory, model, groups, options.temperature, budget, share);
        expect(logprobs.map((r) => r.map(bits))).toEqual(want);
      }
      // The recording pass of a training step, prompt and completions in one row.
      const g = new Graph(memory, true);
      const row = packGroups(groups);
      const { logprob, entropy } = forwardRow(g, model, row, options.temperature);
      memory.finish();
      expect(bits(logprob.float32())).toEqual(want.flat(2));
      g.discard();
      g.release(logprob, entropy);
      memory.finish();
      expect(memory.used).toBe(0);
    }
  });

  test("any batch limit, order and number of threads give the same completions", () => {
    const run = (maxBatch: number, threads: number, reverse = false) => {
      using tiny = new Tiny(family, { dtype }, threads);
      const prompts = [5, 40, 17, 64].map((n, i) => promptOf(n, tiny.model.config.vocabSize, i));
      const engine = new RolloutEngine(tiny.memory, tiny.model, {
        maxBatch,
        maxLength: 300,
        prefillTokens: 70,
      });
      const requests = prompts.map((ids, prompt) => ({ ids, prompt, completions: 5 }));
      if (reverse) requests.reverse();
      const results = engine.generate(requests, sampling(), key);
      if (reverse) results.reverse();
      engine.dispose();
      expect(tiny.memory.used).toBe(0);
      return sampled(results);
    };
    const want = run(64, 2);
    expect(run(1, 1)).toEqual(want);
    expect(run(3, 2)).toEqual(want);
    expect(run(7, 3)).toEqual(want);
    expect(run(64, 2, true)).toEqual(want);
  });
});

test("completions asked for one by one, each with its prompt, are those of the group", () => {
  using tiny = new Tiny("qwen3");
  const engine = new RolloutEngine(tiny.memory, tiny.model, {
    maxBatch: 7,
    maxLength: 80,
    prefillTokens: 64,
  });
  const ids = promptOf(37, tiny.model.config.vocabSize);
  const group = engine.generate([{ ids, prompt: 4, completions: 5 }], sampling(), key)[0]!;
  const single = engine.generate(
    [0, 1, 2, 3, 4].map((firstCompletion) => ({ ids, prompt: 4, completions: 1, firstCompletion })),
    sampling(),
    key,
  );
  expect(sampled([single.flat()])).toEqual(sampled([group]));
  expect(engine.seconds.prefill).toBeGreaterThan(0);
  expect(engine.seconds.decode).toBeGreaterThan(0);
  engine.dispose();
});

describe("how completions end", () => {
  test("EOS, length, stop; pages and memory come back", () => {
    using tiny = new Tiny("llama");
    const engine = new RolloutEngine(tiny.memory, tiny.model, {
      maxBatch: 8,
      maxLength: 64,
      prefillTokens: 64,
    });
    const free = engine.store.freePages;
    const prompt = promptOf(9, 97);
    const request = { ids: prompt, prompt: 0, completions: 8 };
    const all = new Set(Array.from({ length: 97 }, (_, i) => i));
    const ended = engine.generate([request], sampling({ eosIds: [...all] }), key)[0]!;
    expect(ended.every((c) => c.finish === "eos" && c.ids.length === 1)).toBe(true);
    const long = engine.generate([request], sampling({ eosIds: [] }), key)[0]!;
    expect(long.every((c) => c.finish === "length" && c.ids.length === 12)).toBe(true);
    const stopped = engine.generate([request], sampling({ eosIds: [] }), key, (_r, c) => c !== 2)[0]!;
    expect(stopped[2]!.finish).toBe("stop");
    expect(stopped[2]!.ids.length).toBe(1);
    expect([...stopped[3]!.ids]).toEqual([...long[3]!.ids]);
    expect(engine.store.freePages).toBe(free);
    expect(tiny.memory.used).toBe(0);
    engine.dispose();
  });

  test("too long a prompt and a foreign token are refused", () => {
    using tiny = new Tiny("llama");
    const engine = new RolloutEngine(tiny.memory, tiny.model, {
      maxBatch: 2,
      maxLength: 20,
      prefillTokens: 64,
    });
    const ask = (ids: Int32Array) => engine.generate([{ ids, prompt: 4, completions: 1 }], sampling(), key);
    expect(() => ask(promptOf(9, 97))).toThrow("exceeds 20: prompt 4");
    expect(() => ask(Int32Array.from([5, 97]))).toThrow("token id 97 is outside the vocabulary of 97");
    expect(() => ask(new Int32Array(0))).toThrow("empty prompt");
    engine.dispose();
  });
});
