/** GRPO by a rubric, offline: scripts/values-proof.ts in short, every kind of judge, and runs that are broken off. */
import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NAMES } from "../../scripts/judge-language.ts";
import { type Proof, prove, SHORT } from "../../scripts/values-proof.ts";
import { reportJudge } from "../../src/recipe/judge-report.ts";
import type { JudgeDetails } from "../../src/report/judge.ts";
import { digest, metrics, rlv, start } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-values-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

let proof: Proof;
const world = (name: string) => join(scratch, "world", name);
beforeAll(async () => {
  proof = await prove(scratch, SHORT, async (args) => {
    const { code, err } = await rlv(args);
    if (code !== 0) throw new Error(err);
  });
}, 300_000);

type Flags = Readonly<Record<string, string | number>>;

/** A short run on the world of the proof. */
const job = (name: string, flags: Flags = {}) => {
  const all: Flags = {
    ...{ model: world("model"), rubric: world("rubric.yaml"), dtype: "float32" },
    ...{ train_file: world("train.jsonl"), eval_file: world("held.jsonl"), learning_rate: 1e-3 },
    ...{ num_train_steps: 6, batch_size: 2, group_size: 4, max_prompt_length: 16, max_completion_length: 16 },
    ...{ eval_every: 3, eval_num_prompts: 4, save_every: 1, output_dir: scratch, run_name: name },
    ...flags,
  };
  return ["train", "values", ...Object.entries(all).flatMap(([flag, value]) => [`--${flag}`, String(value)])];
};

async function run(name: string, flags: Flags = {}): Promise<string> {
  const { code, err } = await rlv(job(name, flags));
  expect([err, code]).toEqual(["", 0]);
  return join(scratch, name);
}

interface Row {
  readonly step: number;
  readonly reward: number;
  readonly components: string;
  readonly details: string;
  readonly completion: string;
  readonly prompt: string;
}
function rows(folder: string, table = "rollouts"): Row[] {
  using db = new Database(join(folder, "rollouts.sqlite"), { readonly: true });
  return db.query(`select * from ${table} order by step, epoch, prompt_index, rollout_index`).all() as Row[];
}
const judgeOf = (row: Row): JudgeDetails => JSON.parse(row.details).judge;

test("what the rubric hides rises under GRPO, counted by code on fresh samples", () => {
  const { before, after } = proof;
  expect(before.value).toBeLessThan(0.25);
  expect(after.value - before.value).toBeGreaterThan(0.4);
  for (const name of NAMES) expect(after.scores[name] - before.scores[name]).toBeGreaterThan(1);
});

test("both readings agree, with each other and with the rule, and the invalid share is reported", () => {
  const { report, judgeRight, judgeError } = proof;
  expect(judgeRight).toBeGreaterThan(0.8);
  expect(judgeError).toBeLessThan(0.3);
  expect(report.criteria.map(({ name }) => name)).toEqual([...NAMES]);
  for (const criterion of report.criteria) {
    expect(criterion.exact_agreement).toBeGreaterThan(0.95);
    expect(criterion.correlation).toBeGreaterThan(0.97);
    expect(criterion.invalid_rate).toBeLessThan(0.02);
  }
  const figures = metrics(proof.run);
  for (const row of figures.slice(1)) {
    expect(row["train/judge_invalid_rate"]).toBeLessThan(0.05);
    expect(row["train/judge_mass"]).toBeGreaterThan(0.9);
    expect(row["train/sampler_logp_diff_max"]).toBe(0);
    const parts = NAMES.map((name) => row[`train/rewards/rubric/${name}`]!);
    expect(parts.reduce((a, b) => a + b, 0)).toBeCloseTo(row["train/reward_mean"]!, 12);
  }
  expect(figures[0]!["eval/judge_invalid_rate"]).toBeLessThan(0.05);
});

