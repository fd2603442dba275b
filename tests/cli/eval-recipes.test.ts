/** rlv eval on runs whose rewards are models: a rubric's judge, examined too, and a reward model. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NAMES } from "../../scripts/judge-language.ts";
import { type JudgeWorld, makeJudgeModel } from "../../scripts/make-judge-model.ts";
import type { Evaluation } from "../../src/report/evaluation.ts";
import { makeWorld, SMALL } from "../run/preference-world.ts";
import { rlv } from "../run/program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-eval-recipes-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const run = async (args: readonly string[]) => {
  const { code, err } = await rlv(args);
  expect([err, code]).toEqual(["", 0]);
};

/** Of one run. */
async function evaluate(...args: string[]): Promise<Evaluation> {
  const { code, out, err } = await rlv(["eval", ...args, "--dir", scratch, "--json"]);
  if (code !== 0) throw new Error(err);
  return JSON.parse(out).evaluations[0];
}

describe("a rubric's judge", () => {
  let world: JudgeWorld;

  beforeAll(async () => {
    // It grades at random, which is all the same for what is asked here.
    const sizes = { steps: 20, rows: 600, seed: 1 };
    world = await makeJudgeModel(join(scratch, "world"), sizes, run);
    for (const judge of ["initial", "self"])
      await run([
        ...["train", "values", "--model", world.model, "--rubric", world.rubric, "--judge", judge],
        ...["--train_file", world.train, "--eval_file", world.held, "--dtype", "float32"],
        ...["--num_train_steps", "2", "--batch_size", "2", "--group_size", "4", "--learning_rate", "1e-2"],
        ...["--max_prompt_length", "16", "--max_completion_length", "16", "--save_every", "1"],
        ...["--eval_every", "-1", "--output_dir", scratch, "--run_name", judge],
      ]);
  }, 120_000);

  const SAMPLED = ["--prompts", "3", "--n", "2"];

  test("readings, length, and the order of the criteria: of fresh completions", async () => {
    const { fresh, judge, note } = await evaluate("initial", ...SAMPLED);
    expect(note).toBeNull();
    expect(fresh).toMatchObject({ prompts: 3, completions: 6 });
    expect(Object.keys(fresh!.components)).toEqual(NAMES.map((name) => `rubric/${name}`));
    expect(judge).toMatchObject({ model: "initial", responses: 6 });
    let reward = 0;
    for (const [i, criterion] of judge!.criteria.entries()) {
      expect(criterion.name).toBe(NAMES[i]!);
      expect(criterion.invalid_rate).toBeGreaterThanOrEqual(0);
      if (criterion.invalid_rate < 1) expect(criterion.exact_agreement).toBeGreaterThanOrEqual(0);
      expect(Math.abs(criterion.length_correlation!)).toBeLessThanOrEqual(1);
      reward += (criterion.mean_expected - 1) / 4 / NAMES.length;
    }
    expect(reward).toBeCloseTo(fresh!.reward!.mean, 12);
    // Fewer completions than are judged again.
    expect(judge!.position).toMatchObject({ responses: 6, orders: 3 });
    const { judge: fewer } = await evaluate("initial", ...SAMPLED, "--judge_again", "4");
    expect(fewer!.position).toMatchObject({ responses: 4, orders: 3 });
    const { judge: none } = await evaluate("initial", ...SAMPLED, "--judge_again", "0");
    expect(none).toEqual({ ...judge!, position: null });
    const { out } = await rlv(["eval", "initial", ...SAMPLED, "--dir", scratch]);
    expect(out).toContain("order of the criteria (3 orders, 6 responses): shift by place");
  }, 60_000);

  test("shifts by place are those of three rubrics, each with its criteria in another order", async () => {
    const whole = readFileSync(world.rubric, "utf8");
    const parts = whole.split(/(?= {2}- name:)|(?=template:)/);
    const [head, criteria, end] = [parts[0]!, parts.slice(1, 1 + NAMES.length), parts.at(-1)!];
    const { judge } = await evaluate("initial", ...SAMPLED);
    const scores: Record<string, number>[] = [];
    for (const turn of NAMES.keys()) {
      const rotated = criteria.map((_, i) => criteria[(i + turn) % criteria.length]!);
      writeFileSync(world.rubric, head + rotated.join("") + end);
      const own = await evaluate("initial", ...SAMPLED, "--judge_again", "0");
      expect(own.judge!.criteria[0]!.name).toBe(NAMES[turn]!);
      scores.push(Object.fromEntries(own.judge!.criteria.map((each) => [each.name, each.mean_expected])));
    }
    writeFileSync(world.rubric, whole);
    const count = NAMES.length;
    for (const place of NAMES.keys()) {
      const shifts = NAMES.map((name, i) => {
        const there = scores[(i - place + count) % count]![name]!;
        return there - scores.reduce((sum, each) => sum + each[name]!, 0) / count;
      });
      const shift = shifts.reduce((a, b) => a + b, 0) / count;
      expect(judge!.position!.shift_by_position[place]).toBeCloseTo(shift, 10);
    }
    expect(judge!.position!.mean_spread).toBeGreaterThan(0);
  }, 60_000);

  test("of stored completions; self is the checkpoint that is evaluated, initial never changes", async () => {
    for (const [name, same] of [
      ["initial", true],
      ["self", false],
    ] as const) {
      const stored = async (checkpoint: string, ...more: string[]) =>
        evaluate(join(scratch, name, "checkpoints", checkpoint), "--fresh", "false", ...more);
      const first = await stored("step-1");
      expect(first).toMatchObject({ fresh: null, note: expect.stringContaining("--fresh false") });
      expect(first.judge).toMatchObject({
        model: name,
        responses: 16,
        position: { responses: 16, orders: 3 },
      });
      const last = await stored("final");
      expect(last.judge!.criteria).toEqual(first.judge!.criteria);
      const equal = Bun.deepEquals(first.judge!.position, last.judge!.position);
      expect([name, equal]).toEqual([name, same]);
      expect((await stored("final", "--judge_again", "0")).judge!.position).toBeNull();
    }
  }, 60_000);
});

