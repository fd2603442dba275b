/** GRPO towards epistemic values: a language model judges every response by a rubric. */
import { readPrompts } from "../data/prompts.ts";
import type { QuantType } from "../run/reward-model.ts";
import { resolveBuiltin } from "./builtin.ts";
import { filePrompts, type GrpoJob, rewardJob } from "./grpo.ts";
import { runRewards } from "./rewards.ts";
import type { GrpoSettings, RewardSetting } from "./settings.ts";
import { folderSource } from "./setup.ts";

export interface ValuesSettings extends GrpoSettings {
  readonly recipe: "values";
  readonly model: string;
  readonly train_file: string;
  readonly eval_file: string;
  readonly reward: readonly RewardSetting[];
  readonly rubric: string;
  readonly judge: string;
  readonly judge_quant_type: QuantType;
  readonly judge_reading: "expected" | "text";
  readonly judge_max_new_tokens: number;
  readonly system: string | null;
  readonly enable_thinking: boolean;
  readonly kl_coef: number;
  readonly num_train_steps: number;
}

/** `resumeFrom`: the checkpoint that the run goes on from. */
export function valuesJob(settings: ValuesSettings, resumeFrom: string | null): GrpoJob {
  const source = folderSource(resolveBuiltin(settings.model), settings.model);
  // What is wrong with rubric or judge is said before any prompt is read.
  const params = {
    path: settings.rubric,
    judge: settings.judge,
    quant_type: settings.judge_quant_type,
    reading: settings.judge_reading,
    max_new_tokens: settings.judge_max_new_tokens,
  };
  const named = settings.reward.map((part) =>
    part.name === "rubric" ? { ...part, params: { ...params, ...part.params } } : part,
  );
  const rewards = runRewards(named, rewardJob(settings, source), resumeFrom);
  const fields = rewards.flatMap((reward) => reward.fields);
  const style = { system: settings.system, thinking: settings.enable_thinking };
  const read = (file: string) =>
    readPrompts(resolveBuiltin(file), source.tokenizer, settings.max_prompt_length, fields, style);
  return {
    settings,
    beta: settings.kl_coef,
    gamma: 1,
    source,
    sourceName: settings.model,
    decodedTogether: Math.min(256, Math.max(settings.batch_size * settings.group_size, 32)),
    prompts: filePrompts(settings, read),
    rewards,
    totalSteps: () => settings.num_train_steps,
  };
}
