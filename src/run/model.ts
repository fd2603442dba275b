/** A language model opened for use: completions and log-probabilities, of single prompts and of many. */
import type { DeviceName } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { checkMessages, idsOf } from "../data/prompts.ts";
import type { Device } from "../device/device.ts";
import type { ModelConfig } from "../io/hf-folder.ts";
import { type ChatMessage, renderChat } from "../io/template.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Transformer } from "../nn/transformer.ts";
import { checkIds, type Request, RolloutEngine } from "../rollout/engine.ts";
import type { CachedSequence } from "../rollout/kv.ts";
import type { Group } from "../rollout/pack.ts";
import { StepMemory } from "../tape/tape.ts";
import { above, type Completion, complete, type GenerateOptions, settingsOf, whole } from "./completions.ts";
import {
  type ContinuationScore,
  encodePrefix,
  type Scorer,
  scoreBehind,
  scoreMany,
} from "./continuations.ts";
import { dtypeCode, openDevice, openModel, openTokenizer, readCausalConfig } from "./open-model.ts";
import { type QuantType, quantizationFlag } from "./reward-model.ts";
import { Turns } from "./turns.ts";

/**
 * A prompt: text, which is encoded as it stands; a conversation, which goes through the model's chat template with the
 * assistant's turn opened (`variables` are the template's, enable_thinking for one); or token ids.
 */
export type PromptInput =
  | string
  | { readonly messages: readonly ChatMessage[]; readonly variables?: Readonly<Record<string, unknown>> }
  | { readonly ids: ArrayLike<number> };

/** What may follow a prompt: text, encoded by itself, or token ids. */
export type ContinuationInput = string | { readonly text: string } | { readonly ids: ArrayLike<number> };

export interface OpenOptions {
  /** Folder of the model's adapters: PEFT's, or of retain and forget adapters. Default: none. */
  readonly adapter?: string | null;
  /** What retain and forget adapters are multiplied with. Default [1, 1], as in training. */
  readonly adapterScales?: readonly [retain: number, forget: number] | null;
  /** Where to compute. Default auto: Metal on a Mac with Apple silicon, else the CPU. */
  readonly device?: DeviceName;
  /** CPU threads; never changes a result. Default: RLV_THREADS, or every core. */
  readonly threads?: number | null;
  /** Of weights, activations and the key-value cache; bfloat16 accumulates in float32. Default float32. */
  readonly dtype?: "float32" | "bfloat16";
  /** Quantizes the linear maps as they are loaded; int4 is NF4. Default none. */
  readonly quantization?: QuantType;
  /** Longest prompt and completion together, in tokens. Default: the model's context, at most 8192. */
  readonly maxLength?: number;
  /** Completions that are decoded together. Default 32. */
  readonly batch?: number;
  /** Packed tokens of one forward pass: bounds memory, never changes a result. Default 2048. */
  readonly packedTokens?: number;
  /** Lines for a person. Default: dropped. */
  readonly talk?: (line: string) => void;
}

export interface PromptRoom {
  /** Longest completion that `generate` of this prompt may be asked for. Default 512, or what the context leaves. */
  readonly maxNewTokens?: number;
  /** Completions decoded together. Default 8. */
  readonly batch?: number;
}

const MAX_LENGTH = 8192;
const BATCH = 32;
const PACKED_TOKENS = 2048;
const ROOM = 512;

/** What a folder says of its model before the weights are read. */
export interface DescribedModel {
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
}

export function describeModel(folder: string): DescribedModel {
  const config = readCausalConfig(folder);
  return { config, tokenizer: openTokenizer(folder, config) };
}

/** What jobs on a model are given. */
interface Opened extends Scorer {
  readonly tokenizer: Tokenizer;
}

/**
 * A language model in memory. It holds native memory until it is disposed (`using`). Calls on one model wait for each
 * other; what one gives does not depend on what else is asked.
 */
export class LanguageModel implements Disposable {
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
  /** Longest prompt and completion together, in tokens. */
  readonly maxLength: number;
  readonly device: Device;
  readonly #memory: StepMemory;
  readonly #model: Transformer;
  readonly #batch: number;
  readonly #packedTokens: number;
  readonly #prompts = new Set<Prompt>();
  readonly #turns: Turns;

  /** Opens a model folder, or a checkpoint of a run. */
  static open(folder: string, options: OpenOptions = {}): LanguageModel {
    return new LanguageModel(folder, describeModel(folder), options);
  }

