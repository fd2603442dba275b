/** Which processes hold a run's folder: the file `.lock` names the parent, then its engine. */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export const LOCK = ".lock";

/**
 * A process as "PID START": numbers are used again, PID and start time are not. Without /proc the PID alone.
 * undefined: no such process, or one that has ended and waits to be reaped.
 */
export function identity(pid: number): string | undefined {
  if (process.platform === "linux") {
    try {
      // After the parenthesised name: state is field 1, start time field 20 (proc(5) counts from 3).
      const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
        .replace(/^.*\) /s, "")
        .split(" ");
      return fields[0] === "Z" ? undefined : `${pid} ${fields[19]}`;
    } catch {
      return undefined;
    }
  }
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return undefined;
  }
  return String(pid);
}

/** The processes named in a run's lock, alive or not: the parent, then its engine. */
export function lockHolders(dir: string): string[] {
  try {
    return readFileSync(join(dir, LOCK), "utf8").split("\n").filter(Boolean);
  } catch {
    return [];
  }
}

export function holderAlive(holder: string): boolean {
  return identity(Number.parseInt(holder, 10)) === holder;
}

/** Process numbers of those that hold a run and live. */
export function liveHolders(dir: string): number[] {
  return lockHolders(dir)
    .filter(holderAlive)
    .map((holder) => Number.parseInt(holder, 10));
}

/** A lock that this process has. */
export interface RunLock {
  /** Names a second process, whose life holds the run too. */
  add(pid: number): void;
  release(): void;
}

/** Takes a run's lock, over from dead processes too; the number of a living holder if there is one. */
export function takeLock(dir: string): RunLock | number {
  const path = join(dir, LOCK);
  const own = identity(process.pid)!;
  for (;;) {
    try {
      writeFileSync(path, `${own}\n`, { flag: "wx" });
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      const [holder] = liveHolders(dir);
      if (holder !== undefined) return holder;
      rmSync(path, { force: true });
    }
  }
  return {
    add: (pid) => {
      const second = identity(pid);
      if (second !== undefined) writeFileSync(path, `${own}\n${second}\n`);
    },
    release() {
      try {
        rmSync(path, { force: true });
      } catch {
        // The disk may have become read-only: a lock whose process is gone is taken over, and the run's own fault is told.
      }
    },
  };
}
