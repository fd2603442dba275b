/** A reward model opened for use, and what the command score does: rewards of texts, conversations and token ids. */
import type { DeviceName } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { conversationText, endedText, type Turn } from "../data/conversation.ts";
import { checkMessages, idsOf } from "../data/prompts.ts";
import type { Device } from "../device/device.ts";
import { type JsonRow, readDataset } from "../io/jsonl.ts";
import type { ChatMessage } from "../io/template.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Transformer } from "../nn/transformer.ts";
import { checkIds } from "../rollout/engine.ts";
import type { Group } from "../rollout/pack.ts";
import { StepMemory } from "../tape/tape.ts";
import { type Summary, writeLines } from "./inference.ts";
import { dtypeCode, openDevice } from "./open-model.ts";
import {
  openReward,
  type QuantType,
  quantizationFlag,
  type RewardModel,
  readReward,
  scoreSequences,
} from "./reward-model.ts";
import { Turns } from "./turns.ts";

export interface ScoreSettings {
  readonly model: string;
  readonly adapter: string | null;
  readonly in: string;
  readonly out: string;
  readonly end: boolean;
  readonly max_length: number;
  readonly quant_type: "none" | "int8" | "int4";
  readonly device: DeviceName;
  readonly threads: number | null;
  readonly dtype: "float32" | "bfloat16";
}

/** What a reward model is asked about: a text and its prompt, a conversation, or token ids. */
export type ScoreInput =
  | { readonly prompt: string; readonly completion: string }
  | { readonly messages: readonly ChatMessage[] }
  | { readonly ids: ArrayLike<number> };

export interface RewardOptions {
  /** PEFT adapter folder of the model, whose value head it may bring. Default: none. */
  readonly adapter?: string | null;
  /** Where to compute. Default auto: Metal on a Mac with Apple silicon, else the CPU. */
  readonly device?: DeviceName;
  /** CPU threads; never changes a result. Default: RLV_THREADS, or every core. */
  readonly threads?: number | null;
  /** Of weights and activations; bfloat16 accumulates in float32. Default float32. */
  readonly dtype?: "float32" | "bfloat16";
  /** Quantizes the linear maps as they are loaded; int4 is NF4. Default none. */
  readonly quantization?: QuantType;
  /** Longest sequence in tokens; a longer one is an error. Default 2048, or the model's context. */
  readonly maxLength?: number;
  /** End texts with EOS where they lack it, as reward models are trained; ids are scored as they are. Default true. */
  readonly end?: boolean;
  /** Lines for a person. Default: dropped. */
  readonly talk?: (line: string) => void;
}

/** Packed tokens of one pass. */
const PACKED_TOKENS = 4096;
const MAX_LENGTH = 2048;

/** What texts become: ids of a prompt, at least one, and of what follows it. */
export interface ScoreSequence {
  readonly prompt: Int32Array;
  readonly completion: Int32Array;
}

/** A reward model in memory. It holds native memory until it is disposed (`using`). */
export class RewardScorer implements Disposable {
  readonly maxLength: number;
  readonly device: Device;
  readonly #memory: StepMemory;
  readonly #model: Transformer;
  readonly #turns: Turns;

  /** Opens the folder of a reward model, or a checkpoint of rlv train hh-rm. */
  static open(folder: string, options: RewardOptions = {}): RewardScorer {
    return new RewardScorer(new ScoreReader(folder, options), options);
  }

  /** @internal */
  constructor(
    readonly reader: ScoreReader,
    options: RewardOptions,
  ) {
    this.maxLength = reader.maxLength;
    this.device = openDevice(options.device ?? "auto", options.threads ?? null);
    this.#memory = new StepMemory(this.device);
    try {
      this.#model = openReward(reader.reward, this.device, {
        dtype: dtypeCode(options.dtype ?? "float32"),
        maxPositions: this.maxLength,
        quantization: quantizationFlag(options.quantization ?? "none"),
      });
    } catch (error) {
      this.#memory.dispose();
      this.device.close();
      throw error;
    }
    this.#turns = new Turns("the reward model", reader.reward.folder, () => {
      this.#memory.dispose();
      this.#model.dispose();
      this.device.close();
    });
    if (this.#model.quantizationNote) options.talk?.(this.#model.quantizationNote);
  }

  /**
   * The reward of each input, in their order: the value head's output at the last token, without unit. Consecutive
   * inputs of one prompt encode it once. Throws a UsageError for an input that cannot be scored, before anything is.
   */
  async score(inputs: readonly ScoreInput[]): Promise<number[]> {
    return this.scoreSequences(inputs.map((input, i) => this.reader.read(input, `input ${i}`)));
  }

  /** @internal */
  async scoreSequences(sequences: readonly ScoreSequence[]): Promise<number[]> {
    return this.#turns.run(async () =>
      (await scoreSequences(this.#memory, this.#model, grouped(sequences), PACKED_TOKENS)).flat(),
    );
  }

  /** Gives all memory back; calls that have begun come to their end first. */
  [Symbol.dispose](): void {
    this.#turns.close();
  }
}

