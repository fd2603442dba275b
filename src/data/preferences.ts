/**
 * Preference data: rows of two answers of which the first is preferred, read when they are drawn. Nothing is tokenized
 * ahead, so training starts at once; what does not fit is skipped while drawing.
 */
import { UsageError } from "../core/errors.ts";
import type { Prompt } from "../core/records.ts";
import { Purpose, Random } from "../core/rng.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { conversationText, endedText, type Turn } from "./conversation.ts";
import { type OpenSplit, openSplit } from "./preference-files.ts";
import { preferenceRow, UnusableRow } from "./preference-row.ts";
import { type ItemSource, Shuffle } from "./prompts.ts";

/** Two sequences of which the first is preferred. */
export interface PreferencePair {
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
  /** By how much it should win; 0 if absent. */
  readonly margin?: number;
}

export type Split = "train" | "test";

/** What is common to both answers, and the rest of each: turns of a conversation, or text. */
export interface PreferenceRow {
  /** Position in its split. */
  readonly index: number;
  /** FILE:LINE. */
  readonly where: string;
  readonly prompt: readonly Turn[] | string;
  readonly chosen: readonly Turn[] | string;
  readonly rejected: readonly Turn[] | string;
  /** By how much the chosen one should win. */
  readonly margin?: number;
}

/** Why a row gives no pair or prompt. */
export type Skip = "too_long" | "identical" | "unusable" | "held_out";

export interface PreferenceSource {
  readonly length: number;
  /** Whether rows without a pair in them (an empty answer, no last turn of the assistant) are passed over. */
  readonly skipsUnusable: boolean;
  /** Throws a UsageError that names file and line for a row that is broken. */
  at(index: number): PreferenceRow;
}

/**
 * A split of Anthropic/hh-rlhf in its folder layout, of a folder with train and test files, or of one file, of which
 * every twentieth row is its test split. Files are JSONL, gzipped or not, or parquet.
 */
export async function openPreferences(dataset: string, split: Split): Promise<PreferenceSource> {
  const rows = new Rows(await openSplit(dataset, split));
  check(rows);
  return rows;
}

/** Rows looked at before training begins: every one of a dataset of this size, or so many spread over a larger one. */
const CHECKED = { all: 20_000, spread: 2_000 } as const;

function check(rows: Rows): void {
  const stride = rows.length <= CHECKED.all ? 1 : Math.floor(rows.length / CHECKED.spread);
  let usable = 0;
  for (let index = 0; index < rows.length; index += stride) if (usableRow(rows, index) !== null) usable += 1;
  if (usable === 0) rows.at(0);
}

class Rows implements PreferenceSource {
  readonly length: number;
  readonly skipsUnusable: boolean;
  constructor(readonly split: OpenSplit) {
    this.length = split.length;
    this.skipsUnusable = split.published;
  }

  at(index: number): PreferenceRow {
    const { row, where } = this.split.row(index);
    return preferenceRow(row, where, index);
  }
}

/** Prompt and both whole texts; the prompt is empty where the texts do not extend it. */
function textsOf(row: PreferenceRow, tokenizer: Tokenizer): { prompt: string; both: [string, string] } {
  if (typeof row.prompt === "string") {
    const whole = (answer: PreferenceRow["chosen"]) => endedText(`${row.prompt}${answer}`, tokenizer);
    return { prompt: row.prompt, both: [whole(row.chosen), whole(row.rejected)] };
  }
  const turns = row.prompt;
  const whole = (answer: PreferenceRow["chosen"]) =>
    conversationText([...turns, ...(answer as readonly Turn[])], tokenizer, false);
  const speaks = (answer: PreferenceRow["chosen"]) => (answer[0] as Turn).role === "assistant";
  const open = turns.length > 0 && speaks(row.chosen) && speaks(row.rejected);
  return {
    prompt: open ? conversationText(turns, tokenizer, true) : "",
    both: [whole(row.chosen), whole(row.rejected)],
  };
}

