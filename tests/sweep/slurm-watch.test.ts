/** What a sweep makes of Slurm's answers, without Slurm: stubs of its programs answer from files. */
import { afterAll, beforeEach, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { ResolvedConfig } from "../../src/config/recipes.ts";
import { slurmSchema } from "../../src/config/schema-slurm.ts";
import { writeOutcome } from "../../src/io/run-outcome.ts";
import type { Todo } from "../../src/sweep/folder.ts";
import type { SweepPlan } from "../../src/sweep/plan.ts";
import { type RunView, viewsOf } from "../../src/sweep/pool.ts";
import { jobsOf, refuseQueued, type SlurmRequest, submitMissing, watchJobs } from "../../src/sweep/slurm.ts";

const scratch = realpathSync(mkdtempSync(join(tmpdir(), "rlv-slurm-watch-")));
const main = resolve(import.meta.dir, "../../src/cli/main.ts");
const ownPath = process.env.PATH;
afterAll(() => {
  process.env.PATH = ownPath;
  rmSync(scratch, { recursive: true, force: true });
});

const NAMES = ["a", "b", "c"];
let root: string;
let folder: string;
let lines: string[];
let todos: Record<string, Todo>;

function stub(name: string, body: string): void {
  writeFileSync(join(root, "bin", name), `#!/bin/sh\nroot=${root}\n${body}\n`, { mode: 0o755 });
}

/** What squeue says of tasks that are queued: INDEX STATE REASON. */
function queue(...tasks: (readonly [index: number, state: string, reason: string])[]): void {
  const text = tasks.map(([index, state, reason]) => `7|${index}|${state}|${reason}|${folder}\n`).join("");
  writeFileSync(join(root, "queue"), `${text}9|0|RUNNING|None|/elsewhere\n3|N/A|RUNNING|None|${folder}\n`);
}

beforeEach(() => {
  root = mkdtempSync(join(scratch, "case-"));
  folder = join(root, "a|sweep");
  for (const dir of ["bin", "a|sweep"]) mkdirSync(join(root, dir));
  process.env.PATH = `${join(root, "bin")}:${ownPath}`;
  stub("sbatch", 'pwd >"$root/asked"; echo "$@" >>"$root/asked"; echo "7;cluster"');
  stub(
    "squeue",
    'case "$*" in *--states=all*) cat "$root/ended" 2>/dev/null;; *) [ ! -e "$root/down" ] || { echo "squeue: error: no answer" >&2; exit 1; }; cat "$root/queue";; esac',
  );
  stub("scontrol", "exit 1");
  stub("sacct", 'cat "$root/accounts" 2>/dev/null || { echo "disabled" >&2; exit 1; }');
  queue();
  lines = [];
  todos = { a: "start", b: "resume", c: "nothing" };
});

function request(): SlurmRequest {
  const settings = { num_train_steps: 9 } as unknown as ResolvedConfig;
  const runs = NAMES.map((name, index) => ({ index, name, variant: null, values: {}, settings }));
  const plan: SweepPlan = { recipe: "arithmetic", name: "s", folder, variants: [], keys: [], runs };
  return {
    ...{ plan, options: slurmSchema.parse({}), program: ["rlv"], cwd: root, further: [] },
    todo: ({ name }) => todos[name]!,
    line: (text) => lines.push(text),
  };
}

/** Writes that a run had begun, and how it ended. */
function ran(name: string, code: number | null, error: string | null = null): void {
  mkdirSync(join(folder, name), { recursive: true });
  writeFileSync(join(folder, name, "train_config.json"), "{}");
  if (code !== null) writeOutcome(join(folder, name), code, error);
}

/** Looks on; the world changes step by step, each when the table says so. */
async function watch(...steps: (readonly [when: string, change: () => void])[]) {
  const asked = request();
  const views = viewsOf(asked.plan.runs.map((run) => [run, todos[run.name]!] as const));
  const seen: string[] = [];
  const happened = (what: string) => {
    if (steps[0]?.[0] === what) steps.shift()![1]();
  };
  const screen = {
    changed({ run, state }: RunView) {
      seen.push(`${run.name} ${state}`);
      happened(seen.at(-1)!);
    },
    line: (text: string) => {
      lines.push(text);
      happened(text);
    },
  };
  const stopped = await watchJobs(asked, views, screen, { least: 20, most: 20, late: 100 });
  expect(steps).toEqual([]);
  return { seen, stopped, views: Object.fromEntries(views.map((view) => [view.run.name, view])) };
}

test("submits what is missing from the sweep's folder, and records it", async () => {
  expect(await submitMissing(request())).toEqual(["7"]);
  expect(readFileSync(join(root, "asked"), "utf8").split("\n")).toEqual([
    folder,
    `--parsable ${join(folder, "slurm/job.sh")}`,
    "",
  ]);
  expect(readFileSync(join(folder, "slurm/job.sh"), "utf8")).toContain("#SBATCH --array=0-1\n");
  expect(jobsOf(folder)).toMatchObject([{ job: "7", runs: { 0: "a", 1: "b" } }]);
  expect(lines).toEqual(["submitted job 7 with 2 runs"]);
});

test("what is queued is not submitted again", async () => {
  await submitMissing(request());
  queue([0, "PENDING", "Resources"], [1, "RUNNING", "None"]);
  rmSync(join(root, "asked"));
  expect(await submitMissing(request())).toEqual(["7"]);
  expect(existsSync(join(root, "asked"))).toBe(false);
  expect(lines.at(-1)).toBe("job 7 is under way with 2 runs");
});

test("what is queued is not run here", async () => {
  await submitMissing(request());
  queue([0, "PENDING", "Resources"]);
  await expect(refuseQueued(folder)).rejects.toThrow("Slurm still has 1 run of this sweep");
  queue();
  await refuseQueued(folder);
});

test("a job that nobody recorded is not taken for one of the sweep's", async () => {
  queue([0, "RUNNING", "None"]);
  await expect(submitMissing(request())).rejects.toThrow("scancel 7");
});

test("programs that are missing, and refusals, are errors with a remedy", async () => {
  stub("sbatch", 'echo "sbatch: error: Batch job submission failed: Job violates limits" >&2; exit 1');
  await expect(submitMissing(request())).rejects.toThrow(
    "sbatch refused the job: Batch job submission failed: Job violates limits",
  );
  stub("sbatch", "echo done");
  await expect(submitMissing(request())).rejects.toThrow('sbatch answered "done\\n"');
  writeFileSync(join(root, "down"), "");
  await expect(submitMissing(request())).rejects.toThrow("squeue failed: no answer");
  expect(jobsOf(folder)).toEqual([]);
});

test("what cannot be submitted is refused before anything is made", () => {
  const sweep = (args: string, path = "bin") =>
    Bun.spawnSync([process.execPath, main, "sweep", "arithmetic", "--grid", "seed=1,2", ...args.split(" ")], {
      cwd: root,
      env: { PATH: join(root, path), HOME: scratch },
    });
  const cases: [args: string, says: string, path?: string][] = [
    ["--slurm", "no sbatch here: PATH", "nowhere"],
    ["--slurm --slurm_time soon", "slurm_time expects a time limit"],
    ["--slurm --slurm_time 2", "slurm_signal 120 leaves no time to train"],
    ["--slurm --output_dir a\\b", "Slurm writes no logs"],
    ["--slurm --per_device 2", "say --slurm_limit instead"],
    ["--slurm_mem 4G", "--slurm_mem is for --slurm"],
  ];
  for (const [args, says, path] of cases) {
    const { exitCode, stderr } = sweep(args, path);
    expect(stderr.toString()).toContain(says);
    expect(exitCode).toBe(2);
  }
  expect(readdirSync(root).sort()).toEqual(["a|sweep", "bin", "queue"]);
});

test("looks on: waiting, running, queued again, evaluated, done", async () => {
  await submitMissing(request());
  queue([0, "PENDING", "QOSMaxJobsPerUserLimit"], [1, "RUNNING", "None"]);
  const { seen, stopped, views } = await watch(
    ["b running", () => queue([0, "RUNNING", "None"], [1, "PENDING", "BeginTime"])],
    [
      "b is queued again, after step 0",
      () => {
        todos.a = "evaluate";
      },
    ],
    [
      "a evaluating",
      () => {
        todos.a = "nothing";
        queue([1, "RUNNING", "None"]);
      },
    ],
    [
      "a finished",
      () => {
        todos.b = "nothing";
        queue();
      },
    ],
  );
  expect(stopped).toBe(false);
  const of = (name: string) => seen.filter((each) => each.startsWith(name)).map((each) => each.slice(2));
  expect(of("a").at(-1)).toBe("finished");
  expect(of("b")).toEqual(["running", "waiting", "running", "finished"]);
  expect(of("a")).toContain("evaluating");
  expect(lines).toContain("a waits: Slurm says QOSMaxJobsPerUserLimit");
  expect([views.a!.error, views.b!.error]).toEqual([null, null]);
});

test("a task that is gone without a finished run has failed: why, as far as anybody knows, and its log", async () => {
  todos = { a: "start", b: "start", c: "start" };
  await submitMissing(request());
  queue([0, "RUNNING", "None"], [1, "RUNNING", "None"], [2, "RUNNING", "None"]);
  writeFileSync(join(root, "ended"), "0|TIMEOUT\n");
  writeFileSync(join(root, "accounts"), "OUT_OF_MEMORY\n");
  const { views } = await watch([
    "c running",
    () => {
      // a says nothing, b failed, c diverged.
      ran("a", null);
      ran("b", 1, "the device is gone");
      ran("c", 3, "NaN in the loss");
      queue();
    },
  ]);
  const log = (index: number) => `log ${join(folder, "slurm", `7_${index}.log`)}`;
  expect([views.a!.state, views.a!.error]).toEqual(["failed", `Slurm says TIMEOUT: ${log(0)}`]);
  const b = `Slurm says OUT_OF_MEMORY: the device is gone: ${log(1)}`;
  expect([views.b!.state, views.b!.error]).toEqual(["failed", b]);
  expect(views.c!.state).toBe("diverged");
});

test("a controller that does not answer is waited for, and said once", async () => {
  await submitMissing(request());
  queue([0, "RUNNING", "None"], [1, "RUNNING", "None"]);
  const silence = "rlv: error: squeue failed: no answer";
  const { stopped } = await watch([
    "b running",
    () => {
      writeFileSync(join(root, "down"), "");
      todos = { a: "nothing", b: "nothing", c: "nothing" };
      queue();
      setTimeout(() => rmSync(join(root, "down")), 150);
    },
  ]);
  expect(stopped).toBe(false);
  expect(lines.filter((line) => line.startsWith(silence))).toHaveLength(1);
});

test("Ctrl-C stops looking on, and leaves the jobs alone", async () => {
  await submitMissing(request());
  queue([0, "RUNNING", "None"], [1, "RUNNING", "None"]);
  const { stopped, views } = await watch(["b running", () => process.kill(process.pid, "SIGINT")]);
  expect([stopped, views.b!.state]).toEqual([true, "running"]);
});
