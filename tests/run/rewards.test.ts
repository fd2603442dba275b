/** Whole runs with rewards that are named by the config: combined, of a module, and failing. */
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { verifyCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { digest, metrics, rlv, rolloutRows, SHORT, start, timeless } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-rewards-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const runs = join(scratch, "runs");
const file = (name: string, text: string) => {
  mkdirSync(join(scratch, "jobs"), { recursive: true });
  const path = join(scratch, "jobs", name);
  writeFileSync(path, text);
  return path;
};
const SMALL = [...SHORT, "--eval_every", "-1", "--output_dir", runs];
const SAVED = [...SMALL, "--save_every", "2"];
const train = (name: string, args: readonly string[]) =>
  rlv(["train", ...SMALL, "--run_name", name, ...args]);
const log = (name: string) => readFileSync(join(runs, name, "train.log"), "utf8");
const checkpoints = (name: string) => readdirSync(join(runs, name, "checkpoints")).sort();
const MODEL = "checkpoints/final/model.safetensors";

describe("a combined reward", () => {
  const mine = file(
    "mine.ts",
    `import type { RewardModuleContext, RewardRollout } from "rlv/reward";
export const parameters = { most: 12 };
export default ({ completion }: RewardRollout, { parameters }: RewardModuleContext<typeof parameters>) =>
  ({ reward: completion.length <= parameters.most ? 1 : 0, details: { letters: completion.length } });
`,
  );
  const job = file(
    "job.yaml",
    `recipe: arithmetic
reward:
  - last_integer
  - { name: ./mine.ts, weight: 0.5, params: { most: 3 } }
  - { name: regex, as: digit, weight: 0.25, params: { pattern: "\\\\d" } }
`,
  );
  const args = ["train", job, ...SAVED];

  test("every part and the sum are what the completions say", async () => {
    const ended = await rlv([...args, "--run_name", "sum"]);
    expect([ended.err, ended.code]).toEqual(["", 0]);
    const db = new Database(join(runs, "sum", "rollouts.sqlite"), { readonly: true });
    const rows = db.query("SELECT step, completion, reward, components, details FROM rollouts").all() as {
      step: number;
      completion: string;
      reward: number;
      components: string;
      details: string;
    }[];
    db.close();
    expect(rows.length).toBe(6 * 16);
    for (const { completion, reward, components, details } of rows) {
      const parts = JSON.parse(components);
      expect(parts.mine).toBe(completion.length <= 3 ? 0.5 : 0);
      expect(parts.digit).toBe(/\d/.test(completion) ? 0.25 : 0);
      expect([0, 1]).toContain(parts.last_integer);
      expect(reward).toBeCloseTo(parts.mine + parts.digit + parts.last_integer, 12);
      expect(JSON.parse(details)).toEqual({ mine: { letters: completion.length } });
    }
    for (const row of metrics(join(runs, "sum"))) {
      const own = rows.filter(({ step }) => step === row.step);
      const mean = own.reduce((sum, { components }) => sum + JSON.parse(components).mine, 0) / own.length;
      expect(row["train/rewards/mine"]).toBeCloseTo(mean, 12);
      expect(Object.keys(row).filter((name) => name.startsWith("train/rewards/"))).toEqual(
        ["last_integer", "mine", "digit"].map((name) => `train/rewards/${name}`),
      );
    }
    expect(log("sum")).toContain(`reward mine: ${mine}, sha256 `);
  });

  test("the same bytes when it goes on from a checkpoint, and a changed module is said", async () => {
    const ended = await rlv([
      "train",
      "--resume_from",
      join(runs, "sum/checkpoints/step-2"),
      "--run_name",
      "again",
      "--output_dir",
      runs,
    ]);
    expect([ended.err, ended.code]).toEqual(["", 0]);
    expect(digest(join(runs, "again"))[MODEL]).toBe(digest(join(runs, "sum"))[MODEL]!);
    expect(log("again")).not.toContain("changed");
    appendFileSync(mine, "// better\n");
    const changed = await rlv(["train", "--resume_from", join(runs, "again"), "--num_train_steps", "7"]);
    expect([changed.err, changed.code]).toEqual(["", 0]);
    expect(log("again")).toMatch(
      /reward mine: \S+, sha256 [0-9a-f]{16}: changed since this run's checkpoint, where it was [0-9a-f]{16}\n/,
    );
  });

  test("a flag takes over what the file says of the parts it names", async () => {
    const ended = await rlv([...args, "--run_name", "flag", "--reward", "digit,length"]);
    expect([ended.err, ended.code]).toEqual(["", 0]);
    const { reward } = JSON.parse(readFileSync(join(runs, "flag/train_config.json"), "utf8"));
    expect(reward).toEqual([
      { name: "regex", as: "digit", weight: 0.25, params: { pattern: "\\d" } },
      { name: "length", as: "length", weight: 1, params: {} },
    ]);
  });

  test("the reward by name trains as the default does", async () => {
    const named = await train("named", ["--reward", "last_integer"]);
    const plain = await train("plain", []);
    expect([named.code, plain.code]).toEqual([0, 0]);
    expect(digest(join(runs, "named"))[MODEL]).toBe(digest(join(runs, "plain"))[MODEL]!);
    const doubled = await train("doubled", [
      "--reward",
      "[{name: last_integer, params: {correct_reward: 2}}]",
    ]);
    expect(doubled.code).toBe(0);
    const first = (name: string) => metrics(join(runs, name))[0]!["train/reward_mean"]!;
    expect(first("doubled")).toBe(2 * first("plain"));
  });
});

test("a reward model beside a rule, in the memory plan and in the sum", async () => {
  const pairs = Array.from({ length: 24 }, (_, i) => ({
    prompt: `What is ${i} + 1? Answer with an integer.`,
    chosen: `${i + 1}`,
    rejected: "I am not sure.",
  }));
  const dataset = file("pairs.jsonl", pairs.map((pair) => `${JSON.stringify(pair)}\n`).join(""));
  const places = ["--output_dir", runs, "--log_dir", join(scratch, "logs")];
  const made = await rlv([
    ...[
      "train",
      "hh-rm",
      "--model",
      "builtin:arithmetic",
      "--dataset",
      dataset,
      "--run_name",
      "rm",
      ...places,
    ],
    ...[
      "--num_train_steps",
      "2",
      "--batch_size",
      "4",
      "--grad_accum",
      "1",
      "--max_length",
      "64",
      "--eval_steps",
      "-1",
    ],
  ]);
  expect([made.err, made.code]).toEqual(["", 0]);
  const params = { path: join(runs, "rm/checkpoints/final"), quant_type: "int8", eos_penalty: 0.5 };
  const reward = JSON.stringify(["last_integer", { name: "reward_model", weight: 0.25, params }]);
  const ended = await train("judged", ["--reward", reward]);
  expect([ended.err, ended.code]).toEqual(["", 0]);
  expect(log("judged")).toMatch(/memory plan: .*reward [\d.]+ [kM]B/);
  expect(log("judged")).toContain("weights int8");
  const db = new Database(join(runs, "judged", "rollouts.sqlite"), { readonly: true });
  const rows = db.query("SELECT reward, components, finish FROM rollouts").all() as {
    reward: number;
    components: string;
    finish: string;
  }[];
  db.close();
  const scores = new Set<number>();
  for (const row of rows) {
    const parts = JSON.parse(row.components);
    expect(Object.keys(parts)).toEqual([
      "last_integer",
      "reward_model/reward_model",
      "reward_model/eos_penalty",
    ]);
    expect(parts["reward_model/eos_penalty"]).toBeCloseTo(row.finish === "eos" ? 0 : -0.125, 12);
    const sum = Object.values(parts as Record<string, number>).reduce((a, b) => a + b, 0);
    expect(row.reward).toBeCloseTo(sum, 9);
    scores.add(parts["reward_model/reward_model"]);
  }
  expect(scores.size).toBeGreaterThan(3);
});

describe("a reward that fails", () => {
  // From its third step on: the run has something to lose.
  const modules: [string, string, RegExp][] = [
    [
      "throws",
      "throw new Error('no luck\\nat all')",
      /reward throws failed: prompt \d+, completion \d: no luck$/,
    ],
    [
      "nan",
      "return Number('x')",
      /reward nan gave NaN as reward: prompt \d+, completion \d: return a finite number/,
    ],
    [
      "hangs",
      "for (;;);",
      /reward hangs took more than 1 s: prompt \d+, completion \d: raise its parameter timeout/,
    ],
    [
      "exits",
      "process.exit(0)",
      /reward exits failed: prompt \d+, completion \d: the program ended with exit code 0/,
    ],
  ];
  test.each(modules)(
    "%s: named in one line, code 1, the steps before it saved",
    async (name, body, message) => {
      const path = file(
        `${name}.ts`,
        `export default (rollout, { step }) => { if (step < 3) return rollout.completion.length; ${body} };`,
      );
      const ended = await train(name, [
        "--reward",
        `[{name: ${path}, params: {timeout: 1}}]`,
        "--save_every",
        "-1",
      ]);
      const lines = ended.err.trimEnd().split("\n");
      expect(lines.length).toBe(1);
      expect(lines[0]).toMatch(/^rlv: error: /);
      expect(lines[0]).toMatch(message);
      expect(ended.code).toBe(1);
      expect(checkpoints(name)).toEqual(["step-2"]);
      expect(verifyCheckpoint(join(runs, name, "checkpoints/step-2"))).toEqual([]);
      expect(log(name)).toContain("checkpoint at 2 (crash)");
      // Mended, the run goes on.
      writeFileSync(path, "export default (rollout) => rollout.completion.length;");
      const mended = await rlv(["train", "--resume_from", join(runs, name)]);
      expect([mended.err, mended.code]).toEqual(["", 0]);
      expect(log(name)).toContain("changed since");
    },
  );

  const refused: [string, string, RegExp][] = [
    ["an unknown name", "lenght", /unknown reward "lenght".*did you mean length/],
    ["no module", "./nowhere.ts", /no such reward module \.\/nowhere\.ts/],
    ["a parameter that is missing", "regex", /a parameter is missing: reward regex\.pattern/],
    ["a pattern that is none", "[{name: regex, params: {pattern: '('}}]", /reward regex\.pattern/],
    ["a wrong parameter", "[{name: length, params: {mx: 3}}]", /mx.*parameters: unit, min, max/],
    ["an unknown key", "[{name: length, wieght: 3}]", /unknown key wieght.*did you mean weight/],
    ["a weight that is none", "[{name: length, weight: heavy}]", /weight expects a number, given "heavy"/],
    ["one twice", "length,length", /reward length is named twice/],
    ["none", "", /reward/],
    ["a tokenizer that differs", "[{name: reward_model, params: {path: ./nowhere}}]", /reward_model\.path/],
    ["a module without a function", "./empty.ts", /reward empty: it exports nothing/],
    [
      "a program that is not there",
      "[{name: command, params: {command: no-such-program}}]",
      /no program no-such-program/,
    ],
  ];
  test.each(refused)("%s: refused before anything is made", async (_name, reward, message) => {
    file("empty.ts", "");
    const given = reward.replace("./empty", join(scratch, "jobs/empty"));
    const ended = await train("refused", ["--reward", given]);
    expect(ended.err.trimEnd().split("\n").length).toBe(1);
    expect(ended.err).toMatch(message);
    expect(ended.code).toBe(2);
    expect(existsSync(join(runs, "refused"))).toBe(false);
  });
});

test("Ctrl-C while a slow reward is waited for: saved, code 130, and the run goes on to the same bytes", async () => {
  const flag = join(scratch, "slow");
  writeFileSync(flag, "");
  const path = file(
    "slow.ts",
    `import { existsSync, writeFileSync } from "node:fs";
     export default async ({ completion }, { step }) => {
       if (step === 3 && existsSync(${JSON.stringify(flag)})) { writeFileSync(${JSON.stringify(`${flag}.seen`)}, ""); await Bun.sleep(600_000); }
       return completion.length % 3;
     }`,
  );
  const args = ["train", ...SAVED, "--reward", path];
  const child = start([...args, "--run_name", "slow"]);
  for (const end = Date.now() + 60_000; !existsSync(`${flag}.seen`) && Date.now() < end; )
    await Bun.sleep(20);
  const asked = Date.now();
  process.kill(-child.pid, "SIGINT");
  await child.exited;
  expect(child.exitCode).toBe(130);
  expect(Date.now() - asked).toBeLessThan(60_000);
  expect(log("slow")).toContain("interrupted while reward slow was computed");
  expect(checkpoints("slow")).toEqual(["step-2"]);
  rmSync(flag);
  const resumed = await rlv(["train", "--resume_from", join(runs, "slow")]);
  expect([resumed.err, resumed.code]).toEqual(["", 0]);
  const whole = await rlv([...args, "--run_name", "quick"]);
  expect(whole.code).toBe(0);
  expect(digest(join(runs, "slow"))[MODEL]).toBe(digest(join(runs, "quick"))[MODEL]!);
});

test.each([
  ["interrupted", 130],
  ["failed", 1],
] as const)(
  "an evaluation that was %s: made again with its step's metrics when the run goes on",
  async (how, code) => {
    const gate = join(scratch, how);
    writeFileSync(gate, "");
    // 64 completions of the third step are trained on, the next are those of its evaluation.
    const path = file(
      `${how}.ts`,
      `import { existsSync, writeFileSync } from "node:fs";
     let seen = 0;
     export default async ({ completion }, { step }) => {
       if (step === 3 && ++seen > ${4 * 16 + 3} && existsSync(${JSON.stringify(gate)})) {
         writeFileSync(${JSON.stringify(`${gate}.seen`)}, "");
         if (${how === "failed"}) throw new Error("no answer");
         await Bun.sleep(600_000);
       }
       return completion.length % 3;
     }`,
    );
    const sizes = { batch_size: 4, group_size: 16, num_train_steps: 5, eval_every: 3, eval_num_prompts: 8 };
    const flags = Object.entries({ ...sizes, reward: path, output_dir: runs }).flatMap(([flag, value]) => [
      `--${flag}`,
      String(value),
    ]);
    const child = start(["train", ...flags, "--run_name", how]);
    for (const end = Date.now() + 60_000; !existsSync(`${gate}.seen`) && Date.now() < end; )
      await Bun.sleep(20);
    if (how === "interrupted") process.kill(-child.pid, "SIGINT");
    await child.exited;
    expect(child.exitCode).toBe(code);
    expect(checkpoints(how)).toEqual(["step-3"]);
    expect(metrics(join(runs, how)).map((row) => row.step)).toEqual([0, 1, 2]);
    rmSync(gate);
    const resumed = await rlv(["train", "--resume_from", join(runs, how)]);
    expect([resumed.err, resumed.code]).toEqual(["", 0]);
    const whole = await rlv(["train", ...flags, "--run_name", `${how}-whole`]);
    expect([whole.err, whole.code]).toEqual(["", 0]);
    const left = (name: string) => ({
      files: digest(join(runs, name, "checkpoints/final")),
      metrics: timeless(join(runs, name)),
      rollouts: rolloutRows(join(runs, name)),
    });
    expect(left(how)).toEqual(left(`${how}-whole`));
    expect(metrics(join(runs, how)).find((row) => row.step === 3)).toHaveProperty(["eval/reward"]);
  },
);
