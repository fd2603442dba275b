import { closeSync, existsSync, fstatSync, ftruncateSync, openSync, readSync } from "node:fs";
import { assert, RlvError, shown, UsageError } from "../core/errors.ts";
import { AtomicFile, fileError, readFully, withFileErrors, writeFully } from "./atomic.ts";

/**
 * JSON lines: one object a line, UTF-8. JSON has no NaN and no infinities (JSON.stringify writes null, and the
 * metric is lost), so they are written as the strings "NaN", "Infinity" and "-Infinity", which Python's
 * float(), JavaScript's Number() and `jsonNumber` here all read back.
 */
export type JsonRow = Record<string, unknown>;

export interface Line {
  /** Counted from 1. */
  readonly line: number;
  readonly row: JsonRow;
}

interface RawLine {
  readonly line: number;
  readonly bytes: Uint8Array;
  /** False for a last line without its newline. */
  readonly ended: boolean;
}

/** Lines of a file, read in pieces. */
function* rawLines(path: string): Generator<RawLine> {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT")
      throw new UsageError("no such file", path, "check the path");
    throw fileError(error, "read", path);
  }
  try {
    const chunk = new Uint8Array(1 << 20);
    let pending: Uint8Array[] = [];
    let line = 0;
    for (;;) {
      const count = withFileErrors("read", path, () => readSync(fd, chunk, 0, chunk.length, null));
      if (count === 0) break;
      let from = 0;
      for (;;) {
        const end = chunk.indexOf(10, from);
        if (end < 0 || end >= count) break;
        line += 1;
        yield { line, bytes: Buffer.concat([...pending, chunk.subarray(from, end)]), ended: true };
        pending = [];
        from = end + 1;
      }
      if (from < count) pending.push(chunk.slice(from, count));
    }
    if (pending.length > 0) yield { line: line + 1, bytes: Buffer.concat(pending), ended: false };
  } finally {
    closeSync(fd);
  }
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The row of line `line`, counted from 1, or null for a blank one. */
export function parseRow(bytes: Uint8Array, path: string, line: number): JsonRow | null {
  const fail = (what: string): never => {
    throw new UsageError(what, `${path}, line ${line}`, "repair or remove that line");
  };
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch {
    return fail("not UTF-8");
  }
  if (line === 1 && text.startsWith("\ufeff")) text = text.slice(1);
  if (text.trim() === "") return null;
  let row: unknown;
  try {
    row = JSON.parse(text);
  } catch (error) {
    return fail(`not JSON (${(error as Error).message.split("\n")[0]})`);
  }
  if (typeof row !== "object" || row === null || Array.isArray(row)) return fail("not a JSON object");
  return row as JsonRow;
}

/**
 * Rows of a JSONL file one after another. A byte-order mark, CRLF and blank lines are fine; a broken line is
 * a UsageError that names file and line.
 */
export function* jsonlRows(path: string): Generator<Line> {
  for (const raw of rawLines(path)) {
    const row = parseRow(raw.bytes, path, raw.line);
    if (row !== null) yield { line: raw.line, row };
  }
}

export function readJsonl(path: string): Line[] {
  return [...jsonlRows(path)];
}

/** A dataset: at least one row, and every row has the `required` fields. */
export function readDataset(path: string, required: readonly string[] = []): Line[] {
  const lines: Line[] = [];
  for (const { line, row } of jsonlRows(path)) {
    for (const field of required)
      if (!Object.hasOwn(row, field))
        throw new UsageError(`no field ${shown(field)}`, `${path}, line ${line}`, "add it to every line");
    lines.push({ line, row });
  }
  if (lines.length === 0)
    throw new UsageError("empty dataset", path, "it needs at least one JSON object a line");
  return lines;
}

/** One line without its newline; key order as given. */
export function jsonLine(row: object): string {
  return JSON.stringify(row, (_key, value) =>
    typeof value === "number" && !Number.isFinite(value) ? String(value) : value,
  );
}

/** Rows as the text of a file. */
export function jsonLines(rows: readonly object[]): string {
  return rows.map((row) => `${jsonLine(row)}\n`).join("");
}

/** A number as jsonLine writes it; undefined for anything else. */
export function jsonNumber(value: unknown): number | undefined {
  if (typeof value === "number") return value;
  return value === "NaN" || value === "Infinity" || value === "-Infinity" ? Number(value) : undefined;
}

/**
 * Appends rows, a whole line or none: a line that does not fit on the disk is taken back. A line that a
 * killed process left unfinished at the end is cut when the file is opened.
 */
export class JsonlWriter implements Disposable {
  #fd: number | null;
  #length: number;

  constructor(readonly path: string) {
    const fd = withFileErrors("open", path, () => openSync(path, existsSync(path) ? "r+" : "wx+", 0o666));
    this.#fd = fd;
    try {
      this.#length = cutPartialLine(fd, path);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  append(row: JsonRow): void {
    assert(this.#fd !== null, `${this.path}: append after close`);
    const bytes = new TextEncoder().encode(`${jsonLine(row)}\n`);
    try {
      writeFully(this.#fd, bytes, this.path, this.#length);
    } catch (error) {
      ftruncateSync(this.#fd, this.#length);
      throw error;
    }
    this.#length += bytes.length;
  }

  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Cuts what follows the last newline and returns the length that is left. */
function cutPartialLine(fd: number, path: string): number {
  const { size } = fstatSync(fd);
  const chunk = new Uint8Array(64 * 1024);
  let end = size;
  while (end > 0) {
    const begin = Math.max(0, end - chunk.length);
    const part = chunk.subarray(0, end - begin);
    readFully(fd, part, begin, path);
    const newline = part.lastIndexOf(10);
    if (newline >= 0) {
      end = begin + newline + 1;
      break;
    }
    end = begin;
  }
  if (end < size) withFileErrors("write", path, () => ftruncateSync(fd, end));
  return end;
}

/**
 * For resuming after checkpoint `step`: drops rows whose `step` is beyond it, and a last line that a kill left
 * unfinished. Rows without a numeric `step` stay. Returns the number of lines dropped.
 */
export function truncateAfterStep(path: string, step: number): number {
  if (!existsSync(path)) return 0;
  const kept: Uint8Array[] = [];
  let dropped = 0;
  for (const raw of rawLines(path)) {
    let row: JsonRow | null;
    try {
      row = parseRow(raw.bytes, path, raw.line);
    } catch (error) {
      if (raw.ended || !(error instanceof RlvError)) throw error;
      dropped += 1;
      continue;
    }
    if (row !== null && typeof row.step === "number" && row.step > step) dropped += 1;
    else kept.push(raw.bytes);
  }
  if (dropped === 0) return 0;
  using file = new AtomicFile(path);
  file.write(Buffer.concat(kept.flatMap((bytes) => [bytes, Buffer.from("\n")])));
  file.commit();
  return dropped;
}
