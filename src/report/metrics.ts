/** metrics.jsonl of a run: read whole, from where the last reading ended, or its end alone. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import { mean, parts } from "../core/lists.ts";
import { jsonNumber } from "../io/jsonl.ts";

/** `step`, `time` (seconds since 1970) and every metric under its TensorBoard name; what is no number is left out. */
export type MetricsRow = Readonly<Record<string, number>>;

export interface MetricsPart {
  /** In the order of the file. */
  readonly rows: MetricsRow[];
  /** Where the next reading goes on: give it to `metricsOf` again. */
  readonly cursor: string;
  /** The rows begin anew: the file was cut or replaced (a resumed run drops what lies beyond its checkpoint). */
  readonly reset: boolean;
  /** There is more to read now. */
  readonly more: boolean;
  /** Whole lines that are no JSON objects. */
  readonly skipped: number;
}

/** Bytes before a cursor that must be unchanged for it to hold. */
const MARK_BYTES = 256;
const READ_BYTES = 16 << 20;
const NEWLINE = 10;

export function metricsPath(runDir: string): string {
  return join(runDir, "metrics.jsonl");
}

/**
 * Rows of a run's metrics.jsonl behind `cursor` (null: from the start), at most `maxBytes` of text at once. A line
 * that is being written is left for the next reading; a missing file has no rows. A cursor that no longer fits the
 * file starts over, with `reset`.
 */
export function metricsOf(
  runDir: string,
  cursor: string | null = null,
  maxBytes: number = READ_BYTES,
): MetricsPart {
  const fd = openOrNull(metricsPath(runDir));
  if (fd === null)
    return { rows: [], cursor: "0", reset: cursor !== null && cursor !== "0", more: false, skipped: 0 };
  try {
    const { size } = fstatSync(fd);
    const asked = cursor === null ? 0 : Number.parseInt(cursor, 10);
    const holds = asked > 0 && asked <= size && cursor === cursorAt(fd, asked);
    const from = holds ? asked : 0;
    // A line longer than the piece that is read makes the piece longer.
    let text = new Uint8Array(0);
    for (let bytes = Math.max(1, maxBytes); ; bytes *= 2) {
      text = readAt(fd, from, Math.min(bytes, size - from));
      if (text.includes(NEWLINE) || from + text.length >= size) break;
    }
    const end = text.lastIndexOf(NEWLINE) + 1;
    const { rows, skipped } = parseRows(text.subarray(0, end));
    const at = from + end;
    return {
      rows,
      cursor: cursorAt(fd, at),
      reset: asked > 0 && !holds,
      more: from + text.length < size,
      skipped,
    };
  } finally {
    closeSync(fd);
  }
}

/** Every row of a run's metrics.jsonl, read a piece at a time. */
export function* allRows(runDir: string): Generator<MetricsRow> {
  for (let cursor: string | null = null; ; ) {
    const part: MetricsPart = metricsOf(runDir, cursor);
    yield* part.rows;
    cursor = part.cursor;
    if (!part.more) return;
  }
}

/** The last rows of a run's metrics.jsonl, as many as lie in its last `bytes` bytes; at least one if there is one. */
export function lastRows(runDir: string, bytes: number): MetricsRow[] {
  const fd = openOrNull(metricsPath(runDir));
  if (fd === null) return [];
  try {
    const { size } = fstatSync(fd);
    for (let span = Math.min(bytes, size); ; span = Math.min(2 * span, size)) {
      const text = readAt(fd, size - span, span);
      const end = text.lastIndexOf(NEWLINE) + 1;
      const begin = span === size ? 0 : text.indexOf(NEWLINE) + 1;
      const { rows } = parseRows(text.subarray(begin, end));
      if (rows.length > 0 || span === size) return rows;
    }
  } finally {
    closeSync(fd);
  }
}

/** The first row, or null. */
export function firstRow(runDir: string): MetricsRow | null {
  const fd = openOrNull(metricsPath(runDir));
  if (fd === null) return null;
  try {
    const { size } = fstatSync(fd);
    for (let span = Math.min(8192, size); ; span = Math.min(2 * span, size)) {
      const text = readAt(fd, 0, span);
      const end = text.indexOf(NEWLINE) + 1;
      if (end > 0) return parseRows(text.subarray(0, end)).rows[0] ?? null;
      if (span === size) return null;
    }
  } finally {
    closeSync(fd);
  }
}