test("a reward model: reward and diversity of what the policy says now", async () => {
  const { data, policy } = await makeWorld(join(scratch, "hh"), { train: 40, test: 20, sft: 100, steps: 5 });
  const common = (name: string) => [
    ...["--num_train_steps", "2", "--eval_steps", "-1", "--output_dir", scratch, "--run_name", name],
    ...["--log_dir", join(scratch, "logs"), ...SMALL],
  ];
  await run([
    ...["train", "hh-rm", "--model", policy, "--dataset", data, "--max_length", "48", "--batch_size", "4"],
    ...common("rm"),
  ]);
  await run([
    ...["train", "hh-grpo", "--model", policy, "--dataset", data],
    ...["--reward_model_path", join(scratch, "rm/checkpoints/final"), "--max_prompt_length", "40"],
    ...["--max_new_tokens", "12", "--batch_size", "2", "--group_size", "4", "--eval_num_prompts", "6"],
    ...common("grpo"),
  ]);
  const { fresh, judge, recipe, note } = await evaluate("grpo", "--n", "2");
  expect([recipe, judge]).toEqual(["hh-grpo", null]);
  // It never evaluated.
  expect(note).toContain("the run held no prompts out");
  expect(fresh).toMatchObject({ prompts: 6, completions: 12, diversity: { completions: 12 } });
  const { min, mean, max, std } = fresh!.reward!;
  expect([min < mean, mean < max, std > 0]).toEqual([true, true, true]);
  expect(fresh!.best_of_n).toBeGreaterThan(mean);
  const trained = await evaluate("rm");
  expect(trained).toMatchObject({ recipe: "hh-rm", fresh: null, note: expect.stringContaining("hh-rm") });
}, 120_000);
