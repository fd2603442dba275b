import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { readDataset } from "../../src/io/jsonl.ts";
import type { TokenEvent } from "../../src/run/completions.ts";
import { LanguageModel } from "../../src/run/model.ts";

const folder = join(import.meta.dir, "../../src/recipe/arithmetic/model");
const prompts = readDataset(join(folder, "../eval.jsonl"))
  .slice(0, 6)
  .map(({ row }) => row.prompt as string);
const open = (options: Parameters<typeof LanguageModel.open>[1] = {}) =>
  LanguageModel.open(folder, { device: "cpu", threads: 2, ...options });

/** Bits, so that equal means equal. */
const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];
const texts = (many: readonly { text: string }[]) => many.map(({ text }) => text);

describe("log-probabilities", () => {
  test("are those that generation records, and the same however they are asked for", async () => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      using model = open({ dtype });
      const [drawn] = await model.generate([prompts[0]!], { n: 8, maxNewTokens: 12 });
      const given = drawn!.map(({ ids }) => ({ ids }));
      const packed = await model.logprobs(prompts[0]!, given);
      expect(packed.map((each) => bits(each.logprobs))).toEqual(drawn!.map((each) => bits(each.logprobs)));
      // A prompt that is kept: one after another, and all at once.
      using prompt = await model.prompt(prompts[0]!);
      for (const [i, one] of given.entries()) {
        const [score] = await prompt.logprobs([one]);
        expect(bits(score!.logprobs)).toEqual(bits(packed[i]!.logprobs));
        expect(score!.total).toBe(packed[i]!.total);
      }
      expect((await prompt.logprobs(given)).map((each) => bits(each.logprobs))).toEqual(
        packed.map((each) => bits(each.logprobs)),
      );
      // Passes so small that the prompt does not fit beside its continuations, or not even by itself.
      for (const packedTokens of [1, 7, 40]) {
        using small = open({ dtype, packedTokens });
        const cut = await small.logprobs(prompts[0]!, given);
        expect(cut.map((each) => bits(each.logprobs))).toEqual(packed.map((each) => bits(each.logprobs)));
      }
    }
  });

  test("of many prompts at once, of empty continuations, of a prompt of one token", async () => {
    using model = open();
    const lines = prompts.map((prompt, i) => ({ prompt, continuations: ["", String(i), "I am not sure."] }));
    const many = await model.logprobsOfMany(lines);
    for (const [i, { prompt, continuations }] of lines.entries()) {
      const alone = await model.logprobs(prompt, continuations);
      expect(many[i]!.map((each) => bits(each.logprobs))).toEqual(alone.map((each) => bits(each.logprobs)));
    }
    expect(many[0]![0]).toEqual({ ids: new Int32Array(0), logprobs: new Float32Array(0), total: 0 });
    using one = await model.prompt({ ids: [5] });
    expect(bits((await one.logprobs(["12"]))[0]!.logprobs)).toEqual(
      bits((await model.logprobs({ ids: [5] }, ["12"]))[0]!.logprobs),
    );
    expect(await model.logprobsOfMany([])).toEqual([]);
    // A distribution: probabilities of every next token sum to one.
    const all = Array.from({ length: model.config.vocabSize }, (_, id) => ({ ids: [id] }));
    const next = await model.logprobs(prompts[0]!, all);
    expect(next.reduce((sum, { total }) => sum + Math.exp(total), 0)).toBeCloseTo(1, 5);
    const cold = await model.logprobs(prompts[0]!, all, { temperature: 0.5 });
    expect(cold.reduce((sum, { total }) => sum + Math.exp(total), 0)).toBeCloseTo(1, 5);
  });
});

