import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { goldenCases } from "../goldens-dirs.ts";

/** Which test exercises a kind of golden, or why none does yet. */
const KINDS: Readonly<Record<string, { readonly test: string } | { readonly skipped: string }>> = {
  causal_lm: { test: "golden/models.test.ts" },
  adamw: { test: "golden/optimizer.test.ts" },
  grpo_trainer: { test: "golden/trainer.test.ts" },
  sampling: { test: "golden/sampling.test.ts" },
  lm_head_logprob: { test: "ops/head-goldens.test.ts" },
  lr_schedule: { test: "loss/schedule.test.ts" },
  grpo_loss: { test: "loss/goldens.test.ts" },
  grpo_advantages: { test: "loss/goldens.test.ts" },
  tokenizer: { test: "io/tokenizer.test.ts" },
  chat_template: { test: "io/template.test.ts" },
  chat_template_files: { test: "io/template.test.ts" },
  jinja: { test: "io/template.test.ts" },
  tensorboard_events: { test: "io/tensorboard.test.ts" },
  reward_model: { skipped: "reward models are not part of this version" },
  bradley_terry: { skipped: "reward models are not part of this version" },
  peft_lora: { skipped: "LoRA is not part of this version" },
  nf4: { skipped: "quantization is not part of this version" },
  fp4: { skipped: "quantization is not part of this version" },
  int8: { skipped: "quantization is not part of this version" },
  quantized_folder: { skipped: "quantization is not part of this version" },
  dual_lora_step: { skipped: "gradient routing is not part of this version" },
  dual_lora_grpo: { skipped: "gradient routing is not part of this version" },
  hub_trace: { skipped: "the hub is not part of this version" },
};

const counts = new Map<string, number>();
for (const { kind } of goldenCases()) counts.set(kind, (counts.get(kind) ?? 0) + 1);

test("every golden found is of a kind with a test or a reason", () => {
  expect([...counts.keys()].filter((kind) => !(kind in KINDS))).toEqual([]);
});

for (const [kind, count] of counts) {
  const entry = KINDS[kind];
  if (!entry) continue;
  if ("skipped" in entry) test.skip(`${kind}: ${count} cases, ${entry.skipped}`, () => {});
  else
    test(`${kind}: ${count} cases in ${entry.test}`, () => {
      expect(existsSync(join(import.meta.dir, "..", entry.test))).toBe(true);
    });
}
