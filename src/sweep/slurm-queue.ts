/** What Slurm's own programs are asked: to take an array of jobs, and how its tasks stand. */
import { realpathSync } from "node:fs";
import { environment } from "../core/env.ts";
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

const found = (name: string): string | null => Bun.which(name, { PATH: environment("PATH") ?? "" });

interface Answer {
  readonly code: number;
  readonly out: string;
  /** In one line. */
  readonly err: string;
}

async function ask(argv: readonly [string, ...string[]], cwd?: string): Promise<Answer> {
  const program = found(argv[0]);
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
    if (found(name) === null) throw new UsageError(`no ${name} here`, "PATH", NO_SLURM);
}

/** Whether this machine can ask for the queue; one that only shares the folder cannot. */
export const hasQueue = (): boolean => found("squeue") !== null;

/** Hands a job's script over. Returns the number of the job. */
export async function submit(script: string, folder: string): Promise<string> {
  const { code, out, err } = await ask(["sbatch", "--parsable", script], folder);
  if (code !== 0)
    throw new SlurmError(
      `sbatch refused the job: ${err || `exit code ${code}`}`,
      script,
      "nothing was submitted; mend the --slurm_… keys, or divide the sweep if it is too much at a time",
    );
  // JOB;CLUSTER where there are several.
  const job = out.trim().split(";")[0]!;
  if (!/^\d+$/.test(job))
    throw new SlurmError(`sbatch answered ${JSON.stringify(out)} where a job's number belongs`, script);
  return job;
}

/** Tasks that were submitted from a folder and have not ended. */
export async function tasksOf(folder: string): Promise<SlurmTask[]> {
  const { code, out, err } = await ask([
    "squeue",
    ...["--me", "--array", "--noheader", "--format=%F|%K|%T|%r|%Z"],
  ]);
  if (code !== 0)
    throw new SlurmError(`squeue failed: ${err || `exit code ${code}`}`, folder, "is slurmctld running?");
  // Slurm keeps the real path.
  const real = realpathSync(folder);
  return out.split("\n").flatMap((line) => {
    const [job, index, state, reason, ...rest] = line.split("|");
    // A folder's name may have the mark that divides.
    if (rest.join("|") !== real || !/^\d+$/.test(index ?? "")) return [];
    return [{ job: job!, index: Number(index), state: state!, reason: reason! }];
  });
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
  if (found("sacct") === null) return null;
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
