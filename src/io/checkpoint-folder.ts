import {
  closeSync,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
} from "node:fs";
import { basename, dirname, isAbsolute, join } from "node:path";
import { assert, RlvError, shown, UsageError } from "../core/errors.ts";
import {
  exists,
  fileError,
  fsyncDir,
  fsyncFile,
  readFully,
  removeTree,
  temporaryName,
  withFileErrors,
  writeFileAtomic,
} from "./atomic.ts";

/**
 * Checkpoint folders that are complete and verified, or absent. A folder is filled under `.tmp-NAME-PID/`,
 * every file is synced, manifest.json (size and sha256 of each file) comes last, then the folder gets its
 * name by one rename. Nothing in a manifest depends on time or place: equal runs leave equal bytes.
 */
export const MANIFEST = "manifest.json";
export const TRAIN_STATE = "train_state.json";

interface ManifestFile {
  readonly bytes: number;
  readonly sha256: string;
}

/** Relative paths of all regular files below `dir`, sorted; `/` between folders. */
function filesBelow(dir: string, prefix = ""): string[] {
  const paths: string[] = [];
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const path = prefix + entry.name;
    if (entry.isDirectory()) paths.push(...filesBelow(join(dir, entry.name), `${path}/`));
    else if (entry.isFile()) paths.push(path);
    else throw new RlvError("not a file or folder", join(dir, entry.name), "a checkpoint holds no links");
  }
  return paths.sort();
}

/** sha256 of a file, read in pieces. */
function sha256(path: string): string {
  const fd = openSync(path, "r");
  try {
    const { size } = fstatSync(fd);
    const hasher = new Bun.CryptoHasher("sha256");
    const chunk = new Uint8Array(Math.min(size, 4 * 1024 * 1024));
    for (let at = 0; at < size; at += chunk.length) {
      const part = chunk.subarray(0, Math.min(chunk.length, size - at));
      readFully(fd, part, at, path);
      hasher.update(part);
    }
    return hasher.digest("hex");
  } finally {
    closeSync(fd);
  }
}

function syncFolders(dir: string): void {
  for (const entry of readdirSync(dir, { withFileTypes: true }))
    if (entry.isDirectory()) syncFolders(join(dir, entry.name));
  fsyncDir(dir);
}

function writeManifest(dir: string): void {
  const files: Record<string, ManifestFile> = {};
  for (const path of filesBelow(dir)) {
    if (path === MANIFEST) continue;
    const full = join(dir, path);
    fsyncFile(full);
    files[path] = { bytes: lstatSync(full).size, sha256: sha256(full) };
  }
  writeFileAtomic(join(dir, MANIFEST), `${JSON.stringify({ version: 1, files }, null, 2)}\n`);
}

/**
 * Writes checkpoint `parent/name`: `write` fills the folder it is given. Returns the path of the finished
 * folder. Whatever fails on the way, an earlier checkpoint of that name is still there, whole.
 */
export function writeCheckpoint(parent: string, name: string, write: (dir: string) => void): string {
  assert(/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name), `checkpoint name ${shown(name)}`);
  withFileErrors("create", parent, () => mkdirSync(parent, { recursive: true }));
  const target = join(parent, name);
  const temporary = join(parent, `.tmp-${name}-${process.pid}`);
  removeTree(temporary);
  try {
    withFileErrors("create", temporary, () => mkdirSync(temporary));
    write(temporary);
    withFileErrors("write", target, () => {
      writeManifest(temporary);
      syncFolders(temporary);
      publish(temporary, target);
    });
  } catch (error) {
    try {
      removeTree(temporary);
    } catch {
      // The first failure is the one to report; cleanTemporary removes the rest.
    }
    const systemCall = error instanceof Error && "syscall" in error;
    throw systemCall ? fileError(error, "write", target) : error;
  }
  return target;
}

/**
 * Gives a finished folder its name. No portable call swaps two folders, so an old one steps aside first; a
 * kill between the two renames leaves the new one complete under its temporary name, and cleanTemporary
 * finishes the job.
 */
function publish(temporary: string, target: string): void {
  const parent = dirname(target);
  const replaced = exists(target) ? temporaryName(target, "trash-") : null;
  if (replaced !== null) {
    renameSync(target, replaced);
    try {
      renameSync(temporary, target);
    } catch (error) {
      renameSync(replaced, target);
      throw error;
    }
  } else renameSync(temporary, target);
  fsyncDir(parent);
  if (replaced !== null) removeTree(replaced);
}

function readManifest(dir: string): Map<string, ManifestFile> | string {
  const path = join(dir, MANIFEST);
  if (!exists(dir)) return `${dir}: no such checkpoint`;
  if (!exists(path)) return `${path}: missing`;
  let files: unknown;
  try {
    files = JSON.parse(readFileSync(path, "utf8")).files;
  } catch (error) {
    return `${path}: unreadable (${(error as Error).message.split("\n")[0]})`;
  }
  if (typeof files !== "object" || files === null || Array.isArray(files)) return `${path}: lists no files`;
  for (const [name, file] of Object.entries(files)) {
    const inside =
      !isAbsolute(name) && name.split(/[/\\]/).every((part) => part !== "" && part !== "." && part !== "..");
    if (!inside || !Number.isSafeInteger(file?.bytes) || !isSha256(file?.sha256))
      return `${path}: bad entry ${shown(name)}`;
  }
  return new Map(Object.entries(files as Record<string, ManifestFile>));
}

const isSha256 = (value: unknown) => typeof value === "string" && /^[0-9a-f]{64}$/.test(value);

/**
 * What is wrong with a checkpoint, empty if nothing. Files that the manifest does not list (a quantized copy
 * made later, say) are no fault. `contents: false` compares sizes alone.
 */
