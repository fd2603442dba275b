import * as z from "zod";
import { DEVICES } from "../core/env.ts";
import { LORA_DEFAULTS } from "../recipe/settings.ts";
import { field, fraction, int, nonNegative, orNone, positive, text } from "./fields.ts";

/** Where a job runs: the same on every command that touches a model. */
export const deviceShape = {
  device: field(
    z.enum(DEVICES),
    "auto",
    "where to compute; auto is metal on a Mac with Apple silicon, else cpu",
  ),
  threads: field(
    orNone(int(1, 1024)),
    null,
    "CPU threads; none = RLV_THREADS or every core (of several ranks each its share). Never changes a result",
  ),
  dtype: field(
    z.enum(["float32", "bfloat16"]),
    "float32",
    "type of weights and activations; bfloat16 accumulates in float32",
  ),
};

export const seedShape = {
  seed: field(int(0, 4294967295), 42, "key of every random number; same seed, same bytes"),
};

/** Where a run is kept. */
export const runShape = {
  output_dir: field(text(), "runs", "folder of the runs; this run goes to OUTPUT_DIR/RUN_NAME"),
  run_name: field(orNone(text()), null, "name of the run's folder; none = recipe, date and time"),
};

/** What bounds memory without changing the result. */
export const memoryShape = {
  micro_batch_tokens: field(
    int(16),
    16384,
    "most packed tokens of one forward and backward pass; batches are cut to fit. Bounds memory",
  ),
  gradient_checkpointing: field(
    z.boolean(),
    false,
    "keep block inputs only and recompute the rest in backward: less memory, about a third more time",
  ),
};

/** AdamW (Loshchilov and Hutter 2019) and its schedule. */
export const optimizerShape = {
  learning_rate: field(nonNegative(), 1e-6, "peak learning rate of AdamW", { aliases: ["lr"] }),
  lr_schedule: field(
    z.enum(["constant", "linear", "cosine"]),
    "linear",
    "course of the learning rate after warm-up; linear and cosine end at 0",
    { aliases: ["lr_scheduler_type"] },
  ),
  warmup_steps: field(int(0), 0, "steps over which the learning rate rises linearly from 0"),
  weight_decay: field(
    nonNegative(),
    0,
    "decoupled weight decay of matrices (norms and biases are left alone)",
  ),
  adam_beta1: field(z.number().min(0).lt(1), 0.9, "decay of AdamW's first moment"),
  adam_beta2: field(z.number().min(0).lt(1), 0.999, "decay of AdamW's second moment"),
  adam_epsilon: field(positive(), 1e-8, "added to the root of the second moment"),
  max_grad_norm: field(nonNegative(), 1, "global norm to which gradients are clipped; 0 = off"),
  optimizer_dtype: field(
    z.enum(["float32", "bfloat16", "8bit"]),
    "float32",
    "type of AdamW's moments (8bit: 8-bit floats with a scale for every 256); the master weights are exact float32 in any case",
  ),
  gradient_dtype: field(
    z.enum(["float32", "bfloat16"]),
    "float32",
    "type in which a bfloat16 model's linear maps keep their gradients, rounded once a micro-batch",
  ),
};

/** Every N steps; -1 = never. */
const interval = () =>
  int(-1).refine((steps) => steps !== 0, "an interval is a number of steps; -1 = never, given 0");

/** How often a run evaluates, saves and speaks. */
export const scheduleShape = {
  eval_every: field(
    interval(),
    10,
    "evaluate every N steps, before the first and after the last; -1 = never",
    {
      aliases: ["eval_steps"],
    },
  ),
  save_every: field(interval(), 50, "checkpoint every N steps; -1 = only the last one", {
    aliases: ["save_steps"],
  }),
  keep_checkpoints: field(int(1), 3, "how many checkpoints/step-N to keep; checkpoints/final always stays"),
  log_every: field(int(1), 1, "print metrics and samples every N steps (metrics.jsonl has every step)", {
    aliases: ["logging_steps"],
  }),
};

/** Low-rank adapters (Hu et al. 2021) in PEFT's terms, in the place of training every parameter. */
export const loraShape = {
  lora: field(
    z.boolean(),
    false,
    "train low-rank adapters on a frozen model; checkpoints hold the adapter alone",
  ),
  adapter: field(
    orNone(text()),
    null,
    "PEFT adapter folder to start from (implies lora); its rank, alpha, dropout and modules hold. The reference is the" +
      " model without it",
  ),
  lora_r: field(int(1), LORA_DEFAULTS.lora_r, "rank of the adapters"),
  lora_alpha: field(positive(), LORA_DEFAULTS.lora_alpha, "adapters are scaled by LORA_ALPHA / LORA_R"),
  lora_dropout: field(
    z.number().min(0).lt(1),
    LORA_DEFAULTS.lora_dropout,
    "probability with which training drops an input element of an adapter. Rollouts, reference and evaluation have no" +
      " dropout, so above 0 the ratio of policy losses leaves 1 and the sampler's exactness cannot be checked",
  ),
  lora_target_modules: field(
    text(),
    LORA_DEFAULTS.lora_target_modules,
    "linear maps with an adapter: names joined by commas, or all-linear",
  ),
  use_rslora: field(
    z.boolean(),
    LORA_DEFAULTS.use_rslora,
    "scale by LORA_ALPHA / sqrt(LORA_R) (Kalajdzievski 2023)",
    {
      aliases: ["lora_rslora"],
    },
  ),
  base_quant_type: field(
    z.enum(["none", "int8", "int4"]),
    "none",
    "with lora: quantize the frozen linear maps to int8, or to int4 (nf4, as QLoRA), while they are loaded",
  ),
};

type LoraKeys = { [K in keyof typeof loraShape]: z.output<(typeof loraShape)[K]> };

/** What the rules of adapters look at. */
export interface LoraConfig extends LoraKeys {
  readonly gradient_dtype: string;
  readonly reference_offload?: boolean;
}

/** Rules between the keys of adapters and others, with the name of the key to mend. */
export function checkLora(config: LoraConfig): { key: keyof LoraConfig; message: string }[] {
  const wrong: { key: keyof LoraConfig; message: string }[] = [];
  const names = Object.keys(loraShape) as (keyof LoraKeys)[];
  if (!config.lora && config.adapter === null) {
    for (const key of names)
      if (config[key] !== loraShape[key].def.defaultValue)
        wrong.push({ key, message: `${key} is about adapters and needs lora true` });
    return wrong;
  }
  if (config.gradient_dtype !== "float32")
    wrong.push({
      key: "gradient_dtype",
      message: "gradient_dtype bfloat16 is about whole matrices: gradients of adapters are float32",
    });
  if (config.reference_offload)
    wrong.push({
      key: "reference_offload",
      message:
        "reference_offload has nothing to give back: with lora the reference is the frozen model itself",
    });
  return wrong;
}

/** How completions are drawn. */
export const samplingShape = {
  temperature: field(
    positive(),
    1,
    "divides the logits before sampling; log-probabilities are taken at it too",
  ),
  top_p: field(
    z.number().gt(0).max(1),
    1,
    "keep the likeliest tokens that hold this share of probability; 1 = all",
  ),
  top_k: field(int(0), 0, "keep the K likeliest tokens; 0 = all"),
  min_p: field(fraction(), 0, "drop tokens below this share of the likeliest one's probability; 0 = none"),
};
