/** GRPO on the prompts of preference pairs, rewarded by a trained reward model. */
import { UsageError } from "../core/errors.ts";
import { mixedPrompts, openPreferences } from "../data/preferences.ts";
import { dtypeCode } from "../run/open-model.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import {
  openReward,
  type QuantType,
  quantizationFlag,
  readReward,
  rolloutScore,
  tokenizerDifference,
} from "../run/reward-model.ts";
import type { StepMemory } from "../tape/tape.ts";
import { resolveModel } from "./base.ts";
import { resolveBuiltin } from "./builtin.ts";
import { type OpenedReward, runGrpo } from "./grpo.ts";
import { type GrpoSettings, type HhSettings, trainSettings } from "./settings.ts";
import { folderSource, type Source, stepsOf } from "./setup.ts";

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

export async function trainHhGrpo(
  given: HhGrpoSettings,
  reporter: Reporter,
  control: RunControl,
): Promise<void> {
  const settings: GrpoSettings & HhGrpoSettings = {
    ...trainSettings(given),
    epsilon: given.cliprange,
    steps_per_generation: given.n_minibatches,
    max_completion_length: given.max_new_tokens,
    compat: "none",
  };
  const source = folderSource(resolveBuiltin(settings.model), settings.model);
  // What is wrong with the reward model is said before any data is read.
  const judge = judgeOf(settings, source);
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
  await runGrpo(
    {
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
      openReward: judge,
      totalSteps: ({ step, cursor, generation }) => {
        if (settings.num_train_steps !== null) return settings.num_train_steps;
        // An unfinished generation has steps of its own left, by the settings it was made with.
        const planned = generation ? generation.plan.numIterations * generation.plan.stepsPerGeneration : 0;
        const left = generation ? generation.step + planned - 1 - step : 0;
        const fresh = { step: 0, cursor };
        return step + left + stepsEach * stepsOf(settings.epochs * mix.training.length, perGeneration, fresh);
      },
    },
    reporter,
    control,
  );
}

/** Checks that policy and reward model fit; opens the latter on a device. */
function judgeOf(
  settings: HhGrpoSettings,
  { tokenizer: policy }: Source,
): (memory: StepMemory) => OpenedReward {
  const { reward_model_path: folder, rm_retokenize: retokenize } = settings;
  const named = resolveModel(folder, null);
  const judge = readReward(named.model, named.adapter);
  const { config } = judge;
  const reward = judge.tokenizer();
  const difference = tokenizerDifference(policy, reward);
  if (difference !== null && !retokenize)
    throw new UsageError(
      `policy and reward model have different tokenizers (${difference})`,
      folder,
      "take a reward model of the policy's family, or give it text in its own tokens by --rm_retokenize true",
    );
  // One more token than the policy's sequences: EOS behind a completion that was cut off.
  const longest = settings.max_prompt_length + settings.max_new_tokens + 1;
  const context = config.maxPositionEmbeddings;
  if (longest > context && !retokenize)
    throw new UsageError(
      `prompt and completion of ${longest} tokens exceed the reward model's context of ${context}`,
      folder,
      "lower --max_prompt_length or --max_new_tokens",
    );
  return (memory) => {
    const quantization = quantizationFlag(settings.rm_quant_type);
    const model = openReward(judge, memory.device, {
      dtype: dtypeCode(settings.dtype),
      maxPositions: retokenize ? context : longest,
      quantization,
    });
    return {
      score: rolloutScore(memory, model, {
        policy,
        reward,
        retokenize,
        eosPenalty: settings.eos_penalty,
        budget: settings.micro_batch_tokens,
      }),
      bytes: model.bytes.weights,
      lines: [
        `reward model ${folder}: ${config.architecture}, weights ${settings.rm_quant_type === "none" ? settings.dtype : settings.rm_quant_type}${retokenize ? ", retokenized" : ""}; reward = score at the end, less ${settings.eos_penalty} without EOS`,
      ],
      dispose: () => model.dispose(),
    };
  };
}
