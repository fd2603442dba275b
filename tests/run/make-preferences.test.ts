import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { DEFAULTS, makePreferences, type PreferenceSizes } from "../../scripts/make-preferences.ts";
import { drawAnswer, drawQuestion, FACTS, hiddenPreference } from "../../scripts/preference-grammar.ts";
import { Purpose, Random } from "../../src/core/rng.ts";
import { openPreferences, type PreferenceRow, preferencePair } from "../../src/data/preferences.ts";
import { readExamples } from "../../src/data/prompts.ts";
import { parseModelConfig } from "../../src/io/hf-folder.ts";
import { readJsonl } from "../../src/io/jsonl.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { TemporaryFolder } from "../io/temporary.ts";

const SMALL: PreferenceSizes = { ...DEFAULTS, train: 201, test: 41, sft: 60 };

function made(sizes: Partial<PreferenceSizes> = {}): TemporaryFolder {
  const folder = new TemporaryFolder();
  makePreferences(folder.path, { ...SMALL, ...sizes });
  return folder;
}

/** Preference of the chosen answer less that of the rejected one. */
function gapOf(row: PreferenceRow): number {
  const turn = (turns: PreferenceRow["chosen"]) => (turns.at(-1) as { content: string }).content;
  const question = turn(row.prompt);
  return hiddenPreference(question, turn(row.chosen)) - hiddenPreference(question, turn(row.rejected));
}

const all = (source: { length: number; at(i: number): PreferenceRow }) =>
  Array.from({ length: source.length }, (_, i) => source.at(i));

describe("the hidden preference", () => {
  const prompt =
    "\n\nHuman: Hello, I am Ben.\n\nAssistant: Hello Ben.\n\nHuman: Describe the lemon.\n\nAssistant:";
  test.each([
    [" Sure, the lemon is yellow and sour.", 1],
    [" Sure, the lemon is yellow and sour", 0.9],
    [" The lemon is yellow and sour.", 0.75],
    [" Ugh, the lemon is yellow.", 0.55],
    [" Sure, it is yellow and sour.", 0.75],
    [" Sure, the lemon is yellow and hot.", 0.7],
    [" Sure, the lemon is hot.", 0.6],
    [" Sure, the coal is yellow and sour.", 0.75],
    [" Sure, the lemon is yellow and yellow and yellow.", 0.7],
    [" Sure, the lemon is yellow. The lemon is sour.", 0.9],
    ["", 0],
    [" Bah, the coal is hot and", 0],
  ])("%j: %d", (answer, value) => {
    expect(hiddenPreference(prompt, answer)).toBeCloseTo(value, 10);
  });

  test("rises with the share of good parts, over most of its range", () => {
    const random = new Random(1, Purpose.data);
    const mean = (good: number) => {
      const values = Array.from({ length: 1000 }, () => {
        const question = drawQuestion(random);
        return hiddenPreference(question.prompt, drawAnswer(question.thing, good, random));
      });
      expect(values.every((value) => value >= 0 && value <= 1)).toBe(true);
      return values.reduce((a, b) => a + b, 0) / values.length;
    };
    const means = [0, 0.25, 0.5, 0.75, 1].map(mean);
    expect(means).toEqual([...means].sort((a, b) => a - b));
    expect(means[0]).toBeLessThan(0.1);
    expect(means[2]).toBeWithin(0.35, 0.55);
    expect(means[4]).toBeGreaterThan(0.9);
  });

  test("a prompt without a thing is a mistake", () => {
    expect(() => hiddenPreference("Hello", "x")).toThrow("without a thing");
  });
});

describe("the data", () => {
  test("pairs in HH's layout, the better answer chosen, apart by the gap", async () => {
    using folder = made();
    const train = await openPreferences(folder.path, "train");
    const held = await openPreferences(folder.path, "test");
    expect([train.length, held.length]).toEqual([201, 41]);
    for (const row of [...all(train), ...all(held)])
      expect(gapOf(row)).toBeGreaterThanOrEqual(SMALL.gap - 1e-9);
    const tokenizer = Tokenizer.load(folder.file("tokenizer"));
    const lengths = all(train).map((row) => preferencePair(row, tokenizer, 128)!.chosen.length);
    expect(Math.max(...lengths)).toBeLessThan(64);
  });

  test("label noise turns that share of the training pairs, and no test pair", async () => {
    using folder = made({ noise: 0.3, train: 1000 });
    const wrong = all(await openPreferences(folder.path, "train")).filter((row) => gapOf(row) < 0).length;
    expect(wrong / 1000).toBeWithin(0.25, 0.35);
    expect(all(await openPreferences(folder.path, "test")).every((row) => gapOf(row) > 0)).toBe(true);
  });

  test("the same seed, the same bytes; splits and seeds differ", () => {
    using one = made();
    using two = made();
    using other = made({ seed: 2 });
    const file = (folder: TemporaryFolder, name: string) => readFileSync(join(folder.path, name));
    for (const name of [
      "harmless-base/train.jsonl.gz",
      "helpful-base/test.jsonl.gz",
      "sft.jsonl",
      "tokenizer/tokenizer.json",
      "config.json",
    ])
      expect(file(one, name).equals(file(two, name))).toBe(true);
    const text = (folder: TemporaryFolder, name: string) => gunzipSync(file(folder, name)).toString();
    expect(text(one, "helpful-base/train.jsonl.gz")).not.toBe(text(other, "helpful-base/train.jsonl.gz"));
    expect(text(one, "helpful-base/train.jsonl.gz")).not.toBe(text(one, "harmless-base/train.jsonl.gz"));
    expect(text(one, "helpful-base/train.jsonl.gz")).not.toStartWith(
      text(one, "helpful-base/test.jsonl.gz").split("\n")[0]!,
    );
  });

  test("text for the policy, of bad and good answers, in words of one token", () => {
    using folder = made();
    const tokenizer = Tokenizer.load(folder.file("tokenizer"));
    const examples = readExamples(folder.file("sft.jsonl"), tokenizer, 128);
    expect(examples.length).toBe(60);
    for (const { completion } of examples) {
      expect(completion.length).toBeLessThanOrEqual(24);
      expect(completion.at(-1)).toBe(tokenizer.eosId!);
    }
    const values = readJsonl(folder.file("sft.jsonl")).map(({ row }) =>
      hiddenPreference(row.prompt as string, row.completion as string),
    );
    expect(values.reduce((a, b) => a + b, 0) / values.length).toBeWithin(0.3, 0.6);
    for (const thing of Object.keys(FACTS)) expect(tokenizer.encode(` ${thing}`).length).toBe(1);
    const config = parseModelConfig(
      JSON.parse(readFileSync(folder.file("config.json"), "utf8")),
      "config.json",
    );
    expect(config.vocabSize).toBeGreaterThanOrEqual(tokenizer.vocabSize);
  });
});
