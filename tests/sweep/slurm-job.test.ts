/** The job script that a sweep gives to Slurm, run without it: stubs stand for the program and for scontrol. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fieldsOf } from "../../src/config/fields.ts";
import type { ResolvedConfig } from "../../src/config/recipes.ts";
import { type SlurmConfig, slurmSchema } from "../../src/config/schema-slurm.ts";
import type { SweepPlan } from "../../src/sweep/plan.ts";
import { checkTimes, jobScript, ranges, timeLimit } from "../../src/sweep/slurm-job.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-slurm-job-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const DEFAULTS = slurmSchema.parse({}) as SlurmConfig;

function planIn(folder: string, names: readonly string[]): SweepPlan {
  const settings = {} as ResolvedConfig;
  const runs = names.map((name, index) => ({ index, name, variant: null, values: {}, settings }));
  return { recipe: "arithmetic", name: "sweep", folder, variants: [], keys: [], runs };
}

/** A folder with a stub of scontrol, a program as it is told, and a job's script that runs it. */
class Stubs {
  readonly root: string;
  readonly folder: string;
  readonly script: string;

  constructor(place: string, program: string) {
    this.root = join(scratch, place);
    this.folder = join(this.root, "sweep");
    for (const name of ["bin", "cwd", "sweep/a/checkpoints", "sweep/b c"])
      mkdirSync(join(this.root, name), { recursive: true });
    this.#program("bin/scontrol", 'printf "%s\\n" "$@" >>"$ROOT/asked"');
    this.#program("rlv", `printf "%s\\n" "$PWD" "$@" >"$ROOT/argv"; ${program}`);
    this.script = join(this.root, "job.sh");
    const plan = planIn(this.folder, ["a", "b c"]);
    const text = jobScript({
      plan,
      runs: plan.runs,
      options: DEFAULTS,
      program: [join(this.root, "rlv"), "two words"],
      further: ["--no_eval"],
      cwd: join(this.root, "cwd"),
    });
    writeFileSync(this.script, text);
  }

  #program(name: string, body: string): void {
    writeFileSync(join(this.root, name), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  }

  start(task: number) {
    return Bun.spawn(["bash", this.script], {
      cwd: scratch,
      env: {
        PATH: `${join(this.root, "bin")}:${process.env.PATH}`,
        ROOT: this.root,
        SLURM_ARRAY_JOB_ID: "7",
        SLURM_ARRAY_TASK_ID: String(task),
      },
      stdout: "pipe",
      stderr: "pipe",
    });
  }

  lines(name: string): string[] {
    const path = join(this.root, name);
    return existsSync(path) ? readFileSync(path, "utf8").trimEnd().split("\n") : [];
  }
}

/** Ends as told by the code, after a signal at the latest. */
const ON_SIGNAL = (signal: string, does: string) =>
  `trap '${does}' ${signal}; touch "$ROOT/ready"; while :; do sleep 0.02; done`;

async function signalled(place: string, signal: "SIGUSR1" | "SIGTERM", program: string) {
  const stubs = new Stubs(place, program);
  const job = stubs.start(0);
  while (!existsSync(join(stubs.root, "ready"))) await Bun.sleep(10);
  job.kill(signal);
  const code = await job.exited;
  return { code, asked: stubs.lines("asked"), err: await new Response(job.stderr).text() };
}

describe("a task runs its run, by its name, where the sweep was started", () => {
  test.each(["plain", "it's a $HOME", 'a "quoted" `date` %j', "ünï\tcode"])("in %j", async (place) => {
    const stubs = new Stubs(place, "exit 3");
    expect(Bun.spawnSync(["bash", "-n", stubs.script]).exitCode).toBe(0);
    const job = stubs.start(1);
    expect(await job.exited).toBe(3);
    const argv = ["two words", "sweep", stubs.folder, "--no_eval", "--only", "b c"];
    expect(stubs.lines("argv")).toEqual([join(stubs.root, "cwd"), ...argv]);
    expect(stubs.lines("asked")).toEqual([]);
  });
});