export function verifyCheckpoint(dir: string, contents = true): string[] {
  const manifest = readManifest(dir);
  if (typeof manifest === "string") return [manifest];
  const problems: string[] = [];
  for (const [name, { bytes, sha256: expected }] of manifest) {
    const path = join(dir, name);
    try {
      const stat = lstatSync(path, { throwIfNoEntry: false });
      if (!stat) problems.push(`${path}: missing`);
      else if (!stat.isFile()) problems.push(`${path}: not a file`);
      else if (stat.size !== bytes) problems.push(`${path}: ${stat.size} bytes, expected ${bytes}`);
      else if (contents && sha256(path) !== expected)
        problems.push(`${path}: content differs from its sha256`);
    } catch (error) {
      problems.push(`${path}: ${(error as Error).message.split("\n")[0]}`);
    }
  }
  return problems;
}

export interface FoundCheckpoint {
  readonly dir: string;
  readonly step: number;
  /** Why newer ones were passed over; to be shown to the user. */
  readonly skipped: readonly string[];
}

/** step-N says its step; `final` has it in its train_state.json. */
function stepOf(dir: string): number | string {
  const named = /^step-(\d+)$/.exec(basename(dir));
  if (named) return Number(named[1]);
  const path = join(dir, TRAIN_STATE);
  try {
    const step: unknown = JSON.parse(readFileSync(path, "utf8")).step;
    if (typeof step === "number" && Number.isSafeInteger(step) && step >= 0) return step;
    return `${path}: no step`;
  } catch (error) {
    return `${path}: ${(error as Error).message.split("\n")[0]}`;
  }
}

function checkpointNames(parent: string): string[] {
  if (!exists(parent)) return [];
  return withFileErrors("read", parent, () => readdirSync(parent)).filter((name) =>
    /^(step-\d+|final)$/.test(name),
  );
}

/**
 * The checkpoint with the highest step whose manifest verifies (`final` before a step-N of the same step);
 * null if there is none at all; an error that lists every fault if there are some and none is whole.
 */
export function newestCheckpoint(parent: string): FoundCheckpoint | null {
  const problems: string[] = [];
  const found: { dir: string; step: number }[] = [];
  const names = checkpointNames(parent);
  for (const name of names) {
    const dir = join(parent, name);
    const step = stepOf(dir);
    if (typeof step === "number") found.push({ dir, step });
    else problems.push(step);
  }
  found.sort((a, b) => b.step - a.step || (basename(a.dir) === "final" ? -1 : 1));
  for (const { dir, step } of found) {
    const faults = verifyCheckpoint(dir);
    if (faults.length === 0) return { dir, step, skipped: problems };
    problems.push(...faults);
  }
  if (names.length === 0) return null;
  throw new UsageError(
    `no checkpoint is whole: ${problems.join("; ")}`,
    parent,
    "restore it from a copy, or start a new run",
  );
}

/** Ended, and not yet collected by its parent: it writes nothing any more. */
function isZombie(pid: number): boolean {
  const stat = `/proc/${pid}/stat`;
  if (!existsSync(stat)) return false;
  try {
    return / Z /.test(readFileSync(stat, "latin1").replace(/^.*\)/s, ""));
  } catch {
    return true;
  }
}

function alive(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return !isZombie(pid);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/**
 * Removes what killed processes left under `.tmp-*`, called when a run starts or resumes. A checkpoint that
 * lacked nothing but its name gets it. What a living process writes is left alone. Returns the names handled.
 */
export function cleanTemporary(parent: string): string[] {
  if (!exists(parent)) return [];
  const handled: string[] = [];
  for (const name of readdirSync(parent)) {
    if (!name.startsWith(".tmp-")) continue;
    const dir = join(parent, name);
    const [, target, pid] = /^\.tmp-(?:trash-)?(.+)-(\d+)(?:\.\d+)?$/.exec(name) ?? [];
    if (pid !== undefined && alive(Number(pid))) continue;
    const trash = name.startsWith(".tmp-trash-");
    if (!trash && target !== undefined && !exists(join(parent, target)) && isWhole(dir, target)) {
      withFileErrors("rename", dir, () => renameSync(dir, join(parent, target)));
      fsyncDir(parent);
    } else removeTree(dir);
    handled.push(name);
  }
  return handled;
}

/** Removes what killed deletions left in a folder, and nothing else of it. */
export function sweepTrash(parent: string): void {
  for (const name of readdirSync(parent)) {
    const pid = /^\.tmp-trash-.+-(\d+)\.\d+$/.exec(name)?.[1];
    if (pid !== undefined && Number(pid) !== process.pid && !alive(Number(pid)))
      removeTree(join(parent, name));
  }
}

function isWhole(dir: string, name: string): boolean {
  return /^(step-\d+|final)$/.test(name) && verifyCheckpoint(dir).length === 0;
}

/**
 * Keeps the newest `keep` whole step-N checkpoints and removes older ones; `final` is never touched. Broken
 * ones neither count nor go: they are for the user to look at. Returns the names removed.
 */
export function pruneCheckpoints(parent: string, keep: number): string[] {
  assert(Number.isSafeInteger(keep) && keep >= 1, `pruneCheckpoints: keep ${keep}`);
  const steps = checkpointNames(parent)
    .filter((name) => name !== "final")
    .sort((a, b) => Number(b.slice(5)) - Number(a.slice(5)));
  const whole = steps.filter((name) => verifyCheckpoint(join(parent, name), false).length === 0);
  const removed = whole.slice(keep);
  for (const name of removed) removeTree(join(parent, name));
  return removed;
}
