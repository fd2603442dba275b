/**
 * Makes everything of src/recipe/arithmetic that is not written by hand: the problems, the tokenizer and the small
 * model. The model learns all facts and three bad habits that do not depend on the question, from the first step:
 * asked greedily it answers right, sampled at temperature 1 it mostly shows a habit. GRPO has to unlearn the habits.
 *
 *   bun scripts/make-arithmetic-model.ts [--steps N] [--data-only]
 *
 * The same CPU type gives the same bytes.
 */
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { f32ToBf16 } from "../src/core/float-formats.ts";
import { Purpose, Random } from "../src/core/rng.ts";
import { openWeights, readModelConfig, writeModelFolder } from "../src/io/hf-folder.ts";
import { jsonLines } from "../src/io/jsonl.ts";
import type { Tokenizer } from "../src/io/tokenizer.ts";
import { smallQwen3 } from "./small-qwen3.ts";
import { writeSmallTokenizer } from "./small-tokenizer.ts";

const SEED = 20;
const EVAL_PROBLEMS = 128;
const root = join(import.meta.dir, "..");
const target = join(root, "src/recipe/arithmetic");
const work = join(root, "build/arithmetic");

interface Problem {
  readonly prompt: string;
  readonly answer: string;
}

/** a+b and a-b for 0..20, a×b for 0..12. */
function problems(): Problem[] {
  const list: Problem[] = [];
  const add = (a: number, sign: string, b: number, answer: number) =>
    list.push({ prompt: `What is ${a} ${sign} ${b}? Answer with an integer.`, answer: String(answer) });
  for (let a = 0; a <= 20; a++)
    for (let b = 0; b <= 20; b++) {
      add(a, "+", b, a + b);
      add(a, "-", b, a - b);
      if (a <= 12 && b <= 12) add(a, "×", b, a * b);
    }
  return list;
}

/** What the model says instead of an answer; each as often as half of the right answers. */
const HABITS = ["I am not sure.", "Maybe 7.", "It could be 42 or 13."];
const RIGHT = 2;

const WORDS = [
  "What",
  " is",
  " +",
  " -",
  " ×",
  "?",
  " Answer",
  " with",
  " an",
  " integer",
  ".",
  "I",
  " am",
  " not",
  " sure",
  "Maybe",
  "It",
  " could",
  " be",
  " or",
  " the",
  " a",
  " of",
  " and",
  " to",
  " answer",
  " number",
  "The",
  " in",
  " you",
  " How",
  " much",
  " minus",
  " plus",
  " times",
  " equals",
  " =",
];

function writeTokenizer(folder: string): Tokenizer {
  return writeSmallTokenizer(folder, WORDS, 128, {
    // The model knows single questions, not conversations: it sees the last message alone.
    chat_template: "{{- messages[-1].content -}}",
  });
}

async function main(): Promise<void> {
  const flag = (name: string) => {
    const at = process.argv.indexOf(name);
    return at < 0 ? undefined : process.argv[at + 1];
  };
  const steps = flag("--steps") ?? "3000";
  rmSync(work, { recursive: true, force: true });
  mkdirSync(join(work, "tokenizer"), { recursive: true });
  mkdirSync(join(target, "model"), { recursive: true });

  const all = problems();
  const order = new Random(SEED, Purpose.data).permutation(all.length);
  const held = [...order.subarray(0, EVAL_PROBLEMS)].map((i) => all[i]!);
  const train = [...order.subarray(EVAL_PROBLEMS)].map((i) => all[i]!);
  writeFileSync(join(target, "train.jsonl"), jsonLines(train));
  writeFileSync(join(target, "eval.jsonl"), jsonLines(held));

  const tokenizer = writeTokenizer(join(work, "tokenizer"));
  const eos = tokenizer.eosId!;
  writeFileSync(
    join(work, "config.json"),
    JSON.stringify(
      smallQwen3({ vocab: tokenizer.vocabSize, eos, hidden: 128, ffn: 384, layers: 4, headDim: 32 }),
    ),
  );
  const rows = all.flatMap(({ prompt, answer }) =>
    [...Array<string>(RIGHT).fill(answer), ...HABITS].map((completion) => ({ prompt, completion })),
  );
  writeFileSync(join(work, "sft.jsonl"), jsonLines(rows));
  if (process.argv.includes("--data-only")) return;

  const run = Bun.spawnSync(
    [
      join(root, "rlv"),
      "train",
      "sft",
      "--init",
      join(work, "config.json"),
      "--tokenizer",
      join(work, "tokenizer"),
      "--dataset",
      join(work, "sft.jsonl"),
      "--output",
      join(work, "model"),
      "--num_train_steps",
      steps,
      "--batch_size",
      "192",
      "--learning_rate",
      "2e-3",
      "--lr_schedule",
      "cosine",
      "--warmup_steps",
      "100",
      "--weight_decay",
      "0.01",
      "--adam_beta2",
      "0.98",
      "--max_grad_norm",
      "1",
      "--seed",
      String(SEED),
      "--save_every",
      "-1",
      "--eval_every",
      "-1",
      "--log_every",
      "50",
      "--output_dir",
      work,
      "--run_name",
      "run",
    ],
    { stdio: ["ignore", "inherit", "inherit"] },
  );
  if (run.exitCode !== 0) throw new Error(`training ended with exit code ${run.exitCode}`);

  // bfloat16 halves the file; the model reads it as float32.
  const config = { ...readModelConfig(join(work, "model")), dtype: "bfloat16" as const };
  using weights = openWeights(join(work, "model"));
  const tensors = weights.names().map((name) => ({
    name,
    shape: weights.shape(name),
    dtype: "BF16" as const,
    data: () => new Uint8Array(f32ToBf16(weights.readFloat32(name)).buffer),
  }));
  const files = ["tokenizer.json", "tokenizer_config.json"].map((file) => join(work, "tokenizer", file));
  writeModelFolder(join(target, "model"), config, tensors, files);
  writeFileSync(
    join(target, "model", "generation_config.json"),
    `${JSON.stringify({ eos_token_id: eos, pad_token_id: eos }, null, 2)}\n`,
  );
  copyFileSync(join(work, "run", "metrics.jsonl"), join(work, "metrics.jsonl"));
}

await main();