describe("what becomes of a task that is told to end", () => {
  const saves = 'mkdir "$ROOT/sweep/a/checkpoints/step-9"';
  test("before its time limit: it saves and asks for another turn of this task alone", async () => {
    const ended = await signalled("usr1", "SIGUSR1", ON_SIGNAL("USR1", `sleep 0.1; ${saves}; exit 130`));
    expect(ended).toEqual({ code: 130, asked: ["requeue", "7_0"], err: "" });
  });
  test("one that saved nothing new would come here again and again: it ends and says why", async () => {
    const { code, asked, err } = await signalled("stuck", "SIGUSR1", ON_SIGNAL("USR1", "exit 130"));
    expect([code, asked]).toEqual([130, []]);
    expect(err).toContain("raise --slurm_time");
  });
  test("one that finishes all the same is done", async () => {
    const ended = await signalled("done", "SIGUSR1", ON_SIGNAL("USR1", `${saves}; exit 0`));
    expect(ended).toEqual({ code: 0, asked: [], err: "" });
  });
  test("when Slurm takes its place: it saves; whether it comes back is Slurm's to say", async () => {
    const ended = await signalled("term", "SIGTERM", ON_SIGNAL("TERM", `sleep 0.1; ${saves}; exit 130`));
    expect(ended).toEqual({ code: 130, asked: [], err: "" });
  });
});

describe("what Slurm is asked for", () => {
  const head = (options: Partial<SlurmConfig>, folder = "/sweep") => {
    const plan = planIn(folder, ["a", "b"]);
    const text = jobScript({
      ...{ plan, runs: plan.runs, program: ["rlv"], further: [], cwd: "/" },
      options: { ...DEFAULTS, ...options },
    });
    return text.split("\n").flatMap((line) => (line.startsWith("#SBATCH ") ? line.slice(8) : []));
  };
  test("by default: an array that may be queued again, and nothing of the site's", () => {
    expect(head({})).toEqual([
      ...["--job-name=sweep", "--array=0-1", "--output=/sweep/slurm/%A_%a.log", "--cpus-per-task=1"],
      ...["--signal=B:USR1@120", "--requeue", "--open-mode=append"],
    ]);
  });
  test("every key", () => {
    const wanted = head({
      ...{ slurm_partition: "a b", slurm_account: "x'y\"#z", slurm_time: "1-2:30", slurm_mem: "4G" },
      ...{ slurm_cpus: 3, slurm_limit: 2, slurm_signal: 60, slurm_args: "--gres=gpu:1 --nice" },
    });
    expect(wanted).toContain("--array=0-1%2");
    expect(wanted).toContain('--partition="a b"');
    expect(wanted).toContain('--account="x\'y\\"#z"');
    expect(wanted).toContain("--cpus-per-task=3");
    expect(wanted).toContain("--time=1-2:30");
    expect(wanted).toContain("--mem=4G");
    expect(wanted).toContain("--signal=B:USR1@60");
    expect(wanted.at(-1)).toBe("--gres=gpu:1 --nice");
    for (const key of ["slurm_partition", "slurm_args"] as const)
      expect(() => head({ [key]: "a\n#SBATCH --uid=0" })).toThrow(`${key} has a line break`);
  });
  test("folders whose names mean something to Slurm", () => {
    expect(head({}, "/100%j")).toContain("--output=/100%%j/slurm/%A_%a.log");
    expect(() => head({}, "/a\\b")).toThrow("Slurm writes no logs");
  });
  test("only what is missing", () => {
    expect(ranges([7, 0, 1, 2, 5, 8])).toBe("0-2,5,7-8");
    expect(ranges([4])).toBe("4");
  });
  test("every key is described", () => {
    for (const { name, description } of fieldsOf(slurmSchema)) expect(description, name).not.toBe("");
  });
});

test("time limits as sbatch reads them (sbatch(1), --time)", () => {
  const limits: [string, number | null][] = [
    ["90", 5400],
    ["1:30", 90],
    ["1:30:00", 5400],
    ["2-12", 216_000],
    ["1-0:30", 88_200],
    ["1-1:1:1", 90_061],
    ["UNLIMITED", null],
  ];
  for (const [text, seconds] of limits) expect([text, timeLimit(text)]).toEqual([text, seconds]);
  for (const wrong of ["soon", "1:2:3:4", "-2", "1-", ""])
    expect(() => timeLimit(wrong)).toThrow("slurm_time");
  expect(() => checkTimes({ ...DEFAULTS, slurm_time: "2", slurm_signal: 120 })).toThrow("leaves no time");
  expect(() => checkTimes({ ...DEFAULTS, slurm_time: "2:01", slurm_signal: 120 })).not.toThrow();
  expect(() => checkTimes(DEFAULTS)).not.toThrow();
});