describe("generation", () => {
  test("a kept prompt gives the completions of a fresh one, greedy and sampled, in any order of calls", async () => {
    using model = open();
    const fresh = await model.generate([prompts[1]!], { n: 6, seed: 7, maxNewTokens: 16 });
    const [greedy] = await model.generate([prompts[1]!], { temperature: 0, maxNewTokens: 16 });
    using prompt = await model.prompt(prompts[1]!, { maxNewTokens: 16, batch: 2 });
    await prompt.logprobs(["3"]);
    expect(await prompt.generate({ n: 6, seed: 7 })).toEqual(fresh[0]!);
    expect(await prompt.generate({ temperature: 0 })).toEqual(greedy!);
    expect(await prompt.generate({ n: 6, seed: 7 })).toEqual(fresh[0]!);
    expect(prompt.generate({ maxNewTokens: 17 })).rejects.toThrow("room for 16");
  });

  test("streams whole characters, and stops where a text or the caller says", async () => {
    using model = open();
    const events: TokenEvent[] = [];
    const whole = await model.generate(prompts, {
      n: 3,
      maxNewTokens: 16,
      onToken: (event) => {
        events.push(event);
      },
    });
    for (const [p, completions] of whole.entries())
      for (const [c, { text, ids, logprobs }] of completions.entries()) {
        const own = events.filter(({ prompt, completion }) => prompt === p && completion === c);
        expect(own.map(({ text: piece }) => piece).join("")).toBe(text);
        expect(own.map(({ id }) => id)).toEqual([...ids]);
        expect(own.map(({ logprob }) => logprob)).toEqual([...logprobs]);
      }
    const stop = texts(whole.flat())
      .find((text) => text.length > 4)!
      .slice(2, 4);
    const cut = await model.generate(prompts, { n: 3, maxNewTokens: 16, stop: ["never said", stop] });
    let stopped = 0;
    for (const [i, { text, finish, ids, logprobs }] of cut.flat().entries()) {
      const before = whole.flat()[i]!;
      const at = before.text.indexOf(stop);
      expect(text).toBe(at < 0 ? before.text : before.text.slice(0, at));
      expect(finish).toBe(at < 0 ? before.finish : "stop");
      expect(bits(logprobs)).toEqual(bits(before.logprobs.subarray(0, ids.length)));
      if (at >= 0) stopped++;
    }
    expect(stopped).toBeGreaterThan(0);
    const two = await model.generate([prompts[0]!], {
      maxNewTokens: 16,
      onToken: ({ prompt }) => prompt > 0,
    });
    expect([two[0]![0]!.ids.length, two[0]![0]!.finish]).toEqual([1, "stop"]);
  });

  test("a stop text that comes with the last permitted token stops, and is cut off", async () => {
    using model = open();
    const [greedy] = (await model.generate([prompts[0]!], { temperature: 0, maxNewTokens: 1 })).flat();
    expect(greedy!.finish).toBe("length");
    const stop = greedy!.text.slice(-1);
    const [cut] = (await model.generate([prompts[0]!], { temperature: 0, maxNewTokens: 1, stop })).flat();
    expect(cut).toMatchObject({ finish: "stop", text: greedy!.text.slice(0, greedy!.text.indexOf(stop)) });
  });

  test("many completions of one prompt: more than decode at once, all different draws of one seed", async () => {
    using model = open({ batch: 8 });
    const [many] = await model.generate([prompts[0]!], { n: 100, maxNewTokens: 4 });
    const [few] = await model.generate([prompts[0]!], { n: 3, maxNewTokens: 4 });
    expect(many!.length).toBe(100);
    expect(many!.slice(0, 3)).toEqual(few!);
    expect(new Set(texts(many!)).size).toBeGreaterThan(3);
  });
});

describe("what cannot be done is refused before anything is computed", () => {
  test("prompts and options", async () => {
    using model = open({ maxLength: 64 });
    const refused: [Promise<unknown>, string][] = [
      [model.generate(["2 + 2?", ""]), "prompt 1"],
      [model.generate(["2 + 2?"], { maxNewTokens: 64 }), "exceeds 64: prompt 0"],
      [model.generate([{ ids: [1e6] }]), "outside the vocabulary"],
      [model.generate([{ ids: [-1] }]), "non-negative"],
      [model.generate(["a"], { n: 0 }), "n is 0"],
      [model.generate(["a"], { temperature: Number.NaN }), "temperature is NaN"],
      [model.generate(["a"], { topP: 0 }), "topP is 0"],
      [model.generate(["a"], { topP: 2 }), "at most 1"],
      [model.generate(["a"], { stop: ["x", ""] }), "stop text is empty"],
      [model.generate(["a"], { seed: 2 ** 32 }), "seed is"],
      [model.logprobs("a", ["b".repeat(200)]), "exceeds 64"],
      [model.logprobs("a", ["b"], { temperature: 0 }), "temperature is 0"],
      [model.prompt("x ".repeat(70)), "exceeds 64"],
      [model.prompt("a", { maxNewTokens: 100 }), "exceeds 64"],
    ];
    for (const [promise, message] of refused) await expect(promise).rejects.toThrow(message);
    expect(() => LanguageModel.open("/nowhere")).toThrow("/nowhere");
    expect(() => open({ maxLength: 1e9 })).toThrow("maxLength is 1000000000");
    expect(await model.generate([])).toEqual([]);
  });

  test("a closed model or prompt; calls that had begun come to their end", async () => {
    const model = open();
    const prompt = await model.prompt(prompts[0]!);
    const other = await model.prompt(prompts[1]!);
    const running = Promise.all([
      prompt.generate({ n: 4 }),
      model.generate(prompts, { maxNewTokens: 8 }),
      prompt.logprobs(["1"]),
    ]);
    prompt[Symbol.dispose]();
    model[Symbol.dispose]();
    model[Symbol.dispose]();
    expect(prompt.logprobs(["1"])).rejects.toThrow("the prompt is closed");
    expect(model.generate(["a"])).rejects.toThrow("the model is closed");
    const [first, second, third] = await running;
    expect([first.length, second.length, third.length]).toEqual([4, 6, 1]);
    await Bun.sleep(0);
    expect(other.logprobs(["1"])).rejects.toThrow(/closed/);
    other[Symbol.dispose]();
  });
});
