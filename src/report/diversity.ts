/**
 * How different completions are from each other, and whether a policy has degenerated: copies, near copies, loops, and
 * one template with other words in its slots, which neither copies nor word sets betray.
 *
 * Everything but the count and the unique share is measured on a sample, so a set of any size costs the same.
 */
import { evenly } from "../core/lists.ts";
import { Purpose, Random } from "../core/rng.ts";

export interface Diversity {
  /** Completions seen, and how many of them the figures below are of. */
  readonly completions: number;
  readonly sampled: number;
  readonly mean_words: number;
  /** Distinct texts / completions, of all. */
  readonly unique_share: number;
  /** Share of the commonest text in the sample. */
  readonly top_share: number;
  /** Mean Jaccard similarity |A∩B| / |A∪B| of the word sets of two completions. */
  readonly jaccard: number;
  /** The same of two completions of one prompt; null where no prompt has two. */
  readonly jaccard_within: number | null;
  /** Share of a completion's distinct word 4-grams that another completion has too. */
  readonly self_overlap: number;
  /** Distinct words / words. */
  readonly type_token: number;
  /** Bytes / bytes after deflate, of all texts together. Natural text is at 2 to 3. */
  readonly compression: number;
  /** Share of a completion's word 4-grams that it has said before. */
  readonly repetition: number;
  /** Share of completions whose skeleton at least a fifth of the others have as well. */
  readonly template_share: number;
  /** The commonest of them, other words as ‗; null without one. */
  readonly template: string | null;
  readonly degenerate: boolean;
  /** Why, in words with figures; empty if it is not. */
  readonly reasons: readonly string[];
}

/** Limits that a flag is raised at. */
export const DEGENERATE = {
  unique_share: 0.5,
  jaccard: 0.7,
  template_share: 0.5,
  compression: 8,
  repetition: 0.5,
} as const;

/** Fewer tell nothing. */
const LEAST_COMPLETIONS = 8;
/** Answers below this many words on average are alike because there is little to say: 5, yes, no. */
const SHORT_WORDS = 4;
/** A short answer that this share of all prompts gets is no answer to most of them. */
const SAME_ANSWER = 0.5;
/** Words of a skeleton: shorter ones agree by chance, of longer ones the beginning is compared. */
const SKELETON_LEAST = 8;
const SKELETON_MOST = 128;
/** Completions whose skeletons are compared, all with all. */
const SKELETONS = 48;
/** A word of a skeleton is in this share of the completions. */
const FRAME_SHARE = 0.2;
/** Agreement beyond chance at which two skeletons are one. */
const SAME_SKELETON = 0.6;
/** Share of the others that makes a skeleton a template. */
const TEMPLATE_OTHERS = 0.2;
const BLANK = "‗";
const NGRAM = 4;
const SAMPLE = 256;

interface Sample {
  readonly text: string;
  readonly prompt: string | number | null;
}

/** Collects completions one by one; `report` looks at a uniform sample of them. */
export class DiversityTracker {
  readonly #texts = new Set<number>();
  readonly #sample: Sample[] = [];
  readonly #random: Random;
  #count = 0;

  /** `capacity`: completions that the figures are measured on. */
  constructor(readonly capacity: number = SAMPLE) {
    // Its own stream, the same for the same completions in the same order.
    this.#random = new Random(capacity, Purpose.shuffle);
  }

  get count(): number {
    return this.#count;
  }

