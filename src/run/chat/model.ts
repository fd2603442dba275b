/** A model that is chatted with: conversations in, streamed replies out, what was encoded kept for the next turn. */
import type { AdapterScales, ChatReply, ChatToken, ChatTurn, ReplyOptions } from "../../core/chat.ts";
import { assert, UsageError } from "../../core/errors.ts";
import { Purpose } from "../../core/rng.ts";
import { hasChatTemplate, renderChat } from "../../io/template.ts";
import type { Tokenizer } from "../../io/tokenizer.ts";
import type { Decoder } from "../../nn/transformer.ts";
import { type Completion, type Drawn, RolloutEngine } from "../../rollout/engine.ts";
import { type CachedSequence, pagesFor } from "../../rollout/kv.ts";
import type { StepMemory } from "../../tape/tape.ts";
import { THINK, THOUGHT, ThinkingParts } from "./thinking.ts";

/** Tokens encoded at once: bounds memory, and the time until a stop is heard. */
const PIECE = 256;
/** Beside a whole conversation: the partial pages of what is cached, encoded and decoded. */
const SPARE_PAGES = 4;

/** What a decoder with two weighted adapters has. */
export interface Scaled {
  setScales(retain: number, forget: number): void;
}

/** How a chat reserves its key-value pages. */
export function chatEngine(memory: StepMemory, model: Decoder, context: number): RolloutEngine {
  return new RolloutEngine(memory, model, {
    maxBatch: 1,
    maxLength: context,
    prefillTokens: PIECE,
    pages: pagesFor(context) + SPARE_PAGES,
  });
}

/** What a template was given thinking for. */
export function knowsThinking({ chatTemplates }: Tokenizer): boolean {
  return [...chatTemplates.values()].some((template) => template.includes("enable_thinking"));
}

export class ChatModel {
  readonly engine: RolloutEngine;
  /** The tokens of the last conversation whose keys and values are cached, a token per position. */
  #ids: Int32Array = new Int32Array(0);
  #cache: CachedSequence | null = null;
  #busy = false;
  #scales: AdapterScales | null;

  constructor(
    readonly memory: StepMemory,
    readonly model: Decoder,
    readonly tokenizer: Tokenizer,
    /** Longest conversation in tokens. */
    readonly context: number,
    /** Name in messages. */
    readonly label: string,
    readonly scaled: Scaled | null = null,
  ) {
    this.engine = chatEngine(memory, model, context);
    this.#scales = scaled ? { retain: 1, forget: 1 } : null;
  }

  get busy(): boolean {
    return this.#busy;
  }
  get thinks(): boolean {
    return knowsThinking(this.tokenizer);
  }
  get scales(): AdapterScales | null {
    return this.#scales;
  }

  /** Other weights, another function: nothing that was encoded holds. */
  setScales(scales: AdapterScales): void {
    if (!this.scaled) throw new UsageError("the model has no adapters to scale", this.label);
    assert(!this.#busy, "scales change between replies");
    if (scales.retain === this.#scales?.retain && scales.forget === this.#scales.forget) return;
    this.scaled.setScales(scales.retain, scales.forget);
    this.#scales = scales;
    this.forget();
  }

  /** Gives up what is cached. */
  forget(): void {
    this.#cache?.release();
    this.#cache = null;
    this.#ids = new Int32Array(0);
  }

  /** The tokens of a conversation up to the reply, and whether they open its thinking. */
  encode(messages: readonly ChatTurn[], thinking: boolean | null): { ids: Int32Array; opened: boolean } {
    const variables = thinking !== null && knowsThinking(this.tokenizer) ? { enable_thinking: thinking } : {};
    const text = hasChatTemplate(this.tokenizer)
      ? renderChat(
          this.tokenizer,
          messages.map((turn) => ({ ...turn })),
          { addGenerationPrompt: true, ...variables },
        )
      : messages.map(({ content }) => content).join("\n");
    return { ids: this.tokenizer.encode(text), opened: text.trimEnd().endsWith(THINK) };
  }

  /**
   * Streams the reply to a conversation. Only what follows its longest beginning that is cached is encoded; the bits are
   * those of a model that has seen nothing before. An aborted reply ends as it is, with "stop".
   */
  async reply(
    messages: readonly ChatTurn[],
    options: ReplyOptions,
    onToken: (token: ChatToken) => void,
    signal: AbortSignal,
  ): Promise<ChatReply> {
    if (this.#busy)
      throw new UsageError("the model is replying already", this.label, "stop that reply first");
    this.#busy = true;
    try {
      return await this.#reply(messages, options, onToken, signal);
    } finally {
      this.#busy = false;
    }
  }

  async #reply(
    messages: readonly ChatTurn[],
    options: ReplyOptions,
    onToken: (token: ChatToken) => void,
    signal: AbortSignal,
  ): Promise<ChatReply> {
    const begin = performance.now();
    const { ids, opened } = this.encode(messages, options.thinking);
    if (ids.length === 0) throw new UsageError("the message has no tokens", this.label, "write something");
    const room = this.context - ids.length;
    if (room < 1)
      throw new UsageError(
        `the conversation of ${ids.length} tokens fills the context of ${this.context}`,
        this.label,
        "start again (/reset), take the last turn back (/undo), or open the chat with a larger --max_length",
      );
    const reused = this.#cutTo(ids);
    const parts = new ThinkingParts(opened);
    const stream = this.tokenizer.stream({ skipSpecialTokens: true });
    let content = opened ? `${THINK}\n` : "";
    let promptSeconds = 0;
    const say = (piece: string, drawn: Drawn | null) => {
      content += piece;
      this.#tell(drawn ? parts.push(piece) : [...parts.push(piece), ...parts.end()], parts, drawn, onToken);
    };
    const drawn = await this.#draw(ids, messages, options, room, signal, (token) => {
      if (promptSeconds === 0) promptSeconds = (performance.now() - begin) / 1000;
      say(stream.push(token.id), token);
    });
    say(stream.end(), null);
    // An unfinished thought would leave the rest of the conversation inside it.
    if (parts.inside) content += `\n${THOUGHT}\n\n`;
    const seconds = (performance.now() - begin) / 1000;
    return {
      content,
      thinking: parts.thinking,
      answer: parts.answer,
      finish: drawn?.finish ?? "stop",
      promptTokens: ids.length,
      encodedTokens: drawn === undefined ? 0 : ids.length - reused,
      reusedTokens: reused,
      tokens: drawn?.ids.length ?? 0,
      promptSeconds: promptSeconds || seconds,
      seconds,
      logprob: drawn?.logprobs.reduce((sum, l) => sum + l, 0) ?? 0,
    };
  }

