/** GRPO on the prompts of preference pairs, rewarded by a trained reward model. */
import { mixedPrompts, openPreferences } from "../data/preferences.ts";
import { type QuantType, quantizationFlag } from "../run/reward-model.ts";
import { resolveBuiltin } from "./builtin.ts";
import { type GrpoJob, rewardJob } from "./grpo.ts";
import { runRewards } from "./rewards.ts";
import { type GrpoSettings, type HhSettings, trainSettings } from "./settings.ts";
import { folderSource, stepsOf } from "./setup.ts";

export interface HhGrpoSettings
  extends HhSettings,
    Omit<
      GrpoSettings,
      | keyof HhSettings
      | "learning_rate"
      | "eval_every"
      | "save_every"
      | "epsilon"
      | "steps_per_generation"
      | "max_completion_length"
      | "compat"
    > {
  readonly recipe: "hh-grpo";
  readonly reward_model_path: string;
  readonly rm_quant_type: QuantType;
  readonly ref_quant_type: QuantType;
  readonly rm_retokenize: boolean;
  readonly train_prompts: number;
  readonly test_prompts: number;
  readonly n_minibatches: number;
  readonly kl_coef: number;
  readonly cliprange: number;
  readonly eos_penalty: number;
  readonly max_new_tokens: number;
}

/** `resumeFrom`: the checkpoint that the run goes on from. */
export async function hhGrpoJob(given: HhGrpoSettings, resumeFrom: string | null): Promise<GrpoJob> {
  const settings: GrpoSettings & HhGrpoSettings = {
    ...trainSettings(given),
    epsilon: given.cliprange,
    steps_per_generation: given.n_minibatches,
    max_completion_length: given.max_new_tokens,
    compat: "none",
  };
  const source = folderSource(resolveBuiltin(settings.model), settings.model);
  // What is wrong with the reward model is said before any data is read.
  const params = {
    path: settings.reward_model_path,
    quant_type: settings.rm_quant_type,
    eos_penalty: settings.eos_penalty,
    retokenize: settings.rm_retokenize,
  };
  const named = { name: "reward_model", as: "reward_model", weight: 1, params };
  const rewards = runRewards([named], rewardJob(settings, source), resumeFrom);
  const maxLength = settings.max_prompt_length;
  const [train, test] = [
    await openPreferences(settings.dataset, "train"),
    await openPreferences(settings.dataset, "test"),
  ];
  const mix = mixedPrompts(train, test, source.tokenizer, maxLength, settings.seed, {
    train: settings.train_prompts,
    test: settings.test_prompts,
    evaluation: settings.eval_steps > 0 ? settings.eval_num_prompts : 0,
  });
  const perGeneration = settings.batch_size * settings.grad_accum_steps;
  const stepsEach = settings.n_minibatches * settings.num_iterations;
  return {
    settings,
    beta: settings.kl_coef,
    gamma: 1,
    source,
    sourceName: settings.model,
    referenceQuantization: quantizationFlag(settings.ref_quant_type),
    decodedTogether: Math.min(256, settings.batch_size * settings.group_size),
    prompts: {
      training: mix.training,
      held: mix.evaluation,
      longest: maxLength,
      description: `${settings.dataset}: ${mix.training.length} training and ${mix.evaluation.length} evaluation prompts of up to ${maxLength} tokens, ${perGeneration} a generation of ${stepsEach} steps`,
    },
    rewards,
    totalSteps: ({ step, cursor, generation }) => {
      if (settings.num_train_steps !== null) return settings.num_train_steps;
      // An unfinished generation has steps of its own left, by the settings it was made with.
      const planned = generation ? generation.plan.numIterations * generation.plan.stepsPerGeneration : 0;
      const left = generation ? generation.step + planned - 1 - step : 0;
      const fresh = { step: 0, cursor };
      return step + left + stepsEach * stepsOf(settings.epochs * mix.training.length, perGeneration, fresh);
    },
  };
}
