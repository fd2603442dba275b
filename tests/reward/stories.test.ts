/** Rewards of stories, detectors of hacks and the labels made of what detectors say. */
import { describe, expect, test } from "bun:test";
import { drawStory, endingMood, repeatedWords } from "../../scripts/story-grammar.ts";
import { UsageError } from "../../src/core/errors.ts";
import type { Finish, Rollout, Scored } from "../../src/core/records.ts";
import { Purpose, Random } from "../../src/core/rng.ts";
import { REWARDS } from "../../src/reward/all.ts";
import { bindDetector } from "../../src/reward/detectors.ts";
import { Labels } from "../../src/reward/labels.ts";
import type { RewardResult } from "../../src/reward/registry.ts";
import { completionSentences, repetitions, wordsOf } from "../../src/reward/text.ts";

function rollout(text: string, prompt = "A fox.", finish: Finish = "eos", place = [0, 0]): Rollout {
  return {
    prompt: { index: place[0]!, text: prompt, ids: Int32Array.of(2), fields: {} },
    completion: place[1]!,
    ids: Int32Array.of(1),
    logprobs: Float32Array.of(0),
    lse: null,
    entropies: null,
    text,
    finish,
  };
}

async function score(
  name: string,
  given: Rollout,
  params: Record<string, unknown> = {},
): Promise<RewardResult> {
  return REWARDS.bind(name, params).each!(given, { step: 1 });
}
const value = async (name: string, text: string, params = {}) =>
  (await score(name, rollout(text), params)).reward;

test("a word counts as a whole, in any case", async () => {
  expect(await value("happy_binary", "They were HAPPY.")).toBe(1);
  expect(await value("happy_binary", "unhappy, happyness, happily")).toBe(0);
  expect(await value("happy_binary", "so sad", { word: "Sad" })).toBe(1);
  expect(await value("happy_count", "happy, happy. Happy!")).toBeCloseTo(3 / 5, 12);
  expect(await value("happy_count", "happy ".repeat(9))).toBe(1);
  expect(await value("happy_count", "happy happy", { most: 4 })).toBe(0.5);
});

describe("sentences", () => {
  test("of a length", async () => {
    const text = "The fox ran home. It slept! Did it dream all night?";
    expect(await value("sentence_length_4", text)).toBeCloseTo(1 / 3, 12);
    expect(await value("sentence_length_2", text)).toBeCloseTo(1 / 3, 12);
    expect(await value("sentence_length_9", text)).toBe(0);
    expect(await value("sentence_length_4_smooth", text)).toBeCloseTo((1 + 0.5 + 0.75) / 3, 12);
    expect(await value("sentence_length_1_smooth", text)).toBe(0);
    expect(await value("sentence_length_4", "")).toBe(0);
  });

  test("the combined one is the sum of its components", async () => {
    const given = rollout("He was happy now. It slept.");
    expect(await score("sentence_length_4_with_happy", given)).toEqual({
      reward: 0.75,
      components: { sentence_length_4: 0.25, happy_binary: 0.5 },
    });
    const weighed = await score("sentence_length_4_with_happy", given, { happy_weight: 0.2 });
    expect(weighed.components.sentence_length_4).toBeCloseTo(0.4, 12);
    expect(weighed.components.happy_binary).toBe(0.2);
  });

  test("the first begins in a prompt that leaves it open; one that was cut off is none", () => {
    const words = (given: Rollout) => completionSentences(given).map((each) => wordsOf(each).length);
    expect(words(rollout("ran home. it slept", "One day. The fox"))).toEqual([4, 2]);
    expect(words(rollout("ran home. it slept", "One day."))).toEqual([2, 2]);
    expect(words(rollout("ran home. it slept", "One day.", "length"))).toEqual([2]);
    expect(words(rollout("ran home", "One day.", "length"))).toEqual([]);
  });

  test("numbers from 1 to 99 are names, others are none", () => {
    expect([REWARDS.has("sentence_length_1"), REWARDS.has("sentence_length_99_smooth")]).toEqual([
      true,
      true,
    ]);
    for (const name of [
      "sentence_length_0",
      "sentence_length_100",
      "sentence_length_N",
      "sentence_length_5_x",
    ])
      expect(() => REWARDS.bind(name)).toThrow(/unknown reward/);
  });
});

test("endings and repetitions are those of the grammar", async () => {
  const random = new Random(3, Purpose.data);
  for (let i = 0; i < 300; i++) {
    const { story, opening, asked, repeats } = drawStory(random, { keep: 0.5, repeat: 0.5 });
    const rest = story.slice(opening.length);
    const kept = (await score("asked_ending", rollout(rest, opening))).reward;
    expect(kept).toBe(endingMood(story) === asked ? 1 : 0);
    expect(repetitions(rest)).toBe(repeatedWords(rest));
    expect(bindDetector("repetition", { least: 2 })(rollout(rest))).toBe(repeats);
  }
  expect(await value("asked_ending", "", { pattern: "(fox)" })).toBe(0);
  await expect(score("asked_ending", rollout("x.", "a tale"))).rejects.toThrow(
    /the prompt asks for no ending/,
  );
  expect(repetitions("he ran he ran he ran", 2)).toBe(3);
  expect(await value("repeated_words", "so so so", { most: 4 })).toBe(0.5);
});

