/**
 * A training job as one of several ranks. There is no engine process: MPI belongs to the process that mpirun started, and
 * what a parent would do, to end and to report a process that died, mpirun does.
 */
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { type Launch, threadsOfRank } from "../core/env.ts";
import { errorLine, exitCodeOf, messageLine, RanksError } from "../core/errors.ts";
import { Mpi } from "../device/mpi.ts";
import {
  END_SIGNALS,
  type EngineJob,
  type EngineOutcome,
  execute,
  PATIENCE_MS,
  type Train,
} from "./engine-process.ts";
import { FIRST_MEETING, MpiRanks } from "./mpi-ranks.ts";
import type { Progress } from "./progress.ts";
import type { DoneMessage, EngineMessage } from "./reporter.ts";

/** A terminal and mpirun may both pass one Ctrl-C on. */
const SAME_CTRL_C_MS = 1000;

/** Joins the job that this process was started for. */
export function joinRanks(launch: Launch | null): Promise<MpiRanks> {
  return MpiRanks.join(Mpi.start(launch), processors());
}

/** The processors that this process may use: launchers bind ranks to some of them. */
function processors(): string {
  if (process.platform !== "linux") return String(availableParallelism());
  return /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync("/proc/self/status", "latin1"))?.[1] ?? "";
}

/** What rank 0 tells the others of the job. */
type RankedJob<Config> = Omit<EngineJob<Config>, "type">;

/**
 * Runs the job that `prepare` gives on rank 0 on every rank. `progress` is rank 0's. An error of all ranks is said once, by
 * rank 0; one of a single rank by that rank, which ends the others.
 */
export async function runRanked<Config extends { readonly threads: number | null }>(
  train: Train<Config>,
  ranks: MpiRanks,
  prepare: () => Promise<RankedJob<Config>>,
  progress: Progress,
): Promise<EngineOutcome> {
  const [job] = await ranks.gather("job", () => (ranks.root ? prepare() : null));
  const { config } = job!;
  const threads = threadsOfRank(
    config.threads,
    Math.max(1, Math.floor(availableParallelism() / ranks.neighbours.sharing)),
  );
  if (ranks.root) progress.line(ranks.describe());
  let done: DoneMessage | undefined;
  const post = (message: EngineMessage) => {
    if (!ranks.root) return;
    if (message.type === "done") done = message;
    progress.show(message);
  };
  const stop = stopBySignals(ranks, (line) => (ranks.root ? progress.line(line) : undefined));
  const own = { ...job!, config: { ...config, threads } };
  const ending = await execute(train, own, { ...stop.control, ranks }, post);
  if (ranks.root) progress.close();
  stop.release();
  let { code, failure, error } = ending;
  if (error !== null && !ranks.begun && !ranks.isEverywhere(error) && !(error instanceof RanksError)) {
    // The others may have failed by the same input: they meet where all would have begun.
    const agreed = await ranks.gather(FIRST_MEETING, () => Promise.reject(error)).catch((thrown) => thrown);
    [code, failure, error] = [exitCodeOf(agreed), messageLine(agreed), agreed];
  }
  if (error !== null && !ranks.isEverywhere(error)) {
    const who = error instanceof RanksError ? "" : `rank ${ranks.rank}: `;
    process.stderr.write(`rlv: error: ${who}${failure}\n`);
    ranks.mpi.abort(code);
  }
  return { exitCode: code, done, failure: failure ?? undefined };
}

/**
 * Runs what a rank does to its end and leaves the job: when the last rank is done, so that no launcher takes the first to
 * end for one that failed. What all ranks threw is said by rank 0 alone.
 */
export async function leaveTogether(ranks: MpiRanks, body: () => Promise<number>): Promise<number> {
  let code: number;
  let thrown: unknown = null;
  try {
    code = await body();
  } catch (error) {
    code = exitCodeOf(error);
    thrown = error;
  }
  if (thrown !== null && (ranks.root || !ranks.isEverywhere(thrown)))
    process.stderr.write(`${errorLine(thrown)}\n`);
  if (thrown !== null && !ranks.isEverywhere(thrown)) ranks.mpi.abort(code);
  try {
    await ranks.leave();
  } catch (error) {
    process.stderr.write(`${errorLine(error)}\n`);
    ranks.mpi.abort(exitCodeOf(error));
  }
  return code;
}

/** Ends the process when all it said is written, as an engine ends: no child or timer of a reward holds the launcher up. */
export async function endRank(code: number): Promise<never> {
  for (const stream of [process.stdout, process.stderr])
    await new Promise<void>((resolve) => stream.write("", () => resolve()));
  process.exit(code);
}

/** Ends on a signal as the parent of an engine does; a rank that is gone ends the job at once. */
function stopBySignals(ranks: MpiRanks, say: (line: string) => void) {
  let stop: "none" | "finish" = "none";
  let since = 0;
  const late = new AbortController();
  const finish = () => {
    // mpirun ends the other ranks when one has died: this is not the user's wish to stop.
    const gone = ranks.gone();
    if (gone !== null) {
      process.stderr.write(`rlv: error: ${gone}: the job ends: resume from the last checkpoint\n`);
      ranks.mpi.abort(1);
    }
    if (stop !== "none") return;
    stop = "finish";
    since = performance.now();
    say("asked to stop: saving after this step");
    setTimeout(() => late.abort(), PATIENCE_MS).unref();
  };
  const interrupt = () => {
    if (stop === "none" || performance.now() - since < SAME_CTRL_C_MS) return finish();
    say("stopping at once");
    ranks.mpi.abort(130);
  };
  process.on("SIGINT", interrupt);
  for (const signal of END_SIGNALS) process.on(signal, finish);
  return {
    control: { stopRequested: () => stop, signal: late.signal },
    release: () => {
      process.off("SIGINT", interrupt);
      for (const signal of END_SIGNALS) process.off(signal, finish);
    },
  };
}