  /** @internal */
  constructor(
    readonly folder: string,
    { config, tokenizer }: DescribedModel,
    options: OpenOptions,
  ) {
    const { adapter = null, quantization = "none", dtype = "float32" } = options;
    this.config = config;
    this.tokenizer = tokenizer;
    const context = this.config.maxPositionEmbeddings;
    this.maxLength = whole("maxLength", options.maxLength ?? Math.min(context, MAX_LENGTH), 1, context);
    this.#batch = whole("batch", options.batch ?? BATCH, 1);
    this.#packedTokens = whole("packedTokens", options.packedTokens ?? PACKED_TOKENS, 1);
    this.device = openDevice(options.device ?? "auto", options.threads ?? null);
    this.#memory = new StepMemory(this.device);
    let model: Transformer | null = null;
    try {
      model = openModel(
        folder,
        this.device,
        {
          dtype: dtypeCode(dtype),
          trainable: false,
          maxPositions: this.maxLength,
          quantization: quantizationFlag(quantization),
        },
        "model",
        adapter,
      );
      if (options.adapterScales) model.setScales(...options.adapterScales);
      this.#model = model;
    } catch (error) {
      model?.dispose();
      this.#memory.dispose();
      this.device.close();
      throw error;
    }
    this.#turns = new Turns("the model", folder, () => {
      for (const prompt of [...this.#prompts]) prompt.free();
      this.#memory.dispose();
      this.#model.dispose();
      this.device.close();
    });
    if (this.#model.quantizationNote) options.talk?.(this.#model.quantizationNote);
  }

  /** Numbers in the model, without an adapter's. */
  get parameters(): number {
    return this.#model.parameters.count;
  }

  /** Token ids [P] of a prompt; an error names `where`. */
  encodePrompt(input: PromptInput, where = "prompt"): Int32Array {
    const ids = promptIds(input, this.tokenizer, where);
    if (ids.length === 0) throw new UsageError("the prompt has no tokens", where, "give at least one");
    checkIds(ids, this.config.vocabSize, where);
    return ids;
  }

  /** Token ids [T] of a continuation, which may be empty. */
  encodeContinuation(input: ContinuationInput, where = "continuation"): Int32Array {
    const ids = continuationIds(input, this.tokenizer, where);
    checkIds(ids, this.config.vocabSize, where);
    return ids;
  }

  /**
   * Samples `n` completions of every prompt: [prompts][n]. A prompt is encoded once for its completions. Throws a
   * UsageError for a prompt without tokens or too long for `maxLength`, before anything is computed.
   */
  async generate(prompts: readonly PromptInput[], options: GenerateOptions = {}): Promise<Completion[][]> {
    const ids = prompts.map((input, i) => this.encodePrompt(input, `prompt ${i}`));
    const longest = ids.reduce((most, { length }) => Math.max(most, length), 0);
    const settings = settingsOf(options, this.tokenizer, this.maxLength - longest);
    const { maxNewTokens } = settings.sampling;
    const requests = ids.map((own, prompt): Request => {
      this.#checkLength(own.length, maxNewTokens, `prompt ${prompt}`);
      return { ids: own, prompt, completions: settings.n };
    });
    if (requests.length === 0) return [];
    return this.exclusive(async (opened) => {
      const engine = new RolloutEngine(opened.memory, opened.model, {
        maxBatch: Math.min(this.#batch, requests.length * settings.n),
        maxLength: longest + maxNewTokens,
        prefillTokens: Math.max(this.#packedTokens, longest),
      });
      try {
        return await complete(engine, requests, settings, opened.tokenizer);
      } finally {
        engine.dispose();
      }
    });
  }

  #checkLength(prompt: number, added: number, where: string): void {
    if (prompt + added <= this.maxLength) return;
    throw new UsageError(
      `prompt of ${prompt} tokens plus ${added} more exceeds ${this.maxLength}`,
      where,
      "shorten the prompt, ask for fewer tokens, or open the model with a greater maxLength",
    );
  }

  /**
   * log p(continuation | prompt), token by token, of every continuation, in their order. The prompt is encoded once for
   * all of them. `temperature` divides the logits.
   */
  async logprobs(
    prompt: PromptInput,
    continuations: readonly ContinuationInput[],
    { temperature = 1 }: { readonly temperature?: number } = {},
  ): Promise<ContinuationScore[]> {
    const [scores] = await this.logprobsOfMany([{ prompt, continuations }], { temperature });
    return scores!;
  }

  /** The same for many prompts with continuations of their own; small ones share forward passes. */
  async logprobsOfMany(
    lines: readonly { readonly prompt: PromptInput; readonly continuations: readonly ContinuationInput[] }[],
    { temperature = 1 }: { readonly temperature?: number } = {},
  ): Promise<ContinuationScore[][]> {
    above("temperature", temperature, 0);
    const groups = lines.map(({ prompt, continuations }, i): Group => {
      const where = `prompt ${i}`;
      const group = {
        prompt: this.encodePrompt(prompt, where),
        completions: continuations.map((each, j) =>
          this.encodeContinuation(each, `${where}, continuation ${j}`),
        ),
      };
      for (const ids of group.completions) this.#checkLength(group.prompt.length, ids.length, where);
      return group;
    });
    return this.exclusive((opened) => scoreMany(opened, groups, temperature));
  }

  /**
   * Encodes a prompt and keeps it: log-probabilities and completions asked for one after another cost no further pass
   * over it, and have the bits of those asked for at once. Dispose it (`using`) to give its memory back.
   */
  async prompt(input: PromptInput, room: PromptRoom = {}): Promise<Prompt> {
    const ids = this.encodePrompt(input);
    const left = this.maxLength - ids.length;
    this.#checkLength(ids.length, room.maxNewTokens ?? 1, "prompt");
    const maxNewTokens = whole("maxNewTokens", room.maxNewTokens ?? Math.min(ROOM, left), 1, left);
    const batch = whole("batch", room.batch ?? 8, 1);
    return this.exclusive(async ({ memory, model, packedTokens }) => {
      const engine = new RolloutEngine(memory, model, {
        maxBatch: batch,
        maxLength: ids.length + maxNewTokens,
        prefillTokens: packedTokens,
      });
      try {
        const prefix = await encodePrefix(engine, ids);
        const prompt = new Prompt(this, engine, ids, maxNewTokens, prefix, () =>
          this.#prompts.delete(prompt),
        );
        this.#prompts.add(prompt);
        return prompt;
      } catch (error) {
        engine.dispose();
        throw error;
      }
    });
  }

  /** Runs one job after the jobs before it. @internal */
  exclusive<T>(job: (opened: Opened) => Promise<T>): Promise<T> {
    return this.#turns.run(() =>
      job({
        memory: this.#memory,
        model: this.#model,
        tokenizer: this.tokenizer,
        packedTokens: this.#packedTokens,
      }),
    );
  }

  /** Gives all memory back, that of its prompts too; calls that have begun come to their end first. */
  [Symbol.dispose](): void {
    this.#turns.close();
  }
}

/** A prompt whose keys and values are in memory. */
export class Prompt implements Disposable {
  #open = true;
  #freed = false;
  /** Calls that have begun. */
  #busy = 0;