describe("detectors", () => {
  test("what they flag", () => {
    const flags = (name: string, params: Record<string, unknown>, text: string) =>
      bindDetector(name, params)(rollout(text));
    expect(flags("word_count", {}, "happy, happy")).toBe(true);
    expect(flags("word_count", {}, "happy, unhappy")).toBe(false);
    expect(flags("word_count", { word: "sad", least: 3 }, "sad sad Sad")).toBe(true);
    expect(flags("regex", { pattern: "^a.*z$", flags: "iu" }, "A to Z")).toBe(true);
    expect(flags("regex", { pattern: "^a.*z$" }, "A to Z")).toBe(false);
    expect(flags("repetition", { least: 1, words: 2 }, "it is it is")).toBe(true);
    expect(flags("repetition", { least: 2, words: 2 }, "it is it is")).toBe(false);
  });

  test.each([
    ["nobody", {}, /unknown detector "nobody".*one of word_count, regex, repetition/],
    ["regex", {}, /a parameter is missing: detector regex\.pattern/],
    ["regex", { pattern: "(" }, /detector regex\.pattern/],
    ["word_count", { last: 3 }, /last.*parameters: word, least/],
    ["word_count", { least: 0 }, /detector word_count\.least/],
  ] as const)("%s %p is refused", (name, params, message) => {
    expect(() => bindDetector(name, params)).toThrow(message);
    expect(() => bindDetector(name, params)).toThrow(UsageError);
  });
});

describe("labels", () => {
  const hacks = (text: string) => text === "hack";
  const batch = (size: number): Scored[] =>
    Array.from({ length: size }, (_, i) => ({
      ...rollout(i % 4 === 0 ? "hack" : "fine", "A fox.", "eos", [Math.floor(i / 16), i % 16]),
      reward: 1,
      components: { own: 1 },
    }));
  const labels = (options: Partial<ConstructorParameters<typeof Labels>[1]>) =>
    new Labels(({ text }) => hacks(text), {
      ...{ seed: 7, recall: 1, falsePositiveRate: 0, placebo: false, penalty: null },
      ...options,
    });
  const flagsOf = (scored: readonly Scored[]) => scored.map(({ flagged }) => flagged);

  test("recall and false-positive rate are what they are told to be", () => {
    const scored = labels({ recall: 0.6, falsePositiveRate: 0.1 }).label(batch(16000), 3);
    const share = (hack: boolean) => {
      const own = scored.filter(({ text }) => hacks(text) === hack);
      return own.filter(({ flagged }) => flagged).length / own.length;
    };
    expect(share(true)).toBeCloseTo(0.6, 1);
    expect(share(false)).toBeCloseTo(0.1, 1);
    for (const { text, details } of scored) expect(details).toEqual({ hack: hacks(text) });
    expect(flagsOf(labels({}).label(batch(64), 1))).toEqual(batch(64).map(({ text }) => hacks(text)));
  });

  test("a label is a function of seed, step, prompt and completion", () => {
    const noisy = { recall: 0.5, falsePositiveRate: 0.5 };
    const all = batch(640);
    const once = flagsOf(labels(noisy).label(all, 3));
    expect(flagsOf(labels(noisy).label(all, 3))).toEqual(once);
    expect(flagsOf(labels(noisy).label(all.slice(320), 3))).toEqual(once.slice(320));
    // Shuffled completions keep theirs.
    expect(flagsOf(labels(noisy).label(all.toReversed(), 3))).toEqual(once.toReversed());
    expect(flagsOf(labels(noisy).label(all, 4))).not.toEqual(once);
    expect(flagsOf(labels({ ...noisy, seed: 8 }).label(all, 3))).not.toEqual(once);
  });

  test("placebos are as many at every step, and independent of hacks", () => {
    let both = 0;
    for (let step = 1; step <= 200; step++) {
      const scored = labels({ placebo: true }).label(batch(32), step);
      expect(scored.filter(({ flagged }) => flagged).length).toBe(8);
      both += scored.filter(({ flagged, text }) => flagged && hacks(text)).length;
    }
    expect(both / (200 * 8)).toBeCloseTo(0.25, 1);
  });

  test("a penalty is a component and is taken from the reward", () => {
    for (const { flagged, reward, components } of labels({ penalty: 2 }).label(batch(16), 1)) {
      expect(reward).toBe(flagged ? -1 : 1);
      expect(components).toEqual({ own: 1, penalty: flagged ? -2 : 0 });
    }
  });
});
