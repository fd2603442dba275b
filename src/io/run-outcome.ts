/** outcome.json of a run: how its last training ended. Absent while one runs, and where nobody was left to say. */
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomic } from "./atomic.ts";

export const OUTCOME = "outcome.json";

export interface RunOutcome {
  /** 0 done, 1 failed, 2 bad input, 3 diverged, 130 interrupted. */
  readonly exit_code: number;
  /** The error's line; null without one. */
  readonly error: string | null;
  /** Seconds since 1970. */
  readonly time: number;
}

/** Says how a run ended. A run whose disk is full ends all the same: then nothing is said. */
export function writeOutcome(dir: string, exitCode: number, error: string | null): void {
  const outcome: RunOutcome = { exit_code: exitCode, error, time: Date.now() / 1000 };
  try {
    writeFileAtomic(join(dir, OUTCOME), `${JSON.stringify(outcome)}\n`);
  } catch {
    // The exit code and the line on the terminal say it too.
  }
}

/** null: absent, or not ours. */
export function readOutcome(dir: string): RunOutcome | null {
  try {
    const value = JSON.parse(readFileSync(join(dir, OUTCOME), "utf8")) as Partial<RunOutcome> | null;
    if (!Number.isSafeInteger(value?.exit_code)) return null;
    return {
      exit_code: value!.exit_code!,
      error: typeof value!.error === "string" ? value!.error : null,
      time: Number(value!.time) || 0,
    };
  } catch {
    return null;
  }
}

/** A run goes on. */
export function clearOutcome(dir: string): void {
  rmSync(join(dir, OUTCOME), { force: true });
}