  /** `prompt`: what tells prompts apart. */
  add(text: string, prompt: string | number | null = null): void {
    this.#count++;
    this.#texts.add(hash(text));
    if (this.#sample.length < this.capacity) this.#sample.push({ text, prompt });
    else {
      const at = this.#random.below(this.#count);
      if (at < this.capacity) this.#sample[at] = { text, prompt };
    }
  }

  report(): Diversity {
    return measure(this.#sample, this.#count, this.#texts.size);
  }
}

/** Figures of a list of completions. */
export function diversity(completions: readonly Sample[], capacity: number = SAMPLE): Diversity {
  const tracker = new DiversityTracker(capacity);
  for (const { text, prompt } of completions) tracker.add(text, prompt);
  return tracker.report();
}

const TOKEN =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}]+(?:['’][\p{L}]+)*|[^\s\p{L}\p{M}\p{N}]/gu;
const WORD = /[\p{L}\p{N}]/u;

/** Words and punctuation marks, in lower case. */
function tokensOf(text: string): string[] {
  return text.toLowerCase().match(TOKEN) ?? [];
}

function measure(sample: readonly Sample[], count: number, distinct: number): Diversity {
  const tokens = sample.map(({ text }) => tokensOf(text));
  const words = tokens.map((list) => list.filter((token) => WORD.test(token)));
  const total = words.reduce((sum, list) => sum + list.length, 0);
  const sets = words.map((list) => new Set(list));
  const { all, within } = jaccards(sets, sample);
  const { selfOverlap, repetition } = ngrams(words);
  const { share, template } = templates(tokens);
  const figures = {
    completions: count,
    sampled: sample.length,
    mean_words: sample.length === 0 ? 0 : total / sample.length,
    unique_share: count === 0 ? 1 : distinct / count,
    top_share: topShare(sample),
    jaccard: all ?? 0,
    jaccard_within: within,
    self_overlap: selfOverlap,
    type_token: total === 0 ? 1 : new Set(words.flat()).size / total,
    compression: compression(sample),
    repetition,
    template_share: share,
    template,
  };
  const reasons = reasonsOf(figures, new Set(sample.map(({ prompt }) => prompt)).size);
  return { ...figures, degenerate: reasons.length > 0, reasons };
}

type Figures = Omit<Diversity, "degenerate" | "reasons">;

function reasonsOf(figures: Figures, prompts: number): string[] {
  const percent = (share: number) => `${Math.round(100 * share)} %`;
  if (figures.completions < LEAST_COMPLETIONS) return [];
  if (figures.mean_words < SHORT_WORDS) {
    const same = figures.top_share > SAME_ANSWER && prompts >= LEAST_COMPLETIONS / 2;
    return same ? [`one answer for ${percent(figures.top_share)} of the prompts`] : [];
  }
  const reasons: string[] = [];
  if (figures.unique_share < DEGENERATE.unique_share)
    reasons.push(`only ${percent(figures.unique_share)} of the texts are unique`);
  if (figures.jaccard > DEGENERATE.jaccard)
    reasons.push(`two completions share ${percent(figures.jaccard)} of their words`);
  if (figures.template_share >= DEGENERATE.template_share)
    reasons.push(`${percent(figures.template_share)} follow a template`);
  if (figures.compression > DEGENERATE.compression)
    reasons.push(`the texts compress to 1/${figures.compression.toFixed(1)}`);
  if (figures.repetition > DEGENERATE.repetition)
    reasons.push(`${percent(figures.repetition)} of a completion repeats itself`);
  return reasons;
}

function topShare(sample: readonly Sample[]): number {
  const counts = new Map<string, number>();
  for (const { text } of sample) counts.set(text.trim(), (counts.get(text.trim()) ?? 0) + 1);
  return sample.length === 0 ? 0 : [...counts.values()].reduce((a, b) => Math.max(a, b)) / sample.length;
}

/** Means over all pairs, and over pairs of one prompt; null without a pair. Two empty sets are the same. */
function jaccards(sets: readonly ReadonlySet<string>[], sample: readonly Sample[]) {
  let [sum, pairs, inner, innerPairs] = [0, 0, 0, 0];
  for (let i = 0; i < sets.length; i++)
    for (let j = 0; j < i; j++) {
      const [small, large] = sets[i]!.size < sets[j]!.size ? [sets[i]!, sets[j]!] : [sets[j]!, sets[i]!];
      let common = 0;
      for (const word of small) if (large.has(word)) common++;
      const union = small.size + large.size - common;
      const similarity = union === 0 ? 1 : common / union;
      sum += similarity;
      pairs++;
      if (sample[i]!.prompt !== null && sample[i]!.prompt === sample[j]!.prompt) {
        inner += similarity;
        innerPairs++;
      }
    }
  return { all: pairs === 0 ? null : sum / pairs, within: innerPairs === 0 ? null : inner / innerPairs };
}

/** Of word 4-grams: how much of a completion others have, and how much it says twice. */
function ngrams(words: readonly (readonly string[])[]): { selfOverlap: number; repetition: number } {
  const owners = new Map<string, number>();
  const own = words.map((list) => {
    const grams = Array.from({ length: Math.max(0, list.length - NGRAM + 1) }, (_, i) =>
      list.slice(i, i + NGRAM).join(" "),
    );
    const distinct = new Set(grams);
    for (const gram of distinct) owners.set(gram, (owners.get(gram) ?? 0) + 1);
    return { distinct, count: grams.length };
  });
  const long = own.filter(({ count }) => count > 0);
  if (long.length === 0) return { selfOverlap: 0, repetition: 0 };
  const shared = ({ distinct }: { distinct: ReadonlySet<string> }) =>
    [...distinct].filter((gram) => owners.get(gram)! > 1).length / distinct.size;
  return {
    selfOverlap: long.reduce((sum, each) => sum + shared(each), 0) / long.length,
    repetition: long.reduce((sum, { distinct, count }) => sum + 1 - distinct.size / count, 0) / long.length,
  };
}

function compression(sample: readonly Sample[]): number {
  const bytes = new TextEncoder().encode(sample.map(({ text }) => text).join("\n"));
  // Below this the format's own bytes tell.
  if (bytes.length < 512) return 1;
  return bytes.length / Bun.deflateSync(bytes).length;
}

/**
 * Skeletons: words and marks that many completions have, in their order, with every other word as one and the same
 * blank. Two skeletons agree by the length of their longest common subsequence over their mean length, set against
 * that of the one and the other shuffled: 0 is chance, 1 is equal.
 */
function templates(tokens: readonly (readonly string[])[]): { share: number; template: string | null } {
  const long = tokens.filter(({ length }) => length >= SKELETON_LEAST);
  const none = { share: 0, template: null };
  if (long.length < LEAST_COMPLETIONS || long.length < tokens.length / 2) return none;
  // Evenly from all, so that every prompt is there.
  const chosen = evenly(long, SKELETONS);
  const count = chosen.length;
  const frequency = new Map<string, number>();
  for (const list of long)
    for (const token of new Set(list)) frequency.set(token, (frequency.get(token) ?? 0) + 1);
  const frame = new Map<string, number>();
  for (const [token, owners] of frequency)
    if (owners >= Math.max(2, FRAME_SHARE * long.length)) frame.set(token, frame.size + 1);
  const skeletons = chosen.map((list) =>
    Int32Array.from(list.slice(0, SKELETON_MOST), (token) => frame.get(token) ?? 0),
  );
  const shuffled = skeletons.map((skeleton, i) => {
    const order = new Random(1, Purpose.shuffle, i).permutation(skeleton.length);
    return Int32Array.from(order, (at) => skeleton[at]!);
  });
  const followers: number[][] = skeletons.map(() => []);
  for (let i = 0; i < count; i++)
    for (let j = 0; j < i; j++) {
      const [a, b] = [skeletons[i]!, skeletons[j]!];
      const mean = (a.length + b.length) / 2;
      const chance = commonLength(a, shuffled[j]!) / mean;
      if (chance > 0.95 || commonLength(a, b) / mean - chance < SAME_SKELETON * (1 - chance)) continue;
      followers[i]!.push(j);
      followers[j]!.push(i);
    }
  const share = followers.filter(({ length }) => length >= TEMPLATE_OTHERS * (count - 1)).length / count;
  if (share === 0) return none;
  const top = followers.reduce((best, { length }, i) => (length > followers[best]!.length ? i : best), 0);
  const alike = followers[top]!.map((i) => new Set(chosen[i]!));
  const common = (token: string) => alike.filter((set) => set.has(token)).length > alike.length / 2;
  const text = chosen[top]!.slice(0, SKELETON_MOST).map((token) => (common(token) ? token : BLANK));
  // Slots of any length are one blank.
  return { share, template: text.filter((token, i) => token !== BLANK || text[i - 1] !== BLANK).join(" ") };
}

/** Length of the longest common subsequence. */
function commonLength(a: Int32Array, b: Int32Array): number {
  const row = new Uint16Array(b.length + 1);
  for (const token of a) {
    let diagonal = 0;
    for (let j = 1; j <= b.length; j++) {
      const above = row[j]!;
      row[j] = token === b[j - 1] ? diagonal + 1 : above > row[j - 1]! ? above : row[j - 1]!;
      diagonal = above;
    }
  }
  return row[b.length]!;
}

/** 53 bits: two of 100 000 different texts are taken for one with a probability of one in a million. */
function hash(text: string): number {
  return Number(BigInt(Bun.hash(text)) & 0x1fffffffffffffn);
}
