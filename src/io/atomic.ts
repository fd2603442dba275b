import {
  closeSync,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { RlvError } from "../core/errors.ts";

/**
 * Files that are complete or absent. Every write is a loop that checks its count (write(2) may be short),
 * every file is synced before it gets its name, every rename is followed by a sync of the folder.
 */

/** Forces a file's bytes and metadata to the disk. */
export type FullSync = (fd: number) => void;

let fullSync: FullSync = fsyncSync;

/** Replaces fsync: on macOS fsync leaves data in the drive's cache, and only native code reaches F_FULLFSYNC. */
export function setFullSync(sync: FullSync): void {
  fullSync = sync;
}

/** Largest single read or write: Linux moves at most 0x7ffff000 bytes a call. */
const MAX_TRANSFER = 64 * 1024 * 1024;

/** The one-line error for a failed system call on `path`. */
export function fileError(error: unknown, action: string, path: string): RlvError {
  if (error instanceof RlvError) return error;
  const code = (error as NodeJS.ErrnoException | null)?.code;
  switch (code) {
    case "ENOSPC":
    case "EDQUOT":
      return new RlvError("disk full", path, "free some space there or choose another folder");
    case "EACCES":
    case "EPERM":
      return new RlvError(
        `cannot ${action}: no permission`,
        path,
        "change its permissions or choose another place",
      );
    case "EROFS":
      return new RlvError(`cannot ${action}: read-only file system`, path, "choose another folder");
    case "ENOENT":
      return new RlvError(`cannot ${action}: no such file or folder`, path, "check the path");
    case "ENOTDIR":
    case "EEXIST":
      return new RlvError(`cannot ${action}: a file is in the way`, path, "move it or choose another path");
    case "EISDIR":
      return new RlvError(`cannot ${action}: it is a folder`, path, "name a file");
    case "EMFILE":
    case "ENFILE":
      return new RlvError(`cannot ${action}: too many open files`, path, "raise the limit (ulimit -n)");
    default:
      return new RlvError(
        `cannot ${action}`,
        path,
        `the system says ${error instanceof Error ? error.message : String(error)}`,
      );
  }
}

/** Runs `body` and turns a failed system call into an RlvError that names `path`. */
export function withFileErrors<T>(action: string, path: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw fileError(error, action, path);
  }
}

/** Writes all of `data` at the file's current position (or at `position`), or throws. */
export function writeFully(fd: number, data: Uint8Array, path: string, position: number | null = null): void {
  let done = 0;
  while (done < data.byteLength) {
    let written: number;
    try {
      const length = Math.min(MAX_TRANSFER, data.byteLength - done);
      written = writeSync(fd, data, done, length, position === null ? null : position + done);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "EINTR" || code === "EAGAIN") continue;
      throw fileError(error, "write", path);
    }
    // A regular file takes nothing only when there is no room: retrying would spin for ever.
    if (written <= 0) throw new RlvError("disk full", path, "free some space there or choose another folder");
    done += written;
  }
}

/** Reads exactly `target.byteLength` bytes from byte `position` of the file, or throws. */
export function readFully(fd: number, target: Uint8Array, position: number, path: string): void {
  let done = 0;
  while (done < target.byteLength) {
    let count: number;
    try {
      const length = Math.min(MAX_TRANSFER, target.byteLength - done);
      count = readSync(fd, target, done, length, position + done);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EINTR") continue;
      throw fileError(error, "read", path);
    }
    if (count === 0)
      throw new RlvError("file ends early", path, "it is truncated or was changed while rlv read it");
    done += count;
  }
}

function syncPath(path: string, action: string): void {
  const fd = withFileErrors(action, path, () => openSync(path, "r"));
  try {
    withFileErrors(action, path, () => fullSync(fd));
  } finally {
    closeSync(fd);
  }
}

/** Forces a file's content to the disk. */
export function fsyncFile(path: string): void {
  syncPath(path, "sync file");
}

/** Forces a folder's entries (creations, renames, removals) to the disk. */
export function fsyncDir(path: string): void {
  syncPath(path, "sync folder");
}

let temporaries = 0;

/** A name for temporary things in the folder of `path`: `.tmp-NAME-PID.COUNT`. */
export function temporaryName(path: string, kind: "" | "trash-"): string {
  temporaries += 1;
  return join(dirname(path), `.tmp-${kind}${basename(path)}-${process.pid}.${temporaries}`);
}

/**
 * A file that appears under its name only when complete: bytes go to a temporary file beside it;
 * `commit` syncs, renames and syncs the folder; `abort` (or leaving a `using` scope) removes it.
 */
export class AtomicFile implements Disposable {
  #fd: number;
  #temporary: string;
  #open = true;
  /** Bytes written so far. */
  length = 0;

  constructor(readonly path: string) {
    this.#temporary = temporaryName(path, "");
    this.#fd = withFileErrors("create", path, () => openSync(this.#temporary, "wx", 0o666));
  }

  write(data: Uint8Array): void {
    writeFully(this.#fd, data, this.path);
    this.length += data.byteLength;
  }

  commit(): void {
    try {
      withFileErrors("sync", this.path, () => fullSync(this.#fd));
      this.#open = false;
      closeSync(this.#fd);
      withFileErrors("write", this.path, () => renameSync(this.#temporary, this.path));
    } catch (error) {
      if (this.#open) this.abort();
      else unlinkQuietly(this.#temporary);
      throw error;
    }
    fsyncDir(dirname(this.path));
  }

  abort(): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.#fd);
    unlinkQuietly(this.#temporary);
  }

  [Symbol.dispose](): void {
    this.abort();
  }
}

/** Cleaning up after a failure must not hide that failure. */
function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // A leftover .tmp- file is removed by cleanTemporary at the next start.
  }
}

/** Writes a whole file: temporary file, sync, rename, sync of the folder. Strings are written as UTF-8. */
export function writeFileAtomic(path: string, data: Uint8Array | string): void {
  using file = new AtomicFile(path);
  file.write(typeof data === "string" ? new TextEncoder().encode(data) : data);
  file.commit();
}

/** Copies a file's bytes with the same guarantees. Links are followed. */
export function copyFileAtomic(from: string, to: string): void {
  const fd = withFileErrors("read", from, () => openSync(from, "r"));
  try {
    const { size } = withFileErrors("read", from, () => fstatSync(fd));
    using file = new AtomicFile(to);
    const chunk = new Uint8Array(Math.min(size, 4 * 1024 * 1024));
    for (let at = 0; at < size; at += chunk.length) {
      const part = chunk.subarray(0, Math.min(chunk.length, size - at));
      readFully(fd, part, at, from);
      file.write(part);
    }
    file.commit();
  } finally {
    closeSync(fd);
  }
}

export function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

/**
 * Removes a file or folder tree. It is renamed out of sight first: a kill in the middle of a deletion
 * leaves a `.tmp-trash-` folder and never a visible one with half its files.
 */
export function removeTree(path: string): void {
  if (!exists(path)) return;
  const trash = basename(path).startsWith(".tmp-") ? path : temporaryName(path, "trash-");
  withFileErrors("remove", path, () => {
    if (trash !== path) {
      renameSync(path, trash);
      fsyncDir(dirname(path));
    }
    rmSync(trash, { recursive: true, force: true });
  });
}
