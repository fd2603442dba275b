/** Training on several processes against one process: rollouts, weights, failures, resuming on another number of them. */
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import {
  Jobs,
  type Launcher,
  MPICH,
  metricsOf,
  OPEN_MPI,
  relativeDifference,
  rolloutsOf,
  tensorsOf,
} from "./jobs.ts";

const any = OPEN_MPI ?? MPICH;
const jobs = new Jobs();
afterAll(() => jobs.close());

const STEPS = 20;
const policyArgs = (name: string) => [
  ...["arithmetic", "--run_name", name, "--num_train_steps", String(STEPS), "--batch_size", "6"],
  ...["--group_size", "4", "--eval_steps", "10", "--eval_num_prompts", "5", "--save_steps", "10"],
];
const final = (name: string) => join(jobs.run(name), "checkpoints/final");

/** Runs that several tests look at are made once; resolves to what they said. */
const made = new Map<string, Promise<string>>();
function once(name: string, by: Launcher | null, ranks: number, args: readonly string[]): Promise<string> {
  const known = made.get(name);
  if (known) return known;
  const run = jobs.finish(by, ranks, args).then(({ code, out, err }) => {
    expect({ code, err }).toEqual({ code: 0, err: "" });
    return out;
  });
  made.set(name, run);
  return run;
}
const alone = (name: string, args: readonly string[]) => once(name, null, 1, args);
const nameOf = (by: Launcher, ranks: number) => `${by.name.replace(" ", "")}-${ranks}`;

/** Everything a run keeps is that of one process, up to the order in which gradients were added. */
function expectAlike(name: string, one: string): void {
  expect(relativeDifference(tensorsOf(final(name)), tensorsOf(final(one)))).toBeLessThan(1e-6);
  const [rows, metrics] = [metricsOf(jobs.run(name)), metricsOf(jobs.run(one))];
  const added = ["train/exchange_time"];
  for (const [i, row] of metrics.entries()) {
    expect(Object.keys(rows[i]!).filter((key) => !added.includes(key))).toEqual(Object.keys(row));
    for (const key of ["train/loss", "train/grad_norm", "train/reward_mean", "eval/reward", "eval/loss"])
      if (key in row) expect(rows[i]![key]).toBeCloseTo(row[key]!, 4);
  }
}

