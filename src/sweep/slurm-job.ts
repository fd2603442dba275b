/** The script of a sweep's array of jobs: what Slurm is asked for, and how a task runs, saves and is queued again. */
import { join } from "node:path";
import type { SlurmConfig } from "../config/schema-slurm.ts";
import { UsageError } from "../core/errors.ts";
import { type PlannedRun, runArgv, type SweepPlan } from "./plan.ts";

/** What Slurm's side keeps in a sweep's folder. */
export const SLURM_FOLDER = "slurm";

export interface JobRequest {
  readonly plan: SweepPlan;
  /** The runs that the job's tasks are, whose numbers are their places in the plan. */
  readonly runs: readonly PlannedRun[];
  readonly options: SlurmConfig;
  /** How this program is started. */
  readonly program: readonly string[];
  /** Flags of each run's command. */
  readonly further: readonly string[];
  /** Where relative paths of the settings begin. */
  readonly cwd: string;
}

/**
 * SWEEP/slurm/job.sh. It is submitted from the sweep's folder, by which the queue knows its tasks.
 *
 * A task that is told to end saves: by SIGUSR1 before its time limit, whereupon it asks for another turn, if it got
 * further in this one; by SIGTERM when Slurm takes its place away, and then Slurm decides.
 */
export function jobScript({ plan, runs, options, program, further, cwd }: JobRequest): string {
  // The last word is the run's name, which the task looks up.
  const words = [...program, ...runArgv(plan, runs[0]!, further).slice(0, -1)].map(shellWord);
  return `#!/usr/bin/env bash
${directives(plan, runs, options)}
# Written and submitted by rlv sweep --slurm, from the sweep's folder. A task is one run.
names=(
${runs.map(({ index, name }) => `  [${index}]=${shellWord(name)}`).join("\n")}
)
name=\${names[$SLURM_ARRAY_TASK_ID]}
run=${shellWord(plan.folder)}/$name
cd -- ${shellWord(cwd)} || exit 1

checkpoints() { ls -- "$run/checkpoints" 2>/dev/null; }
before=$(checkpoints)
warned=
child=
tell() { interrupted=1; [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null; }
trap 'warned=1; tell USR1' USR1
trap 'tell TERM' TERM

${words.join(" ")} "$name" &
child=$!
[ -z "$warned" ] || tell USR1
# A signal interrupts wait; the run's own exit code is the one that counts.
code=0
interrupted=1
while [ -n "$interrupted" ]; do
  interrupted=
  wait "$child"
  now=$?
  [ "$now" -eq 127 ] || code=$now
done

if [ -n "$warned" ] && [ "$code" -ge 128 ]; then
  if [ "$(checkpoints)" = "$before" ]; then
    echo "rlv: the time limit left no time to save anything new: raise --slurm_time or --slurm_signal" >&2
  else
    scontrol requeue "\${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  fi
fi
exit "$code"
`;
}

function directives(plan: SweepPlan, runs: readonly PlannedRun[], options: SlurmConfig): string {
  const limit = options.slurm_limit === null ? "" : `%${options.slurm_limit}`;
  const wanted: [string, string | number | null][] = [
    ["job-name", plan.name],
    ["array", `${ranges(runs.map(({ index }) => index))}${limit}`],
    ["output", outputPattern(plan.folder)],
    ["cpus-per-task", options.slurm_cpus],
    ["partition", options.slurm_partition],
    ["account", options.slurm_account],
    ["time", options.slurm_time],
    ["mem", options.slurm_mem],
    ["signal", `B:USR1@${options.slurm_signal}`],
  ];
  const lines = wanted.flatMap(([name, value]) =>
    value === null ? [] : [`#SBATCH --${name}=${slurmWord(String(value), name)}`],
  );
  const further = options.slurm_args === null ? [] : [`#SBATCH ${oneLine(options.slurm_args, "args")}`];
  return [...lines, "#SBATCH --requeue", "#SBATCH --open-mode=append", ...further].join("\n");
}

/** Where Slurm writes a task's log: in patterns % has a meaning, and \ takes it away from all. */
function outputPattern(folder: string): string {
  if (folder.includes("\\"))
    throw new UsageError("Slurm writes no logs to a folder with a \\ in its name", folder, "choose another");
  return join(folder.replaceAll("%", "%%"), SLURM_FOLDER, taskLog("%A", "%a"));
}

/** Name of a task's log in SWEEP/slurm. Its turns follow each other there. */
export function taskLog(job: string, index: number | string): string {
  return `${job}_${index}.log`;
}

/** 0-2,5: ascending numbers as --array takes them. */
export function ranges(numbers: readonly number[]): string {
  const parts: [first: number, last: number][] = [];
  for (const each of [...numbers].sort((a, b) => a - b)) {
    const part = parts.at(-1);
    if (part !== undefined && part[1] === each - 1) part[1] = each;
    else parts.push([each, each]);
  }
  return parts.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(",");
}

/** A word of a shell's line, whatever it holds. */
function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A word of a #SBATCH line. */
function slurmWord(text: string, name: string): string {
  const plain = /^[\w@%+=:,./[\]-]+$/.test(oneLine(text, name));
  return plain ? text : `"${text.replace(/["\\]/g, "\\$&")}"`;
}

function oneLine(text: string, name: string): string {
  if (/[\n\r\0]/.test(text))
    throw new UsageError(`slurm_${name} has a line break`, JSON.stringify(text), "give it in one line");
  return text;
}

const UNITS = [1, 60, 3600, 86_400] as const;

/** Seconds of a time limit in sbatch's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. null: without limit. */
export function timeLimit(text: string): number | null {
  if (/^(infinite|unlimited|-1)$/i.test(text)) return null;
  const [, days, clock] = /^(?:(\d+)-)?(\d+(?::\d+){0,2})$/.exec(text) ?? [];
  if (clock === undefined)
    throw new UsageError(
      `slurm_time expects a time limit, given ${JSON.stringify(text)}`,
      undefined,
      "minutes, H:M:S or D-H:M:S",
    );
  const parts = clock.split(":").map(Number);
  // With days the first figure is hours, without them minutes unless there are three.
  const first = days !== undefined || parts.length === 3 ? 2 : 1;
  const seconds = parts.reduce((sum, part, at) => sum + part * UNITS[first - at]!, 0);
  return Number(days ?? 0) * UNITS[3] + seconds;
}

/** A run that is told to save as soon as it starts would never get further. */
export function checkTimes({ slurm_time, slurm_signal }: SlurmConfig): void {
  const limit = slurm_time === null ? null : timeLimit(slurm_time);
  if (limit !== null && limit <= slurm_signal)
    throw new UsageError(
      `slurm_signal ${slurm_signal} leaves no time to train`,
      `slurm_time ${slurm_time} = ${limit} s`,
      "raise --slurm_time or lower --slurm_signal",
    );
}