/** Turns inputs into token ids, as pairs are tokenized in training; needs no weights. */
export class ScoreReader {
  readonly reward: RewardModel;
  readonly maxLength: number;
  readonly #end: boolean;
  #tokenizer: Tokenizer | undefined;

  constructor(folder: string, { adapter = null, end = true, maxLength }: RewardOptions) {
    this.reward = readReward(folder, adapter);
    const context = this.reward.config.maxPositionEmbeddings;
    this.maxLength = Math.min(maxLength ?? MAX_LENGTH, context);
    this.#end = end;
  }

  /** Token ids alone need none. */
  get #text(): Tokenizer {
    this.#tokenizer ??= this.reward.tokenizer();
    return this.#tokenizer;
  }

  /** An input's tokens; an error names `where`. */
  read(input: unknown, where: string): ScoreSequence {
    const sequence = this.#sequence(input as JsonRow, where);
    const length = sequence.prompt.length + sequence.completion.length;
    if (length === 0) throw new UsageError("nothing to score", where, "give at least one token");
    if (length > this.maxLength)
      throw new UsageError(
        `${length} tokens exceed ${this.maxLength}`,
        where,
        "raise --max_length or shorten the text",
      );
    for (const ids of [sequence.prompt, sequence.completion])
      checkIds(ids, this.reward.config.vocabSize, where);
    return sequence;
  }

  #sequence(row: JsonRow, where: string): ScoreSequence {
    if (Array.isArray(row.ids) || ArrayBuffer.isView(row.ids))
      return {
        prompt: idsOf(Array.from(row.ids as ArrayLike<number>), where),
        completion: new Int32Array(0),
      };
    const tokenizer = this.#text;
    // A prompt by itself, then what follows it.
    const joined = (prompt: string, whole: string): ScoreSequence => {
      const common = whole.startsWith(prompt) ? prompt : "";
      const head = tokenizer.encode(common);
      const tail = tokenizer.encode(whole.slice(common.length));
      return head.length > 0 ? { prompt: head, completion: tail } : { prompt: tail, completion: head };
    };
    if (Array.isArray(row.messages)) {
      const turns = checkMessages(row.messages, where) as Turn[];
      if (turns.at(-1)?.role !== "assistant")
        throw new UsageError("the last message must be the assistant's", where, "nothing else has a reward");
      const before = turns.slice(0, -1);
      const open = before.length > 0 ? conversationText(before, tokenizer, true) : "";
      return joined(open, conversationText(turns, tokenizer, false));
    }
    if (typeof row.prompt === "string" && typeof row.completion === "string") {
      const whole = row.prompt + row.completion;
      return joined(row.prompt, this.#end ? endedText(whole, tokenizer) : whole);
    }
    throw new UsageError('needs "prompt" and "completion", "messages", or "ids"', where);
  }
}

/** Each line of `in` with its `reward`; consecutive lines of one prompt encode it once. */
export async function score(settings: ScoreSettings, talk: (line: string) => void): Promise<Summary> {
  const begin = performance.now();
  const lines = readDataset(settings.in);
  const { adapter, end, device, threads, dtype, quant_type: quantization, max_length: maxLength } = settings;
  const options: RewardOptions = { adapter, end, device, threads, dtype, quantization, maxLength, talk };
  const reader = new ScoreReader(settings.model, options);
  const sequences = lines.map(({ row, line }) => reader.read(row, `${settings.in}:${line}`));
  using model = new RewardScorer(reader, options);
  talk(`${lines.length} sequences`);
  const rewards = await model.scoreSequences(sequences);
  writeLines(
    settings.out,
    lines.map(({ row }, i) => ({ ...row, reward: rewards[i]! })),
  );
  return {
    model: settings.model,
    device: model.device.name,
    prompts: grouped(sequences).length,
    completions: lines.length,
    tokens: sequences.reduce((sum, s) => sum + s.prompt.length + s.completion.length, 0),
    seconds: (performance.now() - begin) / 1000,
    out: settings.out,
  };
}

/** Consecutive sequences of one prompt together, in order. */
function grouped(sequences: readonly ScoreSequence[]): Group[] {
  const groups: { prompt: Int32Array; completions: Int32Array[] }[] = [];
  for (const { prompt, completion } of sequences) {
    const last = groups.at(-1);
    const same = last !== undefined && Buffer.compare(bytesOf(last.prompt), bytesOf(prompt)) === 0;
    if (same) last.completions.push(completion);
    else groups.push({ prompt, completions: [completion] });
  }
  return groups;
}

const bytesOf = (ids: Int32Array) => new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
