import * as z from "zod";
import { field, nonNegative, text } from "./fields.ts";
import { rewardShape } from "./rewards.ts";
import { checkLora } from "./schema-common.ts";
import { checkGrpo, grpoShape } from "./schema-grpo.ts";

const { beta: _beta, ...sharedShape } = grpoShape;

/**
 * GRPO on prompts whose answer is an integer. Its KL weight is called kl_coeff; everything else is GRPO's.
 * The values a run starts from are in src/recipe/arithmetic/config.yaml.
 */
export const arithmeticSchema = z
  .strictObject({
    model_name: field(
      text(),
      "builtin:arithmetic",
      "model folder, or builtin:arithmetic, the model inside rlv",
      {
        aliases: ["model"],
      },
    ),
    train_file: field(
      text(),
      "builtin:arithmetic/train.jsonl",
      'training problems, one {"prompt": …, "answer": …} a line; builtin:… are the ones inside rlv',
      { aliases: ["dataset"] },
    ),
    eval_file: field(text(), "builtin:arithmetic/eval.jsonl", "evaluation problems, in the same form"),
    ...sharedShape,
    kl_coeff: field(
      nonNegative(),
      0,
      "weight of the KL term against the policy at step 0 of this run; 0 = no reference",
      { aliases: ["beta", "kl_coef"] },
    ),
    gamma: field(
      z.number().gt(0).max(1),
      1,
      "discount: token t of a completion of T tokens gets its advantage times GAMMA^(T-1-t); 1 = none",
    ),
    ...rewardShape("last_integer"),
    correct_reward: field(
      z.number(),
      1,
      "reward last_integer: when the last integer of the completion is the answer",
    ),
    wrong_reward: field(z.number(), 0, "reward last_integer: otherwise"),
  })
  .superRefine((config, context) => {
    for (const { key, message } of [...checkGrpo(config), ...checkLora(config)])
      context.addIssue({ code: "custom", path: [key], message, input: config[key as keyof typeof config] });
    if (!config.reward.some(({ name }) => name === "last_integer"))
      for (const [key, fallback] of [
        ["correct_reward", 1],
        ["wrong_reward", 0],
      ] as const)
        if (config[key] !== fallback)
          context.addIssue({
            code: "custom",
            path: [key],
            message: `${key} is about the reward last_integer, which is not named`,
            input: config[key],
          });
    if (config.correct_reward <= config.wrong_reward)
      context.addIssue({
        code: "custom",
        path: ["correct_reward"],
        message: `correct_reward ${config.correct_reward} must exceed wrong_reward ${config.wrong_reward}`,
        input: config.correct_reward,
      });
  });

export type ArithmeticConfig = { readonly recipe: "arithmetic" } & Readonly<
  z.output<typeof arithmeticSchema>
>;
