/**
 * Makes a small model that answers questions of a small language (judge-language.ts) and, asked by a rubric, grades
 * responses from 1 to 5 by a rule that code knows: the number of words of each value. With it come a tokenizer with a
 * chat template, the rubric, and prompts for `rlv train values`.
 *
 *   bun scripts/make-judge-model.ts --out DIR [--steps N] [--rows N] [--seed N]
 *
 * Offline, a minute or two on two cores. The same CPU type gives the same bytes.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Purpose, Random } from "../src/core/rng.ts";
import { jsonLines } from "../src/io/jsonl.ts";
import { renderChat } from "../src/io/template.ts";
import type { Tokenizer } from "../src/io/tokenizer.ts";
import { fill, parseRubric, preambleText, type Rubric } from "../src/reward/rubric.ts";
import { judgeFrame } from "../src/run/judge-prompt.ts";
import {
  CHAT_TEMPLATE,
  drawResponse,
  hiddenScore,
  NAMES,
  QUESTIONS,
  RUBRIC,
  type Value,
  WORDS,
} from "./judge-language.ts";
import { program } from "./program.ts";
import { smallQwen3 } from "./small-qwen3.ts";
import { writeSmallTokenizer } from "./small-tokenizer.ts";

export interface JudgeSizes {
  /** Supervised steps, and rows they are drawn from. */
  readonly steps: number;
  readonly rows: number;
  readonly seed: number;
}
export const DEFAULTS: JudgeSizes = { steps: 2500, rows: 40_000, seed: 1 };

/** Where everything lies below the folder. */
export interface JudgeWorld {
  readonly model: string;
  readonly rubric: string;
  readonly train: string;
  readonly held: string;
}

/** Questions of the language that no training sees. */
const HELD = 24;
/** Share of words of each value in what the policy says at first. */
const FIRST = 0.07;

/** The message to the judge, and its answer up to the grade. */
function question(rubric: Rubric, prompt: string, response: string, name: Value) {
  const { template } = rubric;
  const conversation = fill(template.conversation, { prompt, response });
  return { content: preambleText(rubric) + conversation + template.question, answer: name as string };
}

/** An eighth of the rows are answers as a policy gives them, the others are grades. */
function drawRow(random: Random, rubric: Rubric): object {
  const prompt = QUESTIONS[random.below(QUESTIONS.length)]!;
  const said = (content: string, answer: string) => ({
    messages: [
      { role: "user", content },
      { role: "assistant", content: answer },
    ],
  });
  if (random.below(8) === 0) {
    const shares = Object.fromEntries(NAMES.map((name) => [name, FIRST])) as Record<Value, number>;
    return said(prompt, drawResponse(random, 6 + random.below(7), shares));
  }
  // From none to all of the words are of a value, so that every grade of every criterion is met.
  const total = random.uniform();
  const parts = NAMES.map(() => random.uniform() ** 2 + 0.01);
  const sum = parts.reduce((a, b) => a + b, 0);
  const shares = Object.fromEntries(NAMES.map((name, i) => [name, (total * parts[i]!) / sum]));
  const response = drawResponse(random, 3 + random.below(13), shares as Record<Value, number>);
  const name = NAMES[random.below(NAMES.length)]!;
  const { content, answer } = question(rubric, prompt, response, name);
  return said(content, `${answer}${hiddenScore(name, response)}`);
}

/** The judge reads in pieces what it was taught in one: they must be the same tokens. */
function checkPieces(tokenizer: Tokenizer, rubric: Rubric): void {
  const frame = judgeFrame(rubric, tokenizer);
  const [prompt, response] = [QUESTIONS[0]!, "why the sea"];
  for (const [i, name] of NAMES.entries()) {
    const { content, answer } = question(rubric, prompt, response, name);
    const whole = renderChat(tokenizer, [{ role: "user", content }], { addGenerationPrompt: true }) + answer;
    const pieces = [
      ...[frame.preamble, frame.promptIds(prompt), frame.responseIds(response), frame.shared, frame.own[i]!],
    ].flatMap((ids) => [...ids]);
    if (String(pieces) !== String([...tokenizer.encode(whole)]))
      throw new Error(`the question for ${name} has other tokens in pieces`);
  }
}

/** Writes the world into a folder and trains its model. */
export async function makeJudgeModel(
  out: string,
  { steps, rows, seed }: JudgeSizes,
  rlv: (args: readonly string[]) => Promise<void>,
): Promise<JudgeWorld> {
  const at = (name: string) => join(out, name);
  mkdirSync(out, { recursive: true });
  const rubric = parseRubric(RUBRIC, "rubric");
  writeFileSync(at("rubric.yaml"), RUBRIC);
  const tokenizer = writeSmallTokenizer(at("tokenizer"), WORDS, 128, { chat_template: CHAT_TEMPLATE });
  checkPieces(tokenizer, rubric);
  const size = { vocab: tokenizer.vocabSize, eos: tokenizer.eosId! };
  const config = smallQwen3({ ...size, hidden: 64, ffn: 192, layers: 3, headDim: 16 });
  writeFileSync(at("config.json"), JSON.stringify(config));
  const order = [...new Random(seed, Purpose.data, 1).permutation(QUESTIONS.length)];
  const prompts = (list: readonly number[]) => jsonLines(list.map((i) => ({ prompt: QUESTIONS[i]! })));
  writeFileSync(at("held.jsonl"), prompts(order.slice(0, HELD)));
  writeFileSync(at("train.jsonl"), prompts(order.slice(HELD)));
  const random = new Random(seed, Purpose.data);
  writeFileSync(at("sft.jsonl"), jsonLines(Array.from({ length: rows }, () => drawRow(random, rubric))));
  await rlv([
    ...["train", "sft", "--init", at("config.json"), "--tokenizer", at("tokenizer")],
    ...["--dataset", at("sft.jsonl"), "--num_train_steps", String(steps), "--batch_size", "64"],
    ...["--learning_rate", "3e-3", "--lr_schedule", "cosine", "--warmup_steps", "50", "--adam_beta2", "0.98"],
    ...["--weight_decay", "0.01", "--eval_every", "-1", "--save_every", "-1", "--log_every", "100"],
    ...["--output_dir", out, "--run_name", "sft", "--output", at("model")],
  ]);
  return { model: at("model"), rubric: at("rubric.yaml"), train: at("train.jsonl"), held: at("held.jsonl") };
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      out: { type: "string" },
      steps: { type: "string" },
      rows: { type: "string" },
      seed: { type: "string" },
    },
  });
  if (values.out === undefined) throw new Error("--out DIR: where to write");
  const number = (name: keyof JudgeSizes) =>
    values[name] === undefined ? DEFAULTS[name] : Number(values[name]);
  await makeJudgeModel(
    values.out,
    { steps: number("steps"), rows: number("rows"), seed: number("seed") },
    program,
  );
}
