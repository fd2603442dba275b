import { Database } from "bun:sqlite";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";

const main = resolve(import.meta.dir, "../../src/cli/main.ts");

export interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Runs the command line to its end. */
export function rlv(args: readonly string[], env: Record<string, string> = {}): Promise<Ended> {
  return ended(start(args, env));
}

/** The same under another program, such as one that watches its system calls. */
export function rlvUnder(program: readonly string[], args: readonly string[]): Promise<Ended> {
  return ended(spawn([...program, process.execPath, main, ...args]));
}

async function ended(child: ReturnType<typeof spawn>): Promise<Ended> {
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, err };
}

/** The same in a process group of its own, to be killed as a whole. */
export function start(args: readonly string[], env: Record<string, string> = {}) {
  return spawn(["setsid", "--wait", process.execPath, main, ...args], env);
}

function spawn(command: readonly string[], env: Record<string, string> = {}) {
  return Bun.spawn([...command], {
    stdout: "pipe",
    stderr: "pipe",
    stdin: "ignore",
    env: { ...process.env, NO_COLOR: "1", ...env },
  });
}

/** Every file below a folder with its sha256. */
export function digest(dir: string): Record<string, string> {
  const files: Record<string, string> = {};
  for (const entry of readdirSync(dir, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    files[path.slice(dir.length + 1)] = createHash("sha256").update(readFileSync(path)).digest("hex");
  }
  return files;
}

/** Processes whose command line names a run, the parent first: `start` gave them a session of their own. */
export function processesOf(run: string): number[] {
  const out = Bun.spawnSync(["pgrep", "-f", run]).stdout.toString().trim();
  return out === "" ? [] : out.split("\n").map(Number);
}

/** Ends them at once; some may have ended by themselves. */
export function killProcessesOf(run: string): void {
  for (const pid of processesOf(run))
    try {
      process.kill(pid, "SIGKILL");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
}

/** Kills a started run, its parent and its engine, at once. */
export async function killRun(child: ReturnType<typeof start>, run: string): Promise<void> {
  // It may have ended by itself.
  if (child.exitCode === null) process.kill(-child.pid, "SIGKILL");
  await child.exited;
  killProcessesOf(run);
}

/** Goes on with a run that was ended: it is resumed, or made by `job` again where it had not begun. */
export function goOn(run: string, job: readonly string[]): Promise<Ended> {
  if (existsSync(join(run, "train_config.json"))) return rlv(["train", "--resume_from", run]);
  rmSync(run, { recursive: true, force: true });
  return rlv(job);
}

/** The same where it is not at its end; else null. */
export async function finishRun(run: string, job: readonly string[]): Promise<Ended | null> {
  return existsSync(join(run, "checkpoints/final")) ? null : goOn(run, job);
}

export type Row = Record<string, number>;

export function metrics(run: string): Row[] {
  const text = readFileSync(join(run, "metrics.jsonl"), "utf8").trimEnd();
  return text.split("\n").map((line) => JSON.parse(line) as Row);
}

/** What does not depend on the clock, by step. */
export function timeless(run: string): Row[] {
  return metrics(run).map((row) =>
    Object.fromEntries(
      Object.entries(row).filter(([name]) => !/^time$|_time$|per_second$|^device\//.test(name)),
    ),
  );
}

/** Rollouts of training and of evaluations in their order; null without any. */
export function rolloutRows(run: string): unknown {
  if (!existsSync(join(run, "rollouts.sqlite"))) return null;
  using db = new Database(join(run, "rollouts.sqlite"), { readonly: true });
  const order = "order by step, epoch, prompt_index, rollout_index";
  return [
    db.query(`select * from rollouts ${order}`).all(),
    db.query(`select * from eval_rollouts ${order}, mode`).all(),
  ];
}

/** A short run of the default job. */
export const SHORT = [
  "--num_train_steps",
  "6",
  "--batch_size",
  "4",
  "--group_size",
  "4",
  "--eval_num_prompts",
  "8",
];
