import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { UsageError } from "../core/errors.ts";
import { cleanTemporary, MANIFEST, newestCheckpoint } from "../io/checkpoint-folder.ts";
import { holderAlive, LOCK, lockHolders, type RunLock, takeLock } from "../io/run-lock.ts";
import { clearOutcome, OUTCOME } from "../io/run-outcome.ts";

/** What the engine of a swept run itself printed: a crash's last words. */
export const ENGINE_OUTPUT = "engine.log";

/** A run's folder, held by this process until `release`. */
export interface RunFolder {
  readonly dir: string;
  readonly name: string;
  /** Names the engine in the lock, so that nobody resumes this run while it still saves. */
  engineStarted(pid: number): void;
  release(): void;
  /** Takes back a folder that this process made and in which no run began (bad input found late). */
  discardIfUnused(): void;
}

export interface RunFolderRequest {
  readonly outputDir: string;
  /** null: recipe, date and time. */
  readonly runName: string | null;
  readonly recipe: string;
  /** The run to continue in place, unless outputDir or runName were given for the new run. */
  readonly resumeRun: string | null;
  readonly elsewhere: boolean;
  readonly now: Date;
}

/** Makes or reopens the run folder, before anything heavy is loaded. */
export function openRunFolder(request: RunFolderRequest): RunFolder {
  if (request.resumeRun !== null && !request.elsewhere) return hold(request.resumeRun, false);
  const root = resolve(request.outputDir);
  const { runName } = request;
  if (runName !== null && (runName !== basename(runName) || runName === "." || runName === ".."))
    throw new UsageError(
      `run_name ${JSON.stringify(runName)} is not the name of a folder`,
      undefined,
      "give one name",
    );
  const made = makeDir(root);
  try {
    probe(root);
  } catch (error) {
    if (made !== undefined) rmSync(made, { recursive: true, force: true });
    throw error;
  }
  if (runName === null) return hold(freshDir(root, `${request.recipe}-${stamp(request.now)}`), true);
  const dir = join(root, runName);
  const fresh = makeDir(dir) !== undefined;
  const refuse = () => refuseUsed(dir, runName);
  refuse();
  return hold(dir, fresh, refuse);
}

function refuseUsed(dir: string, name: string): void {
  if (existsSync(join(dir, "checkpoints", "final")))
    throw new UsageError(
      `the run ${name} is finished`,
      dir,
      `choose another --run_name, or continue it with --resume_from ${dir} and more steps`,
    );
  const content = readdirSync(dir).filter((entry) => entry !== LOCK);
  if (content.length > 0)
    throw new UsageError(
      `the run ${name} exists`,
      dir,
      newestOf(dir) === undefined
        ? "choose another --run_name, or remove the folder"
        : `continue it with --resume_from ${dir}, or choose another --run_name`,
    );
}

/** Creates a folder with its parents. Returns the first one made, undefined if all existed. */
function makeDir(dir: string): string | undefined {
  try {
    return mkdirSync(dir, { recursive: true });
  } catch (error) {
    throw unwritable(dir, error);
  }
}

function freshDir(root: string, name: string): string {
  for (let n = 1; ; n++) {
    const dir = join(root, n === 1 ? name : `${name}-${n}`);
    try {
      mkdirSync(dir);
      return dir;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw unwritable(dir, error);
    }
  }
}

/** Proves that a file can be written and synced here: permission bits do not tell on every file system. */
function probe(dir: string): void {
  const path = join(dir, `.tmp-probe-${process.pid}`);
  try {
    writeSynced(path, "rlv\n");
  } catch (error) {
    throw unwritable(dir, error);
  } finally {
    rmSync(path, { force: true });
  }
}

function unwritable(dir: string, error: unknown): UsageError {
  const code = (error as NodeJS.ErrnoException).code ?? String(error);
  const reason =
    {
      EACCES: "permission denied",
      EROFS: "read-only file system",
      ENOSPC: "disk full",
      ENOTDIR: "a part of it is a file",
    }[code] ?? code;
  return new UsageError(
    `the output folder cannot be written (${reason})`,
    dir,
    "choose another --output_dir",
  );
}

