import * as z from "zod";
import { KL_ESTIMATORS } from "../loss/kl.ts";
import { LOSS_TYPES } from "../loss/options.ts";
import { field, int, nonNegative, orNone, positive } from "./fields.ts";
import {
  deviceShape,
  loraShape,
  memoryShape,
  optimizerShape,
  runShape,
  samplingShape,
  scheduleShape,
  seedShape,
} from "./schema-common.ts";

/** What the policy gradient is: the loss, its ratio, its advantages and the pull to the reference. */
export const lossShape = {
  loss_type: field(
    z.enum(LOSS_TYPES),
    "grpo",
    "policy loss. reinforce_kl2: -mean(A log pi) + KL_COEFF mean((log pi - log pi_ref)^2) on sums over a completion;" +
      " grpo, sapo: mean over completions of their token means; bnpo: token mean of the micro-batch; dr_grpo: token" +
      " sum / (completions x max_completion_length); dapo, cispo, vespo: token mean of the whole batch; luspo: mean" +
      " over completions of their token sums; ppo_clip: the clipped objective, averaged by AGGREGATION",
  ),
  importance_sampling_level: field(
    z.enum(["token", "sequence"]),
    "token",
    "ratio pi/pi_old by token, or its geometric mean over the completion (GSPO)",
  ),
  epsilon: field(nonNegative(), 0.2, "the ratio is clipped at 1 - EPSILON", { aliases: ["cliprange"] }),
  epsilon_high: field(
    orNone(nonNegative()),
    null,
    "the ratio is clipped at 1 + EPSILON_HIGH; none = epsilon. For cispo the absolute cap of the ratio, at least 1 (paper: 5)",
  ),
  delta: field(
    orNone(z.number().gt(1)),
    null,
    "upper bound of the ratio when the advantage is negative; none = off",
  ),
  beta: field(
    nonNegative(),
    0,
    "weight of the KL term against the policy at step 0 of this run; 0 = no reference",
    {
      aliases: ["kl_coef", "kl_coeff"],
    },
  ),
  reference_offload: field(
    z.boolean(),
    false,
    "read the reference's weights at every step instead of keeping them: less memory, a second load each time",
  ),
  kl_estimator: field(
    orNone(z.enum(KL_ESTIMATORS)),
    null,
    "per-token KL (Schulman 2020): k1 = d, k2 = d^2/2, k3 = exp(-d) + d - 1 with d = log pi - log pi_ref;" +
      " k3_ratio = k3 times pi/pi_old, the default of TRL 1.16. none = k3; reinforce_kl2 has its own",
  ),
  scale_rewards: field(
    z.enum(["group", "batch", "centered_batch", "none"]),
    "group",
    "advantage = reward - mean of its group, divided by the deviation of the group's rewards, of the batch's rewards," +
      " of these differences over the batch (unit variance), or not",
  ),
  mask_truncated_completions: field(
    z.boolean(),
    false,
    "leave completions that did not end by themselves out of the loss",
  ),
  sapo_temperature_pos: field(positive(), 1, "sapo: slope of the soft gate where the advantage is positive"),
  sapo_temperature_neg: field(positive(), 1.05, "sapo: slope of the soft gate where it is negative"),
  vespo_k_pos: field(positive(), 2, "vespo: exponent of the ratio where the advantage is not negative"),
  vespo_lambda_pos: field(positive(), 3, "vespo: decay in the ratio where the advantage is not negative"),
  vespo_k_neg: field(positive(), 3, "vespo: exponent of the ratio where the advantage is negative"),
  vespo_lambda_neg: field(positive(), 2, "vespo: decay in the ratio where the advantage is negative"),
  aggregation: field(
    z.enum(["token", "sequence"]),
    "token",
    "ppo_clip: mean over tokens, or over completions of their token means",
  ),
  entropy_coef: field(z.number(), 0, "weight of the mean token entropy, subtracted from the loss"),
  top_entropy_quantile: field(
    z.number().gt(0).max(1),
    1,
    "share of the tokens with the highest entropy that the policy term keeps; 1 = all",
  ),
  off_policy_mask_threshold: field(
    orNone(positive()),
    null,
    "drop completions with a negative advantage whose mean(log pi_old - log pi) exceeds this; none = keep",
  ),
  compat: field(
    z.enum(["none", "trl"]),
    "none",
    "trl: the conventions of TRL 1.16 (loss_type dapo, kl_estimator k3_ratio, scale_rewards group unless you say" +
      " otherwise; sample deviation + 1e-4; bnpo by micro-batch)",
  ),
};