function joined(head: Int32Array, tail: Int32Array): Int32Array {
  const all = new Int32Array(head.length + tail.length);
  all.set(head);
  all.set(tail, head.length);
  return all;
}

/**
 * Token ids [chosen] and [rejected] of a row, each ending with EOS; null if one is longer than `maxLength`. A prompt
 * that both extend is tokenized by itself, so both begin with the very ids that a policy is given for it.
 */
export function preferencePair(
  row: PreferenceRow,
  tokenizer: Tokenizer,
  maxLength: number,
): PreferencePair | null {
  const { prompt, both } = textsOf(row, tokenizer);
  const common = both.every((text) => text.startsWith(prompt)) ? prompt : "";
  const head = tokenizer.encode(common);
  const [chosen, rejected] = both.map((text) =>
    joined(head, tokenizer.encode(text.slice(common.length))),
  ) as [Int32Array, Int32Array];
  if (Math.max(chosen.length, rejected.length) > maxLength) return null;
  return { chosen, rejected, ...(row.margin === undefined ? {} : { margin: row.margin }) };
}

/**
 * The conversation up to the last turn of the assistant, open for its answer; null if longer than `maxLength`.
 * `fields.messages` are its turns, for a reward model with a template of its own; absent where the row is text.
 */
export function preferencePrompt(row: PreferenceRow, tokenizer: Tokenizer, maxLength: number): Prompt | null {
  const { prompt, chosen, index, where } = row;
  if (typeof prompt === "string") {
    const ids = tokenizer.encode(prompt);
    if (ids.length === 0)
      throw new UsageError("the texts have no prompt in common", where, 'add a column "prompt"');
    return ids.length > maxLength ? null : { index, text: prompt, ids, fields: { where } };
  }
  const messages = [...prompt, ...(chosen as readonly Turn[]).slice(0, -1)];
  const text = conversationText(messages, tokenizer, true);
  const ids = tokenizer.encode(text);
  return ids.length > maxLength ? null : { index, text, ids, fields: { where, messages } };
}

/** Items in the order drawn. */
export interface Drawn<T> {
  readonly items: readonly T[];
  /** Where the next draw begins: all that a checkpoint needs. */
  readonly position: number;
}

/** Items of a source in shuffled passes; rows that `make` refuses are passed over and counted. */
export class EpochSampler<T extends object> implements ItemSource<T> {
  /** Rows passed over since the sampler was made, by reason. */
  readonly skipped: Partial<Record<Skip, number>> = {};
  readonly #shuffle: Shuffle;

  constructor(
    readonly length: number,
    readonly seed: number,
    readonly make: (index: number) => T | Skip,
  ) {
    this.#shuffle = new Shuffle(length, seed);
  }

