import { UsageError } from "../core/errors.ts";
import arithmeticDefaults from "../recipe/arithmetic/config.yaml" with { type: "text" };
import valuesDefaults from "../recipe/values/config.yaml" with { type: "text" };
import type { Schema } from "./fields.ts";
import { type ArithmeticConfig, arithmeticSchema } from "./schema-arithmetic.ts";
import { type HhGrpoConfig, hhGrpoSchema } from "./schema-hh-grpo.ts";
import { type HhRmConfig, hhRmSchema } from "./schema-hh-rm.ts";
import { type SftConfig, sftSchema } from "./schema-sft.ts";
import { type StoriesConfig, storiesSchema } from "./schema-stories.ts";
import { type ValuesConfig, valuesSchema } from "./schema-values.ts";
import { didYouMean } from "./suggest.ts";

/** A recipe as the command line sees it: its keys, and the values it starts from where they differ from the keys'. */
export interface RecipeInfo {
  readonly name: RecipeName;
  readonly summary: string;
  readonly schema: Schema;
  /** YAML; undefined: the schema's own defaults. */
  readonly defaults: string | undefined;
  readonly examples: readonly string[];
}

export type ResolvedConfig =
  | ArithmeticConfig
  | SftConfig
  | ValuesConfig
  | StoriesConfig
  | HhRmConfig
  | HhGrpoConfig;
export type RecipeName = ResolvedConfig["recipe"];

export const RECIPES: Readonly<Record<RecipeName, RecipeInfo>> = {
  arithmetic: {
    name: "arithmetic",
    summary: "GRPO on arithmetic problems with the model inside rlv, or with yours",
    schema: arithmeticSchema,
    defaults: arithmeticDefaults as unknown as string,
    examples: [
      "rlv train",
      "rlv train arithmetic --num_train_steps 200 --kl_coeff 0.05 --run_name careful",
      "rlv train --model ./Qwen3-0.6B --train_file mine.jsonl --eval_file held-out.jsonl --dtype bfloat16",
      "rlv train --resume_from runs/careful",
    ],
  },
  sft: {
    name: "sft",
    summary: "supervised fine-tuning on prompts and completions or on chats",
    schema: sftSchema,
    defaults: undefined,
    examples: [
      "rlv train sft --model ./Qwen3-0.6B --dataset chats.jsonl --epochs 2",
      "rlv train sft --init config.json --tokenizer ./tokenizer --dataset facts.jsonl --num_train_steps 2000",
    ],
  },
  stories: {
    name: "stories",
    summary: "GRPO on story openings, and gradient routing of reward hacks",
    schema: storiesSchema,
    defaults: undefined,
    examples: [
      "rlv train stories --reward happy_count --lora_rank 16",
      "rlv train stories --reward happy_count --detector word_count --routing classic --lora_config r8",
      "rlv train stories --model ./model --dataset ./stories --reward sentence_length_5_with_happy --eval_rewards happy_binary,sentence_length_5",
    ],
  },
  values: {
    name: "values",
    summary: "GRPO on responses that a language model judges by a rubric",
    schema: valuesSchema,
    defaults: valuesDefaults as unknown as string,
    examples: [
      "rlv train values",
      "rlv train values --model ./Qwen3-0.6B --judge ./Qwen3-4B --judge_quant_type int4 --lora true",
      "rlv train values --rubric mine.yaml --train_file prompts.jsonl --eval_file held-out.jsonl",
    ],
  },
  "hh-rm": {
    name: "hh-rm",
    summary: "a reward model from preference pairs: value head, Bradley-Terry loss",
    schema: hhRmSchema,
    defaults: undefined,
    examples: [
      "rlv train hh-rm --model ./Qwen3-0.6B --lora",
      "rlv train hh-rm --model ./Qwen3-0.6B --dataset pairs.jsonl --epochs 2 --run_name mine",
      "rlv train --resume_from checkpoints/rm/mine --epochs 2",
    ],
  },
  "hh-grpo": {
    name: "hh-grpo",
    summary: "GRPO on prompts of preference pairs, rewarded by a trained reward model",
    schema: hhGrpoSchema,
    defaults: undefined,
    examples: [
      "rlv train hh-grpo --model ./Qwen3-0.6B --reward_model_path checkpoints/rm/mine/checkpoints/final",
      "rlv train hh-grpo --model ./Qwen3-0.6B --reward_model_path ./rm --rm_quant_type int8 --ref_quant_type int4 --lora",
    ],
  },
};

export const RECIPE_NAMES = Object.keys(RECIPES) as RecipeName[];

export function recipeNamed(name: string, where?: string): RecipeInfo {
  const found = RECIPE_NAMES.find((known) => known === name);
  if (found === undefined)
    throw new UsageError(
      `unknown recipe ${JSON.stringify(name)}`,
      where,
      didYouMean(
        name,
        RECIPE_NAMES,
        `the recipes are ${RECIPE_NAMES.join(", ")}; a config file ends in .yaml or .json`,
      ),
    );
  return RECIPES[found];
}