test("every rollout has the judge's scores and distributions, of evaluations too", () => {
  for (const table of ["rollouts", "eval_rollouts"]) {
    const all = rows(proof.run, table);
    expect(all.length).toBeGreaterThan(50);
    for (const row of all.slice(0, 200)) {
      const { model, criteria } = judgeOf(row);
      expect(model).toBe("initial");
      expect(Object.keys(criteria)).toEqual([...NAMES]);
      let reward = 0;
      for (const { text, expected, probabilities } of Object.values(criteria)) {
        expect([null, 1, 2, 3, 4, 5]).toContain(text);
        expect(probabilities.length).toBe(5);
        expect(probabilities.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
        expect(probabilities.reduce((sum, p, i) => sum + p * (i + 1), 0)).toBeCloseTo(expected, 12);
        reward += (expected - 1) / 4 / 3;
      }
      expect(row.reward).toBeCloseTo(reward, 12);
    }
  }
});

describe("judges", () => {
  test("self scores as initial in the first step, and otherwise later", async () => {
    const own = rows(await run("self", { judge: "self", learning_rate: 3e-3 }));
    const first = rows(await run("initial", { learning_rate: 3e-3 }));
    const scores = (list: Row[], step: number) =>
      list.filter((row) => row.step === step).map((row) => judgeOf(row).criteria);
    expect(scores(own, 1)).toEqual(scores(first, 1));
    expect(scores(own, 6)).not.toEqual(scores(first, 6));
    expect(judgeOf(own[0]!).model).toBe("self");
  }, 60_000);

  test("another folder with the same weights scores as initial, and takes its own memory", async () => {
    const other = await run("other", { judge: world("model"), kl_coef: 0 });
    const initial = await run("no-kl", { kl_coef: 0 });
    const judged = (folder: string) => rows(folder).map((row) => judgeOf(row).criteria);
    expect(judged(other)).toEqual(judged(initial));
    expect(digest(join(other, "checkpoints/final"))["model.safetensors"]).toBe(
      digest(join(initial, "checkpoints/final"))["model.safetensors"]!,
    );
  }, 60_000);

  test("a quantized judge is near the plain one", async () => {
    const plain = rows(await run("plain", { judge: world("model"), num_train_steps: 1 }));
    for (const type of ["int8", "int4"]) {
      const flags = { judge: world("model"), judge_quant_type: type, num_train_steps: 1 };
      const quantized = rows(await run(type, flags));
      const apart = quantized.map(({ reward }, i) => Math.abs(reward - plain[i]!.reward));
      expect(Math.max(...apart)).toBeLessThan(type === "int8" ? 0.1 : 0.4);
      expect(Math.max(...apart)).toBeGreaterThan(0);
    }
  }, 60_000);

  test("with adapters initial is the model without them: it judges as before", async () => {
    const lora = { lora: "true", lora_r: 4, lora_dropout: 0, learning_rate: 1e-2 };
    const adapted = await run("lora", lora);
    const offloaded = await run("offloaded", { reference_offload: "true" });
    for (const folder of [adapted, offloaded]) {
      // The last rollouts, judged by the model that the run began with.
      const last = rows(folder).filter(({ step }) => step === 6);
      const again = await run(`${folder.split("/").at(-1)}-again`, {
        judge: world("model"),
        ...(folder === adapted ? lora : {}),
      });
      expect(
        rows(again)
          .filter(({ step }) => step === 6)
          .map((row) => judgeOf(row).criteria),
      ).toEqual(last.map((row) => judgeOf(row).criteria));
    }
  }, 120_000);

  test("with other rewards, and without the rubric", async () => {
    const both = rows(await run("both", { reward: "rubric,length", num_train_steps: 1 }));
    for (const row of both) {
      const parts = JSON.parse(row.components);
      expect(Object.keys(parts)).toEqual([...NAMES.map((name) => `rubric/${name}`), "length"]);
      const values = Object.values(parts) as number[];
      expect(values.reduce((a, b) => a + b, 0)).toBeCloseTo(row.reward, 12);
    }
    const without = { reward: "length", rubric: "builtin:values/rubric.yaml" };
    const [other] = rows(await run("length", { ...without, num_train_steps: 1 }));
    expect([other!.details, other!.reward]).toEqual([null as never, 1]);
    const { code, err } = await rlv(job("none", { ...without, judge: "self" }));
    expect([code, err.includes("judge is about the reward rubric, which is not named")]).toEqual([2, true]);
  }, 60_000);

  test("the text reading is a reward too", async () => {
    for (const row of rows(await run("text", { judge_reading: "text" }))) {
      const said = Object.values(judgeOf(row).criteria).map(({ text }) => text!);
      expect(row.reward).toBeCloseTo(
        said.reduce((sum, text) => sum + (text - 1) / 4 / 3, 0),
        12,
      );
    }
  }, 60_000);
});

test("killed and resumed in the middle of a generation, it ends with the bytes and figures of the unbroken run", async () => {
  const flags = { num_train_steps: 12, steps_per_generation: 2, num_iterations: 2, keep_checkpoints: 20 };
  const timeless = (folder: string) =>
    metrics(folder).map((row) =>
      Object.fromEntries(
        Object.entries(row).filter(([name]) => !/^time$|_time$|per_second$|^device\//.test(name)),
      ),
    );
  for (const judge of ["initial", "self"]) {
    const whole = await run(`whole-${judge}`, { ...flags, judge });
    const name = `killed-${judge}`;
    const folder = join(scratch, name);
    const child = start(job(name, { ...flags, judge }));
    while (!existsSync(join(folder, "checkpoints/step-6")) && child.exitCode === null) await Bun.sleep(5);
    process.kill(-child.pid, "SIGKILL");
    await child.exited;
    const resumed = await rlv(["train", "--resume_from", join(folder, "checkpoints/step-6")]);
    expect([resumed.err, resumed.code]).toEqual(["", 0]);
    expect(digest(join(folder, "checkpoints/final"))).toEqual(digest(join(whole, "checkpoints/final")));
    expect(timeless(folder)).toEqual(timeless(whole));
    expect(rows(folder)).toEqual(rows(whole));
  }
}, 120_000);

test.each([
  ["no rubric", "rubric", "nowhere.yaml", "no such file for --rubric: nowhere.yaml"],
  ["a rubric with a fault", "rubric", "FAULT", "rubric: scale.max: max 1 must exceed min 1"],
  ["no judge", "judge", "./nowhere", "no such folder for --judge"],
  ["the policy's weights in bits", "judge_quant_type", "int8", "is about a judge that is another model"],
  ["no such reading", "judge_reading", "loud", "judge_reading expects one of expected, text"],
  ["a long rubric", "rubric", "LONG", "exceed the judge's context of 128"],
  ["a prompt too long", "max_prompt_length", "5", "is longer than 5"],
])("%s: refused at once with exit code 2", async (_what, flag, value, message) => {
  const rubric = readFileSync(world("rubric.yaml"), "utf8");
  writeFileSync(join(scratch, "FAULT"), rubric.replace("max: 5", "max: 1"));
  writeFileSync(join(scratch, "LONG"), rubric.replace("grade {", `${"the sea ".repeat(80)}{`));
  const given = ["FAULT", "LONG"].includes(value) ? join(scratch, value) : value;
  const { code, err } = await rlv(job("refused", { [flag]: given }));
  expect(err).toContain(message);
  expect(code).toBe(2);
  expect(existsSync(join(scratch, "refused"))).toBe(false);
});

test("the judge's report: readings, length, and the order of the criteria judged anew", async () => {
  const config = JSON.parse(readFileSync(join(proof.run, "train_config.json"), "utf8"));
  const settings = { run: proof.run, config, table: "eval_rollouts", device: "cpu", threads: null } as const;
  const plain = await reportJudge({ ...settings, most: 60, again: 0 });
  expect(plain.position).toBe(null);
  expect(plain.responses).toBe(60);
  const { position, criteria } = await reportJudge({ ...settings, most: 60, again: 10 });
  expect(criteria).toEqual(plain.criteria);
  expect(position).toMatchObject({ responses: 10, orders: 3 });
  expect(position!.shift_by_position.length).toBe(3);
  expect(position!.largest_spread).toBeGreaterThanOrEqual(position!.mean_spread);
  // Every criterion stands at every place once.
  expect(Math.abs(position!.shift_by_position.reduce((a, b) => a + b, 0))).toBeLessThan(1e-9);
});
