/** Reward models and policies on preferences, whole and as adapters: killed and resumed, they end as if unbroken. */

import { Database } from "bun:sqlite";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { readEvents } from "../../src/io/tensorboard.ts";
import { makeWorld, SMALL, type World } from "./preference-world.ts";
import { digest, finishRun, killRun, metrics, rlv, rolloutRows, start, timeless } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-hh-resume-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** RLV_KILLS=10 for the long version. */
const KILLS = Number(process.env.RLV_KILLS ?? 2);
const random = new Random(Date.now() >>> 0, Purpose.data);
const STEPS = 16;

let world: World;
beforeAll(async () => {
  world = await makeWorld(scratch, { train: 120, test: 40, sft: 200, steps: 20 });
  const { code, err } = await rlv(rm("judge", false, 4));
  expect([err, code]).toEqual(["", 0]);
}, 120_000);

const common = (name: string, lora: boolean, steps: number) => [
  ...[
    "--num_train_steps",
    String(steps),
    "--save_steps",
    "1",
    "--keep_checkpoints",
    "2",
    "--eval_steps",
    "5",
  ],
  ...["--output_dir", scratch, "--log_dir", join(scratch, "logs"), "--run_name", name, "--lr", "1e-3"],
  ...(lora ? ["--lora", "true", "--lora_r", "4"] : []),
  ...SMALL,
];

const rm = (name: string, lora: boolean, steps = STEPS) => [
  ...["train", "hh-rm", "--model", world.policy, "--dataset", world.data, "--max_length", "48"],
  ...["--batch_size", "4", "--grad_accum", "2", "--eval_num_batches", "2", ...common(name, lora, steps)],
];

// Two minibatches of two passes: most checkpoints fall inside a generation, whose rollouts they must hold.
const grpo = (name: string, lora: boolean, steps = STEPS) => [
  ...["train", "hh-grpo", "--model", world.policy, "--dataset", world.data],
  ...["--reward_model_path", join(scratch, "judge/checkpoints/final")],
  ...["--max_prompt_length", "40", "--max_new_tokens", "12", "--batch_size", "2", "--group_size", "4"],
  ...["--grad_accum_steps", "2", "--n_minibatches", "2", "--num_iterations", "2", "--eval_num_prompts", "6"],
  ...common(name, lora, steps),
];

/** Scalars of a folder as TensorBoard shows them: a later file's start drops what stands from its step on. */
function shown(dir: string): Map<string, [number, number][]> {
  const series = new Map<string, [number, number][]>();
  const files = readdirSync(dir).filter((name) => name.startsWith("events."));
  const time = (name: string) => readEvents(join(dir, name))[0]!.wallTime;
  files.sort((a, b) => time(a) - time(b) || (a < b ? -1 : 1));
  for (const name of files)
    for (const { step, scalars, restarts } of readEvents(join(dir, name))) {
      if (restarts) {
        for (const [tag, points] of series)
          series.set(
            tag,
            points.filter(([at]) => at < step),
          );
      }
      for (const [tag, value] of scalars) {
        if (/_time|per_second|^device/.test(tag)) continue;
        if (!series.has(tag)) series.set(tag, []);
        series.get(tag)!.push([step, value]);
      }
    }
  return new Map([...series].sort(([a], [b]) => (a < b ? -1 : 1)));
}

