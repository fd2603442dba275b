/** Generation, scoring and chat with a model folder: what the commands generate, logprob and chat do. */
import type { DeviceName } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import type { Finish } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import { idsOf, promptOf } from "../data/prompts.ts";
import type { Device } from "../device/device.ts";
import { AtomicFile } from "../io/atomic.ts";
import type { ModelConfig } from "../io/hf-folder.ts";
import { jsonLine, readDataset } from "../io/jsonl.ts";
import { type ChatMessage, hasChatTemplate, renderChat } from "../io/template.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Transformer } from "../nn/transformer.ts";
import { type Completion, RolloutEngine, type Sampling } from "../rollout/engine.ts";
import { scoreGroups } from "../rollout/score.ts";
import { StepMemory } from "../tape/tape.ts";
import { dtypeCode, openDevice, openModel, openTokenizer, readCausalConfig, scalesOf } from "./open-model.ts";

interface Common {
  readonly model: string;
  /** A folder of adapters. */
  readonly adapter: string | null;
  readonly adapter_scales?: string | null;
  readonly seed: number;
  readonly device: DeviceName;
  readonly threads: number | null;
  readonly dtype: "float32" | "bfloat16";
}
interface SamplingFlags {
  readonly temperature: number;
  readonly top_p: number;
  readonly top_k: number;
  readonly min_p: number;
  readonly max_new_tokens: number;
}
export interface GenerateSettings extends Common, SamplingFlags {
  readonly in: string;
  readonly out: string;
  readonly n: number;
  readonly stop: string | null;
}
export interface LogprobSettings extends Common {
  readonly in: string;
  readonly out: string;
}
export interface ChatSettings extends Common, SamplingFlags {
  readonly system: string | null;
}

export interface Summary {
  readonly model: string;
  readonly device: string;
  readonly prompts: number;
  readonly completions: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly out: string;
}

interface Opened {
  readonly device: Device;
  readonly model: Transformer;
  readonly tokenizer: Tokenizer;
  readonly memory: StepMemory;
  close(): void;
}

/** Prompts decoded together and packed tokens of one pass. */
const BATCH = 32;
/** Longest conversation in tokens: its key-value pages are reserved when a chat opens. */
const CHAT_CONTEXT = 8192;
const PACKED_TOKENS = 2048;

interface Described {
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
}

function describe(folder: string): Described {
  const config = readCausalConfig(folder);
  return { config, tokenizer: openTokenizer(folder, config) };
}

/** Opens the weights for sequences of up to `maxPositions` tokens. */
function open(
  settings: Common,
  { tokenizer }: Described,
  maxPositions: number,
  talk: (line: string) => void,
): Opened {
  const scales = scalesOf(settings.adapter_scales ?? null);
  const device = openDevice(settings.device, settings.threads);
  const options = { dtype: dtypeCode(settings.dtype), trainable: false, maxPositions };
  const model = openModel(settings.model, device, options, "model", settings.adapter);
  if (scales) model.setScales(scales[0], scales[1]);
  if (model.quantizationNote) talk(model.quantizationNote);
  const memory = new StepMemory(device);
  return {
    device,
    model,
    tokenizer,
    memory,
    close: () => {
      memory.dispose();
      model.dispose();
      device.close();
    },
  };
}

function samplingOf(settings: SamplingFlags, tokenizer: Tokenizer): Sampling {
  return {
    temperature: settings.temperature,
    topK: settings.top_k,
    topP: settings.top_p,
    minP: settings.min_p,
    maxNewTokens: settings.max_new_tokens,
    eosIds: tokenizer.eosIds,
  };
}

