import { describe, expect, test } from "bun:test";
import { Purpose } from "../../src/core/rng.ts";
import { Dtype, type DtypeCode } from "../../src/ops/define.ts";
import { type Completion, type Drawn, RolloutEngine, type Sampling } from "../../src/rollout/engine.ts";
import { likeliest } from "../../src/rollout/likeliest.ts";
import { type Family, promptOf, Tiny } from "../run/tiny.ts";

const key = { seed: 9, purpose: Purpose.rollout, step: 3 };
const sampling = (extra: Partial<Sampling> = {}): Sampling => ({
  ...{ temperature: 1, topK: 0, topP: 1, minP: 0, maxNewTokens: 12, eosIds: [3, 11] },
  ...extra,
});
const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];
const seen = (c: Completion) => ({ ids: [...c.ids], logprobs: bits(c.logprobs), finish: c.finish });
const engineOf = (tiny: Tiny, prefillTokens = 256) =>
  new RolloutEngine(tiny.memory, tiny.model, { maxBatch: 8, maxLength: 300, prefillTokens });

const cases: [Family, DtypeCode][] = (["qwen3", "llama", "qwen2"] as const).flatMap((family) => [
  [family, Dtype.f32] as [Family, DtypeCode],
  [family, Dtype.bf16] as [Family, DtypeCode],
]);

describe.each(cases)("a cached prefix changes no bit: %s, dtype %p", (family, dtype) => {
  test("prompts that continue one, of any length, encoded in pieces of any size", () => {
    using tiny = new Tiny(family, { dtype });
    const ids = promptOf(90, tiny.model.config.vocabSize);
    const cold = engineOf(tiny);
    const want = cold.generate([{ ids, prompt: 4, completions: 3 }], sampling(), key)[0]!.map(seen);
    cold.dispose();
    for (const piece of [7, 16, 64]) {
      const engine = engineOf(tiny, piece === 7 ? 7 : 256);
      const free = engine.store.freePages;
      for (const cached of [1, 15, 16, 17, 64, 89]) {
        const prefix = engine.encode(ids.subarray(0, cached));
        const request = { ids, prompt: 4, completions: 3, prefix };
        expect(engine.generate([request], sampling(), key)[0]!.map(seen)).toEqual(want);
        // Beside another prompt, with and without a prefix; the prefix is there for the next one still.
        const other = { ids: promptOf(20, tiny.model.config.vocabSize, 7), prompt: 5, completions: 2 };
        const mixed = engine.generate([other, request, other], sampling(), key);
        expect(mixed[1]!.map(seen)).toEqual(want);
        expect(mixed[0]!.map(seen)).toEqual(mixed[2]!.map(seen));
        const longer = engine.encode(ids.subarray(0, 89), prefix);
        expect(engine.generate([{ ...request, prefix: longer }], sampling(), key)[0]!.map(seen)).toEqual(
          want,
        );
        longer.release();
        prefix.release();
        expect(engine.store.freePages).toBe(free);
      }
      engine.dispose();
      expect(tiny.memory.used).toBe(0);
    }
  });

  test("a kept completion is the prefix of what follows", () => {
    using tiny = new Tiny(family, { dtype });
    const engine = engineOf(tiny);
    const free = engine.store.freePages;
    const ids = promptOf(21, tiny.model.config.vocabSize);
    const first = engine.generate([{ ids, prompt: 1, completions: 4, keep: true }], sampling(), key)[0]!;
    for (const { ids: reply, cache } of first) {
      expect(cache!.length).toBe(ids.length + reply.length - 1);
      const next = Int32Array.from([...ids, ...reply, ...promptOf(9, tiny.model.config.vocabSize, 3)]);
      const ask = { ids: next, prompt: 2, completions: 2 };
      const cold = engine.generate([ask], sampling(), key)[0]!.map(seen);
      expect(engine.generate([{ ...ask, prefix: cache! }], sampling(), key)[0]!.map(seen)).toEqual(cold);
      // Cut back into the prompt, as when its reply is drawn again.
      cache!.cut(ids.length - 1);
      const again = { ids, prompt: 1, completions: 4, prefix: cache! };
      expect(engine.generate([again], sampling(), key)[0]!.map(seen)).toEqual(first.map(seen));
    }
    for (const { cache } of first) cache!.release();
    expect(engine.store.freePages).toBe(free);
    engine.dispose();
  });
});

