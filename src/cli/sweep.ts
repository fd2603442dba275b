import { existsSync } from "node:fs";
import { join } from "node:path";
import { resolveOptions } from "../config/resolve.ts";
import { slurmKeys } from "../config/schema-slurm.ts";
import { SWEEP_FILE_OPTIONS, type SweepOptions, sweepSchema } from "../config/schema-sweep.ts";
import { type DeviceName, deviceChoice, threadCount } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { writeFileAtomic } from "../io/atomic.ts";
import { EVALUATION, isSweep } from "../report/sweep.ts";
import { programArgv } from "../run/engine-process.ts";
import { ENGINE_OUTPUT, resumePoint } from "../run/folder.ts";
import { openProgress } from "../run/progress.ts";
import { lockSweep, openSweep, storedPlan, type Todo, todoOf, writeSummary } from "../sweep/folder.ts";
import { type PlannedRun, planSweep, type SweepPlan } from "../sweep/plan.ts";
import { type PoolWork, type RunView, runPool, viewsOf } from "../sweep/pool.ts";
import { readRequest } from "../sweep/request.ts";
import { checkSlurm, refuseQueued, type SlurmRequest, submitMissing, watchJobs } from "../sweep/slurm.ts";
import { type Command, type Flag, JSON_FLAG, printJson } from "./command.ts";
import { flagsOf } from "./flags.ts";
import { planLines, SweepScreen, summaryLines } from "./sweep-text.ts";
import { findInputs, trainInFolder } from "./train.ts";

const PAIRS: readonly Flag[] = [
  {
    name: "grid",
    aliases: [],
    boolean: false,
    pairs: true,
    value: "KEY=A,B …",
    description:
      "every combination of these values is a run; keys as rlv train has them, commas in [] and {} divide nothing",
    fallback: undefined,
  },
  {
    name: "fixed",
    aliases: [],
    boolean: false,
    pairs: true,
    value: "KEY=VALUE …",
    description: "what all runs have",
    fallback: undefined,
  },
];

export const command: Command = {
  name: "sweep",
  usage: "sweep RECIPE | FILE.yaml | SWEEP_DIR --grid KEY=A,B … --fixed KEY=VALUE …",
  maxArgs: 1,
  summary: "run every combination of settings, and say what the seeds spread",
  examples: () => [
    "rlv sweep stories --grid seed=42,123,7 beta=0.01,0.02 --fixed reward=happy_count lora_rank=16",
    "rlv sweep examples/stories-routing.yaml --grid seed=1,2,3 --dry_run",
    "rlv sweep mine.yaml --fixed max_steps=20 --no_eval --json",
    "rlv sweep runs/mine",
    "rlv sweep mine.yaml --slurm --slurm_time 4:00:00 --slurm_mem 4G --slurm_cpus 4 --slurm_limit 8",
  ],
  notes: () => [
    "",
    "FILE.yaml is a config file of rlv train, or a sweep file:",
    "  recipe: stories            a recipe, or a config file of one",
    "  fixed: { max_steps: 200 }  what all runs have",
    "  variants:                  named settings, each with the whole grid",
    "    routed: { routing: classic, lora_config: r8 }",
    "    plain: { lora_rank: 16, lora_alpha: 32 }",
    "  grid: { seed: [42, 123, 7] }",
    "  name, output_dir, per_device, threads, slurm_time and its like: as the flags, which override the file",
    "",
    "Every setting of every run is checked before one starts. Started again, a sweep goes on: what is finished is not",
    "repeated, what was interrupted goes on from its newest checkpoint, and new values of the grid are added to it.",
    "Its folder holds the runs, sweep.json (the plan), summary.json, summary.csv (a row a run) and groups.csv (means and",
    "spread over the seeds). Ctrl-C once saves every run and ends with 130; twice ends at once.",
    "",
    "With --slurm each run is a task of an array of jobs, submitted by sbatch from a folder that all nodes share. Tasks",
    "are queued again when they lose their places, and go on from where they saved. Logs are in SWEEP_DIR/slurm. Ctrl-C",
    "leaves the jobs alone; called again, it looks on at what is under way and submits what is missing.",
  ],
  flags: () => [...PAIRS, ...flagsOf(sweepSchema), JSON_FLAG],
  async run({ args, flags, json }) {
    const given = new Map(flags);
    const words = (name: string) => given.get(name)?.split("\n") ?? [];
    const [grid, fixed] = [words("grid"), words("fixed")];
    for (const { name } of PAIRS) given.delete(name);
    const [target] = args;
    if (target === undefined)
      throw new UsageError("nothing to sweep", "rlv sweep", "name a recipe, a config file or a sweep file");
    const stored = isSweep(target);
    if (stored && grid.length + fixed.length > 0)
      throw new UsageError(
        "a sweep's folder has its plan",
        target,
        "drop --grid and --fixed, or name the recipe instead of the folder",
      );
    const request = stored ? null : readRequest(target, grid, fixed);
    for (const name of SWEEP_FILE_OPTIONS) {
      const value = request?.options.get(name);
      if (value !== undefined && !given.has(name)) given.set(name, value);
    }
    const options = resolveOptions<SweepOptions>(sweepSchema, given, "sweep");
    const plan = request === null ? storedPlan(target) : planSweep(request, options.name, options.output_dir);
    if (options.only !== null) {
      if (!stored) throw new UsageError("--only needs the folder of a sweep", target, "give SWEEP_DIR");
      return runOne(plan, options.only, options);
    }
    refuseMixed(flags, options);
    const slurm = options.slurm ? slurmRequest(plan, options, json) : null;
    const share = shareOf(plan, options);
    if (options.dry_run) {
      const atOnce = options.slurm
        ? `tasks of Slurm with ${options.slurm_cpus} CPUs each`
        : `${share.atOnce} at once with ${share.threads} threads each`;
      if (json) printJson({ ...plan, at_once: share.atOnce, threads: share.threads });
      else
        process.stdout.write(
          planLines(plan, atOnce, width())
            .map((line) => `${line}\n`)
            .join(""),
        );
      return 0;
    }
    if (slurm !== null) checkSlurm(slurm);
    else await refuseQueued(plan.folder);
    const located = await locate(plan);
    const lock = stored ? lockSweep(plan.folder) : openSweep(plan);
    try {
      return slurm === null
        ? await runAll(plan, located, options, share, json)
        : await runUnderSlurm(slurm, options, json);
    } finally {
      lock.release();
    }
  },
};

