/**
 * What a person may do to a run folder: rename, tag, delete, prune, export. A live run keeps its name and its files, a
 * link is never followed to change what is behind it, and what is no run of rlv is left alone.
 */
import { lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { basename, dirname, isAbsolute, join, relative, resolve } from "node:path";
import { UsageError } from "../core/errors.ts";
import {
  copyFileAtomic,
  exists,
  fsyncDir,
  removeTree,
  withFileErrors,
  writeFileAtomic,
} from "../io/atomic.ts";
import { MANIFEST, sweepTrash, TRAIN_STATE } from "../io/checkpoint-folder.ts";
import { LOCK, takeLock } from "../io/run-lock.ts";
import { allRows } from "./metrics.ts";
import {
  type CheckpointInfo,
  CONFIG,
  checkpointsOf,
  configOf,
  inSweep,
  listRuns,
  RUN_ROOTS,
  type Run,
  readRun,
  TAGS,
  tagsOf,
  usable,
} from "./runs.ts";
import { csv } from "./table.ts";

/** Runs `change` on a sound run that nobody holds, holding it meanwhile. */
function whileHeld<T>(dir: string, what: string, change: (run: Run) => T): T {
  const run = readRun(dir);
  if (run.link)
    throw new UsageError(`${what}: a link is never followed`, run.dir, "name the folder behind it");
  if (run.problem !== null)
    throw new UsageError(
      `${what}: ${run.problem}`,
      run.dir,
      "if it is yours to change, do it with the system's own commands",
    );
  const lock = withFileErrors(what, run.dir, () => takeLock(run.dir));
  if (typeof lock === "number")
    throw new UsageError(`${what}: the run is live (process ${lock})`, run.dir, "wait until it has ended");
  try {
    // What lies there now that nobody else writes; its lock is this process's own.
    return change({ ...run, saved: checkpointsOf(run.dir) });
  } finally {
    lock.release();
  }
}

/** A live run whose config names something in one of `paths` still reads it: a reward model, the model it began with. */
function refuseUsed(paths: readonly string[], what: string, roots: readonly string[]): void {
  const places = new Set([...roots.map((root) => resolve(root)), ...paths.map(dirname)]);
  for (const other of listRuns([...places])) {
    if (other.state !== "live") continue;
    const named = Object.entries(configOf(other.dir) ?? {}).flatMap(([key, value]) =>
      textsIn(value).map((text) => ({ key, text })),
    );
    for (const path of paths) {
      if (other.dir === path) continue;
      const used = named.find(({ text }) => text !== "" && isInside(resolve(text), path));
      if (used !== undefined)
        throw new UsageError(
          `${what}: the live run ${other.name} uses it as its ${used.key}`,
          path,
          "wait until that run has ended",
        );
    }
  }
}

function textsIn(value: unknown): string[] {
  if (typeof value === "string") return [value];
  return typeof value === "object" && value !== null ? Object.values(value).flatMap(textsIn) : [];
}

function isInside(path: string, folder: string): boolean {
  const way = relative(folder, path);
  return way === "" || (!way.startsWith("..") && !isAbsolute(way));
}

const NAME = /^[\p{L}\p{N}_][\p{L}\p{N}._=+@-]{0,199}$/u;

/** Gives a run another name in the folder that it lies in. Returns its new path. */
export function renameRun(dir: string, name: string, roots: readonly string[] = RUN_ROOTS): string {
  if (!NAME.test(name))
    throw new UsageError(
      `${JSON.stringify(name)} is no name for a run`,
      undefined,
      "letters, digits and ._=+@- after a letter or digit, no folders",
    );
  const from = resolve(dir);
  const to = join(dirname(from), name);
  if (inSweep(from))
    throw new UsageError(
      "cannot rename a run of a sweep, which knows it by its name",
      from,
      "tag it: rlv runs tag",
    );
  return whileHeld(from, "cannot rename", () => {
    refuseUsed([from], "cannot rename", roots);
    if (exists(to)) throw new UsageError("that name is taken", to, "choose another");
    withFileErrors("rename", from, () => renameSync(from, to));
    fsyncDir(dirname(to));
    // The lock went along.
    rmSync(join(to, LOCK), { force: true });
    return to;
  });
}

const TAG = /^[\p{L}\p{N}_][\p{L}\p{N}._:=+@/-]{0,39}$/u;

/** Adds and removes tags, of a live run too. Returns the tags it has now, in order. */
export function tagRun(dir: string, add: readonly string[], remove: readonly string[]): string[] {
  const run = readRun(dir);
  if (run.problem !== null) throw new UsageError(`cannot tag: ${run.problem}`, run.dir);
  for (const tag of add)
    if (!TAG.test(tag))
      throw new UsageError(
        `${JSON.stringify(tag)} is no tag`,
        undefined,
        "up to 40 letters, digits and ._:=+@/-",
      );
  const tags = new Set([...tagsOf(run.dir), ...add]);
  for (const tag of remove) tags.delete(tag);
  const sorted = [...tags].sort();
  writeFileAtomic(join(run.dir, TAGS), `${JSON.stringify({ tags: sorted })}\n`);
  return sorted;
}

/** Deletes a run with all it holds. */
export function deleteRun(dir: string, roots: readonly string[] = RUN_ROOTS): void {
  const at = resolve(dir);
  whileHeld(at, "cannot delete", () => {
    refuseUsed([at], "cannot delete", roots);
    removeTree(at);
    sweepTrash(dirname(at));
  });
}

/** Deletes one checkpoint of a run that has ended. */
export function deleteCheckpoint(runDir: string, name: string, roots: readonly string[] = RUN_ROOTS): void {
  whileHeld(runDir, "cannot delete a checkpoint", (run) => {
    const checkpoint = run.saved.find((each) => each.name === name);
    if (checkpoint === undefined)
      throw new UsageError(`no checkpoint ${JSON.stringify(name)}`, run.dir, "rlv runs show lists them");
    removeCheckpoints([checkpoint], roots);
  });
}

function removeCheckpoints(checkpoints: readonly CheckpointInfo[], roots: readonly string[]): void {
  if (checkpoints.length === 0) return;
  for (const { dir } of checkpoints)
    if (lstatSync(dir).isSymbolicLink())
      throw new UsageError("a link is never followed", dir, "remove it with the system's own commands");
  refuseUsed(
    checkpoints.map(({ dir }) => dir),
    "cannot delete",
    roots,
  );
  for (const { dir } of checkpoints) removeTree(dir);
  sweepTrash(dirname(checkpoints[0]!.dir));
}

/** Which checkpoints of a run stay. `final` always does. */
export interface PruneRule {
  /** This many of the newest whole step-N. */
  readonly keepLast: number;
  /** Every step-N whose N is a multiple of it; null: none for that. */
  readonly keepEvery: number | null;
  /** The step-N at which this metric was best (see `best`); null: none for that. */
  readonly keepBest: string | null;
  readonly best: "max" | "min";
  /** Keeps step-N that are not whole, and states saved at a divergence. */
  readonly keepBroken: boolean;
}

export interface PruneEntry {
  readonly checkpoint: CheckpointInfo;
  readonly keep: boolean;
  readonly reason: string;
}

/** What a rule would do to a run; nothing is removed. */
export function planPrune(run: Run, rule: PruneRule): PruneEntry[] {
  const steps = run.saved.filter((each) => each.kind === "step" && each.whole);
  const newest = new Set(steps.slice(Math.max(0, steps.length - rule.keepLast)));
  const best = rule.keepBest === null ? null : bestStep(run.dir, rule.keepBest, rule.best, steps);
  const whole = run.saved.filter(usable);
  /** Where a run that has not finished goes on. */
  const resume =
    run.state === "finished" && whole.some((each) => each.kind === "final") ? null : whole.at(-1);
  return run.saved.map((checkpoint) => {
    const { kind, step } = checkpoint;
    const because = (reason: string | null): PruneEntry => ({
      checkpoint,
      keep: reason !== null,
      reason: reason ?? "no rule keeps it",
    });
    if (run.state === "live") return because("the run is live");
    if (kind === "final") return because("final");
    if (lstatSync(checkpoint.dir).isSymbolicLink()) return because("a link");
    if (kind === "diverged" || !checkpoint.whole) {
      if (rule.keepBroken) return because(kind === "diverged" ? "saved at a divergence" : "not whole");
      return { checkpoint, keep: false, reason: kind === "diverged" ? "diverged" : "not whole" };
    }
    const added = addedTo(checkpoint.dir);
    if (added.length > 0) return because(`has ${added.join(", ")}, which training did not write`);
    if (checkpoint === resume) return because("the run goes on from it");
    if (newest.has(checkpoint)) return because(`among the newest ${rule.keepLast}`);
    if (rule.keepEvery !== null && step! % rule.keepEvery === 0)
      return because(`a multiple of ${rule.keepEvery}`);
    if (best !== null && step === best) return because(`best ${rule.keepBest}`);
    return because(null);
  });
}

/** Removes what `planPrune` would, planned again while the run is held. Returns the plan. */
export function pruneRun(dir: string, rule: PruneRule, roots: readonly string[] = RUN_ROOTS): PruneEntry[] {
  return whileHeld(dir, "cannot prune", (run) => {
    const plan = planPrune(run, rule);
    removeCheckpoints(
      plan.filter(({ keep }) => !keep).map(({ checkpoint }) => checkpoint),
      roots,
    );
    return plan;
  });
}

/** The step of the checkpoint with the best value of a metric, which may have been measured before it. */
function bestStep(
  dir: string,
  metric: string,
  best: "max" | "min",
  steps: readonly CheckpointInfo[],
): number | null {
  const values = new Map<number, number>();
  for (const row of allRows(dir))
    if (row.step !== undefined && Number.isFinite(row[metric])) values.set(row.step, row[metric]!);
  if (values.size === 0)
    throw new UsageError(`no metric ${JSON.stringify(metric)}`, dir, "rlv runs show lists the metrics");
  let found: { step: number; value: number } | null = null;
  for (const { step } of steps) {
    const value = values.get(step!);
    if (value === undefined) continue;
    const better = found === null || (best === "max" ? value >= found.value : value <= found.value);
    if (better) found = { step: step!, value };
  }
  return found?.step ?? null;
}

/** Entries of a checkpoint that its manifest does not list: a quantized copy made later. */
function addedTo(dir: string): string[] {
  const { files: listed } = JSON.parse(readFileSync(join(dir, MANIFEST), "utf8")) as { files: object };
  const files = Object.keys(listed);
  return readdirSync(dir).filter(
    (name) => name !== MANIFEST && !files.some((file) => file === name || file.startsWith(`${name}/`)),
  );
}

/** Only to resume from; an export is for use. */
const RESUME_ONLY = new Set(["optimizer.safetensors", TRAIN_STATE, MANIFEST]);

export interface Exported {
  readonly out: string;
  readonly files: readonly string[];
  readonly bytes: number;
  /** The checkpoint whose model was taken; null for metrics alone. */
  readonly checkpoint: string | null;
}

/**
 * Copies what others need of a run. `out` ending in .csv: its metrics as a table. Else a new folder: the model of
 * `final` or of the newest whole checkpoint (or of the one named) without what only a resumed run needs, and
 * train_config.json, metrics.jsonl and train.log in `run/`.
 */
export function exportRun(dir: string, out: string, checkpoint: string | null): Exported {
  const run = readRun(dir);
  if (out.endsWith(".csv")) {
    const text = metricsCsv(run.dir);
    writeFileAtomic(out, text);
    return { out, files: [basename(out)], bytes: Buffer.byteLength(text), checkpoint: null };
  }
  const whole = run.saved.filter(usable);
  const chosen =
    checkpoint === null
      ? (whole.find((each) => each.kind === "final") ?? whole.at(-1))
      : run.saved.find((each) => each.name === checkpoint);
  if (chosen === undefined)
    throw new UsageError(
      checkpoint === null ? "no whole checkpoint to export" : `no checkpoint ${JSON.stringify(checkpoint)}`,
      run.dir,
      checkpoint === null ? "give --out a .csv for its metrics" : "rlv runs show lists them",
    );
  if (!chosen.whole)
    throw new UsageError("the checkpoint is not whole", chosen.dir, "choose another --checkpoint");
  if (exists(out) && (!lstatSync(out).isDirectory() || readdirSync(out).length > 0))
    throw new UsageError("--out is there already and not an empty folder", out, "choose another");
  const files: string[] = [];
  let bytes = 0;
  const copy = (from: string, name: string) => {
    const to = join(out, name);
    withFileErrors("create", dirname(to), () => mkdirSync(dirname(to), { recursive: true }));
    copyFileAtomic(from, to);
    files.push(name);
    bytes += lstatSync(to).size;
  };
  try {
    for (const entry of readdirSync(chosen.dir, { withFileTypes: true }))
      if (entry.isFile() && !RESUME_ONLY.has(entry.name) && entry.name !== CONFIG)
        copy(join(chosen.dir, entry.name), entry.name);
    for (const name of [CONFIG, "metrics.jsonl", "train.log"]) {
      const from = join(run.dir, name);
      if (lstatSync(from, { throwIfNoEntry: false })?.isFile()) copy(from, `run/${name}`);
    }
  } catch (error) {
    // A live run may have pruned the checkpoint meanwhile: half a model is none.
    removeTree(out);
    throw error;
  }
  return { out, files, bytes, checkpoint: chosen.name };
}

/** One column a metric in the order they first appear, one row a step; empty where a row lacks it. */
function metricsCsv(dir: string): string {
  const rows = [...allRows(dir)];
  if (rows.length === 0) throw new UsageError("no metrics to export", dir);
  const names = [...new Set(["step", "time", ...rows.flatMap((row) => Object.keys(row))])];
  return csv([names, ...rows.map((row) => names.map((name) => String(row[name] ?? "")))]);
}
