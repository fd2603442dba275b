import * as z from "zod";
import { field, int, orNone, positive, required, text } from "./fields.ts";
import {
  checkLora,
  deviceShape,
  loraShape,
  memoryShape,
  optimizerShape,
  runShape,
  scheduleShape,
  seedShape,
} from "./schema-common.ts";

/** Supervised fine-tuning: next-token cross-entropy on completions, or language modelling from random weights. */
export const sftSchema = z
  .strictObject({
    dataset: required(
      text(),
      'JSONL with {"prompt", "completion"} or {"messages": [{"role", "content"}, …]} a line',
      { aliases: ["train_file"] },
    ),
    eval_file: field(orNone(text()), null, "held-out JSONL in the same form; its loss is eval/loss"),
    model: field(orNone(text()), null, "model folder to start from; not with init", {
      aliases: ["model_name"],
    }),
    init: field(orNone(text()), null, "config.json of a model to start from random weights; needs tokenizer"),
    tokenizer: field(orNone(text()), null, "folder with tokenizer.json; none = the model's own"),
    output: field(orNone(text()), null, "also write the finished model as a Hugging Face folder here"),
    ...seedShape,
    ...runShape,
    ...deviceShape,
    epochs: field(orNone(positive()), null, "passes over the dataset; none = num_train_steps decides", {
      aliases: ["num_train_epochs"],
    }),
    num_train_steps: field(
      orNone(int(1)),
      null,
      "optimizer steps; none = epochs decides (1 when neither is given)",
      {
        aliases: ["max_steps"],
      },
    ),
    batch_size: field(int(1), 32, "examples a micro-step"),
    grad_accum_steps: field(
      int(1),
      1,
      "batches an optimizer step; the loss is normalised over all of their tokens",
      { aliases: ["gradient_accumulation_steps"] },
    ),
    max_length: field(
      int(2),
      1024,
      "longest example in tokens; a longer one is an error, never cut silently",
    ),
    train_on_prompt: field(z.boolean(), false, "learn the prompt's tokens too, not only the completion's"),
    ...optimizerShape,
    learning_rate: field(positive(), 1e-5, "peak learning rate of AdamW", { aliases: ["lr"] }),
    ...scheduleShape,
    ...memoryShape,
    ...loraShape,
  })
  .superRefine((config, context) => {
    const wrong = (key: keyof typeof config, message: string) =>
      context.addIssue({ code: "custom", path: [key], message, input: config[key] });
    for (const { key, message } of checkLora(config)) if (key !== "reference_offload") wrong(key, message);
    if (config.model === null && config.init === null)
      wrong("model", "sft needs a model to start from, or init");
    if (config.init !== null && (config.lora || config.adapter !== null))
      wrong("init", "init makes a model that no folder has: adapters need a model to be for");
    if (config.model !== null && config.init !== null) wrong("init", "model and init exclude each other");
    if (config.init !== null && config.tokenizer === null)
      wrong("tokenizer", "init has random weights only and needs a tokenizer folder");
    if (config.epochs !== null && config.num_train_steps !== null)
      wrong("num_train_steps", "epochs and num_train_steps exclude each other");
  });

export type SftConfig = { readonly recipe: "sft" } & Readonly<z.output<typeof sftSchema>>;