/** How many completions, for how many prompts, in how many optimizer steps. */
export const batchShape = {
  batch_size: field(int(1), 8, "prompts a step"),
  group_size: field(int(2), 8, "completions a prompt", { aliases: ["num_generations"] }),
  num_iterations: field(int(1), 1, "passes over each generated batch; above 1 the ratio leaves 1"),
  steps_per_generation: field(
    int(1),
    1,
    "optimizer steps into which the batches generated together are divided, whole groups together",
    {
      aliases: ["n_minibatches"],
    },
  ),
  grad_accum_steps: field(
    int(1),
    1,
    "batches generated together; the loss of an optimizer step is normalised over all of its tokens",
    { aliases: ["gradient_accumulation_steps"] },
  ),
  max_prompt_length: field(
    int(1),
    512,
    "longest prompt in tokens; a longer one is an error, never cut silently",
  ),
  max_completion_length: field(int(1), 512, "longest completion in tokens", { aliases: ["max_new_tokens"] }),
};

/** Every key that GRPO recipes share. */
export const grpoShape = {
  ...seedShape,
  ...runShape,
  ...deviceShape,
  num_train_steps: field(int(1), 1000, "optimizer steps", { aliases: ["max_steps"] }),
  ...batchShape,
  ...samplingShape,
  ...optimizerShape,
  ...lossShape,
  ...scheduleShape,
  eval_num_prompts: field(int(1), 128, "prompts of an evaluation, from the start of the evaluation set"),
  save_rollouts: field(z.boolean(), true, "keep every completion in rollouts.sqlite"),
  ...memoryShape,
  ...loraShape,
};

/** What `compat` fills in where neither a file nor a flag says otherwise. */
export const COMPAT_PRESETS = {
  none: {},
  trl: { loss_type: "dapo", kl_estimator: "k3_ratio", scale_rewards: "group" },
} as const;

export type GrpoSettings = z.output<z.ZodObject<typeof grpoShape>>;

type Checked = Pick<
  GrpoSettings,
  | "loss_type"
  | "epsilon"
  | "epsilon_high"
  | "kl_estimator"
  | "importance_sampling_level"
  | "num_iterations"
  | "steps_per_generation"
  | "grad_accum_steps"
  | "batch_size"
  | "compat"
>;

/** Rules between keys, with the key to mend; `names` are those of a recipe that calls a key otherwise. */
export function checkGrpo(
  config: Checked,
  names: Partial<Record<keyof Checked, string>> = {},
): { key: string; message: string }[] {
  const wrong: { key: string; message: string }[] = [];
  const nameOf = (key: keyof Checked) => names[key] ?? key;
  const refuse = (key: keyof Checked, message: string) => wrong.push({ key: nameOf(key), message });
  const { loss_type, epsilon_high } = config;
  if (loss_type === "cispo" && (epsilon_high === null || epsilon_high < 1))
    refuse(
      "epsilon_high",
      `loss_type cispo reads epsilon_high as the absolute cap of the ratio and needs at least 1, given ${epsilon_high ?? "none"}`,
    );
  if (loss_type === "reinforce_kl2") {
    if (config.kl_estimator !== null && config.kl_estimator !== "k2")
      refuse(
        "kl_estimator",
        `loss_type reinforce_kl2 has its own kl_estimator, given ${config.kl_estimator}`,
      );
    if (config.importance_sampling_level === "sequence")
      refuse("importance_sampling_level", "loss_type reinforce_kl2 has no ratio to take by sequence");
    for (const key of ["num_iterations", "steps_per_generation"] as const)
      if (config[key] > 1)
        refuse(
          key,
          `loss_type reinforce_kl2 has no ratio and is wrong off-policy: ${nameOf(key)} must be 1, given ${config[key]}`,
        );
  }
  const epsilon = nameOf("epsilon");
  if (loss_type !== "cispo" && config.epsilon > 1)
    refuse(
      "epsilon",
      `${epsilon} clips the ratio at 1 - ${epsilon} and must not exceed 1, given ${config.epsilon}`,
    );
  const steps = nameOf("steps_per_generation");
  const prompts = config.batch_size * config.grad_accum_steps;
  if (prompts % config.steps_per_generation !== 0)
    refuse(
      "steps_per_generation",
      `${steps}: a generation of ${prompts} prompts (batch_size x grad_accum_steps) does not divide into ${config.steps_per_generation} minibatches of whole groups`,
    );
  // There every minibatch is made of grad_accum_steps micro-batches of its own.
  else if (config.compat === "trl" && config.batch_size % config.steps_per_generation !== 0)
    refuse(
      "steps_per_generation",
      `${steps}: batch_size ${config.batch_size} does not divide into ${config.steps_per_generation} parts, as compat trl needs`,
    );
  return wrong;
}
