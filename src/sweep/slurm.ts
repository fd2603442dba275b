/** A sweep under Slurm: what is missing is submitted as an array of jobs; the queue and the runs' folders say the rest. */
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { errorLine, RlvError, SlurmError, UsageError } from "../core/errors.ts";
import { withFileErrors, writeFileAtomic } from "../io/atomic.ts";
import { readOutcome } from "../io/run-outcome.ts";
import { lastRows, lastValues } from "../report/metrics.ts";
import type { Todo } from "./folder.ts";
import type { PlannedRun, SweepPlan } from "./plan.ts";
import type { PoolScreen, RunView } from "./pool.ts";
import { checkTimes, type JobRequest, jobScript, SLURM_FOLDER, taskLog } from "./slurm-job.ts";
import { endOf, hasQueue, requireSlurm, type SlurmTask, submit, tasksOf } from "./slurm-queue.ts";

/** One array of jobs, as SWEEP/slurm/jobs.json keeps it. */
export interface SlurmJob {
  /** Its number. */
  readonly job: string;
  /** Seconds since 1970. */
  readonly time: number;
  /** Names of its runs by their tasks' numbers: those of the plan that was submitted. */
  readonly runs: Readonly<Record<string, string>>;
}

const JOBS = join(SLURM_FOLDER, "jobs.json");
const SCRIPT = join(SLURM_FOLDER, "job.sh");

const runsText = (count: number): string => `${count} ${count === 1 ? "run" : "runs"}`;

/** Every array that was submitted for a sweep, in that order. */
export function jobsOf(folder: string): SlurmJob[] {
  const path = join(folder, JOBS);
  if (!existsSync(path)) return [];
  const text = withFileErrors("read", path, () => readFileSync(path, "utf8"));
  try {
    return JSON.parse(text) as SlurmJob[];
  } catch {
    throw new UsageError("not JSON", path, "remove it when no job of the sweep is queued");
  }
}

export interface SlurmRequest extends Omit<JobRequest, "runs"> {
  /** What is left to do of a run, by its folder. */
  todo(run: PlannedRun): Todo;
  line(text: string): void;
}

/** Refuses to run here what Slurm still has. */
export async function refuseQueued(folder: string): Promise<void> {
  if (jobsOf(folder).length === 0 || !hasQueue()) return;
  const tasks = await tasksOf(folder);
  if (tasks.length === 0) return;
  const jobs = [...new Set(tasks.map(({ job }) => job))].join(" ");
  throw new UsageError(
    `Slurm still has ${runsText(tasks.length)} of this sweep`,
    folder,
    `look on with --slurm, or end them by scancel ${jobs}`,
  );
}

/** Refuses, before anything is made, what could not be submitted. */
export function checkSlurm(request: SlurmRequest): void {
  requireSlurm();
  checkTimes(request.options);
  jobScript({ ...request, runs: request.plan.runs });
}

/** Submits the runs of which there is something to do and that are not queued. Returns the arrays under way. */
export async function submitMissing(request: SlurmRequest): Promise<string[]> {
  const { plan, line } = request;
  const before = jobsOf(plan.folder);
  const queued = byName(await tasksOf(plan.folder), before, plan.folder);
  const jobs = new Set([...queued.values()].map(({ job }) => job));
  for (const job of jobs) {
    const count = [...queued.values()].filter((task) => task.job === job).length;
    line(`job ${job} is under way with ${runsText(count)}`);
  }
  const missing = plan.runs.filter(
    (run) => !queued.has(run.name) && ["start", "resume", "evaluate"].includes(request.todo(run)),
  );
  if (missing.length > 0) {
    const script = join(plan.folder, SCRIPT);
    withFileErrors("make", script, () => mkdirSync(join(plan.folder, SLURM_FOLDER), { recursive: true }));
    writeFileAtomic(script, jobScript({ ...request, runs: missing }));
    const job = await submit(script, plan.folder);
    const runs = Object.fromEntries(missing.map(({ index, name }) => [index, name]));
    const all: SlurmJob[] = [...before, { job, time: Date.now() / 1000, runs }];
    writeFileAtomic(join(plan.folder, JOBS), `${JSON.stringify(all, null, 1)}\n`);
    line(`submitted job ${job} with ${runsText(missing.length)}`);
    jobs.add(job);
  }
  return [...jobs];
}

/** Tasks by the names of their runs. */
function byName(
  tasks: readonly SlurmTask[],
  jobs: readonly SlurmJob[],
  folder: string,
): Map<string, SlurmTask> {
  const named = new Map<string, SlurmTask>();
  for (const task of tasks) {
    // Slurm uses numbers again.
    const name = jobs.findLast(({ job }) => job === task.job)?.runs[task.index];
    if (name === undefined)
      throw new UsageError(
        `job ${task.job} runs in the sweep's folder and is not of those that were submitted for it`,
        folder,
        `end it by scancel ${task.job}, then submit again`,
      );
    named.set(name, task);
  }
  return named;
}

export interface WatchOptions {
  /** Least and most milliseconds between two looks at the queue; a twentieth of the time so far. */
  readonly least: number;
  readonly most: number;
  /** How long after its task a run's folder may be late to say how it ended: file systems of clusters are. */
  readonly late: number;
}

const PATIENT: WatchOptions = { least: 1000, most: 15_000, late: 15_000 };
/** Reasons to wait that need nobody. */
const USUAL = /^(None|Priority|Resources|JobArrayTaskLimit|BeginTime|Prolog|Cleaning|)$/;

