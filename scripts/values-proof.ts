/**
 * Shows the recipe `values` whole and offline: a small model learns to speak and to grade by a rule that code knows
 * (make-judge-model.ts); GRPO then rewards its responses by the grades of its own first weights. What rises is measured by
 * code, on fresh samples for questions that no training has seen. Runs the commands that a user would, and prints each.
 *
 *   bun scripts/values-proof.ts --out DIR [--short true]
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { jsonLines, readDataset } from "../src/io/jsonl.ts";
import { type JudgeReport, judgeReport, judgeReportText, readJudged } from "../src/report/judge.ts";
import { hiddenScore, hiddenValue, NAMES, type Value } from "./judge-language.ts";
import { DEFAULTS, type JudgeSizes, makeJudgeModel } from "./make-judge-model.ts";
import { program } from "./program.ts";

export interface ProofSizes {
  readonly judge: JudgeSizes;
  readonly grpoSteps: number;
}
export const FULL: ProofSizes = { judge: DEFAULTS, grpoSteps: 200 };
/** The same in about half a minute. */
export const SHORT: ProofSizes = { judge: { ...DEFAULTS, steps: 1000, rows: 30_000 }, grpoSteps: 50 };

/** By criterion, each in 1..5, and all as the rubric weighs them, in [0, 1]. */
export interface Hidden {
  readonly scores: Readonly<Record<Value, number>>;
  readonly value: number;
}

export interface Proof {
  readonly before: Hidden;
  readonly after: Hidden;
  /** The two readings against each other, on every response of the run. */
  readonly report: JudgeReport;
  /** Share of the judge's text answers that are the code's score, and mean distance of the expected ones from it. */
  readonly judgeRight: number;
  readonly judgeError: number;
  readonly run: string;
}

export async function prove(
  out: string,
  sizes: ProofSizes,
  rlv: (args: readonly string[]) => Promise<void>,
): Promise<Proof> {
  const at = (name: string) => join(out, name);
  const world = await makeJudgeModel(at("world"), sizes.judge, rlv);
  await rlv([
    ...["train", "values", "--model", world.model, "--rubric", world.rubric],
    ...["--train_file", world.train, "--eval_file", world.held, "--dtype", "float32"],
    ...["--num_train_steps", String(sizes.grpoSteps), "--batch_size", "8", "--group_size", "8"],
    ...["--learning_rate", "1e-3", "--kl_coef", "0.01", "--max_prompt_length", "16"],
    ...["--max_completion_length", "16", "--warmup_steps", "5", "--eval_every", "50", "--save_every", "-1"],
    ...["--log_every", "10", "--output_dir", out, "--run_name", "values"],
  ]);
  const run = at("values");
  const asked = at("asked.jsonl");
  const rows = readDataset(world.held).map(({ row: { prompt } }) => ({
    messages: [{ role: "user", content: prompt }],
  }));
  writeFileSync(asked, jsonLines(rows));
  const hidden = async (model: string, name: string): Promise<Hidden> => {
    const sampled = at(`${name}.jsonl`);
    await rlv([
      ...["generate", "--model", model, "--in", asked, "--out", sampled],
      ...["--n", "8", "--max_new_tokens", "16"],
    ]);
    const said = readDataset(sampled).flatMap(({ row: { completions } }) =>
      (completions as { text: string }[]).map(({ text }) => text),
    );
    const mean = (of: (text: string) => number) =>
      said.reduce((sum, text) => sum + of(text), 0) / said.length;
    const scores = Object.fromEntries(
      NAMES.map((value) => [value, mean((text) => hiddenScore(value, text))]),
    ) as Record<Value, number>;
    return { scores, value: mean(hiddenValue) };
  };
  const judged = readJudged(join(run, "rollouts.sqlite"), "rollouts", 1_000_000);
  const pairs = judged.flatMap(({ response, judge }) =>
    NAMES.map((name) => ({ code: hiddenScore(name, response), ...judge.criteria[name]! })),
  );
  return {
    before: await hidden(world.model, "before"),
    after: await hidden(join(run, "checkpoints/final"), "after"),
    report: judgeReport(judged),
    judgeRight: pairs.filter(({ code, text }) => code === text).length / pairs.length,
    judgeError: pairs.reduce((sum, { code, expected }) => sum + Math.abs(code - expected), 0) / pairs.length,
    run,
  };
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { out: { type: "string" }, short: { type: "string" } } });
  if (values.out === undefined) throw new Error("--out DIR: where to work");
  const proof = await prove(values.out, values.short === "true" ? SHORT : FULL, program);
  const shown = ({ scores, value }: Hidden) =>
    `${value.toFixed(3)} (${NAMES.map((name) => `${name} ${scores[name].toFixed(2)}`).join(", ")})`;
  process.stdout.write(
    `\n${judgeReportText(proof.report).join("\n")}\n` +
      `the judge says the score that code counts in ${(100 * proof.judgeRight).toFixed(1)} % of the answers; ` +
      `the expected score is ${proof.judgeError.toFixed(3)} off on average\n` +
      `hidden value of fresh samples, counted by code:\n  before ${shown(proof.before)}\n  after  ${shown(proof.after)}\n`,
  );
}