test.each([
  ["a reward model", "rm", false, rm],
  ["an adapter of a reward model", "rm-lora", true, rm],
  ["a policy", "grpo", false, grpo],
  ["an adapter of a policy", "grpo-lora", true, grpo],
] as const)(
  `%s, killed at ${KILLS} random moments and resumed: bytes, rows and figures of the unbroken run`,
  async (_what, kind, lora, job) => {
    const whole = join(scratch, kind);
    const { code, err } = await rlv(job(kind, lora));
    expect([err, code]).toEqual(["", 0]);
    for (let kill = 0; kill < KILLS; kill++) {
      const name = `${kind}-kill-${kill}`;
      const run = join(scratch, name);
      const child = start(job(name, lora));
      const least = random.below(STEPS - 2);
      // From before the run folder exists to near the end.
      while (least > 0 && !existsSync(join(run, `checkpoints/step-${least}`)) && child.exitCode === null)
        await Bun.sleep(5);
      await Bun.sleep(random.below(120));
      await killRun(child, run);
      const ended = await finishRun(run, job(name, lora));
      if (ended !== null) expect([ended.err, ended.code]).toEqual(["", 0]);
      expect(digest(join(run, "checkpoints/final"))).toEqual(digest(join(whole, "checkpoints/final")));
      expect(timeless(run)).toEqual(timeless(whole));
      expect(rolloutRows(run)).toEqual(rolloutRows(whole));
      for (const dir of [
        (at: string) => at,
        (at: string) => join(scratch, "logs", at.slice(scratch.length + 1)),
      ])
        expect(shown(dir(run))).toEqual(shown(dir(whole)));
    }
  },
  300_000,
);

test("one more pass at another batch size: the data goes on where it was, and the config is the checkpoint's", async () => {
  const job = [...rm("more", false, 3)];
  expect((await rlv(job)).code).toBe(0);
  const run = join(scratch, "more");
  const resumed = await rlv([
    ...["train", "--resume_from", run, "--batch_size", "3", "--num_train_steps", "none", "--epochs", "1"],
  ]);
  expect([resumed.err, resumed.code]).toEqual(["", 0]);
  const after = metrics(run);
  // 24 pairs of the first three steps, then 6 a step to the end of 120.
  expect(after.map(({ step }) => step)).toEqual(Array.from({ length: 3 + 16 + 1 }, (_, i) => i));
  expect(after.at(-1)!.examples).toBe(24 + 96);
  expect(existsSync(join(scratch, "logs/more"))).toBe(true);
}, 60_000);

test("other sizes in the middle of a generation: it is finished as it was begun", async () => {
  expect((await rlv(grpo("resized", false, 5))).code).toBe(0);
  const run = join(scratch, "resized");
  const resumed = await rlv([
    ...["train", "--resume_from", run, "--n_minibatches", "1", "--num_iterations", "1"],
    ...["--batch_size", "1", "--num_train_steps", "10"],
  ]);
  expect([resumed.err, resumed.code]).toEqual(["", 0]);
  using db = new Database(join(run, "rollouts.sqlite"), { readonly: true });
  const made = db.query("select step, count(*) as n from rollouts group by step order by step").all();
  // Four steps of 4 prompts with 4 completions each, twice; then 2 prompts a step.
  expect(made).toEqual([
    { step: 1, n: 16 },
    { step: 5, n: 16 },
    { step: 9, n: 8 },
    { step: 10, n: 8 },
  ]);
  // As far as the old sizes reach, the steps are those of the unbroken run.
  const [own, whole] = [timeless(run), timeless(join(scratch, "grpo"))];
  for (const step of [6, 7, 8]) expect(own[step]!["train/loss"]).toBe(whole[step]!["train/loss"]!);
}, 60_000);

test("train_config.json of a run is a job of its own", async () => {
  const file = join(scratch, "rm/train_config.json");
  const again = await rlv(["train", "--config", file, "--run_name", "again"]);
  expect([again.err, again.code]).toEqual(["", 0]);
  const run = join(scratch, "again");
  expect(digest(join(run, "checkpoints/final"))).toEqual(digest(join(scratch, "rm/checkpoints/final")));
}, 60_000);

test("Ctrl-C saves, and an engine that dies says from where to go on", async () => {
  const run = join(scratch, "stopped");
  const child = start(grpo("stopped", false));
  while (!existsSync(join(run, "checkpoints/step-3"))) await Bun.sleep(5);
  process.kill(-child.pid, "SIGINT");
  await child.exited;
  const before = readdirSync(join(run, "checkpoints"));
  expect(before.some((name) => name.startsWith("step-"))).toBe(true);
  const { code, err } = await rlv(["train", "--resume_from", run]);
  expect([err, code]).toEqual(["", 0]);
  expect(digest(join(run, "checkpoints/final"))).toEqual(digest(join(scratch, "grpo/checkpoints/final")));
}, 60_000);
