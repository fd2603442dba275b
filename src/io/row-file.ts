import { closeSync, createReadStream, openSync, readSync } from "node:fs";
import { stat } from "node:fs/promises";
import { createGunzip } from "node:zlib";
import { assert, UsageError } from "../core/errors.ts";
import { fileError, withFileErrors } from "./atomic.ts";
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

/** Opens JSON lines, gzipped or not, or parquet, of which only `columns` are read and no row groups beyond `most` rows. */
export async function openRowFile(
  path: string,
  columns: readonly string[],
  most = Number.POSITIVE_INFINITY,
): Promise<RowFile> {
  const info = await stat(path).catch(() => undefined);
  if (info === undefined) throw new UsageError("no such file", path, "check the path");
  if (path.endsWith(".parquet")) return readParquet(path, columns, most);
  return new JsonLines(path, await PagedText.read(path));
}

/** Bytes of a piece of text. */
const PIECE = 1 << 22;

/** Pieces of a file, inflated where it ends in .gz. */
async function* piecesOf(path: string): AsyncGenerator<Uint8Array> {
  if (!path.endsWith(".gz")) {
    const fd = withFileErrors("read", path, () => openSync(path, "r"));
    try {
      for (;;) {
        const piece = new Uint8Array(PIECE);
        const count = withFileErrors("read", path, () => readSync(fd, piece));
        if (count === 0) return;
        yield piece.subarray(0, count);
      }
    } finally {
      closeSync(fd);
    }
  }
  const file = createReadStream(path, { highWaterMark: PIECE });
  const inflated = file.pipe(createGunzip({ chunkSize: PIECE }));
  file.on("error", (error) => inflated.destroy(error));
  try {
    for await (const piece of inflated) yield piece as Uint8Array;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (/^Z_|ZLIB|EOF|PREMATURE/.test(code))
      throw new UsageError(`not a whole gzip file (${code})`, path, "download or make it again");
    throw fileError(error, "read", path);
  } finally {
    file.destroy();
  }
}

/** Text of JSON lines in the pieces it was read in: a file of any size without one large buffer, and no copy of it. */
class PagedText {
  /** Byte at which each piece begins. */
  readonly #starts: number[] = [];
  readonly #pieces: Uint8Array[] = [];
  length = 0;
  /** Byte at which each line begins, and where the last one ends. */
  readonly lines: number[] = [0];
  /** Lines, from 0, that do not look like an object at a glance: they are to be looked at. */
  readonly odd: number[] = [];

  static async read(path: string): Promise<PagedText> {
    const text = new PagedText();
    for await (const piece of piecesOf(path)) text.#add(piece);
    if (text.lines.at(-1)! < text.length) {
      text.odd.push(text.lines.length - 1);
      text.lines.push(text.length);
    }
    return text;
  }

  #add(piece: Uint8Array): void {
    this.#starts.push(this.length);
    this.#pieces.push(piece);
    let begin = this.lines.at(-1)! - this.length;
    for (let at = piece.indexOf(10); at >= 0; at = piece.indexOf(10, at + 1)) {
      // { first and } last; a line that began in an earlier piece has no first byte here.
      if (piece[begin] !== 123 || piece[at - 1] !== 125) this.odd.push(this.lines.length - 1);
      begin = at + 1;
      this.lines.push(this.length + begin);
    }
    this.length += piece.length;
  }

  /** Line `line`, from 0, with its newline. */
  line(line: number): Uint8Array {
    const end = this.lines[line + 1]!;
    const begin = this.lines[line]!;
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

  /** A line that is no object is mostly an error here already, before anything is done with the others. */
  constructor(
    readonly path: string,
    readonly text: PagedText,
  ) {
    const blank = new Set(text.odd.filter((line) => parseRow(text.line(line), path, line + 1) === null));
    this.length = text.lines.length - 1 - blank.size;
    this.#rows = new Int32Array(this.length);
    for (let line = 0, row = 0; row < this.length; line++) if (!blank.has(line)) this.#rows[row++] = line;
  }

  row(index: number): JsonRow {
    const line = this.#rows[index]!;
    const row = parseRow(this.text.line(line), this.path, line + 1);
    assert(row !== null, `${this.where(index)}: a blank line among the rows`);
    return row;
  }

  where(index: number): string {
    return `${this.path}:${this.#rows[index]! + 1}`;
  }
}
