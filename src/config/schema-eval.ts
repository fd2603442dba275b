import * as z from "zod";
import { DEVICES } from "../core/env.ts";
import { field, int, nonNegative, orNone, text } from "./fields.ts";
import { seedShape } from "./schema-common.ts";

/** Options of `rlv eval`. What is none is as the run's own config has it. */
export const evalSchema = z.strictObject({
  dir: field(
    orNone(text()),
    null,
    "folders with runs, divided by commas; none = runs, checkpoints/rm and checkpoints/grpo",
  ),
  fresh: field(z.boolean(), true, "sample from the checkpoint; false reports on what the run wrote"),
  prompts: field(orNone(int(1)), null, "evaluation prompts, from the first; none = as many as the run has"),
  n: field(int(1), 4, "completions a prompt"),
  temperature: field(orNone(nonNegative()), null, "divides the logits; 0 = the likeliest token"),
  max_new_tokens: field(orNone(int(1)), null, "longest completion in tokens"),
  routing_eval: field(
    z.boolean(),
    true,
    "of a checkpoint with retain and forget adapters: also sample with each by itself, and compare",
  ),
  samples: field(int(0), 5, "completions to show"),
  judge_again: field(
    int(0),
    16,
    "responses that a rubric's judge judges again with its criteria in every rotation of their order; 0 = none",
  ),
  device: field(orNone(z.enum(DEVICES)), null, "where to compute"),
  threads: field(orNone(int(1, 1024)), null, "CPU threads; never changes a result"),
  ...seedShape,
});
export type EvalOptions = Readonly<z.output<typeof evalSchema>>;