  /** `count` items from `position` (0, 1, …; rows passed over count too) of an endless sequence of passes. */
  draw(position: number, count: number): Drawn<T> {
    const items: T[] = [];
    let next = position;
    for (let missed = 0; items.length < count; next++) {
      const made = this.make(this.#shuffle.at(next).item);
      if (this.#keep(made, items)) missed = 0;
      else missed = this.#missed(missed);
    }
    return { items, position: next };
  }

  /** The next item from `position` on, with its pass. */
  at(position: number): { readonly item: T; readonly epoch: number; readonly next: number } {
    const { items, position: next } = this.draw(position, 1);
    return { item: items[0]!, epoch: Math.floor((next - 1) / this.length), next };
  }

  /** `count` items with replacement: a function of the seed and `step` alone. */
  withReplacement(step: number, count: number): readonly T[] {
    const random = new Random(this.seed, Purpose.evaluation, step);
    const items: T[] = [];
    for (let missed = 0; items.length < count; ) {
      if (this.#keep(this.make(random.below(this.length)), items)) missed = 0;
      else missed = this.#missed(missed);
    }
    return items;
  }

  #keep(made: T | Skip, items: T[]): boolean {
    if (typeof made !== "string") {
      items.push(made);
      return true;
    }
    this.skipped[made] = (this.skipped[made] ?? 0) + 1;
    return false;
  }

  /** A whole pass without a single item would never end. */
  #missed(before: number): number {
    const missed = before + 1;
    if (missed > 2 * this.length + 100) {
      const reasons = Object.entries(this.skipped).map(([reason, n]) => `${n} ${reason}`);
      throw new UsageError(
        `no row can be used (${reasons.join(", ")})`,
        "dataset",
        "raise --max_length or give another dataset",
      );
    }
    return missed;
  }
}

/** Pairs of a source, tokenized when drawn; pairs that are too long or say the same twice are passed over. */
export function pairSampler(
  source: PreferenceSource,
  tokenizer: Tokenizer,
  maxLength: number,
  seed: number,
): EpochSampler<PreferencePair> {
  return new EpochSampler<PreferencePair>(source.length, seed, (index) => {
    const row = usableRow(source, index);
    if (row === null) return "unusable";
    if (sameAnswers(row)) return "identical";
    return preferencePair(row, tokenizer, maxLength) ?? "too_long";
  });
}

/** null for a row that is passed over. */
export function usableRow(source: PreferenceSource, index: number): PreferenceRow | null {
  try {
    return source.at(index);
  } catch (error) {
    if (source.skipsUnusable && error instanceof UnusableRow) return null;
    throw error;
  }
}

function sameAnswers({ chosen, rejected }: PreferenceRow): boolean {
  return JSON.stringify(chosen) === JSON.stringify(rejected);
}

export interface MixSizes {
  /** Prompts taken from the training split. */
  readonly train: number;
  /** Prompts taken from the test split, which a reward model has not seen. */
  readonly test: number;
  /** Prompts of the test split kept for evaluation. */
  readonly evaluation: number;
}

export interface PromptMix {
  /** Training prompts in shuffled passes; an index names a row of train, or train's length + a row of test. */
  readonly training: EpochSampler<Prompt>;
  /** Different prompts that training never draws, in a fixed order. */
  readonly evaluation: readonly Prompt[];
}

/**
 * Prompts of both splits, drawn by `seed`. The evaluation prompts are rows of the test split, and no training prompt
 * has the text of one of them. A split with fewer rows gives all it has; of a small test split at most half is kept
 * for evaluation.
 */
export function mixedPrompts(
  train: PreferenceSource,
  test: PreferenceSource,
  tokenizer: Tokenizer,
  maxLength: number,
  seed: number,
  sizes: MixSizes,
): PromptMix {
  const promptAt = (index: number): Prompt | Skip => {
    const row = index < train.length ? usableRow(train, index) : usableRow(test, index - train.length);
    if (row === null) return "unusable";
    const prompt = preferencePrompt(row, tokenizer, maxLength);
    return prompt === null ? "too_long" : { ...prompt, index };
  };
  const order = (length: number, split: number) => new Random(seed, Purpose.data, split).permutation(length);
  const fromTest = Array.from(order(test.length, 1), (row) => train.length + row);
  const evaluation: Prompt[] = [];
  const held = new Set<string>();
  let next = 0;
  for (
    const most = Math.floor(test.length / 2);
    evaluation.length < sizes.evaluation && next < most;
    next++
  ) {
    const prompt = promptAt(fromTest[next]!);
    if (typeof prompt === "string" || held.has(prompt.text)) continue;
    held.add(prompt.text);
    evaluation.push(prompt);
  }
  const indices = [
    ...order(train.length, 0).subarray(0, sizes.train),
    ...fromTest.slice(next, next + sizes.test),
  ];
  if (indices.length === 0)
    throw new UsageError("no prompts to train on", "dataset", "take some of train or test");
  const training = new EpochSampler<Prompt>(indices.length, seed, (item) => {
    const prompt = promptAt(indices[item]!);
    return typeof prompt !== "string" && held.has(prompt.text) ? "held_out" : prompt;
  });
  return { training, evaluation };
}
