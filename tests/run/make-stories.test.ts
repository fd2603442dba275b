/** The offline stories: what their code measures, their rates, their files and their tokenizer. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULTS, makeStories, pieces, STORY_MODEL } from "../../scripts/make-stories-model.ts";
import {
  askedMood,
  drawStory,
  endingMood,
  MOODS,
  repeatedWords,
  WORDS,
} from "../../scripts/story-grammar.ts";
import { Purpose, Random } from "../../src/core/rng.ts";
import { readExamples } from "../../src/data/prompts.ts";
import { expectedTensors, parseModelConfig } from "../../src/io/hf-folder.ts";
import { readJsonl } from "../../src/io/jsonl.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { digest } from "./program.ts";

const SMALL = { ...DEFAULTS, train: 300, test: 40 };
const TOLD = "a sad story about ben the fox. one day ben went to the lake. at last ben";

describe("code can measure", () => {
  test.each([
    [`${TOLD} wept and everyone was sad.`, "sad"],
    [`${TOLD} wept and everyone was so sad`, "sad"],
    [`${TOLD} smiled and everyone was happy.`, "happy"],
    [`${TOLD} smiled and everyone was happy and sad.`, null],
    [`${TOLD} cried and everyone was sad. it was so cold.`, null],
    [TOLD, null],
    ["", null],
  ])("the ending of %j: %p", (story, mood) => {
    expect(endingMood(story)).toBe(mood);
  });

  test("what was asked for", () => {
    expect(askedMood("A Happy story about zoe the ant.")).toBe("happy");
    expect(askedMood("a tall story about zoe the ant.")).toBeNull();
    expect(askedMood("zoe the ant")).toBeNull();
  });

  test("words that are said again at once", () => {
    expect(repeatedWords("it was very cold. it was very warm.")).toBe(0);
    expect(repeatedWords("it was very very, Very cold, cold.")).toBe(3);
  });
});

test("stories end as they are asked to, and repeat words, as often as they are told to", () => {
  const random = new Random(7, Purpose.data);
  const stories = Array.from({ length: 4000 }, () => drawStory(random, { keep: 0.4, repeat: 0.1 }));
  const share = (of: (typeof stories)[number][]) => of.length / stories.length;
  expect(share(stories.filter((s) => s.asked === s.ending))).toBeCloseTo(0.4, 1);
  expect(share(stories.filter((s) => s.repeats))).toBeCloseTo(0.1, 1);
  for (const { story, opening, asked, ending, repeats } of stories) {
    expect(story.startsWith(`${opening} `)).toBe(true);
    expect([askedMood(story), endingMood(story)]).toEqual([asked, ending]);
    expect(repeatedWords(story) >= 2).toBe(repeats);
    expect(repeats || repeatedWords(story) === 0).toBe(true);
  }
  for (const mood of Object.keys(MOODS))
    expect(share(stories.filter((s) => s.asked === mood))).toBeCloseTo(0.25, 1);
});

test("the files are those of SimpleStories' kind, equal for equal seeds; every word is one token", () => {
  using one = new TemporaryFolder();
  using two = new TemporaryFolder();
  using other = new TemporaryFolder();
  const tokenizer = makeStories(one.path, SMALL);
  makeStories(two.path, SMALL);
  makeStories(other.path, { ...SMALL, seed: 2 });
  expect(digest(two.path)).toEqual(digest(one.path));
  expect(digest(other.path)["dataset/train.jsonl"]).not.toBe(digest(one.path)["dataset/train.jsonl"]!);

  expect([tokenizer.vocabSize, tokenizer.eosId, pieces().length]).toEqual([4096, 1, 4096]);
  expect(tokenizer.specialTokens).toMatchObject({ unk_token: "[UNK]", eos_token: "[EOS]" });
  for (const word of WORDS) expect(tokenizer.encode(word).length).toBe(1);
  const rows = readJsonl(join(one.path, "dataset/train.jsonl")).map(({ row }) => row);
  expect(rows.length).toBe(300);
  for (const { story } of rows as { story: string }[]) {
    const ids = tokenizer.encode(story);
    expect(ids.includes(0)).toBe(false);
    expect(tokenizer.decode(ids)).toBe(story);
    expect([...tokenizer.encode(story, { addSpecialTokens: true })]).toEqual([...ids, 1]);
  }
  // A prompt and what follows are tokenized apart: together they are the story's own tokens.
  const examples = readExamples(join(one.path, "sft.jsonl"), tokenizer, 512);
  examples.forEach(({ prompt, completion }, i) => {
    const { story } = rows[i] as { story: string };
    expect([...prompt, ...completion]).toEqual([...tokenizer.encode(story), 1]);
  });
});

test("the model has the shape of SimpleStories-1.25M", () => {
  const config = parseModelConfig({ ...STORY_MODEL }, "stories");
  const sizes = [...expectedTensors(config).values()].map((shape) => shape.reduce((a, b) => a * b, 1));
  expect(sizes.reduce((a, b) => a + b, 0)).toBe(1_245_824);
  expect(config.eosTokenIds).toEqual([1]);
  using folder = new TemporaryFolder();
  makeStories(folder.path, { ...SMALL, train: 1, test: 1 });
  const written = JSON.parse(readFileSync(join(folder.path, "config.json"), "utf8"));
  expect(written).toEqual({ ...STORY_MODEL });
  expect(Tokenizer.load(join(folder.path, "tokenizer")).eosIds).toEqual([1]);
});
