/** Prompts that are the openings of stories. */
import { UsageError } from "../core/errors.ts";
import type { Prompt } from "../core/records.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { type OpenSplit, openSplit } from "./preference-files.ts";
import type { Split } from "./preferences.ts";
import { drawItems, type ItemSource, Shuffle } from "./prompts.ts";

export interface OpeningOptions {
  readonly column: string;
  /** Words of an opening; null: the first sentence. */
  readonly words: number | null;
  /** Tokens of the longest one. */
  readonly maxLength: number;
  /** Further columns that every row must have. */
  readonly fields: readonly string[];
}

/** What of a story is the prompt; null where nothing is left to be told. */
export function openingOf(story: string, words: number | null): string | null {
  const text = story.trim();
  const pattern =
    words === null
      ? /^[\s\S]*?[.!?]+["'”’)]*(?=\s)/u
      : new RegExp(`^(?:\\S+\\s+){${words - 1}}\\S+(?=\\s)`, "u");
  return pattern.exec(text)?.[0] ?? null;
}

/** Openings of a split by the number of their story, made when they are asked for. */
export class Openings {
  readonly #made = new Map<number, Prompt | null>();

  private constructor(
    readonly count: number,
    readonly rows: OpenSplit,
    readonly dataset: string,
    readonly options: OpeningOptions,
    readonly tokenizer: Tokenizer,
  ) {}

  /** `most`: stories from the start that are enough. */
  static async open(
    dataset: string,
    split: Split,
    tokenizer: Tokenizer,
    options: OpeningOptions,
    most = Number.POSITIVE_INFINITY,
  ): Promise<Openings> {
    const rows = await openSplit(dataset, split, [options.column, ...options.fields], most);
    return new Openings(Math.min(rows.length, most), rows, dataset, options, tokenizer);
  }

  /** null: its opening is too long, or it has none. */
  at(index: number): Prompt | null {
    const made = this.#made.get(index);
    if (made !== undefined) return made;
    const prompt = this.#make(index);
    this.#made.set(index, prompt);
    return prompt;
  }

  #make(index: number): Prompt | null {
    const { column, words, maxLength, fields } = this.options;
    const { row, where } = this.rows.row(index);
    const story = row[column];
    if (typeof story !== "string")
      throw new UsageError(`no text in column ${column}`, where, "name another by --story_column");
    const missing = fields.find((field) => row[field] === undefined);
    if (missing !== undefined)
      throw new UsageError(
        `no column ${missing}, which a reward needs`,
        where,
        "take another dataset or reward",
      );
    const text = openingOf(story, words);
    if (text === null) return null;
    const ids = this.tokenizer.encode(text);
    const end = ids.findIndex((id) => this.tokenizer.eosIds.includes(id));
    if (end >= 0)
      throw new UsageError(
        `token ${end + 1} of the opening is the end of a text (${this.tokenizer.decode(ids.subarray(end, end + 1))})`,
        where,
        "take it out of the stories: nothing comes behind an end",
      );
    if (ids.length === 0 || ids.length > maxLength) return null;
    return { index, text, ids, fields: row };
  }

  /** The first `count` that there are. */
  first(count: number): Prompt[] {
    const found: Prompt[] = [];
    for (let i = 0; i < this.count && found.length < count; i++) {
      const prompt = this.at(i);
      if (prompt) found.push(prompt);
    }
    return found;
  }

  /** In shuffled passes; stories without an opening are passed over. */
  shuffled(seed: number): ItemSource<Prompt> {
    const shuffle = new Shuffle(this.count, seed);
    return {
      at: (position) => {
        for (let next = position; next < position + 2 * this.count; next++) {
          const { item, epoch } = shuffle.at(next);
          const prompt = this.at(item);
          if (prompt) return { item: prompt, epoch, next: next + 1 };
        }
        throw this.none();
      },
    };
  }

  none(): UsageError {
    const { words, maxLength } = this.options;
    const what = words === null ? "a first sentence" : `${words} first words`;
    return new UsageError(
      `none of ${this.count} stories has ${what} of at most ${maxLength} tokens with more behind`,
      this.dataset,
      "raise --max_prompt_length or set --opening_words",
    );
  }
}

export interface StoryPrompts {
  readonly training: ItemSource<Prompt>;
  readonly held: readonly Prompt[];
  readonly longest: number;
  readonly description: string;
}

/** Every prompt that `draws` draws from the start will take is made here, so that a bad one is found before the first step. */
export async function storyPrompts(
  dataset: string,
  tokenizer: Tokenizer,
  seed: number,
  options: OpeningOptions & { readonly most: number | null; readonly held: number; readonly draws: number },
): Promise<StoryPrompts> {
  const train = await Openings.open(dataset, "train", tokenizer, options, options.most ?? undefined);
  const test = await Openings.open(dataset, "test", tokenizer, options, Math.max(2 * options.held, 1000));
  const held = test.first(options.held);
  if (held.length === 0) throw test.none();
  const training = train.shuffled(seed);
  const { items } = drawItems(training, 0, Math.min(options.draws, train.count));
  const longest = [...items.map(({ item }) => item), ...held].reduce(
    (most, p) => Math.max(most, p.ids.length),
    0,
  );
  const what = options.words === null ? "first sentences" : `first ${options.words} words`;
  return {
    training,
    held,
    longest,
    description: `${what} of ${train.count} training stories, ${held.length} of the test split; no special tokens`,
  };
}