test("caches of a call that fails come back, also those that were to be kept", () => {
  using tiny = new Tiny("llama");
  const engine = engineOf(tiny);
  const free = engine.store.freePages;
  const request = { ids: promptOf(20, 97), prompt: 0, completions: 4, keep: true };
  let tokens = 0;
  const fail = () => {
    if (++tokens === 40) throw new Error("enough");
    return true;
  };
  expect(() => engine.generate([request], sampling({ eosIds: [5, 6, 7, 8] }), key, fail)).toThrow("enough");
  expect(engine.store.freePages).toBe(free);
  expect(tiny.memory.used).toBe(0);
  engine.dispose();
});

test("a prefix as long as its prompt is a defect, and encoding may be given up", async () => {
  using tiny = new Tiny("llama");
  const engine = engineOf(tiny, 1);
  const free = engine.store.freePages;
  const ids = promptOf(20, 97);
  const prefix = engine.encode(ids);
  expect(() => engine.generate([{ ids, prompt: 0, completions: 1, prefix }], sampling(), key)).toThrow(
    "no token behind",
  );
  const left = new AbortController();
  const work = engine.encodeAsync(promptOf(290, 97), prefix, left.signal);
  left.abort();
  const got = await work;
  got?.release();
  prefix.release();
  expect(engine.store.freePages).toBe(free);
  engine.dispose();
});

describe("the likeliest tokens beside the drawn one", () => {
  test("their log-probabilities are those that drawing them has", () => {
    using tiny = new Tiny("qwen3");
    const engine = engineOf(tiny);
    for (const temperature of [0, 0.7, 1.3]) {
      const draws: Drawn[] = [];
      const ids = promptOf(30, tiny.model.config.vocabSize);
      const plain = engine.generate([{ ids, prompt: 0, completions: 3 }], sampling({ temperature }), key);
      const told = engine.generate(
        [{ ids, prompt: 0, completions: 3 }],
        sampling({ temperature, alternatives: 613 }),
        key,
        (_r, _c, _id, drawn) => draws.push(drawn) > 0,
      );
      expect(told[0]!.map(seen)).toEqual(plain[0]!.map(seen));
      expect(draws.length).toBe(told[0]!.reduce((n, c) => n + c.ids.length, 0));
      for (const { id, logprob, alternatives } of draws) {
        expect(alternatives.find((a) => a.id === id)!.logprob).toBeCloseTo(logprob, 4);
        expect(alternatives.reduce((sum, a) => sum + Math.exp(a.logprob), 0)).toBeCloseTo(1, 4);
        if (temperature === 0) expect(alternatives[0]!.id).toBe(id);
      }
    }
    engine.dispose();
    expect(tiny.memory.used).toBe(0);
  });

  test("falling, the lower id first among equals, no more than asked for", () => {
    const logits = Float32Array.from([1, 5, 5, -2, 7, 5]);
    const ids = (alternatives: number) =>
      likeliest(logits, { temperature: 2, alternatives }, 4).map(({ id }) => id);
    expect(ids(0)).toEqual([]);
    expect(ids(1)).toEqual([4]);
    expect(ids(3)).toEqual([4, 1, 2]);
    expect(ids(9)).toEqual([4, 1, 2, 5, 0, 3]);
    expect(likeliest(logits, { temperature: 2, alternatives: 1 }, 4)[0]!.logprob).toBe(-0.5);
  });
});
