import * as z from "zod";
import { field, int, nonNegative, orNone, text } from "./fields.ts";
import { rewardShape } from "./rewards.ts";
import { checkLora } from "./schema-common.ts";
import { checkGrpo, grpoShape } from "./schema-grpo.ts";

const { beta: _beta, ...sharedShape } = grpoShape;

/** What a judge is, for every recipe that has one. */
export const judgeShape = {
  rubric: field(
    text(),
    "builtin:values/rubric.yaml",
    "YAML file: criteria with name, description, weight and anchors, a scale and the judge's template; builtin:… is the one inside rlv",
  ),
  judge: field(
    text(),
    "initial",
    "who scores the responses: initial = the policy at step 0 (with lora: without adapters), which takes no memory beside" +
      " the KL term's reference; self = the policy as it is now; or another model's folder or name",
  ),
  judge_quant_type: field(
    z.enum(["none", "int8", "int4"]),
    "none",
    "weights of a judge that is another model: as they are, int8 (a scale a row) or int4 (NF4), quantized as they are loaded",
  ),
  judge_reading: field(
    z.enum(["expected", "text"]),
    "expected",
    "which of its two readings is the reward: the mean of the scale under its probabilities, or the score in its greedy" +
      " answer (a response whose answer has none is left out of its group)",
  ),
  judge_max_new_tokens: field(int(1), 3, "most tokens of a judge's answer"),
};

/** GRPO with a judge. The values a run starts from are in src/recipe/values/config.yaml. */
export const valuesSchema = z
  .strictObject({
    model: field(text(), "Qwen/Qwen3-0.6B", "policy to start from, and the frozen reference", {
      aliases: ["model_name"],
    }),
    train_file: field(
      text(),
      "builtin:values/train.jsonl",
      'training prompts, one {"prompt": …} or {"messages": […]} a line; builtin:… are the ones inside rlv',
      { aliases: ["dataset"] },
    ),
    eval_file: field(text(), "builtin:values/eval.jsonl", "held-out prompts, in the same form"),
    ...rewardShape("rubric"),
    ...judgeShape,
    system: field(orNone(text()), null, "system prompt of the policy; none = without"),
    enable_thinking: field(
      z.boolean(),
      false,
      "let the policy think first where its chat template can (Qwen3); the judge reads what comes after the thoughts",
    ),
    ...sharedShape,
    kl_coef: field(
      nonNegative(),
      0.04,
      "weight of the KL term against the policy at step 0 of this run; 0 = none",
      { aliases: ["beta", "kl_coeff"] },
    ),
  })
  .superRefine((config, context) => {
    const refuse = (key: keyof typeof config, message: string) =>
      context.addIssue({ code: "custom", path: [key], message, input: config[key] });
    for (const { key, message } of [...checkGrpo(config), ...checkLora(config)])
      refuse(key as keyof typeof config, message);
    if (!config.reward.some(({ name }) => name === "rubric"))
      for (const key of Object.keys(judgeShape) as (keyof typeof judgeShape)[])
        if (config[key] !== judgeShape[key].def.defaultValue)
          refuse(key, `${key} is about the reward rubric, which is not named`);
    if (config.judge_quant_type !== "none" && (config.judge === "initial" || config.judge === "self"))
      refuse(
        "judge_quant_type",
        `judge_quant_type is about a judge that is another model, given judge ${config.judge}`,
      );
  });

export type ValuesConfig = { readonly recipe: "values" } & Readonly<z.output<typeof valuesSchema>>;
