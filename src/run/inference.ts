/** Generation and scoring with a model folder: what the commands generate and logprob do. */
import type { DeviceName } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { idsOf, promptOf } from "../data/prompts.ts";
import { AtomicFile } from "../io/atomic.ts";
import { type JsonRow, jsonLine, readDataset } from "../io/jsonl.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { checkIds } from "../rollout/engine.ts";
import { type DescribedModel, describeModel, LanguageModel } from "./model.ts";
import { scalesOf } from "./open-model.ts";

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
export interface Summary {
  readonly model: string;
  readonly device: string;
  readonly prompts: number;
  readonly completions: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly out: string;
}

/** Each line of `in` plus completions: [{text, ids, logprobs, finish}]. `out` is written whole or not at all. */
export async function generate(settings: GenerateSettings, talk: (line: string) => void): Promise<Summary> {
  const begin = performance.now();
  const lines = readDataset(settings.in);
  const described = describeModel(settings.model);
  const context = described.config.maxPositionEmbeddings;
  const prompts = lines.map(({ row, line }) => {
    const { ids } = promptOf(row, described.tokenizer, `${settings.in}:${line}`);
    checkPrompt(ids, described.config.vocabSize, `${settings.in}:${line}`);
    if (ids.length + settings.max_new_tokens > context)
      throw new UsageError(
        `prompt of ${ids.length} tokens plus ${settings.max_new_tokens} new ones exceeds the context of ${context}`,
        `${settings.in}:${line}`,
        "lower --max_new_tokens or shorten the prompt",
      );
    return { ids };
  });
  const longest = prompts.reduce((most, { ids }) => Math.max(most, ids.length), 0);
  using model = openFor(settings, described, longest + settings.max_new_tokens, talk);
  talk(`${prompts.length} prompts, ${settings.n} completions each`);
  const results = await model.generate(prompts, {
    n: settings.n,
    maxNewTokens: settings.max_new_tokens,
    temperature: settings.temperature,
    topK: settings.top_k,
    topP: settings.top_p,
    minP: settings.min_p,
    stop: settings.stop,
    seed: settings.seed,
  });
  const rows = lines.map(({ row }, i) => ({
    ...row,
    completions: results[i]!.map(({ text, ids, logprobs, finish }) => ({
      text,
      ids: [...ids],
      logprobs: [...logprobs],
      finish,
    })),
  }));
  writeLines(settings.out, rows);
  return {
    model: settings.model,
    device: model.device.name,
    prompts: lines.length,
    completions: lines.length * settings.n,
    tokens: results.flat().reduce((sum, { ids }) => sum + ids.length, 0),
    seconds: (performance.now() - begin) / 1000,
    out: settings.out,
  };
}

/** Each line of `in` with logprobs: one number (natural log) a completion token; a prompt is encoded once. */
export async function logprob(settings: LogprobSettings, talk: (line: string) => void): Promise<Summary> {
  const begin = performance.now();
  const lines = readDataset(settings.in);
  const described = describeModel(settings.model);
  const { config, tokenizer } = described;
  const groups = lines.map(({ row, line }) => {
    const where = `${settings.in}:${line}`;
    const prompt = promptOf(row, tokenizer, where).ids;
    checkPrompt(prompt, config.vocabSize, where);
    const continuations = continuationsOf(row, tokenizer, where).map((ids) => {
      checkIds(ids, config.vocabSize, where);
      return { ids };
    });
    const length = prompt.length + Math.max(...continuations.map(({ ids }) => ids.length));
    if (length > config.maxPositionEmbeddings)
      throw new UsageError(
        `${length} tokens exceed the context of ${config.maxPositionEmbeddings}`,
        where,
        "shorten the prompt or the completion",
      );
    return { prompt: { ids: prompt }, continuations, length };
  });
  const longest = groups.reduce((most, { length }) => Math.max(most, length), 0);
  using model = openFor(settings, described, longest, talk);
  const completions = groups.reduce((sum, { continuations }) => sum + continuations.length, 0);
  talk(`${groups.length} prompts, ${completions} completions`);
  const results = await model.logprobsOfMany(groups);
  const rows = lines.map(({ row }, i) => {
    const scored = results[i]!.map(({ logprobs }) => [...logprobs]);
    if (!Array.isArray(row.completions)) return { ...row, logprobs: scored[0] };
    return {
      ...row,
      completions: row.completions.map((given, j) => ({ ...(given as object), logprobs: scored[j] })),
    };
  });
  writeLines(settings.out, rows);
  return {
    model: settings.model,
    device: model.device.name,
    prompts: lines.length,
    completions,
    tokens: results.flat().reduce((sum, { ids }) => sum + ids.length, 0),
    seconds: (performance.now() - begin) / 1000,
    out: settings.out,
  };
}

function openFor(
  settings: Common,
  described: DescribedModel,
  maxLength: number,
  talk: (line: string) => void,
): LanguageModel {
  const { adapter, device, threads, dtype } = settings;
  const adapterScales = scalesOf(settings.adapter_scales ?? null);
  const options = { adapter, adapterScales, device, threads, dtype, maxLength, talk };
  return new LanguageModel(settings.model, described, options);
}

function checkPrompt(ids: Int32Array, vocab: number, where: string): void {
  if (ids.length === 0) throw new UsageError("the prompt has no tokens", where, "give at least one");
  checkIds(ids, vocab, where);
}

/** Token ids of `completion`, `completion_ids` or each of `completions`: exactly one of them is given. */
function continuationsOf(row: JsonRow, tokenizer: Tokenizer, where: string): Int32Array[] {
  const given = ["completion", "completion_ids", "completions"].filter((key) => row[key] !== undefined);
  const form = "completion (text), completion_ids or completions [{text} or {ids}]";
  if (given.length !== 1) throw new UsageError(`needs exactly one of ${form}`, where);
  // What generate writes has both: its ids are the very tokens.
  const one = (text: unknown, ids: unknown): Int32Array => {
    if (Array.isArray(ids)) return idsOf(ids, where);
    if (typeof text === "string" && ids === undefined) return tokenizer.encode(text);
    throw new UsageError(`${given[0]} is none of ${form}`, where);
  };
  if (given[0] !== "completions") return [one(row.completion, row.completion_ids)];
  if (!Array.isArray(row.completions) || row.completions.length === 0)
    throw new UsageError("completions is no list with something in it", where);
  return row.completions.map((each) =>
    one((each as { text?: unknown })?.text, (each as { ids?: unknown })?.ids),
  );
}

/** Whole or not at all. */
export function writeLines(path: string, rows: readonly Record<string, unknown>[]): void {
  using file = new AtomicFile(path);
  for (const row of rows) file.write(new TextEncoder().encode(`${jsonLine(row)}\n`));
  file.commit();
}
