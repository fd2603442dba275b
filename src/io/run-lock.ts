/** Which processes hold a run's folder: the file `.lock` names the parent, then its engine. */
import { closeSync, fstatSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

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

const holdersIn = (text: string): string[] => text.split("\n").filter(Boolean);

/** The processes named in a run's lock, alive or not: the parent, then its engine. */
export function lockHolders(dir: string): string[] {
  try {
    return holdersIn(readFileSync(join(dir, LOCK), "utf8"));
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

/** A lock that its maker has not yet written into is empty; one that stays so was abandoned. */
const WRITING_MS = 1000;

interface Found {
  readonly text: string;
  /** Tells this lock from one that another process made in its place. */
  readonly instance: string;
}

function find(path: string): Found | undefined {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    const { ino, mtimeNs } = fstatSync(fd, { bigint: true });
    const text = readFileSync(fd, "utf8");
    return { text, instance: `${ino} ${mtimeNs} ${text}` };
  } finally {
    closeSync(fd);
  }
}

/** Puts `text` in the place of a lock, whole at once; not synced, for no holder outlives a power cut. */
function replace(path: string, text: string): void {
  const temporary = join(dirname(path), `.tmp-lock-${process.pid}`);
  writeFileSync(temporary, text);
  renameSync(temporary, path);
}

/**
 * Makes the lock `path`; the number of a living holder if there is one. Of those who find the same dead lock one alone may
 * replace it: who has a lock on it, named by that very instance, and still finds it there.
 */
function acquire(path: string, own: string): number | null {
  for (let since = performance.now(); ; ) {
    try {
      writeFileSync(path, own, { flag: "wx" });
      // Whoever is held up for so long may have been taken for dead.
      if (find(path)?.text === own) return null;
      continue;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const found = find(path);
    if (found === undefined) continue;
    const holder = holdersIn(found.text).find(holderAlive);
    if (holder !== undefined) return Number.parseInt(holder, 10);
    if (found.text === "" && performance.now() - since < WRITING_MS) {
      Bun.sleepSync(2);
      continue;
    }
    const claim = `${path}-${Bun.hash(found.instance).toString(16)}`;
    const other = acquire(claim, own);
    if (other !== null) return other;
    try {
      if (find(path)?.instance === found.instance) {
        replace(path, own);
        return null;
      }
    } finally {
      rmSync(claim, { force: true });
    }
    since = performance.now();
  }
}

/** Takes a run's lock, over from dead processes too; the number of a living holder if there is one. */
export function takeLock(dir: string): RunLock | number {
  const path = join(dir, LOCK);
  const own = identity(process.pid)!;
  const holder = acquire(path, `${own}\n`);
  if (holder !== null) return holder;
  return {
    add: (pid) => {
      const second = identity(pid);
      if (second !== undefined) replace(path, `${own}\n${second}\n`);
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