const width = () => (process.stdout.isTTY === true ? (process.stdout.columns ?? 80) : 1000);

/** How many runs go at once and what each gets. */
function shareOf(plan: SweepPlan, options: SweepOptions) {
  const cores = threadCount(null);
  const { device } = plan.runs[0]!.settings as { readonly device: DeviceName };
  const chosen = deviceChoice(device);
  const onCpu = chosen === "cpu" || (chosen === "auto" && process.platform !== "darwin");
  const wanted = options.per_device ?? (onCpu ? Math.floor(cores / (options.threads ?? 1)) : 1);
  const atOnce = Math.max(1, Math.min(wanted, plan.runs.length));
  return { atOnce, threads: options.threads ?? Math.max(1, Math.floor(cores / atOnce)) };
}

type Located = ReadonlyMap<string, Parameters<typeof trainInFolder>[0]["located"]>;

/** What every run reads is there, before the first one starts. */
async function locate(plan: SweepPlan): Promise<Located> {
  const found = new Map();
  for (const run of plan.runs) found.set(run.name, await findInputs(run.settings));
  return found;
}

async function runAll(
  plan: SweepPlan,
  located: Located,
  options: SweepOptions,
  { atOnce, threads }: { readonly atOnce: number; readonly threads: number },
  json: boolean,
): Promise<number> {
  const todos = plan.runs.map((run) => [run, todoOf(plan, run, options.retry, options.eval)] as const);
  const views = viewsOf(todos);
  const out = json ? process.stderr : process.stdout;
  const done = todos.filter(([, todo]) => todo === "nothing").length;
  out.write(
    `sweep folder: ${plan.folder}\n${plan.runs.length} runs, ${done} finished already, ${atOnce} at once\n`,
  );
  const screen = new SweepScreen(out, views, atOnce);
  let stopped: boolean;
  try {
    stopped = await runPool(todos, views, workOf(plan, located), screen, {
      ...{ atOnce, threads, evaluate: options.eval },
      // A share of what is free now is left to everything else.
      memory: options.per_device === null ? 0.8 * process.availableMemory() : null,
    });
  } finally {
    screen.close();
  }
  return conclude(plan, views, json, stopped ? `go on with rlv sweep ${plan.folder}` : null);
}

function slurmRequest(plan: SweepPlan, options: SweepOptions, json: boolean): SlurmRequest {
  const out = json ? process.stderr : process.stdout;
  return {
    ...{ plan, options, cwd: process.cwd(), program: programArgv(Bun.main) },
    further: [
      ...(options.eval ? [] : ["--no_eval"]),
      ...(options.retry ? [] : ["--no_retry"]),
      ...(options.threads === null ? [] : ["--threads", String(options.threads)]),
    ],
    todo: (run) => todoOf(plan, run, options.retry, options.eval),
    line: (text) => out.write(`${text}\n`),
  };
}

/** As an array of jobs. */
async function runUnderSlurm(request: SlurmRequest, options: SweepOptions, json: boolean): Promise<number> {
  const { plan } = request;
  request.line(`sweep folder: ${plan.folder}`);
  const jobs = await submitMissing(request);
  const again = `rlv sweep ${plan.folder} --slurm looks on, scancel ${jobs.join(" ")} ends it`;
  if (options.no_wait && jobs.length > 0) {
    if (json) printJson({ folder: plan.folder, jobs });
    else request.line(again);
    return 0;
  }
  const views = viewsOf(plan.runs.map((run) => [run, request.todo(run)]));
  const out = json ? process.stderr : process.stdout;
  const screen = new SweepScreen(out, views, options.slurm_limit ?? views.length);
  let stopped: boolean;
  try {
    stopped = await watchJobs(request, views, screen);
  } finally {
    screen.close();
  }
  return conclude(plan, views, json, stopped ? `the jobs go on; ${again}` : null);
}