function writeSynced(path: string, text: string): void {
  const fd = openSync(path, "w");
  try {
    writeFileSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  if (readFileSync(path, "utf8") !== text)
    throw new UsageError("a written file reads back differently", path, "disk full?");
}

/** Writes RUN/train_config.json through a temporary file. */
export function writeRunConfig(dir: string, text: string): void {
  const path = join(dir, "train_config.json");
  const temporary = join(dir, `.tmp-train_config-${process.pid}`);
  try {
    writeSynced(temporary, text);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error instanceof UsageError ? error : unwritable(dir, error);
  }
}

/** An engine whose parent was killed saves and ends; whoever resumes its run waits this long for it. */
const ORPHAN_MS = 120_000;

/** `refuse` looks again at what lies there now that nobody else writes. */
function hold(dir: string, fresh: boolean, refuse?: () => void): RunFolder {
  waitForOrphan(dir);
  let lock: RunLock | number;
  try {
    lock = takeLock(dir);
  } catch (error) {
    throw unwritable(dir, error);
  }
  if (typeof lock === "number")
    throw new UsageError(
      `process ${lock} is training in this run`,
      dir,
      "wait for it, or choose another --run_name",
    );
  const { add, release } = lock;
  try {
    refuse?.();
  } catch (error) {
    release();
    throw error;
  }
  clearOutcome(dir);
  cleanTemporary(dir);
  return {
    dir,
    name: basename(dir),
    engineStarted: add,
    release,
    discardIfUnused: () => {
      if (!fresh) return;
      const unused = ["train_config.json", "train.log", ENGINE_OUTPUT, LOCK, OUTCOME];
      if (readdirSync(dir).every((entry) => unused.includes(entry)))
        rmSync(dir, { recursive: true, force: true });
    },
  };
}

/** Waits while a run's parent is dead and its engine still saves. */
export function waitForOrphan(dir: string): void {
  const [parent, engine] = lockHolders(dir);
  if (parent === undefined || engine === undefined || holderAlive(parent)) return;
  for (const end = Date.now() + ORPHAN_MS; holderAlive(engine) && Date.now() < end; ) Bun.sleepSync(50);
}

/** RUN of RUN/checkpoints/step-N. */
function runOfCheckpoint(checkpoint: string): string | undefined {
  const folder = dirname(resolve(checkpoint));
  const run = dirname(folder);
  return basename(folder) === "checkpoints" && existsSync(join(run, "train_config.json")) ? run : undefined;
}

/** The newest whole checkpoint of a run; undefined if it has none. */
export function newestOf(run: string): string | undefined {
  try {
    return newestCheckpoint(join(run, "checkpoints"))?.dir;
  } catch {
    return undefined;
  }
}

/** Where `--resume_from` leads. */
export interface ResumePoint {
  /** Folder whose train_config.json is the base: the checkpoint, or the run where it has none yet. */
  readonly config: string;
  /** null: the run was ended before its first checkpoint and starts over. */
  readonly checkpoint: string | null;
  /** The run that the checkpoint belongs to; null for a checkpoint by itself. */
  readonly run: string | null;
}

/** `--resume_from`: a checkpoint folder, or a run folder whose newest whole checkpoint is meant. */
export function resumePoint(path: string): ResumePoint {
  if (!existsSync(path))
    throw new UsageError("no such checkpoint", path, "give a run folder or RUN/checkpoints/step-N");
  const at = resolve(path);
  const isRun =
    existsSync(join(at, "checkpoints")) ||
    (existsSync(join(at, "train_config.json")) && !existsSync(join(at, MANIFEST)));
  if (!isRun) {
    const run = runOfCheckpoint(at) ?? null;
    if (run !== null) waitForOrphan(run);
    return { config: at, checkpoint: at, run };
  }
  waitForOrphan(at);
  const checkpoint = newestCheckpoint(join(at, "checkpoints"))?.dir ?? null;
  return { config: checkpoint ?? at, checkpoint, run: at };
}

function stamp(now: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const date = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`;
  return `${date}-${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`;
}
