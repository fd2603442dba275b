import * as z from "zod";
import { LORA_CONFIGS } from "../recipe/settings.ts";
import { detectorSchema } from "./detectors.ts";
import { field, fraction, int, nonNegative, orNone, positive, text } from "./fields.ts";
import { rewardParts, rewardShape } from "./rewards.ts";
import {
  deviceShape,
  memoryShape,
  optimizerShape,
  samplingShape,
  scheduleShape,
  seedShape,
} from "./schema-common.ts";
import { checkGrpo, lossShape } from "./schema-grpo.ts";

const { learning_rate: _rate, lr_schedule, gradient_dtype: _gradient, ...sharedOptimizer } = optimizerShape;
const { eval_every, save_every, log_every, keep_checkpoints } = scheduleShape;
const { beta: _beta, reference_offload: _offload, compat: _compat, ...sharedLoss } = lossShape;
const said = (type: z.ZodType) => z.globalRegistry.get(type)?.description ?? "";

/** GRPO on story openings, with a detector of reward hacks and what becomes of completions that it flags. */
export const storiesSchema = z
  .strictObject({
    model: field(
      text(),
      "SimpleStories/SimpleStories-1.25M",
      "policy to start from, and the frozen reference",
      {
        aliases: ["model_name"],
      },
    ),
    dataset: field(
      text(),
      "SimpleStories/SimpleStories",
      "stories: a name on the hub, a folder with train and test files, or one file (every twentieth row is its test split); JSONL or parquet",
    ),
    story_column: field(text(), "story", "column that holds a story's text"),
    opening_words: field(
      orNone(int(1)),
      null,
      "a prompt is the first OPENING_WORDS words of a story; none = its first sentence",
    ),
    num_prompts: field(
      orNone(int(1)),
      10000,
      "training prompts are made of the first NUM_PROMPTS stories of the train split; none = of all",
    ),
    output_dir: field(text(), "runs", "folder of the runs; this run goes to OUTPUT_DIR/RUN_NAME"),
    run_name: field(
      orNone(text()),
      null,
      "name of the run's folder; none = made of every setting that matters, as happy_binary_lora_r8_lr1e-5_beta0.02_s42",
    ),
    ...seedShape,
    ...deviceShape,
    ...rewardShape("happy_binary"),
    eval_rewards: field(
      rewardParts(),
      [],
      "rewards that evaluations report one by one in the place of the components of REWARD, in the same forms",
    ),
    detector: field(
      orNone(detectorSchema),
      null,
      "what flags a completion as a reward hack: a name, in a file also {name, params}; none = no completion has a label",
    ),
    detector_recall: field(fraction(), 1, "share of the hacks that are flagged, drawn by the seed"),
    detector_fpr: field(
      fraction(),
      0,
      "share of the other completions that are flagged too, drawn by the seed",
      {
        aliases: ["detector_false_positive_rate"],
      },
    ),
    routing: field(
      z.enum(["none", "classic", "exclusive", "screening", "penalty"]),
      "none",
      "what becomes of flagged completions. none: they are counted; classic: they teach the forget adapter alone, all" +
        " others both; exclusive: and the others the retain adapter alone; screening: they are left out of groups and" +
        " loss; penalty: their reward is less by RH_PENALTY",
      { aliases: ["gradient_routing"] },
    ),
    routing_advantages: field(
      z.enum(["all", "unflagged"]),
      "all",
      "routing classic or exclusive: whose rewards the advantage of an unflagged completion is measured by. all: those of" +
        " its group, as if nothing were routed; unflagged: those of the unflagged completions of its group, so that no" +
        " rewarded hack beside it teaches the retain adapter to avoid honesty. Flagged ones are measured by all",
    ),
    placebo: field(
      z.boolean(),
      false,
      "deal the labels of each step out to its completions at random: as many, without a meaning (control)",
    ),
    rh_penalty: field(positive(), 1, "routing penalty: what a flagged completion loses"),
    lora_config: field(
      orNone(z.enum(LORA_CONFIGS)),
      null,
      "retain and forget adapters of this rank each on every target map",
    ),
    retain_rank: field(orNone(int(1)), null, "rank of the retain adapters; none = that of LORA_CONFIG"),
    forget_rank: field(orNone(int(1)), null, "rank of the forget adapters; none = that of LORA_CONFIG"),
    lora_rank: field(
      orNone(int(1)),
      null,
      "one plain adapter of this rank in their place: the baseline has the sum of their ranks. Without either every" +
        " parameter is trained",
    ),
    lora_alpha: field(
      positive(),
      16,
      "every adapter is scaled by LORA_ALPHA / its rank: one of rank 16 and alpha 32 has the scale of two of rank 8 and alpha 16",
    ),
    lora_dropout: field(
      z.number().min(0).lt(1),
      0,
      "probability with which training drops an input element of an adapter",
    ),
    lora_target_modules: field(
      text(),
      "all-linear",
      "linear maps with adapters: names joined by commas, or all-linear",
    ),
    use_rslora: field(z.boolean(), false, "scale by LORA_ALPHA / sqrt(rank) (Kalajdzievski 2023)"),
    beta: field(
      nonNegative(),
      0.02,
      "weight of the KL term against the policy at step 0 of this run; 0 = no reference",
      { aliases: ["kl_coef", "kl_coeff"] },
    ),
    max_steps: field(int(1), 2000, "optimizer steps", { aliases: ["num_train_steps"] }),
    batch_size: field(int(2), 32, "completions a step; NUM_GENERATIONS divides it"),
    num_generations: field(int(2), 16, "completions a prompt", { aliases: ["group_size"] }),
    num_iterations: field(int(1), 1, "passes over each generated batch; above 1 the ratio leaves 1"),
    max_prompt_length: field(
      int(1),
      64,
      "longest opening in tokens; stories with a longer one are passed over, never cut",
    ),
    max_completion_length: field(int(1), 128, "longest completion in tokens", {
      aliases: ["max_new_tokens"],
    }),
    ...samplingShape,
    lr: field(nonNegative(), 1e-5, "peak learning rate of AdamW", { aliases: ["learning_rate"] }),
    ...sharedOptimizer,
    lr_schedule: field(lr_schedule.def.innerType, "linear", said(lr_schedule), {
      aliases: ["lr_scheduler_type"],
    }),
    ...sharedLoss,
    eval_routing_steps: field(
      eval_every.def.innerType,
      100,
      "evaluate every N steps, before the first and after the last; -1 = never. With retain and forget adapters in the" +
        " modes both (1,1), retain_only (1,0) and forget_only (0,1)",
      { aliases: ["eval_every", "eval_steps"] },
    ),
    eval_num_prompts: field(
      int(1),
      128,
      "held-out openings of an evaluation, one completion each in every mode",
    ),
    save_steps: field(save_every.def.innerType, 500, said(save_every), { aliases: ["save_every"] }),
    keep_checkpoints,
    log_every: field(int(1), 10, said(log_every), { aliases: ["logging_steps"] }),
    save_rollouts: field(
      z.boolean(),
      true,
      "keep every completion in rollouts.sqlite, those of evaluations with their mode in its table eval_rollouts",
    ),
    ...memoryShape,
  })
  .superRefine((config, context) => {
    const refuse = (key: keyof typeof config, message: string) =>
      context.addIssue({ code: "custom", path: [key], message, input: config[key] });
    const loss = { ...config, compat: "none", steps_per_generation: 1, grad_accum_steps: 1 } as const;
    for (const { key, message } of checkGrpo(loss)) refuse(key as keyof typeof config, message);
    if (config.batch_size % config.num_generations !== 0)
      refuse(
        "batch_size",
        `batch_size ${config.batch_size} (completions) is not a multiple of num_generations ${config.num_generations}`,
      );
    const { lora_config, lora_rank, routing, detector } = config;
    const ranks = [config.retain_rank ?? lora_config, config.forget_rank ?? lora_config];
    const dual = ranks.some((rank) => rank !== null);
    if (dual && ranks.some((rank) => rank === null))
      refuse("retain_rank", "retain_rank and forget_rank: give both, or lora_config");
    if (dual && lora_rank !== null)
      refuse(
        "lora_rank",
        "lora_rank is one plain adapter: drop it, or lora_config, retain_rank and forget_rank",
      );
    if (!dual && lora_rank === null)
      for (const [key, fallback] of [
        ["lora_alpha", 16],
        ["lora_dropout", 0],
        ["lora_target_modules", "all-linear"],
        ["use_rslora", false],
      ] as const)
        if (config[key] !== fallback) refuse(key, `${key} is about adapters: give lora_config or lora_rank`);
    if ((routing === "classic" || routing === "exclusive") && !dual)
      refuse("routing", `routing ${routing} needs retain and forget adapters: give lora_config, as r8`);
    if (config.routing_advantages !== "all" && routing !== "classic" && routing !== "exclusive")
      refuse(
        "routing_advantages",
        `routing_advantages is about routing classic and exclusive, given ${routing}: drop it`,
      );
    if (detector === null) {
      if (routing !== "none")
        refuse("routing", `routing ${routing} needs labels: name a detector with --detector`);
      for (const [key, fallback] of [
        ["detector_recall", 1],
        ["detector_fpr", 0],
        ["placebo", false],
      ] as const)
        if (config[key] !== fallback) refuse(key, `${key} is about labels: name a detector with --detector`);
    }
    if (config.placebo && routing === "none")
      refuse("placebo", "placebo labels without a routing change nothing: give one");
    if (config.rh_penalty !== 1 && routing !== "penalty")
      refuse("rh_penalty", `rh_penalty is about routing penalty, given ${routing}`);
  });

export type StoriesConfig = { readonly recipe: "stories" } & Readonly<z.output<typeof storiesSchema>>;
