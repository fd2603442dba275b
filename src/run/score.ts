/** What the command score does: rewards of texts, conversations and token ids. */
import type { DeviceName } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { conversationText, endedText, type Turn } from "../data/conversation.ts";
import { checkMessages, idsOf } from "../data/prompts.ts";
import { type JsonRow, readDataset } from "../io/jsonl.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Group } from "../rollout/pack.ts";
import { StepMemory } from "../tape/tape.ts";
import { type Summary, writeLines } from "./inference.ts";
import { dtypeCode, openDevice } from "./open-model.ts";
import { openReward, quantizationFlag, readReward, scoreSequences } from "./reward-model.ts";

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

/** Packed tokens of one pass. */
const PACKED_TOKENS = 4096;

/** Each line of `in` with its `reward`; consecutive lines of one prompt encode it once. */
export async function score(settings: ScoreSettings, talk: (line: string) => void): Promise<Summary> {
  const begin = performance.now();
  const lines = readDataset(settings.in);
  const reward = readReward(settings.model, settings.adapter);
  const { config } = reward;
  let tokenizer: Tokenizer | undefined;
  const needTokenizer = () => {
    tokenizer ??= reward.tokenizer();
    return tokenizer;
  };
  const most = Math.min(settings.max_length, config.maxPositionEmbeddings);
  const sequences = lines.map(({ row, line }) => {
    const where = `${settings.in}:${line}`;
    const sequence = sequenceOf(row, needTokenizer, settings.end, where);
    const length = sequence.prompt.length + sequence.completion.length;
    if (length === 0) throw new UsageError("nothing to score", where);
    if (length > most)
      throw new UsageError(
        `${length} tokens exceed ${most}`,
        where,
        "raise --max_length or shorten the text",
      );
    for (const id of [...sequence.prompt, ...sequence.completion])
      if (id >= config.vocabSize) throw new UsageError(`token id ${id} is outside the vocabulary`, where);
    return sequence;
  });
  const groups = grouped(sequences);
  const device = openDevice(settings.device, settings.threads);
  const memory = new StepMemory(device);
  try {
    const model = openReward(reward, device, {
      dtype: dtypeCode(settings.dtype),
      maxPositions: Math.max(...sequences.map((s) => s.prompt.length + s.completion.length)),
      quantization: quantizationFlag(settings.quant_type),
    });
    try {
      if (model.quantizationNote) talk(model.quantizationNote);
      talk(`${lines.length} sequences`);
      const rewards = (await scoreSequences(memory, model, groups, PACKED_TOKENS)).flat();
      writeLines(
        settings.out,
        lines.map(({ row }, i) => ({ ...row, reward: rewards[i]! })),
      );
    } finally {
      memory.dispose();
      model.dispose();
    }
    return {
      model: settings.model,
      device: device.name,
      prompts: groups.length,
      completions: lines.length,
      tokens: sequences.reduce((sum, s) => sum + s.prompt.length + s.completion.length, 0),
      seconds: (performance.now() - begin) / 1000,
      out: settings.out,
    };
  } finally {
    device.close();
  }
}

interface Sequence {
  /** At least one token. */
  readonly prompt: Int32Array;
  readonly completion: Int32Array;
}

/** As pairs are tokenized: a prompt by itself, then what follows it. */
function sequenceOf(row: JsonRow, read: () => Tokenizer, end: boolean, where: string): Sequence {
  if (Array.isArray(row.ids)) return { prompt: idsOf(row.ids, where), completion: new Int32Array(0) };
  const tokenizer = read();
  const ended = (text: string) => (end ? endedText(text, tokenizer) : text);
  const joined = (prompt: string, whole: string): Sequence => {
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
  if (typeof row.prompt === "string" && typeof row.completion === "string")
    return joined(row.prompt, ended(row.prompt + row.completion));
  throw new UsageError('needs "prompt" and "completion", "messages", or "ids"', where);
}

/** Consecutive sequences of one prompt together, in order. */
function grouped(sequences: readonly Sequence[]): Group[] {
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
