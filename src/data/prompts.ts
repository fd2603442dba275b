/** Prompts and examples from JSONL, tokenized and checked before anything is trained. */
import { UsageError } from "../core/errors.ts";
import type { Prompt } from "../core/records.ts";
import { Purpose, Random } from "../core/rng.ts";
import { readDataset } from "../io/jsonl.ts";
import { type ChatMessage, hasChatTemplate, renderChat } from "../io/template.ts";
import type { Tokenizer } from "../io/tokenizer.ts";

interface Row {
  readonly prompt?: unknown;
  readonly messages?: unknown;
  readonly prompt_ids?: unknown;
}

/** How a prompt becomes a message to a model with a chat template. */
export interface ChatStyle {
  readonly system: string | null;
  /** Of templates that have `enable_thinking`. */
  readonly thinking: boolean;
}

/**
 * Token ids and text of a row's `prompt`, `messages` or `prompt_ids`. With a `style` a prompt is what a user says, by the
 * model's chat template if it has one; without, it is text that goes on.
 */
export function promptOf(
  row: Row,
  tokenizer: Tokenizer,
  where: string,
  style: ChatStyle | null = null,
): { text: string; ids: Int32Array } {
  const given = [row.prompt, row.messages, row.prompt_ids].filter((v) => v !== undefined);
  if (given.length !== 1) {
    throw new UsageError("needs exactly one of prompt, messages, prompt_ids", where);
  }
  if (style !== null && row.prompt_ids === undefined && hasChatTemplate(tokenizer)) {
    const said = typeof row.prompt === "string" ? [{ role: "user", content: row.prompt }] : row.messages;
    if (!Array.isArray(said)) throw new UsageError("prompt must be a string, messages a list", where);
    const messages = checkMessages(said, where);
    const { system, thinking } = style;
    const first =
      system === null || messages[0]?.role === "system" ? [] : [{ role: "system", content: system }];
    const text = renderChat(tokenizer, [...first, ...messages], {
      addGenerationPrompt: true,
      enable_thinking: thinking,
    });
    return { text, ids: tokenizer.encode(text) };
  }
  if (typeof row.prompt === "string") {
    return { text: row.prompt, ids: tokenizer.encode(row.prompt) };
  }
  if (Array.isArray(row.messages)) {
    const text = renderChat(tokenizer, checkMessages(row.messages, where), { addGenerationPrompt: true });
    return { text, ids: tokenizer.encode(text) };
  }
  if (Array.isArray(row.prompt_ids)) {
    const ids = idsOf(row.prompt_ids, where);
    return { text: tokenizer.decode(ids), ids };
  }
  throw new UsageError("prompt must be a string, messages a list, prompt_ids a list of integers", where);
}

export function idsOf(values: readonly unknown[], where: string): Int32Array {
  if (!values.every((v) => Number.isInteger(v) && (v as number) >= 0)) {
    throw new UsageError("token ids must be non-negative integers", where);
  }
  return Int32Array.from(values as number[]);
}

export function checkMessages(messages: readonly unknown[], where: string): ChatMessage[] {
  for (const m of messages) {
    const message = m as { role?: unknown; content?: unknown };
    if (typeof message?.role !== "string" || typeof message.content !== "string") {
      throw new UsageError("every message needs a role and a content, both text", where);
    }
  }
  return messages as ChatMessage[];
}

/** The prompts of a dataset. A prompt longer than `maxLength` tokens is an error: nothing is cut silently. */
export function readPrompts(
  path: string,
  tokenizer: Tokenizer,
  maxLength: number,
  required: readonly string[] = [],
  style: ChatStyle | null = null,
): Prompt[] {
  return readDataset(path, required).map(({ row, line }, index) => {
    const where = `${path}:${line}`;
    const { text, ids } = promptOf(row, tokenizer, where, style);
    if (ids.length === 0) throw new UsageError("the prompt has no tokens", where);
    if (ids.length > maxLength) {
      throw new UsageError(
        `prompt of ${ids.length} tokens is longer than ${maxLength}`,
        where,
        "raise --max_prompt_length or shorten the prompt",
      );
    }
    return { index, text, ids, fields: row };
  });
}

