import * as z from "zod";
import { LOSS_TYPES } from "../loss/options.ts";
import { field, int, nonNegative, orNone, positive, required, text } from "./fields.ts";
import { checkLora, loraShape, samplingShape } from "./schema-common.ts";
import { checkGrpo, lossShape } from "./schema-grpo.ts";
import {
  hhDatasetShape,
  hhMemoryShape,
  hhOptimizerShape,
  hhRunShape,
  hhScheduleShape,
} from "./schema-hh-rm.ts";

const { beta: _beta, epsilon: _epsilon, compat: _compat, ...sharedLoss } = lossShape;

const quantType = (what: string) =>
  field(
    z.enum(["none", "int8", "int4"]),
    "none",
    `weights of the frozen ${what}: as they are, int8 (a scale a row) or int4 (NF4), quantized as they are loaded`,
  );

/** GRPO on the prompts of preference pairs, rewarded by a trained reward model. */
export const hhGrpoSchema = z
  .strictObject({
    model: field(text(), "Qwen/Qwen3-0.6B", "policy to start from, and the frozen reference", {
      aliases: ["model_name"],
    }),
    reward_model_path: required(
      text(),
      "reward model: a folder of rlv train hh-rm (full, adapter or quantized) or one that transformers wrote",
      { aliases: ["reward_model"] },
    ),
    rm_quant_type: quantType("reward model"),
    ref_quant_type: quantType("reference"),
    rm_retokenize: field(
      z.boolean(),
      false,
      "give the reward model the text of prompts and completions in its own tokens; without it a reward model with another vocabulary is refused",
    ),
    ...hhDatasetShape,
    train_prompts: field(
      int(0),
      1500,
      "prompts of the mix taken from the train split, which the reward model has seen",
    ),
    test_prompts: field(int(0), 8500, "prompts of the mix taken from the test split, which it has not"),
    output_dir: field(
      text(),
      "./checkpoints/grpo",
      "folder of the runs; this run goes to OUTPUT_DIR/RUN_NAME",
    ),
    log_dir: field(
      text(),
      "./logs/grpo",
      "TensorBoard's files go to LOG_DIR/RUN_NAME, and into the run's folder",
    ),
    ...hhRunShape,
    epochs: field(positive(), 1, "passes over the training prompts", { aliases: ["num_train_epochs"] }),
    num_train_steps: field(orNone(int(1)), null, "optimizer steps; none = epochs decides", {
      aliases: ["max_steps"],
    }),
    batch_size: field(int(1), 2, "prompts a batch"),
    group_size: field(int(2), 8, "completions a prompt", { aliases: ["num_generations"] }),
    grad_accum_steps: field(
      int(1),
      4,
      "batches that the policy answers before it changes: together they are one generation, over which advantages, " +
        "old log-probabilities and the reference are computed once. The loss of an optimizer step is normalised over all its tokens",
      { aliases: ["gradient_accumulation_steps", "grad_accum"] },
    ),
    n_minibatches: field(
      int(1),
      1,
      "minibatches into which a generation of BATCH_SIZE x GRAD_ACCUM_STEPS prompts is divided, whole groups together: " +
        "one optimizer step each, so above 1 the ratio leaves 1; must divide the generation's prompts",
      { aliases: ["steps_per_generation"] },
    ),
    num_iterations: field(int(1), 1, "passes over all minibatches of a generation"),
    kl_coef: field(
      nonNegative(),
      0.01,
      "weight of the KL term against the policy at step 0 of this run; 0 = no reference",
      { aliases: ["beta", "kl_coeff"] },
    ),
    cliprange: field(nonNegative(), 0.2, "the ratio is clipped at 1 - CLIPRANGE and 1 + CLIPRANGE", {
      aliases: ["epsilon"],
    }),
    eos_penalty: field(nonNegative(), 1, "taken from the reward of a completion that did not end by itself"),
    max_prompt_length: field(
      int(1),
      1536,
      "longest prompt in tokens; longer ones are left out of the mix, never cut",
    ),
    max_new_tokens: field(int(1), 512, "longest completion in tokens", {
      aliases: ["max_completion_length"],
    }),
    ...samplingShape,
    ...hhOptimizerShape(1e-6),
    ...loraShape,
    ...sharedLoss,
    loss_type: field(
      z.enum(LOSS_TYPES),
      "ppo_clip",
      "policy loss; ppo_clip: -min(r A, clip(r) A) with r = pi/pi_old, averaged by AGGREGATION. The others as in the recipe arithmetic",
    ),
    kl_estimator: field(
      lossShape.kl_estimator.def.innerType,
      "k3",
      z.globalRegistry.get(lossShape.kl_estimator)?.description ?? "",
    ),
    ...hhScheduleShape,
    eval_num_prompts: field(int(1), 128, "held-out prompts of an evaluation"),
    save_rollouts: field(
      z.boolean(),
      true,
      "keep every completion in rollouts.sqlite, those of evaluations in its table eval_rollouts",
    ),
    ...hhMemoryShape,
  })
  .superRefine((config, context) => {
    const own = { epsilon: "cliprange", steps_per_generation: "n_minibatches" } as const;
    const shared = { ...config, epsilon: config.cliprange, steps_per_generation: config.n_minibatches };
    for (const { key, message } of [...checkGrpo({ ...shared, compat: "none" }, own), ...checkLora(config)]) {
      context.addIssue({ code: "custom", path: [key], message, input: config[key as keyof typeof config] });
    }
  });

export type HhGrpoConfig = { readonly recipe: "hh-grpo" } & Readonly<z.output<typeof hhGrpoSchema>>;
