/** GRPO on problems whose answer is an integer. */
import { readPrompts } from "../data/prompts.ts";
import { resolveBuiltin } from "./builtin.ts";
import { filePrompts, type GrpoJob, rewardJob } from "./grpo.ts";
import { runRewards } from "./rewards.ts";
import type { GrpoSettings, RewardSetting } from "./settings.ts";
import { folderSource } from "./setup.ts";

export interface ArithmeticSettings extends GrpoSettings {
  readonly recipe: "arithmetic";
  readonly model_name: string;
  readonly train_file: string;
  readonly eval_file: string;
  readonly kl_coeff: number;
  readonly gamma: number;
  readonly num_train_steps: number;
  readonly reward: readonly RewardSetting[];
  readonly correct_reward: number;
  readonly wrong_reward: number;
}

/** `resumeFrom`: the checkpoint that the run goes on from. */
export function arithmeticJob(settings: ArithmeticSettings, resumeFrom: string | null): GrpoJob {
  const { correct_reward, wrong_reward } = settings;
  const source = folderSource(resolveBuiltin(settings.model_name), settings.model_name);
  const named = settings.reward.map((part) =>
    part.name === "last_integer"
      ? { ...part, params: { correct_reward, wrong_reward, ...part.params } }
      : part,
  );
  const rewards = runRewards(named, rewardJob(settings, source), resumeFrom);
  const fields = rewards.flatMap(({ fields }) => fields);
  const read = (file: string) =>
    readPrompts(resolveBuiltin(file), source.tokenizer, settings.max_prompt_length, fields);
  return {
    settings,
    beta: settings.kl_coeff,
    gamma: settings.gamma,
    source,
    sourceName: settings.model_name,
    decodedTogether: Math.min(256, Math.max(settings.batch_size * settings.group_size, 32)),
    prompts: filePrompts(settings, read),
    rewards,
    totalSteps: () => settings.num_train_steps,
  };
}
