import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { goldenCases } from "../goldens-dirs.ts";

/** Where a kind of golden is checked (`selects`: how that file picks its cases), or why it is not yet. */
type Entry = { readonly test: string; readonly selects: string } | { readonly skipped: string };

const checked = (test: string, selects: string): Entry => ({ test, selects });
const ofKind = (kind: string, test: string) => checked(test, `"${kind}"`);

const KINDS: Readonly<Record<string, Entry>> = {
  causal_lm: ofKind("causal_lm", "golden/models.test.ts"),
  adamw: ofKind("adamw", "golden/optimizer.test.ts"),
  grpo_trainer: ofKind("grpo_trainer", "golden/trainer.test.ts"),
  sampling: ofKind("sampling", "golden/sampling.test.ts"),
  lm_head_logprob: ofKind("lm_head_logprob", "ops/head-goldens.test.ts"),
  lr_schedule: ofKind("lr_schedule", "loss/schedule.test.ts"),
  grpo_loss: ofKind("grpo_loss", "loss/goldens.test.ts"),
  grpo_advantages: ofKind("grpo_advantages", "loss/goldens.test.ts"),
  tokenizer: ofKind("tokenizer", "io/tokenizer.test.ts"),
  chat_template: ofKind("chat_template", "io/template.test.ts"),
  chat_template_files: ofKind("chat_template_files", "io/template.test.ts"),
  jinja: ofKind("jinja", "io/template.test.ts"),
  tensorboard_events: checked("io/tensorboard.test.ts", 'goldenCases("tb")'),
  reward_model: ofKind("reward_model", "golden/reward.test.ts"),
  bradley_terry: ofKind("bradley_terry", "loss/bradley-terry.test.ts"),
  peft_lora: ofKind("peft_lora", "golden/peft.test.ts"),
  nf4: ofKind("nf4", "golden/quant.test.ts"),
  fp4: ofKind("fp4", "golden/quant.test.ts"),
  int8: ofKind("int8", "golden/quant.test.ts"),
  quantized_folder: ofKind("quantized_folder", "golden/quant.test.ts"),
  dual_lora_step: ofKind("dual_lora_step", "golden/routing.test.ts"),
  dual_lora_grpo: ofKind("dual_lora_grpo", "golden/routing.test.ts"),
  hub_trace: ofKind("hub_trace", "io/hub-golden.test.ts"),
};

const byKind = Map.groupBy(goldenCases(), ({ kind }) => kind);

test("every golden found is of a kind with a test or a reason", () => {
  const unknown = [...byKind].filter(([kind]) => !(kind in KINDS));
  expect(unknown.flatMap(([kind, cases]) => cases.map(({ name }) => `${name}: ${kind}`))).toEqual([]);
});

// A kind without a single case would make the test named for it pass without checking anything.
describe.each(Object.entries(KINDS))("%s", (kind, entry) => {
  const cases = byKind.get(kind) ?? [];
  if ("skipped" in entry) {
    test.skip(`${cases.length} cases: ${entry.skipped}`, () => {});
    return;
  }
  test(`${cases.length} cases in ${entry.test}`, () => {
    expect(readFileSync(join(import.meta.dir, "..", entry.test), "utf8")).toContain(entry.selects);
    if (!process.env.RLV_GOLDENS) expect(cases.length).toBeGreaterThan(0);
  });
});
