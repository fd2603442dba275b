/**
 * Shows that a reward model steers a policy to what people prefer, where that can be measured: on a small language with
 * a hidden preference (preference-grammar.ts). Runs the commands that a user would, prints each, and measures.
 *
 *   bun scripts/preference-proof.ts --out DIR [--short true]
 *
 * A policy learns to speak from good and bad answers alike; a reward model learns from pairs which answer is preferred;
 * GRPO teaches the policy by the reward model alone; the reward model in 8 and 4 bits judges as it does. In the end the hidden preference of fresh samples, which no model
 * has ever seen, is compared with that of the first policy.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { mean } from "../src/core/lists.ts";
import { type Turn, transcriptText } from "../src/data/conversation.ts";
import { openPreferences } from "../src/data/preferences.ts";
import { jsonLines, readDataset } from "../src/io/jsonl.ts";
import { DEFAULTS, makePreferences, type PreferenceSizes } from "./make-preferences.ts";
import { hiddenPreference } from "./preference-grammar.ts";
import { program } from "./program.ts";

export interface ProofSizes {
  readonly world: PreferenceSizes;
  readonly sftSteps: number;
  readonly rmEpochs: number;
  readonly grpoSteps: number;
}

/** Pairs of small differences, and answers that nobody would give: a reward model without them is soon deceived. */
const WORLD: PreferenceSizes = { ...DEFAULTS, gap: 0.15, broken: 0.4, good: 0.4 };

export const FULL: ProofSizes = {
  world: { ...WORLD, train: 40000 },
  sftSteps: 1500,
  rmEpochs: 2,
  grpoSteps: 600,
};
/** The same in about a minute. */
export const SHORT: ProofSizes = {
  world: { ...WORLD, train: 30000 },
  sftSteps: 900,
  rmEpochs: 2,
  grpoSteps: 300,
};

export interface Proof {
  /** Share of held-out pairs in which the chosen answer has the larger reward. */
  readonly accuracy: number;
  /** Mean hidden preference, in [0, 1], of the first policy's samples and of the last one's. */
  readonly before: number;
  readonly after: number;
  /** By how much the reward model's accuracy changes in fewer bits. */
  readonly quantized: { readonly int8: number; readonly int4: number };
}

/** Runs `rlv ARGS`; throws if it fails. */
type Run = (args: readonly string[]) => Promise<void>;

export async function prove(out: string, sizes: ProofSizes, rlv: Run): Promise<Proof> {
  const at = (name: string) => join(out, name);
  mkdirSync(out, { recursive: true });
  makePreferences(at("world"), sizes.world);
  const numbers = ["--dtype", "float32", "--optimizer_dtype", "float32", "--gradient_checkpointing", "false"];
  await rlv([
    ...["train", "sft", "--init", at("world/config.json"), "--tokenizer", at("world/tokenizer")],
    ...[
      "--dataset",
      at("world/sft.jsonl"),
      "--num_train_steps",
      String(sizes.sftSteps),
      "--batch_size",
      "64",
    ],
    ...["--learning_rate", "3e-3", "--eval_every", "-1", "--output_dir", at("sft"), "--output", at("policy")],
  ]);
  await rlv([
    ...["train", "hh-rm", "--model", at("policy"), "--dataset", at("world"), ...numbers],
    ...["--epochs", String(sizes.rmEpochs), "--batch_size", "32", "--grad_accum", "1", "--lr", "3e-3"],
    ...["--lr_schedule", "linear", "--warmup_steps", "50", "--weight_decay", "0.1", "--max_grad_norm", "1"],
    ...["--max_length", "64", "--eval_steps", "500", "--save_steps", "-1"],
    ...["--output_dir", out, "--log_dir", at("logs"), "--run_name", "rm"],
  ]);
  const rewardModel = at("rm/checkpoints/final");
  await rlv([
    ...["train", "hh-grpo", "--model", at("policy"), "--reward_model_path", rewardModel, ...numbers],
    ...["--dataset", at("world"), "--num_train_steps", String(sizes.grpoSteps), "--batch_size", "16"],
    ...["--grad_accum_steps", "2", "--n_minibatches", "2", "--lr", "5e-4", "--lr_schedule", "linear"],
    ...["--kl_coef", "0.08", "--max_prompt_length", "48", "--max_new_tokens", "24", "--eval_steps", "100"],
    ...["--save_steps", "-1", "--output_dir", out, "--log_dir", at("logs"), "--run_name", "grpo"],
  ]);
  const pairs = at("pairs.jsonl");
  const prompts = at("prompts.jsonl");
  await writeHeldOut(at("world"), pairs, prompts);
  const scores = at("scores.jsonl");
  await rlv(["score", "--model", rewardModel, "--in", pairs, "--out", scores]);
  const rewards = readDataset(scores).map(({ row: { reward } }) => reward as number);
  const right = rewards.filter((reward, i) => i % 2 === 0 && reward > rewards[i + 1]!).length;
  const quantized = async (type: "int8" | "int4"): Promise<number> => {
    await rlv([
      ...["quantize", "--checkpoint", rewardModel, "--quant_type", type, "--dataset", at("world")],
      ...["--max_length", "64"],
    ]);
    const results = join(rewardModel, `quantized_${type}`, "evaluation_results.json");
    return JSON.parse(readFileSync(results, "utf8")).accuracy_change;
  };
  const preferenceOf = async (model: string, name: string): Promise<number> => {
    const sampled = at(`${name}.jsonl`);
    await rlv([
      ...["generate", "--model", model, "--in", prompts, "--out", sampled],
      ...["--n", "4", "--max_new_tokens", "24"],
    ]);
    const values = readDataset(sampled).flatMap(({ row: { prompt, completions } }) =>
      (completions as { text: string }[]).map(({ text }) => hiddenPreference(prompt as string, text)),
    );
    return mean(values);
  };
  return {
    accuracy: right / (rewards.length / 2),
    before: await preferenceOf(at("policy"), "before"),
    after: await preferenceOf(at("grpo/checkpoints/final"), "after"),
    quantized: { int8: await quantized("int8"), int4: await quantized("int4") },
  };
}

/** Both answers of every test pair, chosen first, and the test prompts. */
async function writeHeldOut(world: string, pairs: string, prompts: string): Promise<void> {
  const source = await openPreferences(world, "test");
  const rows = Array.from({ length: source.length }, (_, i) => source.at(i));
  const said = rows.flatMap(({ prompt, chosen, rejected }) =>
    [chosen, rejected].map((answer) => ({ messages: [...(prompt as Turn[]), ...(answer as Turn[])] })),
  );
  const asked = rows.map(({ prompt }) => ({ prompt: transcriptText(prompt as Turn[], true) }));
  writeFileSync(pairs, jsonLines(said));
  writeFileSync(prompts, jsonLines(asked));
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { out: { type: "string" }, short: { type: "string" } } });
  if (values.out === undefined) throw new Error("--out DIR: where to work");
  const proof = await prove(values.out, values.short === "true" ? SHORT : FULL, program);
  const { accuracy, before, after, quantized } = proof;
  const points = (change: number) => `${change < 0 ? "" : "+"}${(100 * change).toFixed(2)} points`;
  process.stdout.write(
    `\nreward model: ${(100 * accuracy).toFixed(1)} % of the held-out pairs\n` +
      `in int8 ${points(quantized.int8)}, in int4 ${points(quantized.int4)}\n` +
      `hidden preference of samples: ${before.toFixed(3)} before, ${after.toFixed(3)} after (0 to 1)\n`,
  );
}
