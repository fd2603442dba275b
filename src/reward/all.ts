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

/** Every reward that has a name. */
export const REWARDS = new RewardRegistry(
  [...RULES, ...STORY_REWARDS, code, command, rewardModel],
  STORY_FAMILIES,
);
