import { appendFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { debugging } from "../core/env.ts";
import { exitCodeOf, firstCause, Interrupted, messageLine, RlvError } from "../core/errors.ts";
import { ENGINE_COMMAND, STANDALONE } from "../core/version.ts";
import { writeOutcome } from "../io/run-outcome.ts";
import { newestOf } from "./folder.ts";
import type { Progress } from "./progress.ts";
import { ALONE, type Ranks } from "./ranks.ts";
import {
  type DoneMessage,
  type EngineMessage,
  linesOf,
  type Reporter,
  type RunControl,
  reporterTo,
} from "./reporter.ts";

/**
 * The engine is a second process of this program: a crash of native code ends that process only, and the parent
 * says why and from where to go on. They speak over Bun's IPC.
 */

/** Parent to engine: the job, once. */
export interface EngineJob<Config> {
  readonly type: "job";
  readonly config: Config;
  readonly runDir: string;
  readonly resumeFrom: string | null;
  readonly checkpointConfig: string;
}

/** Parent to engine: stop after this step (saving), or at once. */
interface StopMessage {
  readonly type: "stop";
  readonly how: "finish" | "now";
}

/** Engine to parent: nothing follows. */
interface EndMessage {
  readonly type: "end";
}

export interface EngineOutcome {
  readonly exitCode: number;
  readonly done: DoneMessage | undefined;
  /** The line for the user when exitCode is not 0, without `rlv: error: `. */
  readonly failure: string | undefined;
}

/** How this very program is started again: the standalone binary, or Bun with the main file. */
export function programArgv(main: string): string[] {
  return STANDALONE ? [process.execPath] : [process.execPath, main];
}

/** How long the last messages of an engine that is gone are waited for. */
const LAST_WORDS_MS = 300;

/** Whoever sends one wants the run saved and ended. */
export const END_SIGNALS = ["SIGTERM", "SIGHUP", "SIGUSR1"] as const;

/** After "stop now" the engine has this long to end by itself. */
const NOW_MS = 1000;

/**
 * Runs a job in an engine process, showing its messages. Ctrl-C once: the engine finishes the step, saves and
 * ends with 130; twice: it is killed. SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (Slurm's warning) save and end.
 * @param output file descriptor for what the engine itself prints
 */
export async function superviseEngine<Config>(
  argv: readonly string[],
  job: Omit<EngineJob<Config>, "type">,
  progress: Progress,
  onStart: (pid: number) => void,
  output = 2,
): Promise<EngineOutcome> {
  const outcome = await watchEngine(argv, job, progress, onStart, output);
  // The engine's own word does not know of a signal that killed it.
  writeOutcome(job.runDir, outcome.exitCode, outcome.failure ?? null);
  return outcome;
}

async function watchEngine<Config>(
  argv: readonly string[],
  job: Omit<EngineJob<Config>, "type">,
  progress: Progress,
  onStart: (pid: number) => void,
  output: number,
): Promise<EngineOutcome> {
  let done: DoneMessage | undefined;
  let failure: string | undefined;
  let step = 0;
  let stopping: StopMessage["how"] | undefined;
  const ended = Promise.withResolvers<void>();
  const engine = Bun.spawn([...argv, ENGINE_COMMAND], {
    // The engine's own output is what a crash prints: stdout stays clean.
    stdio: ["ignore", output, output],
    serialization: "advanced",
    ipc(received: EngineMessage | EndMessage) {
      if (received.type === "end") return ended.resolve();
      if (received.type === "done") done = received;
      if (received.type === "step") step = received.step;
      if (received.type === "error") {
        failure = received.message;
        if (received.stack !== undefined && debugging()) progress.line(received.stack);
      } else progress.show(received);
    },
  });
  let killer: Timer | undefined;
  const stop = (how: StopMessage["how"], word: string) => {
    if (stopping === "now" || stopping === how) return;
    stopping = how;
    progress.line(word);
    try {
      engine.send({ type: "stop", how } satisfies StopMessage);
    } catch {
      // The engine has ended already; its exit code tells the rest.
    }
    if (how === "now") killer = setTimeout(() => engine.kill("SIGKILL"), NOW_MS);
  };
  const onInterrupt = () =>
    stopping === undefined
      ? stop("finish", "stopping after this step; Ctrl-C again to stop at once without saving")
      : stop("now", "stopping at once");
  const onTerminate = () => stop("finish", "asked to stop: saving after this step");
  process.on("SIGINT", onInterrupt);
  for (const signal of END_SIGNALS) process.on(signal, onTerminate);
  try {
    onStart(engine.pid);
    engine.send({ type: "job", ...job } satisfies EngineJob<Config>);
    await engine.exited;
    // Messages may still be in the channel when the process is gone; one that crashed sends no end.
    await Promise.race([ended.promise, Bun.sleep(LAST_WORDS_MS)]);
  } finally {
    clearTimeout(killer);
    process.off("SIGINT", onInterrupt);
    for (const signal of END_SIGNALS) process.off(signal, onTerminate);
    progress.close();
  }
  if (stopping === "now") return { exitCode: 130, done, failure: interrupted(job.runDir, "without saving") };
  const code = engine.exitCode;
  if (engine.signalCode === null && code !== null) {
    if (code === 0 && done !== undefined) return { exitCode: 0, done, failure: undefined };
    if (failure !== undefined) return { exitCode: code === 0 ? 1 : code, done, failure };
    if (code === 130) return { exitCode: 130, done, failure: interrupted(job.runDir, "") };
  }
  return { exitCode: 1, done, failure: death(engine.signalCode, code, step, job.runDir) };
}

function interrupted(runDir: string, how: string): string {
  return [`interrupted ${how}`.trim(), runDir, resumeHint(runDir)].join(": ");
}

function resumeHint(runDir: string): string {
  const newest = newestOf(runDir);
  return newest === undefined
    ? `it has no checkpoint yet, start it over with rlv train --resume_from ${runDir}`
    : `go on with rlv train --resume_from ${newest}`;
}

/** Why an engine that said nothing is gone. */
function death(signal: string | number | null, code: number | null, step: number, runDir: string): string {
  const how =
    signal === null
      ? `the engine ended with code ${code} without a word`
      : signal === "SIGKILL"
        ? "the engine was killed (SIGKILL; if nobody did, the system ran out of memory)"
        : `the engine died of ${signal}`;
  return [`${how} after step ${step}`, runDir, resumeHint(runDir)].join(": ");
}

/** A step that is asked to be the last may wait so long for slow rewards before they are abandoned. */
export const PATIENCE_MS = 2000;

/** What a job runs: the recipe's training loop. */
export type Train<Config> = (config: Config, reporter: Reporter, control: RunControl) => Promise<void>;

/** The engine's side: takes the job from the parent, trains, ends the process with the exit code. */
export function serveEngine<Config>(train: Train<Config>): void {
  if (process.send === undefined) {
    writeSync(2, "rlv: error: __engine is started by rlv train, not by hand\n");
    process.exit(2);
  }
  let stop: ReturnType<RunControl["stopRequested"]> = "none";
  let started = false;
  const late = new AbortController();
  // A terminal sends Ctrl-C to both processes; the parent decides what it means.
  process.on("SIGINT", () => {});
  for (const signal of END_SIGNALS) process.on(signal, () => finish());
  const finish = () => {
    if (stop === "none") {
      stop = "finish";
      setTimeout(() => late.abort(), PATIENCE_MS).unref();
    }
    if (!started) process.exit(130);
  };
  // Nobody is left to show anything to: save and end.
  process.on("disconnect", finish);
  process.on("message", (message: EngineJob<Config> | StopMessage) => {
    if (message.type === "stop") {
      if (!started || message.how === "now") process.exit(130);
      return finish();
    }
    started = true;
    void runJob(train, message, () => stop, late.signal);
  });
}

async function runJob<Config>(
  train: Train<Config>,
  job: EngineJob<Config>,
  stopRequested: RunControl["stopRequested"],
  signal: AbortSignal,
): Promise<never> {
  const { code } = await execute(train, job, { stopRequested, signal, ranks: ALONE }, post);
  await lastWord();
  process.exit(code);
}

/** How a job ended: its exit code, what failed (the line for the user, without `rlv: error: `), and the error itself. */
export interface Ending {
  readonly code: number;
  readonly failure: string | null;
  readonly error: unknown;
}

/** Runs a job to its end; rank 0 keeps the log and the outcome in the run's folder. */
export async function execute<Config>(
  train: Train<Config>,
  job: Omit<EngineJob<Config>, "type">,
  control: Pick<RunControl, "stopRequested" | "signal"> & { readonly ranks: Ranks },
  post: (message: EngineMessage) => void,
): Promise<Ending> {
  const { root } = control.ranks;
  const path = join(job.runDir, "train.log");
  let totalSteps = 0;
  let logFails = false;
  const log = (lines: readonly string[]) => {
    if (!root) return;
    try {
      appendFileSync(path, `${lines.join("\n")}\n`);
    } catch (error) {
      // A full disk must not end a run over its log; the checkpoint writer has the last word on it. Said once.
      if (!logFails) post({ type: "note", text: `train.log cannot be written: ${(error as Error).message}` });
      logFails = true;
    }
  };
  const send = (message: EngineMessage) => {
    if (message.type === "plan") totalSteps = message.totalSteps;
    if (message.type !== "step" || message.print) log(linesOf(message, totalSteps));
    post(message);
  };
  let ending: Ending = { code: 0, failure: null, error: null };
  try {
    await train(job.config, reporterTo(send), {
      ...control,
      runDir: job.runDir,
      resumeFrom: job.resumeFrom,
      checkpointConfig: job.checkpointConfig,
    });
  } catch (thrown) {
    const error = firstCause(thrown);
    const code = exitCodeOf(error);
    const failure = messageLine(error);
    ending = { code, failure, error };
    if (error instanceof Interrupted) log([failure]);
    else
      send({
        type: "error",
        message: failure,
        exitCode: code,
        // An error of no class of ours is a defect: its stack belongs in the log.
        stack: debugging() || !(error instanceof RlvError) ? (error as Error)?.stack : undefined,
      });
  }
  // A parent that is there says it once more, with what only it can know.
  if (root) writeOutcome(job.runDir, ending.code, ending.failure);
  return ending;
}

function post(message: EngineMessage): void {
  if (!process.connected) return;
  try {
    process.send!(message);
  } catch {
    // The parent is gone; the disconnect handler stops the run.
  }
}

/** IPC is asynchronous and process.exit drops what is queued: waits until everything is written. */
function lastWord(): Promise<void> {
  return new Promise((resolve) => {
    if (!process.connected) return resolve();
    process.send!({ type: "end" } satisfies EndMessage, undefined, undefined, () => resolve());
    setTimeout(resolve, 5000).unref();
  });
}
