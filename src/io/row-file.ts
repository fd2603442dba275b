import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createGunzip } from "node:zlib";
import { assert, UsageError } from "../core/errors.ts";
import { fileError } from "./atomic.ts";
import { type JsonRow, parseRow } from "./jsonl.ts";
import { readParquet } from "./parquet.ts";

/** Rows of a file by number. */
export interface RowFile {
  readonly path: string;
  readonly length: number;
  /** Row 0, 1, …; a broken one is a UsageError that names file and line. */
  row(index: number): JsonRow;
  /** FILE:LINE. */
  where(index: number): string;
}

/** Endings of the files that hold rows. */
export const ROW_FILES = [".jsonl", ".jsonl.gz", ".parquet"] as const;

/** Opens JSON lines, gzipped or not, or parquet, of which only `columns` are read. */
export async function openRowFile(path: string, columns: readonly string[]): Promise<RowFile> {
  const info = await stat(path).catch(() => undefined);
  if (info === undefined) throw new UsageError("no such file", path, "check the path");
  if (path.endsWith(".parquet")) return readParquet(path, columns);
  const text = await PagedText.read(path);
  return new JsonLines(path, text);
}

/** Text of JSON lines in the pieces it was read in: a file of any size without one large buffer, and no copy of it. */
class PagedText {
  /** Byte at which each piece begins. */
  readonly #starts: number[] = [];
  readonly #pieces: Uint8Array[] = [];
  length = 0;
  /** Byte at which each line begins. */
  readonly lines: number[] = [];

  static async read(path: string): Promise<PagedText> {
    const text = new PagedText();
    const file = createReadStream(path, { highWaterMark: 1 << 20 });
    const zipped = path.endsWith(".gz");
    try {
      const stream = zipped ? file.pipe(createGunzip({ chunkSize: 1 << 20 })) : file;
      file.on("error", (error) => stream.destroy(error));
      for await (const piece of stream) text.#add(piece as Uint8Array);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? "";
      if (zipped && /^Z_|ERR_.*(ZLIB|EOF|END)/.test(code))
        throw new UsageError(`not a whole gzip file (${code})`, path, "download or make it again");
      throw fileError(error, "read", path);
    }
    return text;
  }

  #add(piece: Uint8Array): void {
    if (this.length === 0 && piece.length > 0) this.lines.push(0);
    this.#starts.push(this.length);
    this.#pieces.push(piece);
    for (let at = piece.indexOf(10); at >= 0; at = piece.indexOf(10, at + 1))
      this.lines.push(this.length + at + 1);
    this.length += piece.length;
  }

  /** Bytes [begin, end). */
  slice(begin: number, end: number): Uint8Array {
    let low = 0;
    let high = this.#starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#starts[middle]! <= begin) low = middle;
      else high = middle - 1;
    }
    const parts: Uint8Array[] = [];
    for (let at = begin; at < end; low++) {
      const start = this.#starts[low]!;
      const piece = this.#pieces[low]!;
      parts.push(piece.subarray(at - start, Math.min(piece.length, end - start)));
      at = start + piece.length;
    }
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }
}

class JsonLines implements RowFile {
  readonly length: number;
  /** Line, from 0, of each row: blank lines are none. */
  readonly #rows: Int32Array;

  /** A line that cannot be an object is an error here, before anything is done with the others. */
  constructor(
    readonly path: string,
    readonly text: PagedText,
  ) {
    const rows: number[] = [];
    for (let line = 0; line < text.lines.length; line++) {
      const bytes = this.#line(line);
      if (isBraced(bytes) || parseRow(bytes, path, line + 1) !== null) rows.push(line);
    }
    this.#rows = Int32Array.from(rows);
    this.length = rows.length;
  }

  #line(line: number): Uint8Array {
    const { lines, length } = this.text;
    return this.text.slice(lines[line]!, lines[line + 1] ?? length);
  }

  row(index: number): JsonRow {
    const line = this.#rows[index]!;
    const row = parseRow(this.#line(line), this.path, line + 1);
    assert(row !== null, `${this.where(index)}: a blank line among the rows`);
    return row;
  }

  where(index: number): string {
    return `${this.path}:${this.#rows[index]! + 1}`;
  }
}

const SPACE = new Set([9, 10, 11, 12, 13, 32]);

/** Whether a line begins with { and ends with }, space aside. */
function isBraced(line: Uint8Array): boolean {
  let end = line.length - 1;
  while (end > 0 && SPACE.has(line[end]!)) end--;
  return line[0] === 123 && line[end] === 125;
}
