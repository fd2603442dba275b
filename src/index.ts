/**
 * rlv as a package: language models and reward models opened from TypeScript. docs/api.md has examples.
 *
 * Token ids are Int32Array, log-probabilities natural logarithms in Float32Array. Bad input throws a UsageError, whose
 * message names what is wrong, where, and a remedy. Models hold native memory: `using` gives it back.
 */
import { findModel } from "./cli/files.ts";
import { resolveModel } from "./recipe/base.ts";
import { LanguageModel, type OpenOptions } from "./run/model.ts";
import { type RewardOptions, RewardScorer } from "./run/score.ts";

export { RlvError, UsageError } from "./core/errors.ts";
export type { Finish } from "./core/records.ts";
export type { ChatMessage } from "./io/template.ts";
export { Tokenizer } from "./io/tokenizer.ts";
export type { Completion, GenerateOptions, TokenEvent } from "./run/completions.ts";
export type { ContinuationScore } from "./run/continuations.ts";
export type {
  ContinuationInput,
  LanguageModel,
  OpenOptions,
  Prompt,
  PromptInput,
  PromptRoom,
} from "./run/model.ts";
export type { RewardOptions, RewardScorer, ScoreInput } from "./run/score.ts";

/**
 * Opens a language model.
 * @param name a Hugging Face model folder, a checkpoint of a run, an adapter's folder (which brings the model that it
 * names), a name on the hub such as Qwen/Qwen3-0.6B (downloaded once), or builtin:arithmetic
 * @throws UsageError if there is no such model, or its files do not fit together
 */
export async function openModel(name: string, options: OpenOptions = {}): Promise<LanguageModel> {
  const { model, adapter } = resolveModel(await findModel(name, "model"), options.adapter ?? null);
  return LanguageModel.open(model, { ...options, adapter });
}

/**
 * Opens a reward model: a …ForSequenceClassification folder with one output, a checkpoint of rlv train hh-rm, or a
 * model with an adapter that brings the value head. Names as in `openModel`.
 * @throws UsageError if it has no value head
 */
export async function openRewardModel(name: string, options: RewardOptions = {}): Promise<RewardScorer> {
  const { model, adapter } = resolveModel(await findModel(name, "model"), options.adapter ?? null);
  return RewardScorer.open(model, { ...options, adapter });
}
