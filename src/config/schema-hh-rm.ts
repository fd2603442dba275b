import * as z from "zod";
import { field, int, nonNegative, orNone, positive, text } from "./fields.ts";
import {
  checkLora,
  deviceShape,
  loraShape,
  memoryShape,
  optimizerShape,
  scheduleShape,
  seedShape,
} from "./schema-common.ts";

/** What both recipes on preferences share. */
export const hhRunShape = {
  run_name: field(orNone(text()), null, "name of the run's folder; none = recipe, date and time"),
  ...seedShape,
  ...deviceShape,
  dtype: field(
    z.enum(["float32", "bfloat16"]),
    "bfloat16",
    "type of weights and activations; bfloat16 accumulates in float32 and keeps exact float32 masters",
  ),
};

const { learning_rate: _rate, max_grad_norm: _norm, ...sharedOptimizer } = optimizerShape;

export const hhOptimizerShape = (lr: number) => ({
  lr: field(nonNegative(), lr, "peak learning rate of AdamW", { aliases: ["learning_rate"] }),
  max_grad_norm: field(nonNegative(), 10, "global norm to which gradients are clipped; 0 = off"),
  ...sharedOptimizer,
  lr_schedule: field(
    z.enum(["constant", "linear", "cosine"]),
    "constant",
    "course of the learning rate after warm-up; linear and cosine end at 0",
    { aliases: ["lr_scheduler_type"] },
  ),
  optimizer_dtype: field(
    z.enum(["float32", "bfloat16", "8bit"]),
    "bfloat16",
    "type of AdamW's moments (8bit: 8-bit floats with a scale for every 256); the master weights are exact float32 in any case",
  ),
});

const { eval_every, save_every, ...sharedSchedule } = scheduleShape;
/** The same type and words under another name, with another value to start from. */
const interval = (like: typeof eval_every, steps: number, alias: string) =>
  field(like.def.innerType, steps, z.globalRegistry.get(like)?.description ?? "", { aliases: [alias] });

export const hhScheduleShape = {
  eval_steps: interval(eval_every, 50, "eval_every"),
  save_steps: interval(save_every, 500, "save_every"),
  ...sharedSchedule,
};

export const hhMemoryShape = {
  ...memoryShape,
  micro_batch_tokens: field(
    int(16),
    8192,
    "most packed tokens of one forward and backward pass; batches are cut to fit. Bounds memory, changes no mean",
  ),
  gradient_checkpointing: field(
    z.boolean(),
    true,
    "keep block inputs only and recompute the rest in backward: less memory, about a third more time",
  ),
};

export const hhDatasetShape = {
  dataset: field(
    text(),
    "Anthropic/hh-rlhf",
    'preferences: a name on the hub, a folder in its layout or with train and test files, or one file (every twentieth row is its test split); JSONL or parquet rows with "chosen" and "rejected" as text or messages, and "margin" if one should win by a number',
  ),
};

/** A reward model from pairs: body of a language model, linear value head, Bradley-Terry loss. */
export const hhRmSchema = z
  .strictObject({
    model: field(
      text(),
      "Qwen/Qwen3-0.6B",
      "language model whose body it starts from (its head is dropped, the value head drawn from N(0, 0.02)), or a reward model to go on from",
      { aliases: ["model_name"] },
    ),
    ...hhDatasetShape,
    output_dir: field(text(), "./checkpoints/rm", "folder of the runs; this run goes to OUTPUT_DIR/RUN_NAME"),
    log_dir: field(
      text(),
      "./logs/rm",
      "TensorBoard's files go to LOG_DIR/RUN_NAME, and into the run's folder",
    ),
    ...hhRunShape,
    epochs: field(positive(), 1, "passes over the training pairs", { aliases: ["num_train_epochs"] }),
    num_train_steps: field(orNone(int(1)), null, "optimizer steps; none = epochs decides", {
      aliases: ["max_steps"],
    }),
    batch_size: field(int(1), 32, "pairs a batch"),
    grad_accum: field(int(1), 4, "batches an optimizer step: its loss is the mean over all their pairs", {
      aliases: ["grad_accum_steps", "gradient_accumulation_steps"],
    }),
    max_length: field(
      int(2),
      2048,
      "longest sequence in tokens; pairs with a longer one are skipped when they are drawn, never cut",
    ),
    ...hhOptimizerShape(1e-5),
    ...loraShape,
    center_rewards_coefficient: field(
      nonNegative(),
      0,
      "weight of the mean of (r_chosen + r_rejected)^2, which keeps rewards around 0 (TRL); 0 = off",
    ),
    ...hhScheduleShape,
    eval_num_batches: field(
      int(1),
      32,
      "batches of an evaluation, each of batch_size pairs drawn with replacement from the test split",
    ),
    ...hhMemoryShape,
  })
  .superRefine((config, context) => {
    for (const { key, message } of checkLora(config))
      context.addIssue({ code: "custom", path: [key], message, input: config[key as keyof typeof config] });
  });

export type HhRmConfig = { readonly recipe: "hh-rm" } & Readonly<z.output<typeof hhRmSchema>>;
