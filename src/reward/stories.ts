/** Rewards of stories: a word, sentences of a length, an ending that was asked for, and repetition as a reward to be hacked. */
import { z } from "zod";
import { UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import { defineReward, type RewardDefinition, type RewardFamily, type RewardResult } from "./registry.ts";
import { completionSentences, countWord, repetitions, sentencesOf, wordsOf } from "./text.ts";

const single = (name: string, reward: number): RewardResult => ({ reward, components: { [name]: reward } });
const wordParameter = z.string().regex(/^\S+$/, "one word").default("happy");

const happyBinary = defineReward({
  name: "happy_binary",
  description: "1 if the completion says the word, else 0",
  parameters: z.object({ word: wordParameter }),
  bind:
    ({ word }) =>
    ({ text }) =>
      single("happy_binary", countWord(text, word) > 0 ? 1 : 0),
});

const happyCount = defineReward({
  name: "happy_count",
  description: "how often the completion says the word, divided by `most` and at most 1",
  parameters: z.object({ word: wordParameter, most: z.number().int().min(1).default(5) }),
  bind:
    ({ word, most }) =>
    ({ text }) =>
      single("happy_count", Math.min(1, countWord(text, word) / most)),
});

const repeatedWords = defineReward({
  name: "repeated_words",
  description: "how often a run of `words` words stands behind itself, divided by `most` and at most 1",
  parameters: z.object({
    most: z.number().int().min(1).default(4),
    words: z.number().int().min(1).default(1),
  }),
  bind:
    ({ most, words }) =>
    ({ text }) =>
      single("repeated_words", Math.min(1, repetitions(text, words) / most)),
});

const askedEnding = defineReward({
  name: "asked_ending",
  description:
    "1 if the last sentence has the word that `pattern`'s group finds in the prompt, and no other of `words`; else 0",
  parameters: z.object({
    pattern: z.string().min(1).default("\\ba (\\w+) story\\b"),
    words: z.array(z.string().min(1)).default(["happy", "sad", "sleepy", "proud"]),
  }),
  bind({ pattern, words }) {
    const asks = expression(pattern, "i", "reward asked_ending.pattern");
    const all = words.map((word) => word.toLowerCase());
    return ({ prompt, text }) => {
      const asked = asks.exec(prompt.text)?.[1]?.toLowerCase();
      if (asked === undefined)
        throw new UsageError("the prompt asks for no ending", undefined, `its text must match ${pattern}`);
      const last = new Set(wordsOf(sentencesOf(text).at(-1) ?? ""));
      const others = all.some((word) => word !== asked && last.has(word));
      return single("asked_ending", last.has(asked) && !others ? 1 : 0);
    };
  },
});

/** A pattern of a parameter, or an error that names it. */
export function expression(pattern: string, flags: string, where: string): RegExp {
  try {
    return new RegExp(pattern, flags.includes("u") ? flags : `${flags}u`);
  } catch (error) {
    throw new UsageError((error as Error).message, where);
  }
}

/** Mean over sentences of how well each has `length` words; 0 without a sentence. */
function sentenceScore(rollout: Rollout, score: (words: number) => number): number {
  const sentences = completionSentences(rollout);
  if (sentences.length === 0) return 0;
  return sentences.reduce((sum, each) => sum + score(wordsOf(each).length), 0) / sentences.length;
}

const exactly = (length: number) => (words: number) => (words === length ? 1 : 0);
const near = (length: number) => (words: number) => Math.max(0, 1 - Math.abs(words - length) / length);

export const STORY_REWARDS: readonly RewardDefinition[] = [
  happyBinary,
  happyCount,
  repeatedWords,
  askedEnding,
];

export const STORY_FAMILIES: readonly RewardFamily[] = [
  {
    name: "sentence_length_N",
    pattern: /^sentence_length_([1-9]\d?)$/,
    member: (n) =>
      defineReward({
        name: `sentence_length_${n}`,
        description: "share of the completion's sentences that have exactly N words",
        parameters: z.object({}),
        bind: () => (rollout) => single(`sentence_length_${n}`, sentenceScore(rollout, exactly(n))),
      }),
  },
  {
    name: "sentence_length_N_smooth",
    pattern: /^sentence_length_([1-9]\d?)_smooth$/,
    member: (n) =>
      defineReward({
        name: `sentence_length_${n}_smooth`,
        description: "mean over sentences of 1 - |words - N| / N, at least 0",
        parameters: z.object({}),
        bind: () => (rollout) => single(`sentence_length_${n}_smooth`, sentenceScore(rollout, near(n))),
      }),
  },
  {
    name: "sentence_length_N_with_happy",
    pattern: /^sentence_length_([1-9]\d?)_with_happy$/,
    member: (n) =>
      defineReward({
        name: `sentence_length_${n}_with_happy`,
        description:
          "(1 - happy_weight) of sentence_length_N and happy_weight of happy_binary, each a component of its own",
        parameters: z.object({ word: wordParameter, happy_weight: z.number().gt(0).lt(1).default(0.5) }),
        bind:
          ({ word, happy_weight }) =>
          (rollout) => {
            const length = (1 - happy_weight) * sentenceScore(rollout, exactly(n));
            const happy = happy_weight * (countWord(rollout.text, word) > 0 ? 1 : 0);
            return {
              reward: length + happy,
              components: { [`sentence_length_${n}`]: length, happy_binary: happy },
            };
          },
      }),
  },
];