/** What is said of Slurm says nothing of a pool on this machine, and the other way round. */
function refuseMixed(flags: ReadonlyMap<string, string>, { slurm }: SweepOptions): void {
  const names = slurm ? ["per_device"] : Object.keys(slurmKeys).filter((name) => name !== "slurm");
  const given = names.find((name) => flags.has(name));
  if (given === undefined) return;
  throw slurm
    ? new UsageError("--per_device is for runs on this machine", "--slurm", "say --slurm_limit instead")
    : new UsageError(`--${given} is for --slurm`, "rlv sweep", "add --slurm, or drop it");
}

/**
 * Writes and shows the summary. Returns the exit code.
 * @param stopped what to do after an interruption; null: there was none
 */
function conclude(plan: SweepPlan, views: readonly RunView[], json: boolean, stopped: string | null): number {
  const out = json ? process.stderr : process.stdout;
  const summary = writeSummary(plan);
  if (json) printJson(summary);
  else out.write(["", ...summaryLines(summary, width())].map((line) => `${line}\n`).join(""));
  const bad = views.filter(
    ({ state, error }) => state === "failed" || state === "diverged" || error !== null,
  );
  for (const view of bad) process.stderr.write(`${failureLine(plan, view)}\n`);
  const unfinished = views.filter(({ state }) => state !== "finished").length;
  if (stopped !== null) {
    process.stderr.write(
      `rlv: interrupted, ${unfinished} of ${views.length} runs are not finished: ${plan.folder}: ${stopped}\n`,
    );
    return 130;
  }
  return bad.length > 0 || unfinished > 0 ? 1 : 0;
}

function failureLine(plan: SweepPlan, { run, state, error }: RunView): string {
  const log = join(plan.folder, run.name, "train.log");
  const how = state === "finished" ? "" : ` ${state}`;
  return `rlv: error: ${run.name}${how}: ${error}${existsSync(log) ? `: see ${log}` : ""}`;
}

function workOf(plan: SweepPlan, located: Located): PoolWork {
  return {
    async train(run, resume, threads, progress) {
      const threaded = { threads };
      const { outcome } = await trainInFolder({
        config: { ...run.settings, ...threaded },
        located: { ...located.get(run.name)!, ...threaded },
        runName: run.name,
        resume: resume ? resumePoint(join(plan.folder, run.name)) : null,
        elsewhere: false,
        progress,
        begun: () => {},
        output: ENGINE_OUTPUT,
      });
      return outcome;
    },
    evaluate: (run, threads, signal) => evaluate(plan, run, threads, signal),
  };
}

/** rlv eval of a run in a process of its own; its report is kept in the run's folder. */
async function evaluate(
  plan: SweepPlan,
  run: PlannedRun,
  threads: number,
  signal: AbortSignal,
): Promise<string | null> {
  const dir = join(plan.folder, run.name);
  const child = Bun.spawn([...programArgv(Bun.main), "eval", dir, "--json", "--threads", String(threads)], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const stop = () => child.kill();
  signal.addEventListener("abort", stop);
  try {
    const [text, said, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    if (code !== 0)
      return child.signalCode === null
        ? (said.trimEnd().split("\n").at(-1) ?? `it ended with code ${code}`)
        : `it died of ${child.signalCode}`;
    writeFileAtomic(join(dir, EVALUATION), text);
    return null;
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** One run of a plan by itself, as a job of an array does: other processes run the others. */
async function runOne(plan: SweepPlan, name: string, options: SweepOptions): Promise<number> {
  const run = plan.runs.find((each) => each.name === name);
  if (run === undefined)
    throw new UsageError(
      `no run ${JSON.stringify(name)} in the plan`,
      plan.folder,
      "see rlv sweep … --dry_run",
    );
  const todo: Todo = todoOf(plan, run, options.retry, options.eval);
  const progress = openProgress(process.stdout, process.stderr);
  progress.line(`run ${run.name} of ${plan.folder}`);
  if (todo === "nothing") return 0;
  const threads = options.threads ?? threadCount(null);
  const found = new Map([[run.name, await findInputs(run.settings)]]);
  const work = workOf(plan, found);
  if (todo !== "evaluate") {
    const outcome = await work.train(run, todo === "resume", threads, progress);
    if (outcome.failure !== undefined) {
      const prefix = outcome.exitCode === 130 ? "rlv" : "rlv: error";
      process.stderr.write(`${prefix}: ${outcome.failure}\n`);
    }
    if (outcome.exitCode !== 0) return outcome.exitCode;
  }
  if (!options.eval) return 0;
  const failure = await work.evaluate(run, threads, new AbortController().signal);
  if (failure !== null)
    process.stderr.write(`rlv: error: the evaluation of ${run.name} failed: ${failure}\n`);
  return failure === null ? 0 : 1;
}