  /** Cuts the cache back to the beginning it shares with `ids`, at least a token short of them; its length. */
  #cutTo(ids: Int32Array): number {
    let common = 0;
    const most = Math.min(this.#ids.length, ids.length - 1);
    while (common < most && this.#ids[common] === ids[common]) common++;
    if (common === 0) this.forget();
    else {
      this.#cache!.cut(common);
      this.#ids = this.#ids.slice(0, common);
    }
    return common;
  }

  /** Encodes what is not cached and draws the reply; undefined if it was stopped before. */
  async #draw(
    ids: Int32Array,
    messages: readonly ChatTurn[],
    options: ReplyOptions,
    room: number,
    signal: AbortSignal,
    onDrawn: (drawn: Drawn) => void,
  ) {
    if (ids.length - this.#ids.length > PIECE) {
      const front = ids.slice(0, -1);
      const encoded = await this.engine.encodeAsync(front, this.#cache ?? undefined, signal);
      if (encoded === undefined) return undefined;
      this.#keep(encoded, front);
    }
    if (signal.aborted) return undefined;
    const turn = messages.filter(({ role }) => role === "assistant").length;
    const request = {
      ...{ ids, prompt: turn, completions: 1, firstCompletion: options.draw, keep: true },
      ...(this.#cache ? { prefix: this.#cache } : {}),
    };
    const [[completion]] = (await this.engine.generateAsync(
      [request],
      {
        temperature: options.temperature,
        topK: options.top_k,
        topP: options.top_p,
        minP: options.min_p,
        maxNewTokens: Math.min(options.max_new_tokens, room),
        eosIds: this.tokenizer.eosIds,
        alternatives: options.alternatives,
      },
      { seed: options.seed, purpose: Purpose.generate, step: 0 },
      (_request, _completion, _id, drawn) => {
        onDrawn(drawn);
        return !signal.aborted;
      },
    )) as [[Required<Completion>]];
    const cached = new Int32Array(completion.cache.length);
    cached.set(ids);
    cached.set(completion.ids.subarray(0, cached.length - ids.length), ids.length);
    this.#keep(completion.cache, cached);
    return completion;
  }

  #keep(cache: CachedSequence, ids: Int32Array): void {
    this.#cache?.release();
    this.#cache = cache;
    this.#ids = ids;
  }

  #tell(
    told: readonly { text: string; thinking: boolean }[],
    parts: ThinkingParts,
    drawn: Drawn | null,
    onToken: (token: ChatToken) => void,
  ): void {
    const alternatives = (drawn?.alternatives ?? []).map(({ id, logprob }) => ({
      text: this.tokenizer.decode(Int32Array.of(id)),
      logprob,
    }));
    const last = told.at(-1) ?? { text: "", thinking: parts.inside };
    // A token that ends the thinking may begin the answer: what it says before has no figures of its own.
    for (const part of told.slice(0, -1)) onToken({ ...part, logprob: null, alternatives: [] });
    if (drawn || last.text !== "") onToken({ ...last, logprob: drawn?.logprob ?? null, alternatives });
  }

  dispose(): void {
    this.forget();
    this.engine.dispose();
  }
}
