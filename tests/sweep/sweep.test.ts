/** rlv sweep as a program: runs, resumes, reports what failed, and gives its folder to the readers. */
import { afterAll, expect, test } from "bun:test";
import {
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
import { lockHolders, takeLock } from "../../src/io/run-lock.ts";
import { findRun, listRuns } from "../../src/report/runs.ts";
import { readSweep, spreadOf, sweepSummary } from "../../src/report/sweep.ts";
import { Roots } from "../../src/web/roots.ts";
import { digest, metrics, rlv, start } from "../run/program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-sweep-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const TINY = ["num_train_steps=2", "batch_size=2", "group_size=2", "eval_num_prompts=2", "save_every=-1"];
const sweep = (name: string, grid: readonly string[], fixed: readonly string[] = [], ...flags: string[]) => [
  ...["sweep", "arithmetic", "--grid", ...grid, "--fixed", ...TINY, ...fixed],
  ...["--output_dir", scratch, "--name", name, ...flags],
];
const folder = (name: string) => join(scratch, name);

test("--dry_run prints the plan and makes nothing", async () => {
  const before = readdirSync(scratch);
  const { code, out, err } = await rlv(sweep("dry", ["seed=1,2", "kl_coeff=0,0.1"], [], "--dry_run"));
  expect([code, err]).toEqual([0, ""]);
  expect(out).toContain(`${folder("dry")}: 4 runs of arithmetic`);
  expect(out.trimEnd().split("\n").length).toBe(6);
  const json = await rlv(sweep("dry", ["seed=1,2"], [], "--dry_run", "--json", "--per_gpu", "1"));
  expect(JSON.parse(json.out)).toMatchObject({ name: "dry", at_once: 1, runs: [{ index: 0 }, { index: 1 }] });
  expect(readdirSync(scratch)).toEqual(before);
});

test("a sweep runs, evaluates, summarises; again it has nothing to do, and it grows", async () => {
  const first = await rlv(sweep("mine", ["seed=1,2"], [], "--per_device", "2"));
  expect([first.err, first.code]).toEqual(["", 0]);
  const runs = ["arithmetic_seed1", "arithmetic_seed2"];
  const rewards = runs.map((name) => {
    const dir = join(folder("mine"), name);
    expect(existsSync(join(dir, "checkpoints/final"))).toBe(true);
    expect(existsSync(join(dir, "engine.log"))).toBe(false);
    const { evaluations } = JSON.parse(readFileSync(join(dir, "evaluation.json"), "utf8"));
    return evaluations[0].fresh.reward.mean as number;
  });
  const summary = sweepSummary(folder("mine"));
  expect(summary.runs.map(({ state, seed, step }) => [state, seed, step])).toEqual([
    ["finished", 1, 2],
    ["finished", 2, 2],
  ]);
  expect(summary.groups.length).toBe(1);
  expect(summary.groups[0]).toMatchObject({ planned: 2, runs, values: {} });
  expect(summary.groups[0]!.metrics["final/reward"]).toEqual(spreadOf(rewards));
  expect(JSON.parse(readFileSync(join(folder("mine"), "summary.json"), "utf8"))).toEqual(
    JSON.parse(JSON.stringify(summary)),
  );
  const csv = readFileSync(join(folder("mine"), "summary.csv"), "utf8")
    .trimEnd()
    .split("\n");
  expect(csv.map((line) => line.split(",")[0])).toEqual(["run", ...runs]);
  expect(first.out).toContain("arithmetic_seed1: finished");
  expect(first.out.trimEnd().split("\n").at(-1)).toContain("2/2");

  // A run by itself computes the same bytes.
  const config = JSON.parse(readFileSync(join(folder("mine"), runs[0]!, "train_config.json"), "utf8"));
  expect(config).toMatchObject({
    seed: 1,
    num_train_steps: 2,
    run_name: runs[0],
    output_dir: folder("mine"),
  });
  const alone = TINY.flatMap((word) => {
    const [key, value] = word.split("=") as [string, string];
    return [`--${key}`, value];
  });
  await rlv(["train", ...alone, "--seed", "1", "--output_dir", scratch, "--run_name", "alone"]);
  const weights = (dir: string) => digest(join(dir, "checkpoints/final"))["model.safetensors"];
  expect(weights(join(scratch, "alone"))).toBe(weights(join(folder("mine"), runs[0]!)));

  const files = digest(join(folder("mine"), runs[0]!));
  const grown = await rlv(sweep("mine", ["seed=1,2,3"], [], "--no_eval", "--json"));
  expect(grown.code).toBe(0);
  expect(grown.err).toContain("3 runs, 2 finished already");
  expect(JSON.parse(grown.out).groups[0].metrics["train/reward_mean"].n).toBe(3);
  expect(digest(join(folder("mine"), runs[0]!))).toEqual(files);
  const same = await rlv(["sweep", folder("mine"), "--no_eval"]);
  expect([same.code, same.out.includes("3 finished already")]).toEqual([0, true]);

  const other = await rlv(sweep("mine", ["seed=1,2,3"], ["kl_coeff=0.5"]));
  expect(other.code).toBe(2);
  expect(other.err).toContain("arithmetic_seed1 has kl_coeff");
  const less = await rlv(sweep("mine", ["seed=1,2"]));
  expect(less.err).toContain("run arithmetic_seed3 is not in this plan");

  // The readers of run folders find what lies in it.
  expect(listRuns([scratch]).map(({ name }) => name)).toContain("mine/arithmetic_seed3");
  expect(findRun("mine/arithmetic_seed3", [scratch])).toBe(join(folder("mine"), "arithmetic_seed3"));
  expect(new Roots([scratch]).runs().map(({ name }) => name)).toContain("mine/arithmetic_seed1");
  const renamed = await rlv(["runs", "rename", "mine/arithmetic_seed1", "x", "--dir", scratch]);
  expect(renamed.err).toContain("cannot rename a run of a sweep");

  // A folder of other settings is not taken for a run of the plan.
  const path = join(folder("mine"), runs[1]!, "train_config.json");
  writeFileSync(path, readFileSync(path, "utf8").replace('"seed": 2', '"seed": 9'));
  const strange = await rlv(["sweep", folder("mine")]);
  expect([strange.code, strange.err.includes("has seed 9, the plan 2")]).toEqual([1, true]);
}, 120_000);

test("killed in the middle, a sweep goes on: finished runs stay, interrupted ones end with the same bytes", async () => {
  const grid = ["seed=1,2"];
  const fixed = ["num_train_steps=8", "save_every=2"];
  const args = (name: string) => [
    ...["sweep", "arithmetic", "--grid", ...grid, "--fixed", ...TINY.slice(1, 4), ...fixed],
    ...["--output_dir", scratch, "--name", name, "--no_eval", "--per_device", "2"],
  ];
  const child = start(args("killed"));
  // Until a run has a checkpoint and is not finished.
  const run = join(folder("killed"), "arithmetic_seed1");
  for (const end = Date.now() + 60_000; Date.now() < end; await Bun.sleep(20))
    if (existsSync(join(run, "checkpoints/step-2"))) break;
  const [sweeper] = lockHolders(folder("killed"));
  process.kill(Number.parseInt(sweeper!, 10), "SIGKILL");
  await child.exited;
  const whole = await rlv(args("whole"));
  expect(whole.code).toBe(0);
  const again = await rlv(["sweep", folder("killed"), "--no_eval"]);
  expect([again.err, again.code]).toEqual(["", 0]);
  for (const seed of [1, 2]) {
    const name = `arithmetic_seed${seed}`;
    const final = (sweepName: string) => digest(join(folder(sweepName), name, "checkpoints/final"));
    expect(final("killed")).toEqual(final("whole"));
    expect(metrics(join(folder("killed"), name)).at(-1)!.step).toBe(8);
  }
}, 180_000);

test("a run that fails stops no other; it is listed with its log, and tried again when asked", async () => {
  const reward = join(scratch, "sometimes.ts");
  const broken = join(scratch, "broken");
  writeFileSync(
    reward,
    `import { existsSync } from "node:fs";
export default ({ completion }) => {
  if (existsSync(${JSON.stringify(broken)})) throw new Error("planted");
  return completion.length % 2;
};\n`,
  );
  mkdirSync(broken);
  const args = (...flags: string[]) =>
    sweep("fails", [`reward=${reward},last_integer`], [], "--no_eval", "--per_device", "1", ...flags);
  const plan = JSON.parse((await rlv(args("--dry_run", "--json"))).out);
  expect(plan.runs.length).toBe(2);
  const first = await rlv(args());
  expect(first.code).toBe(1);
  expect(first.err).toContain(`${plan.runs[0].name} failed`);
  expect(first.err).toContain("planted");
  expect(first.err).toContain("train.log");
  const states = () => sweepSummary(folder("fails")).runs.map(({ state }) => state);
  expect(states()).toEqual(["crashed", "finished"]);
  rmSync(broken, { recursive: true });
  const kept = await rlv(args("--retry", "false"));
  expect([kept.code, states()]).toEqual([1, ["crashed", "finished"]]);
  const again = await rlv(args());
  expect([again.err, again.code, states()]).toEqual(["", 0, ["finished", "finished"]]);
}, 120_000);

test("one sweep at a time; a folder of something else is left alone; one run of a plan by its name", async () => {
  const dir = folder("held");
  mkdirSync(dir);
  const lock = takeLock(dir);
  const held = await rlv(sweep("held", ["seed=1"]));
  expect([held.code, held.err.includes(`process ${process.pid} runs this sweep`)]).toEqual([2, true]);
  if (typeof lock !== "number") lock.release();
  writeFileSync(join(dir, "notes.txt"), "mine");
  const foreign = await rlv(sweep("held", ["seed=1"]));
  expect([foreign.code, foreign.err.includes("is no sweep and holds notes.txt")]).toEqual([2, true]);
  const only = await rlv(["sweep", folder("mine"), "--only", "seven"]);
  expect([only.code, only.err.includes('no run "seven" in the plan')]).toEqual([2, true]);
  rmSync(join(folder("mine"), "arithmetic_seed3"), { recursive: true });
  const one = await rlv(["sweep", folder("mine"), "--only", "arithmetic_seed3", "--no_eval"]);
  expect([one.err, one.code]).toEqual(["", 0]);
  expect(readSweep(folder("mine")).runs[2]!.name).toBe("arithmetic_seed3");
  expect(existsSync(join(folder("mine"), "arithmetic_seed3/checkpoints/final"))).toBe(true);
}, 60_000);

test("Ctrl-C saves every run, says what is interrupted, and ends with 130", async () => {
  const child = start([
    ...["sweep", "arithmetic", "--grid", "seed=1,2", "--fixed", ...TINY.slice(1), "num_train_steps=500"],
    ...["--output_dir", scratch, "--name", "stopped", "--no_eval", "--per_device", "2"],
  ]);
  for (const end = Date.now() + 60_000; Date.now() < end; await Bun.sleep(20))
    if (sweepState("stopped").every((step) => step > 0)) break;
  // A terminal sends it to the whole group.
  process.kill(-child.pid, "SIGINT");
  expect(await child.exited).toBe(130);
  expect(await new Response(child.stderr).text()).toContain("2 of 2 runs are not finished");
  const { runs } = sweepSummary(folder("stopped"));
  expect(runs.map(({ state }) => state)).toEqual(["interrupted", "interrupted"]);
}, 120_000);

/** Steps of the runs that a sweep has begun; [0] before it has a plan. */
function sweepState(name: string): number[] {
  try {
    return sweepSummary(folder(name)).runs.map(({ step }) => step);
  } catch {
    return [0];
  }
}