/** The last value of each metric among rows. */
export function lastValues(rows: readonly MetricsRow[]): Record<string, number> {
  const last: Record<string, number> = {};
  for (const row of rows) for (const [name, value] of Object.entries(row)) last[name] = value;
  return last;
}

/** One metric along the steps: those rows that have it. */
export interface Series {
  readonly steps: number[];
  readonly values: number[];
}

export function seriesOf(rows: readonly MetricsRow[], name: string): Series {
  const steps: number[] = [];
  const values: number[] = [];
  for (const row of rows) {
    const value = row[name];
    if (value === undefined || row.step === undefined) continue;
    steps.push(row.step);
    values.push(value);
  }
  return { steps, values };
}

/**
 * A metric at up to `points` places spread evenly over the run's file, the mean of the finite values around each: of a
 * large file only some `bytes` at each place are read.
 */
export function sampleOf(runDir: string, name: string, points: number, bytes: number): number[] {
  const fd = openOrNull(metricsPath(runDir));
  if (fd === null) return [];
  try {
    const { size } = fstatSync(fd);
    const within = (text: Uint8Array) =>
      parseRows(text)
        .rows.map((row) => row[name])
        .filter((value) => value !== undefined && Number.isFinite(value)) as number[];
    if (size <= points * bytes) return parts(within(readAt(fd, 0, size)), points).map(mean);
    const values = Array.from({ length: points }, (_, i) => {
      const from = Math.floor((i * (size - bytes)) / (points - 1));
      const text = readAt(fd, from, bytes);
      const begin = from === 0 ? 0 : text.indexOf(NEWLINE) + 1;
      return mean(within(text.subarray(begin, text.lastIndexOf(NEWLINE) + 1)));
    });
    return values.filter(Number.isFinite);
  } finally {
    closeSync(fd);
  }
}

const BARS = "▁▂▃▄▅▆▇█";

/**
 * Values as one line of `width` bars, each the mean of its part, scaled from the least to the greatest mean; a part
 * without a finite value is a space.
 */
export function sparkline(values: readonly number[], width: number): string {
  const means = parts(values, width).map((part) => mean(part.filter(Number.isFinite)));
  const finite = means.filter(Number.isFinite);
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  return means
    .map((value) => {
      if (!Number.isFinite(value)) return " ";
      const at = high > low ? Math.round(((value - low) / (high - low)) * (BARS.length - 1)) : 0;
      return BARS[at]!;
    })
    .join("");
}

function openOrNull(path: string): number | null {
  try {
    return openSync(path, "r");
  } catch {
    return null;
  }
}

function readAt(fd: number, from: number, count: number): Uint8Array<ArrayBuffer> {
  const target = new Uint8Array(count);
  let done = 0;
  while (done < count) {
    const read = readSync(fd, target, done, count - done, from + done);
    if (read === 0) break;
    done += read;
  }
  return target.subarray(0, done);
}

function cursorAt(fd: number, offset: number): string {
  if (offset === 0) return "0";
  const begin = Math.max(0, offset - MARK_BYTES);
  return `${offset}-${Bun.hash(readAt(fd, begin, offset - begin)).toString(16)}`;
}

function parseRows(bytes: Uint8Array): { rows: MetricsRow[]; skipped: number } {
  const rows: MetricsRow[] = [];
  let skipped = 0;
  for (const line of new TextDecoder().decode(bytes).split("\n")) {
    if (line === "") continue;
    const row = parseRow(line);
    if (row === null) skipped += 1;
    else rows.push(row);
  }
  return { rows, skipped };
}

function parseRow(line: string): MetricsRow | null {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return null;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
  const row: Record<string, number> = {};
  for (const [name, field] of Object.entries(value)) {
    const number = jsonNumber(field);
    if (number !== undefined) row[name] = number;
  }
  return row;
}