/** Looks on until no run of the sweep is queued any more, or it is asked to stop. Returns whether it was. */
export async function watchJobs(
  request: SlurmRequest,
  views: readonly RunView[],
  screen: PoolScreen,
  options: WatchOptions = PATIENT,
): Promise<boolean> {
  const { plan } = request;
  const jobs = jobsOf(plan.folder);
  const stopping = Promise.withResolvers<void>();
  let stopped = false;
  const onStop = () => {
    stopped = true;
    stopping.resolve();
  };
  const signals = ["SIGINT", "SIGTERM"] as const;
  for (const signal of signals) process.on(signal, onStop);
  const watch = new Watch(plan, jobs, screen, (run) => request.todo(run));
  const open = new Set(
    views.filter(({ run }) => jobs.some(({ runs }) => Object.values(runs).includes(run.name))),
  );
  let silent = "";
  const began = performance.now();
  try {
    while (open.size > 0 && !stopped) {
      const asked = await queueOf(plan.folder);
      if (asked instanceof SlurmError) {
        // Controllers restart; the tasks go on meanwhile.
        if (silent !== asked.message) screen.line(errorLine(asked));
        silent = asked.message;
      } else {
        const tasks = byName(asked, jobs, plan.folder);
        for (const view of open)
          if (await watch.look(view, tasks.get(view.run.name), options.late)) open.delete(view);
        silent = "";
      }
      const pause = Math.min(options.most, Math.max(options.least, (performance.now() - began) / 20));
      if (open.size > 0) await Promise.race([Bun.sleep(pause), stopping.promise]);
    }
  } finally {
    for (const signal of signals) process.off(signal, onStop);
  }
  return stopped;
}

async function queueOf(folder: string): Promise<SlurmTask[] | SlurmError> {
  try {
    return await tasksOf(folder);
  } catch (error) {
    if (error instanceof SlurmError) return error;
    throw error;
  }
}

/** Turns the queue and folders into what the table shows. */
class Watch {
  /** When a run was first missed in the queue. */
  readonly #missed = new Map<string, number>();
  readonly #reasons = new Map<string, string>();

  constructor(
    readonly plan: SweepPlan,
    readonly jobs: readonly SlurmJob[],
    readonly screen: PoolScreen,
    readonly todo: (run: PlannedRun) => Todo,
  ) {}

  /** Looks at one run. Returns whether it has ended. */
  async look(view: RunView, task: SlurmTask | undefined, late: number): Promise<boolean> {
    this.#steps(view);
    if (task !== undefined) {
      this.#missed.delete(view.run.name);
      this.#queued(view, task);
      return false;
    }
    const since = this.#missed.get(view.run.name) ?? performance.now();
    this.#missed.set(view.run.name, since);
    return this.#ended(view, performance.now() - since >= late);
  }

  #steps(view: RunView): void {
    const last = lastValues(lastRows(this.#folder(view.run), 16 << 10));
    const step = last.step ?? 0;
    view.reward = last["train/reward_mean"] ?? view.reward;
    if (step === view.step) return;
    view.step = step;
    if (view.state === "running") {
      view.began ??= { time: performance.now(), step };
      this.screen.changed(view, true);
    }
  }

  #queued(view: RunView, { state, reason }: SlurmTask): void {
    const { name } = view.run;
    const waits = state === "PENDING" || state === "SUSPENDED";
    if (waits && view.state === "running") {
      view.began = null;
      this.screen.line(`${name} is queued again, after step ${view.step}`);
    }
    if (waits && !USUAL.test(reason) && this.#reasons.get(name) !== reason)
      this.screen.line(`${name} waits: Slurm says ${reason}`);
    this.#reasons.set(name, reason);
    const trained = !waits && this.todo(view.run) === "evaluate";
    this.#set(view, waits ? "waiting" : trained ? "evaluating" : "running");
  }

  async #ended(view: RunView, late: boolean): Promise<boolean> {
    const { run } = view;
    const todo = this.todo(run);
    if (todo === "nothing") {
      view.error = null;
      this.#set(view, "finished");
      return true;
    }
    const outcome = readOutcome(this.#folder(run));
    const said = outcome !== null && ![0, 130].includes(outcome.exit_code);
    if (!said && !late) return false;
    const { job, index } = this.#submitted(run);
    const how = await endOf(job, index);
    const why = todo === "evaluate" ? "its evaluation failed" : outcome?.error;
    view.error = [
      ...(how === null || how === "COMPLETED" || how === "FAILED" ? [] : [`Slurm says ${how}`]),
      ...(why ? [why] : []),
      `log ${join(this.plan.folder, SLURM_FOLDER, taskLog(job, index))}`,
    ].join(": ");
    const diverged = outcome?.exit_code === 3;
    this.#set(view, todo === "evaluate" ? "finished" : diverged ? "diverged" : "failed");
    return true;
  }

  /** The last task that a run had. */
  #submitted({ name }: PlannedRun): { job: string; index: number } {
    for (const { job, runs } of this.jobs.toReversed())
      for (const [index, each] of Object.entries(runs))
        if (each === name) return { job, index: Number(index) };
    throw new RlvError(`${name} was never submitted`, this.plan.folder);
  }

  #set(view: RunView, state: RunView["state"]): void {
    if (view.state === state) return;
    view.state = state;
    this.screen.changed(view, false);
  }

  #folder(run: PlannedRun): string {
    return join(this.plan.folder, run.name);
  }
}
