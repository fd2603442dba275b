/** What Slurm's own programs are asked: to take an array of jobs, and how its tasks stand. */
import { SlurmError, UsageError } from "../core/errors.ts";

/** A task that Slurm still has. */
export interface SlurmTask {
  /** Of its array. */
  readonly job: string;
  /** Its place in the plan. */
  readonly index: number;
  /** PENDING, RUNNING, COMPLETING, … */
  readonly state: string;
  /** Why it waits; "None" where Slurm says nothing. */
  readonly reason: string;
}

const NO_SLURM = "--slurm works where sbatch, squeue and scontrol are on the PATH";

interface Answer {
  readonly code: number;
  readonly out: string;
  /** In one line. */
  readonly err: string;
}

async function ask(argv: readonly [string, ...string[]], cwd?: string): Promise<Answer> {
  const program = Bun.which(argv[0]);
  if (program === null) throw new UsageError(`no ${argv[0]} here`, "PATH", NO_SLURM);
  const child = Bun.spawn([program, ...argv.slice(1)], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    cwd,
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  const lines = err.split("\n").map((line) => line.replace(/^\w+: (error: )?/, "").trim());
  return { code, out, err: lines.filter(Boolean).join("; ") };
}

/** Refuses at once what could not be submitted. */
export function requireSlurm(): void {
  for (const name of ["sbatch", "squeue", "scontrol"])
    if (Bun.which(name) === null) throw new UsageError(`no ${name} here`, "PATH", NO_SLURM);
}

/** Hands a job's script over. Returns the number of the job. */
export async function submit(script: string, folder: string): Promise<string> {
  const { code, out, err } = await ask(["sbatch", "--parsable", script], folder);
  if (code !== 0)
    throw new SlurmError(
      `sbatch refused the job: ${err || `exit code ${code}`}`,
      script,
      "nothing was submitted; mend the --slurm_… keys, or submit less at a time",
    );
  // JOB;CLUSTER where there are several.
  const job = out.trim().split(";")[0]!;
  if (!/^\d+$/.test(job))
    throw new SlurmError(`sbatch answered ${JSON.stringify(out)} where a job's number belongs`, script);
  return job;
}

/** Tasks that were submitted from a folder and have not ended, by their place in the plan. */
export async function tasksOf(folder: string): Promise<Map<number, SlurmTask>> {
  const { code, out, err } = await ask([
    "squeue",
    "--me",
    "--array",
    "--noheader",
    "--format=%F|%K|%T|%r|%Z",
  ]);
  if (code !== 0)
    throw new SlurmError(`squeue failed: ${err || `exit code ${code}`}`, folder, "is slurmctld running?");
  const tasks = new Map<number, SlurmTask>();
  for (const line of out.split("\n")) {
    const [job, index, state, reason, ...rest] = line.split("|");
    // A folder's name may have the mark that divides.
    if (rest.join("|") !== folder || !/^\d+$/.test(index ?? "")) continue;
    tasks.set(Number(index), { job: job!, index: Number(index), state: state!, reason: reason! });
  }
  return tasks;
}

/** How a task ended that is no longer queued (TIMEOUT, OUT_OF_MEMORY, …); null where Slurm does not know any more. */
export async function endOf(job: string, index: number): Promise<string | null> {
  const id = `${job}_${index}`;
  const recent = await ask([
    "squeue",
    "--states=all",
    "--array",
    "--noheader",
    "--format=%K|%T",
    `--jobs=${id}`,
  ]);
  const line = recent.out.split("\n").find((each) => each.startsWith(`${index}|`));
  if (line !== undefined) return line.slice(line.indexOf("|") + 1).trim();
  if (Bun.which("sacct") === null) return null;
  const kept = await ask([
    "sacct",
    "--noheader",
    "--parsable2",
    "--allocations",
    "--format=State",
    `--jobs=${id}`,
  ]);
  // CANCELLED by USER
  return kept.code === 0 ? kept.out.trim().split(/\s/)[0] || null : null;
}
