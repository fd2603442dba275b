import { z } from "zod";
import { code } from "./code.ts";
import { command } from "./command.ts";
import { defineReward, RewardRegistry } from "./registry.ts";
import { RULES } from "./rules.ts";
import { STORY_FAMILIES, STORY_REWARDS } from "./stories.ts";

/** Opened by src/recipe/rewards.ts, where its weights go to the run's device. */
const rewardModel = defineReward({
  name: "reward_model",
  description: "score of a trained reward model at the end, less eos_penalty without EOS",
  parameters: z.object({
    path: z.string().min(1),
    quant_type: z.enum(["none", "int8", "int4"]).default("none"),
    eos_penalty: z.number().min(0).default(0),
    retokenize: z.boolean().default(false),
  }),
});

/** Opened by src/recipe/rubric.ts, where the judge reads on the run's device. */
const rubric = defineReward({
  name: "rubric",
  description: "scores of a language model that judges by a rubric, weighted, in 0..1",
  parameters: z.object({
    path: z.string().min(1).default("builtin:values/rubric.yaml"),
    judge: z.string().min(1).default("initial"),
    quant_type: z.enum(["none", "int8", "int4"]).default("none"),
    reading: z.enum(["expected", "text"]).default("expected"),
    max_new_tokens: z.number().int().min(1).default(3),
  }),
});

/** Every reward that has a name. */
export const REWARDS = new RewardRegistry(
  [...RULES, ...STORY_REWARDS, code, command, rewardModel, rubric],
  STORY_FAMILIES,
);