describe.skipIf(any === null)("several processes train what one does (needs Open MPI or MPICH)", () => {
  const cases: [Launcher | null, number][] = [
    [OPEN_MPI, 2],
    [OPEN_MPI, 4],
    [MPICH, 2],
  ];
  for (const [by, count] of cases)
    test.skipIf(by === null)(`${by?.name ?? "not installed"}, ${count} ranks`, async () => {
      const name = nameOf(by!, count);
      await alone("one", policyArgs("one"));
      const out = await once(name, by, count, policyArgs(name));
      expect(out).toContain(`${count} ranks on 1 machine, ${by!.name}`);
      const [rows, one] = [rolloutsOf(jobs.run(name)), rolloutsOf(jobs.run("one"))];
      const texts = (all: typeof rows) =>
        all.map((r) => [r.step, r.prompt_index, r.rollout_index, r.completion, r.reward]);
      expect(texts(rows)).toEqual(texts(one));
      // The weights of the first step are the same bits, so that all else is too.
      const first = (all: typeof rows) => all.filter(({ step }) => step === 1);
      expect(first(rows)).toEqual(first(one));
      expect(first(rows)).toHaveLength(24);
      expectAlike(name, "one");
      // Rank 0 alone keeps a log, and a lock is nobody's any more.
      const kept = readdirSync(jobs.run(name)).filter((file) => !file.startsWith("events"));
      const expected = readdirSync(jobs.run("one")).filter((file) => !file.startsWith("events"));
      expect(kept.sort()).toEqual(expected.sort());
    });

  test("a checkpoint goes on with another number of ranks", async () => {
    await alone("one", policyArgs("one"));
    const two = nameOf(any!, 2);
    await once(two, any, 2, policyArgs(two));
    for (const [name, count, by] of [
      ["two-three", 3, any],
      ["two-one", 1, null],
    ] as const) {
      const args = ["--resume_from", join(jobs.run(two), "checkpoints/step-10"), "--run_name", name];
      expect((await jobs.finish(by, count, args)).code).toBe(0);
      expect(relativeDifference(tensorsOf(final(name)), tensorsOf(final("one")))).toBeLessThan(1e-6);
      const optimizer = (run: string) => tensorsOf(final(run), "optimizer.safetensors");
      expect(relativeDifference(optimizer(name), optimizer("one"))).toBeLessThan(1e-4);
    }
  });

  test("supervised steps and reward models", async () => {
    const examples = Array.from({ length: 40 }, (_, i) => ({
      prompt: `${i} + 1 = `,
      completion: String(i + 1),
    }));
    const pairs = examples.map(({ prompt, completion }, i) => ({
      prompt,
      chosen: completion,
      rejected: "I am not sure.".repeat(1 + (i % 3)),
    }));
    const write = (name: string, rows: readonly unknown[]) => {
      const path = join(jobs.dir, name);
      writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
      return path;
    };
    const data = { sft: write("examples.jsonl", examples), "hh-rm": write("pairs.jsonl", pairs) };
    const args = {
      sft: ["--eval_file", data.sft, "--batch_size", "7", "--eval_steps", "5", "--num_train_steps", "6"],
      "hh-rm": ["--batch_size", "5", "--eval_steps", "5", "--num_train_steps", "6"],
    };
    for (const recipe of ["sft", "hh-rm"] as const) {
      const line = (name: string) => [
        ...[recipe, "--model", "builtin:arithmetic", "--dataset", data[recipe], "--run_name", name],
        ...args[recipe],
      ];
      await alone(`${recipe}-one`, line(`${recipe}-one`));
      const { code, err } = await jobs.finish(any, 2, line(`${recipe}-two`));
      expect({ code, err }).toEqual({ code: 0, err: "" });
      expectAlike(`${recipe}-two`, `${recipe}-one`);
    }
  });

  test("sums of gradients are those of the ranks, whatever each of them does", async () => {
    const { code, out, err } = await jobs.program(any!, 2, "gradients-fixture.ts");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const { device, ...cases } = JSON.parse(out);
    const broken = { message: expect.stringContaining("rank 1: no more"), everywhere: true };
    const shares = { float32: [3, 1], bfloat16: [1, 2], "nothing to do": [0, 2], adapters: [1, 2] };
    for (const [name, share] of Object.entries(shares)) {
      expect(cases[name]).toMatchObject({ different: 0, shares: share, broken });
      expect(cases[name].share).toBeGreaterThan(0.4);
    }
    expect(cases.float32.buckets).toBeGreaterThan(1);
    expect(device).toMatchObject({ class: "RlvError", everywhere: true });
    expect(device.message).toMatch(/^rank 1: .*stale handle/);
  });

  test("bad input is said once", async () => {
    const { code, err } = await jobs.finish(any, 2, ["arithmetic", "--model", "nowhere"]);
    expect(code).toBe(2);
    expect(err.split("rlv: error:")).toHaveLength(2);
    expect(err).toContain("no such folder");
  });

  test("a reward that fails on one rank is an error of all, and the step before is saved", async () => {
    await alone("one", policyArgs("one"));
    const last = rolloutsOf(jobs.run("one")).findLast(({ step }) => step === 3)!;
    const reward = join(jobs.dir, "picky.ts");
    writeFileSync(
      reward,
      `export default ({ prompt_index }, { step }) => {
        if (step === 3 && prompt_index === ${last.prompt_index}) throw new Error("not this one");
        return { reward: step % 2, components: {} };
      };`,
    );
    const { code, out, err } = await jobs.finish(any, 2, [...policyArgs("picky"), "--reward", reward]);
    expect(code).toBe(1);
    expect(err.split("rlv: error:")).toHaveLength(2);
    expect(err).toContain("rlv: error: rank 1: reward ");
    expect(err).toContain(`prompt ${last.prompt_index}`);
    expect(out).toContain("checkpoint at 2 (crash)");
  });

  test("ranks with different weights are found before the first step", async () => {
    const folders = ["a", "b"].map((name) => join(jobs.dir, "machines", name));
    for (const [i, folder] of folders.entries()) {
      cpSync(resolve(import.meta.dir, "../../src/recipe/arithmetic/model"), join(folder, "model"), {
        recursive: true,
      });
      const weights = join(folder, "model/model.safetensors");
      const bytes = readFileSync(weights);
      bytes[bytes.length - 2] = bytes[bytes.length - 2]! ^ i;
      writeFileSync(weights, bytes);
    }
    const { code, err } = await jobs.apart(any!, folders, [
      "arithmetic",
      "--model",
      "./model",
      "--run_name",
      "apart",
    ]);
    expect(code).toBe(1);
    expect(err.split("rlv: error:")).toHaveLength(2);
    expect(err).toContain("rank 1 and rank 0 do not hold the same weights: after step 0");
    // What one rank alone cannot begin with is said once, too.
    rmSync(join(folders[1]!, "model"), { recursive: true });
    const without = await jobs.apart(any!, folders, [
      "arithmetic",
      "--model",
      "./model",
      "--run_name",
      "lacks",
    ]);
    expect(without.code).toBe(2);
    expect(without.err.split("rlv: error:")).toHaveLength(2);
    expect(without.err).toMatch(/rank 1: no such file: model/);
  });
});