/** Each line of `in` plus completions: [{text, ids, logprobs, finish}]. `out` is written whole or not at all. */
export async function generate(settings: GenerateSettings, talk: (line: string) => void): Promise<Summary> {
  const begin = performance.now();
  const lines = readDataset(settings.in);
  const described = describe(settings.model);
  const { tokenizer } = described;
  const context = described.config.maxPositionEmbeddings;
  const prompts = lines.map(({ row, line }) => {
    const where = `${settings.in}:${line}`;
    const prompt = promptOf(row, tokenizer, where);
    if (prompt.ids.length + settings.max_new_tokens > context) {
      throw new UsageError(
        `prompt of ${prompt.ids.length} tokens plus ${settings.max_new_tokens} new ones exceeds the context of ${context}`,
        where,
        "lower --max_new_tokens or shorten the prompt",
      );
    }
    return prompt;
  });
  const longest = prompts.reduce((most, p) => Math.max(most, p.ids.length), 0);
  const opened = open(settings, described, longest + settings.max_new_tokens, talk);
  const { model, memory, device } = opened;
  try {
    talk(`${prompts.length} prompts, ${settings.n} completions each`);
    const engine = new RolloutEngine(memory, model, {
      maxBatch: BATCH,
      maxLength: longest + settings.max_new_tokens,
      prefillTokens: Math.max(PACKED_TOKENS, longest),
    });
    const stops = settings.stop === null ? null : new StopTexts(tokenizer, settings.stop);
    const results = engine.generate(
      prompts.map((p, i) => ({ ids: p.ids, prompt: i, completions: settings.n })),
      samplingOf(settings, tokenizer),
      { seed: settings.seed, purpose: Purpose.generate, step: 0 },
      stops ? (request, completion, id) => stops.goesOn(request, completion, id) : undefined,
    );
    engine.dispose();
    let tokens = 0;
    const out = lines.map(({ row }, i) => ({
      ...row,
      completions: results[i]!.map((c) => {
        tokens += c.ids.length;
        return completionRow(c, tokenizer, settings.stop);
      }),
    }));
    writeLines(settings.out, out);
    return {
      model: settings.model,
      device: device.name,
      prompts: lines.length,
      completions: lines.length * settings.n,
      tokens,
      seconds: (performance.now() - begin) / 1000,
      out: settings.out,
    };
  } finally {
    opened.close();
  }
}

function completionRow(c: Completion, tokenizer: Tokenizer, stop: string | null) {
  const text = tokenizer.decode(c.ids, { skipSpecialTokens: true });
  const cut = c.finish === "stop" && stop !== null ? text.indexOf(stop) : -1;
  return {
    text: cut < 0 ? text : text.slice(0, cut),
    ids: [...c.ids],
    logprobs: [...c.logprobs],
    finish: c.finish,
  };
}

/** Ends a completion once its text contains `stop`. */
class StopTexts {
  #ids = new Map<string, number[]>();
  constructor(
    readonly tokenizer: Tokenizer,
    readonly stop: string,
  ) {}
  goesOn(request: number, completion: number, id: number): boolean {
    const key = `${request}/${completion}`;
    const ids = this.#ids.get(key) ?? [];
    ids.push(id);
    this.#ids.set(key, ids);
    return !this.tokenizer.decode(ids, { skipSpecialTokens: true }).includes(this.stop);
  }
}

/** Each line of `in` with logprobs: one number (natural log) a completion token; a prompt is encoded once. */
export async function logprob(settings: LogprobSettings, talk: (line: string) => void): Promise<Summary> {
  const begin = performance.now();
  const lines = readDataset(settings.in);
  const described = describe(settings.model);
  const { config, tokenizer } = described;
  const groups = lines.map(({ row, line }) => {
    const where = `${settings.in}:${line}`;
    const prompt = promptOf(row, tokenizer, where).ids;
    const completions = completionsOf(row, tokenizer, where);
    if (prompt.length === 0) throw new UsageError("the prompt has no tokens", where);
    const longest = prompt.length + Math.max(...completions.map((c) => c.length));
    if (longest > config.maxPositionEmbeddings) {
      throw new UsageError(`${longest} tokens exceed the context of ${config.maxPositionEmbeddings}`, where);
    }
    for (const id of [prompt, ...completions].flatMap((ids) => [...ids])) {
      if (id >= config.vocabSize) throw new UsageError(`token id ${id} is outside the vocabulary`, where);
    }
    return { prompt, completions };
  });
  const longest = groups.reduce(
    (most, g) => Math.max(most, g.prompt.length + Math.max(...g.completions.map((c) => c.length))),
    0,
  );
  const opened = open(settings, described, longest, talk);
  const { model, memory, device } = opened;
  try {
    talk(`${groups.length} prompts, ${groups.reduce((n, g) => n + g.completions.length, 0)} completions`);
    const { logprobs } = scoreGroups(memory, model, groups, 1, PACKED_TOKENS);
    const out = lines.map(({ row }, i) => {
      const scored = logprobs[i]!.map((l) => [...l]);
      if (!Array.isArray(row.completions)) return { ...row, logprobs: scored[0] };
      return {
        ...row,
        completions: row.completions.map((c, j) => ({ ...(c as object), logprobs: scored[j] })),
      };
    });
    writeLines(settings.out, out);
    return {
      model: settings.model,
      device: device.name,
      prompts: lines.length,
      completions: groups.reduce((n, g) => n + g.completions.length, 0),
      tokens: logprobs.flat().reduce((n, l) => n + l.length, 0),
      seconds: (performance.now() - begin) / 1000,
      out: settings.out,
    };
  } finally {
    opened.close();
  }
}

