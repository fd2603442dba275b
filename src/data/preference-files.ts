/** Which files hold a split of preference data. */
import { readdirSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { UsageError } from "../core/errors.ts";
import type { JsonRow } from "../io/jsonl.ts";
import { openRowFile, ROW_FILES, type RowFile } from "../io/row-file.ts";
import type { Split } from "./preferences.ts";

/** The parts of Anthropic/hh-rlhf that are pairs; red-team-attempts are not. */
export const HH_FOLDERS = [
  "harmless-base",
  "helpful-base",
  "helpful-online",
  "helpful-rejection-sampled",
] as const;
const OTHER_FOLDERS = new Set(["red-team-attempts"]);

const SPLIT_NAMES: Readonly<Record<Split, readonly string[]>> = {
  train: ["train"],
  test: ["test", "validation", "valid", "val", "eval", "dev"],
};
const COLUMNS = ["prompt", "chosen", "rejected", "margin"];

/** Of one file, every so many-th row is its test split. */
const HOLD_OUT = 20;

/** Which row of all files is row `index` of the split. */
interface RowPick {
  readonly length: number;
  row(index: number): number;
}

export interface OpenSplit {
  readonly length: number;
  /** `where`: its file and line. */
  row(index: number): { readonly row: JsonRow; readonly where: string };
  /** Whether it is laid out as Anthropic/hh-rlhf, which its users cannot repair. */
  readonly published: boolean;
}

/** `most`: rows that are enough; of a folder no further files and row groups are read then. */
export async function openSplit(
  dataset: string,
  split: Split,
  columns: readonly string[] = COLUMNS,
  most = Number.POSITIVE_INFINITY,
): Promise<OpenSplit> {
  const info = statSync(dataset, { throwIfNoEntry: false });
  if (info === undefined)
    throw new UsageError("no such dataset", dataset, "give a file, a folder or a name on the hub");
  const paths = info.isDirectory() ? splitFiles(dataset, split) : [dataset];
  const files = info.isDirectory() ? await openFiles(paths, columns, most) : await openFiles(paths, columns);
  const rows = Math.min(
    files.reduce((sum, { length }) => sum + length, 0),
    info.isDirectory() ? most : Number.POSITIVE_INFINITY,
  );
  if (rows === 0) throw new UsageError("no rows", dataset, "it needs at least one row");
  const whole: RowPick = { length: rows, row: (index) => index };
  const pick = info.isDirectory() ? whole : partOf(rows, split);
  if (pick.length === 0)
    throw new UsageError(
      `${rows} rows leave none for the ${split} split`,
      dataset,
      `give ${HOLD_OUT} rows or more, or a folder with train and test files`,
    );
  const parents = new Set(paths.map((path) => basename(dirname(path))));
  return {
    length: pick.length,
    row(index) {
      let at = pick.row(index);
      for (const file of files) {
        if (at < file.length) return { row: file.row(at), where: file.where(at) };
        at -= file.length;
      }
      throw new RangeError(`row ${index} of ${pick.length}`);
    },
    published: HH_FOLDERS.some((name) => parents.has(name)),
  };
}

async function openFiles(
  paths: readonly string[],
  columns: readonly string[],
  most = Number.POSITIVE_INFINITY,
): Promise<RowFile[]> {
  if (most < Number.POSITIVE_INFINITY) {
    const files: RowFile[] = [];
    for (let left = most, i = 0; left > 0 && i < paths.length; left -= files[i++]!.length)
      files.push(await openRowFile(paths[i]!, columns, left));
    return files;
  }
  // Together, as inflating runs beside us; of several broken files the first is reported.
  const opened = await Promise.allSettled(paths.map((path) => openRowFile(path, columns)));
  return opened.map((each) => {
    if (each.status === "rejected") throw each.reason;
    return each.value;
  });
}

function partOf(rows: number, split: Split): RowPick {
  const test = Math.floor(rows / HOLD_OUT);
  if (split === "test") return { length: test, row: (index) => HOLD_OUT * index + HOLD_OUT - 1 };
  return { length: rows - test, row: (index) => index + Math.floor(index / (HOLD_OUT - 1)) };
}

/** Files of a folder by name: train.jsonl.gz, train-00000-of-00002.parquet or train/0000.parquet, at most two deep. */
function splitFiles(folder: string, split: Split): string[] {
  const all = rowFiles(folder, 2);
  for (const name of SPLIT_NAMES[split]) {
    const found = all.filter(
      ({ path, stem }) => new RegExp(`^${name}([-_.]|$)`).test(stem) || basename(dirname(path)) === name,
    );
    if (found.length > 0) return found.map(({ path }) => path);
  }
  throw new UsageError(
    `no ${split} files`,
    folder,
    `name them ${split}.jsonl, ${split}.jsonl.gz or ${split}.parquet`,
  );
}

/** Sorted; of the same rows in several forms the first form counts. */
function rowFiles(folder: string, depth: number): { path: string; stem: string }[] {
  const found = new Map<string, { path: string; stem: string }>();
  const names = readdirSync(folder).filter((name) => !name.startsWith(".") && !OTHER_FOLDERS.has(name));
  for (const ending of ROW_FILES)
    for (const name of names.filter((each) => each.endsWith(ending))) {
      const stem = name.slice(0, -ending.length);
      if (!found.has(stem)) found.set(stem, { path: join(folder, name), stem });
    }
  const files = [...found.values()];
  if (depth > 0)
    for (const name of names)
      if (statSync(join(folder, name), { throwIfNoEntry: false })?.isDirectory())
        files.push(...rowFiles(join(folder, name), depth - 1));
  return files.sort((a, b) => (a.path < b.path ? -1 : 1));
}