/** Runs of thousands of steps that something ends; resolves when the first checkpoint is there. */
async function endless(by: Launcher, name: string) {
  const job = jobs.start(by, 2, [
    ...[
      "arithmetic",
      "--run_name",
      name,
      "--num_train_steps",
      "5000",
      "--batch_size",
      "4",
      "--group_size",
      "4",
    ],
    ...["--eval_steps", "-1", "--save_steps", "2"],
  ]);
  const checkpoints = join(jobs.run(name), "checkpoints");
  const whole = () =>
    existsSync(checkpoints) && readdirSync(checkpoints).some((file) => file.startsWith("step-"));
  while (!whole()) {
    expect(job.exitCode).toBeNull();
    await Bun.sleep(50);
  }
  return job;
}

/** The processes that mpirun started for a run, by rank. */
function ranksOf(name: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .filter((pid) => {
      try {
        const argv = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
        return !/mpi(run|exec)|hydra/.test(argv[0]!) && argv.includes(name) && argv.includes("train");
      } catch {
        return false;
      }
    })
    .map(Number)
    .sort((a, b) => a - b);
}

const linux = process.platform === "linux";
for (const by of [OPEN_MPI, MPICH])
  describe.skipIf(by === null || !linux)(
    `${by?.name ?? "an MPI that is not installed"}: a job ends as one`,
    () => {
      test("a killed rank stops the job, which goes on from its last checkpoint", async () => {
        const name = `killed-${by!.name.replace(" ", "")}`;
        const job = await endless(by!, name);
        const pids = ranksOf(name);
        expect(pids).toHaveLength(2);
        const begin = performance.now();
        process.kill(pids[1]!, "SIGKILL");
        const [, err, out] = await Promise.all([
          job.exited,
          new Response(job.stderr).text(),
          new Response(job.stdout).text(),
        ]);
        expect(performance.now() - begin).toBeLessThan(5000);
        expect(job.exitCode).not.toBe(0);
        // Open MPI leaves the others time to say what they saw; MPICH's mpirun says it itself.
        expect(err + out).toMatch(/rank 1 \(process \d+\) is gone|Killed \(signal 9\)/);
        expect(ranksOf(name)).toEqual([]);
        const newest = jobs.run(name);
        const state = readdirSync(join(newest, "checkpoints")).map((file) =>
          Number(file.replace("step-", "")),
        );
        const steps = Math.max(...state.filter(Number.isFinite)) + 2;
        const again = await jobs.finish(null, 1, [
          "--resume_from",
          newest,
          "--num_train_steps",
          String(steps),
        ]);
        expect({ code: again.code, err: again.err }).toEqual({ code: 0, err: "" });
      });

      test("SIGTERM to mpirun saves once and ends", async () => {
        const name = `stopped-${by!.name.replace(" ", "")}`;
        const job = await endless(by!, name);
        job.kill("SIGTERM");
        const [, err, out] = await Promise.all([
          job.exited,
          new Response(job.stderr).text(),
          new Response(job.stdout).text(),
        ]);
        expect(out.match(/\(interrupt\)/g)).toHaveLength(1);
        expect(err).toMatch(/rlv: interrupted: step \d+: continue with --resume_from/);
        expect(JSON.parse(readFileSync(join(jobs.run(name), "outcome.json"), "utf8")).exit_code).toBe(130);
      });
    },
  );