  /** @internal */
  constructor(
    readonly model: LanguageModel,
    readonly engine: RolloutEngine,
    /** Token ids [P]. */
    readonly ids: Int32Array,
    /** Longest completion that there is room for. */
    readonly maxNewTokens: number,
    /** All but its last token, which every call encodes again; null: it has no other. */
    readonly prefix: CachedSequence | null,
    readonly onDispose: () => void,
  ) {}

  /** As `LanguageModel.logprobs`, without another pass over the prompt; the same bits. */
  async logprobs(
    continuations: readonly ContinuationInput[],
    { temperature = 1 }: { readonly temperature?: number } = {},
  ): Promise<ContinuationScore[]> {
    above("temperature", temperature, 0);
    const completions = continuations.map((each, i) =>
      this.model.encodeContinuation(each, `continuation ${i}`),
    );
    for (const [i, { length }] of completions.entries())
      if (this.ids.length + length > this.model.maxLength)
        throw new UsageError(
          `prompt of ${this.ids.length} tokens plus ${length} more exceeds ${this.model.maxLength}`,
          `continuation ${i}`,
          "open the model with a greater maxLength",
        );
    return this.#use((opened) => scoreBehind(opened, this.ids, this.prefix, completions, temperature));
  }

  /** As `LanguageModel.generate` of this prompt alone, without another pass over it: the same completions. */
  async generate(options: GenerateOptions = {}): Promise<Completion[]> {
    const settings = settingsOf(options, this.model.tokenizer, this.maxNewTokens);
    if (settings.sampling.maxNewTokens > this.maxNewTokens)
      throw new UsageError(
        `${settings.sampling.maxNewTokens} new tokens, and room for ${this.maxNewTokens}`,
        "prompt",
        "ask for room when the prompt is made: model.prompt(input, { maxNewTokens })",
      );
    const request: Request = {
      ids: this.ids,
      prompt: 0,
      completions: settings.n,
      ...(this.prefix ? { prefix: this.prefix } : {}),
    };
    const [completions] = await this.#use(({ tokenizer }) =>
      complete(this.engine, [request], settings, tokenizer),
    );
    return completions!;
  }

  async #use<T>(job: (opened: Opened) => Promise<T>): Promise<T> {
    if (!this.#open) throw new UsageError("the prompt is closed", undefined, "make it again");
    this.#busy++;
    try {
      return await this.model.exclusive(job);
    } finally {
      if (--this.#busy === 0 && !this.#open) this.free();
    }
  }

  /** Gives its memory back; calls that have begun come to their end first. */
  [Symbol.dispose](): void {
    this.#open = false;
    if (this.#busy === 0) this.free();
  }

  /** Once, by whoever comes first: its own end or the model's. @internal */
  free(): void {
    if (this.#freed) return;
    this.#open = false;
    this.#freed = true;
    this.prefix?.release();
    this.engine.dispose();
    this.onDispose();
  }
}

/** Token ids of a prompt; may be empty. */
export function promptIds(input: PromptInput, tokenizer: Tokenizer, where: string): Int32Array {
  if (typeof input === "string") return tokenizer.encode(input);
  if ("ids" in input) return idsOf(Array.from(input.ids), where);
  const messages = checkMessages(input.messages, where);
  return tokenizer.encode(renderChat(tokenizer, messages, { ...input.variables, addGenerationPrompt: true }));
}

/** Token ids of a continuation; may be empty. */
export function continuationIds(input: ContinuationInput, tokenizer: Tokenizer, where: string): Int32Array {
  if (typeof input === "string") return tokenizer.encode(input);
  if ("ids" in input) return idsOf(Array.from(input.ids), where);
  return tokenizer.encode(input.text);
}