/** One supervised example: prompt and completion tokens, the latter with EOS. */
export interface Example {
  readonly prompt: Int32Array;
  readonly completion: Int32Array;
}

/** Examples from `prompt` + `completion` rows or `messages` whose last one is the assistant's. */
export function readExamples(path: string, tokenizer: Tokenizer, maxLength: number): Example[] {
  const eos = tokenizer.eosId;
  return readDataset(path).map(({ row, line }) => {
    const where = `${path}:${line}`;
    const example = exampleOf(row, tokenizer, where);
    const ended =
      eos !== null && example.completion[example.completion.length - 1] !== eos
        ? Int32Array.from([...example.completion, eos])
        : example.completion;
    const length = example.prompt.length + ended.length;
    if (length > maxLength) {
      throw new UsageError(
        `example of ${length} tokens is longer than ${maxLength}`,
        where,
        "raise --max_length",
      );
    }
    if (example.prompt.length === 0 || ended.length === 0) {
      throw new UsageError("prompt and completion need at least one token each", where);
    }
    return { prompt: example.prompt, completion: ended };
  });
}

function exampleOf(row: Record<string, unknown>, tokenizer: Tokenizer, where: string): Example {
  if (typeof row.prompt === "string" && typeof row.completion === "string") {
    return { prompt: tokenizer.encode(row.prompt), completion: tokenizer.encode(row.completion) };
  }
  if (Array.isArray(row.messages)) {
    const messages = checkMessages(row.messages, where);
    const last = messages[messages.length - 1];
    if (last?.role !== "assistant") throw new UsageError("the last message must be the assistant's", where);
    const before = renderChat(tokenizer, messages.slice(0, -1), { addGenerationPrompt: true });
    const whole = renderChat(tokenizer, messages, {});
    if (!whole.startsWith(before)) {
      throw new UsageError(
        "the chat template does not extend its own prompt",
        where,
        "give prompt and completion",
      );
    }
    return { prompt: tokenizer.encode(before), completion: tokenizer.encode(whole.slice(before.length)) };
  }
  throw new UsageError('needs "prompt" and "completion", or "messages"', where);
}

/** Item `position` (0, 1, …) of an endless sequence of shuffled passes over n items: a function of the seed alone. */
export class Shuffle {
  #epoch = -1;
  #order: Int32Array = new Int32Array(0);
  constructor(
    readonly n: number,
    readonly seed: number,
  ) {}

  at(position: number): { item: number; epoch: number } {
    const epoch = Math.floor(position / this.n);
    if (epoch !== this.#epoch) {
      this.#order = new Random(this.seed, Purpose.shuffle, epoch).permutation(this.n);
      this.#epoch = epoch;
    }
    return { item: this.#order[position % this.n]!, epoch };
  }

  /** `count` consecutive items from `position`. */
  slice(position: number, count: number): number[] {
    return Array.from({ length: count }, (_, i) => this.at(position + i).item);
  }
}

/** Items drawn one after another: the item and its pass at `position`, and where the next draw begins. */
export interface ItemSource<T> {
  at(position: number): { readonly item: T; readonly epoch: number; readonly next: number };
}

/** A list in shuffled passes. */
export function shuffled<T>(items: readonly T[], seed: number): ItemSource<T> {
  const shuffle = new Shuffle(items.length, seed);
  return {
    at: (position) => {
      const { item, epoch } = shuffle.at(position);
      return { item: items[item]!, epoch, next: position + 1 };
    },
  };
}

/** `count` items from `position` on. */
export function drawItems<T>(source: ItemSource<T>, position: number, count: number) {
  const items: { readonly item: T; readonly epoch: number }[] = [];
  let next = position;
  while (items.length < count) {
    const drawn = source.at(next);
    items.push(drawn);
    next = drawn.next;
  }
  return { items, next };
}