function completionsOf(row: Record<string, unknown>, tokenizer: Tokenizer, where: string): Int32Array[] {
  const one = (text: unknown, ids: unknown): Int32Array => {
    if (typeof text === "string") return tokenizer.encode(text);
    if (Array.isArray(ids)) return idsOf(ids, where);
    throw new UsageError("needs completion, completion_ids or completions [{text} or {ids}]", where);
  };
  if (Array.isArray(row.completions)) {
    if (row.completions.length === 0) throw new UsageError("completions is empty", where);
    return row.completions.map((c) => one((c as { text?: unknown })?.text, (c as { ids?: unknown })?.ids));
  }
  return [one(row.completion, row.completion_ids)];
}

/** Whole or not at all. */
export function writeLines(path: string, rows: readonly Record<string, unknown>[]): void {
  using file = new AtomicFile(path);
  for (const row of rows) file.write(new TextEncoder().encode(`${jsonLine(row)}\n`));
  file.commit();
}

/** A conversation in the terminal; each reply is streamed in pieces of whole characters. */
export async function openChat(settings: ChatSettings, talk: (line: string) => void) {
  const described = describe(settings.model);
  const { tokenizer } = described;
  const context = Math.min(described.config.maxPositionEmbeddings, CHAT_CONTEXT);
  const opened = open(settings, described, context, talk);
  const { model, memory, device } = opened;
  const start: ChatMessage[] = settings.system === null ? [] : [{ role: "system", content: settings.system }];
  let messages = [...start];
  let turn = 0;
  const engine = new RolloutEngine(memory, model, {
    maxBatch: 1,
    maxLength: context,
    prefillTokens: context,
  });
  return {
    description: `${settings.model} (${model.config.architecture}, ${model.parameters.count} parameters) on ${device.name}`,
    async reply(message: string, onText: (piece: string) => void, signal: AbortSignal) {
      const begin = performance.now();
      const asked: ChatMessage[] = [...messages, { role: "user", content: message }];
      const text = hasChatTemplate(tokenizer)
        ? renderChat(tokenizer, asked, { addGenerationPrompt: true })
        : asked.map((m) => m.content).join("\n");
      const ids = tokenizer.encode(text);
      const room = context - ids.length;
      if (room < 1) {
        throw new UsageError(
          `the conversation of ${ids.length} tokens fills the context of ${context}`,
          "chat",
          "/reset",
        );
      }
      const stream = tokenizer.stream({ skipSpecialTokens: true });
      let reply = "";
      const say = (piece: string) => {
        reply += piece;
        if (piece !== "") onText(piece);
      };
      const sampling = samplingOf(settings, tokenizer);
      const [[completion]] = (await engine.generateAsync(
        [{ ids, prompt: turn++, completions: 1 }],
        { ...sampling, maxNewTokens: Math.min(sampling.maxNewTokens, room) },
        { seed: settings.seed, purpose: Purpose.generate, step: 0 },
        (_request, _completion, id) => {
          say(stream.push(id));
          return !signal.aborted;
        },
      )) as [[Completion]];
      say(stream.end());
      messages = [...asked, { role: "assistant", content: reply }];
      return {
        finish: completion.finish as Finish,
        tokens: completion.ids.length,
        seconds: (performance.now() - begin) / 1000,
      };
    },
    reset: () => {
      messages = [...start];
    },
    close: () => {
      engine.dispose();
      opened.close();
    },
  };
}
