import { stat } from "node:fs/promises";
import { brotliDecompressSync, gunzipSync, zstdDecompressSync } from "node:zlib";
import {
  asyncBufferFromFile,
  type Compressors,
  parquetMetadataAsync,
  parquetReadObjects,
  snappyUncompress,
} from "hyparquet";
import { UsageError } from "../core/errors.ts";
import { fileError } from "./atomic.ts";
import type { JsonRow } from "./jsonl.ts";
import { checkSnappy, PageCheck } from "./parquet-pages.ts";
import type { RowFile } from "./row-file.ts";

/** A decompressor that ends where more comes out than the page says. */
const bounded =
  (decompress: (data: Uint8Array, options: { maxOutputLength: number }) => Uint8Array) =>
  (data: Uint8Array, size: number): Uint8Array =>
    decompress(data, { maxOutputLength: Math.max(1, size) });

/** None makes more than the page says. */
const compressors: Compressors = {
  SNAPPY: (data, size) => {
    checkSnappy(data, size);
    const made = new Uint8Array(size);
    snappyUncompress(data, made);
    return made;
  },
  GZIP: bounded(gunzipSync),
  ZSTD: bounded(zstdDecompressSync),
  BROTLI: bounded(brotliDecompressSync),
};

/**
 * The rows of a parquet file with those of `columns` that it has, decoded into memory a row group at a time, as many
 * groups as `most` rows need.
 */
export async function readParquet(
  path: string,
  columns: readonly string[],
  most = Number.POSITIVE_INFINITY,
): Promise<RowFile> {
  await stat(path).catch((error: unknown) => {
    throw fileError(error, "read", path);
  });
  const rows: JsonRow[] = [];
  try {
    const file = await asyncBufferFromFile(path);
    const metadata = await parquetMetadataAsync(file);
    const present = new Set(metadata.schema.map(({ name }) => name));
    const wanted = columns.filter((name) => present.has(name));
    const check = new PageCheck(file, metadata, compressors);
    let rowStart = 0;
    for (const [i, group] of wanted.length === 0 ? [] : metadata.row_groups.entries()) {
      if (rowStart >= most) break;
      await check.group(i, wanted);
      const rowEnd = rowStart + Number(group.num_rows);
      const options = { file, metadata, columns: wanted, compressors, rowStart, rowEnd };
      for (const row of await parquetReadObjects(options)) rows.push(row);
      rowStart = rowEnd;
    }
    if (wanted.length === 0) {
      rows.length = Number(metadata.num_rows);
      check.spendValues(rows.length);
    }
  } catch (error) {
    const reason = (error as Error).message.split("\n")[0];
    throw new UsageError(
      `not a parquet file that can be read (${reason})`,
      path,
      "download or make it again",
    );
  }
  return {
    path,
    length: rows.length,
    row: (index) => plain(rows[index] ?? {}),
    where: (index) => `${path}, row ${index + 1}`,
  };
}

/** 64-bit integers as numbers. */
function plain(row: JsonRow): JsonRow {
  const numbers = Object.entries(row).filter(([, value]) => typeof value === "bigint");
  return numbers.length === 0
    ? row
    : { ...row, ...Object.fromEntries(numbers.map(([name, value]) => [name, Number(value)])) };
}
