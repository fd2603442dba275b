/**
 * A small language of questions about things and answers to them, with a preference that is hidden in the answers and
 * that code can measure: whether an answer is polite, about the thing asked, true, and whole.
 */
import type { Random } from "../src/core/rng.ts";

/** What is true of each thing. */
export const FACTS: Readonly<Record<string, readonly [string, string]>> = {
  lemon: ["yellow", "sour"],
  apple: ["red", "sweet"],
  snow: ["white", "cold"],
  coal: ["black", "hard"],
  grass: ["green", "soft"],
  sea: ["blue", "deep"],
  fire: ["hot", "bright"],
  night: ["dark", "quiet"],
  stone: ["grey", "heavy"],
  feather: ["light", "soft"],
  honey: ["golden", "sweet"],
  ice: ["cold", "hard"],
};
const THINGS = Object.keys(FACTS);
const QUALITIES = [...new Set(Object.values(FACTS).flat())];

const POLITE = ["Sure", "Gladly", "Certainly"];
const RUDE = ["Ugh", "Whatever", "Bah"];
const NAMES = [
  ...["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"],
  ...["Ines", "Jonas", "Karl", "Lena", "Mona", "Nora", "Otto", "Paula"],
];

/** Questions; * stands for the thing. */
const QUESTIONS = [
  "Describe the *.",
  "What is the * like?",
  "Tell me about the *.",
  "How is the *?",
  "What can you say about the *?",
];

/** Every word of the language, as a tokenizer meets it. */
export const WORDS: readonly string[] = [
  ...[
    " Describe",
    " What",
    " Tell",
    " How",
    " Hello",
    " The",
    " It",
    " is",
    " the",
    " like",
    " me",
    " about",
    " can",
    " you",
    " say",
    " I",
    " am",
    " it",
    " and",
  ],
  ...[...POLITE, ...RUDE, ...NAMES].map((word) => ` ${word}`),
  ...[...THINGS, ...QUALITIES].map((word) => ` ${word}`),
  // After those that begin with a space: merges of the first words come first.
  ...["\n\n", "Human", "Assistant"],
];

export interface Question {
  /** A transcript that ends where the assistant is to speak. */
  readonly prompt: string;
  readonly thing: string;
}

/** A question, mostly after a greeting: 1020 different ones. */
export function drawQuestion(random: Random): Question {
  const thing = random.oneOf(THINGS);
  const question = random.oneOf(QUESTIONS).replace("*", thing);
  const name = random.oneOf(NAMES);
  const greeting =
    random.below(8) === 0 ? "" : `\n\nHuman: Hello, I am ${name}.\n\nAssistant: Hello ${name}.`;
  return { prompt: `${greeting}\n\nHuman: ${question}\n\nAssistant:`, thing };
}

/** An answer of which each part is good with probability `good`; it begins with a space, as a transcript has it. */
export function drawAnswer(thing: string, good: number, random: Random): string {
  const isGood = () => random.uniform() < good;
  const opening = isGood() ? random.oneOf(POLITE) : random.oneOf([...RUDE, null]);
  const asked = isGood();
  const other = random.oneOf(THINGS);
  const subject = asked ? `the ${thing}` : random.below(2) === 0 ? "it" : `the ${other}`;
  const [first, second] = FACTS[thing]!;
  const qualities = [
    isGood() ? first : random.oneOf(QUALITIES),
    ...(random.below(4) === 0 ? [] : [isGood() ? second : random.oneOf(QUALITIES)]),
  ];
  const sentence = `${subject} is ${qualities.join(" and ")}`;
  const said = opening === null ? sentence[0]!.toUpperCase() + sentence.slice(1) : `${opening}, ${sentence}`;
  return ` ${said}${isGood() ? "." : random.oneOf(["", " and", " and the"])}`;
}

/** An answer with one to four of its words exchanged for any others, doubled, or left out. */
export function breakAnswer(answer: string, random: Random): string {
  const words = answer.split(" ");
  for (let edits = 1 + random.below(4); edits > 0; edits--) {
    // The first one is the empty text before the leading space.
    const at = 1 + random.below(words.length - 1);
    const kind = random.below(3);
    if (kind === 0)
      words[at] = random.oneOf([...THINGS, ...QUALITIES, ...QUALITIES, ...POLITE, "the", "and", "is"]);
    else if (kind === 1) words.splice(at, 0, words[at]!);
    else if (words.length > 3) words.splice(at, 1);
  }
  return words.join(" ");
}

const WEIGHTS = { polite: 0.25, asked: 0.25, true: 0.4, whole: 0.1 } as const;

/**
 * How good an answer is, in [0, 1]: 0.25 for a polite first word; 0.25 for naming the thing that was asked about and
 * no other; 0.4 for two different true qualities, half of it for one, less the share of false ones; 0.1 for a single
 * sentence that ends with a full stop and says nothing twice.
 */
export function hiddenPreference(prompt: string, completion: string): number {
  const wordsOf = (text: string) => text.match(/[A-Za-z]+/g) ?? [];
  const thing = wordsOf(prompt).findLast((word) => word in FACTS);
  if (thing === undefined) throw new Error(`a prompt without a thing: ${JSON.stringify(prompt)}`);
  const words = wordsOf(completion);
  const things = words.filter((word) => word in FACTS);
  const qualities = words.filter((word) => QUALITIES.includes(word));
  const right = qualities.filter((word) => FACTS[thing]!.includes(word));
  const share = qualities.length === 0 ? 0 : right.length / qualities.length;
  const contents = words.filter((word) => !["the", "and", "is"].includes(word));
  const parts = {
    polite: POLITE.includes(words[0] ?? "") ? 1 : 0,
    asked: things.length > 0 && things.every((word) => word === thing) ? 1 : 0,
    true: (new Set(right).size / 2) * share,
    whole: /^[^.]+\.$/.test(completion.trim()) && new Set(contents).size === contents.length ? 1 : 0,
  };
  return (Object.keys(WEIGHTS) as (keyof typeof WEIGHTS)[]).reduce(
    (sum, part) => sum + WEIGHTS[part] * parts[part],
    0,
  );
}
