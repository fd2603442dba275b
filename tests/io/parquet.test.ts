/**
 * Parquet in every encoding and both versions of pages, beside what pyarrow wrote into it; and pages that are shifted or
 * say what they are not: refused at once. More sound files are read in tests/run/preferences.test.ts.
 */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UsageError } from "../../src/core/errors.ts";
import { readParquet } from "../../src/io/parquet.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-parquet-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const sound = join(import.meta.dir, "parquet/gzip.parquet");

test("every column by itself, and all", async () => {
  expect((await readParquet(sound, ["chosen"])).length).toBe(5);
  expect(Object.keys((await readParquet(sound, ["margin", "rejected"])).row(4)).sort()).toEqual([
    "margin",
    "rejected",
  ]);
});

const encodings: Record<string, unknown>[] = await Bun.file(
  join(import.meta.dir, "parquet/encodings.json"),
).json();

// Written by pyarrow 26, with the rows of encodings.json: differences or dictionaries, pages of version 1 or 2.
test.each(["delta-1", "delta-2", "dictionary-1", "dictionary-2"])("%s", async (name) => {
  const columns = Object.keys(encodings[0]!);
  const file = await readParquet(join(import.meta.dir, `parquet/${name}.parquet`), columns);
  expect(file.length).toBe(encodings.length);
  const plain = (row: unknown) => JSON.parse(JSON.stringify(row, (_, value) => value ?? null));
  for (let i = 0; i < file.length; i++) expect(plain(file.row(i))).toEqual(encodings[i]!);
});

test.each(["none", "delta-1", "delta-2", "dictionary-1"])(
  "a count of 2^31 at each place of %s: soon refused, or what is no count",
  async (name) => {
    const data = readFileSync(join(import.meta.dir, `parquet/${name}.parquet`));
    const path = join(scratch, "count.parquet");
    const columns = ["chosen", "rejected", "margin", ...Object.keys(encodings[0]!)];
    // A run of 2^31 - 1 equal values, or of as many packed ones, or as many bytes of Snappy's.
    for (const last of [0xfe, 0xff, 0xfc])
      for (let at = last - 0xf8; at < data.length - 5; at += 7) {
        const broken = Buffer.from(data);
        broken.set([last, 0xff, 0xff, 0xff, last === 0xfc ? 0xff : 0x0f], at);
        writeFileSync(path, broken);
        const since = performance.now();
        const error = await readParquet(path, columns).catch((error: unknown) => error);
        if (error instanceof Error) expect(error).toBeInstanceOf(UsageError);
        expect(performance.now() - since).toBeLessThan(2000);
      }
  },
  60_000,
);

test("pages that are not where the footer says", async () => {
  const data = readFileSync(sound);
  const path = join(scratch, "shifted.parquet");
  for (let at = 4; at < 60; at++) {
    // Six bytes twice: what follows lies six bytes further.
    writeFileSync(path, Buffer.concat([data.subarray(0, at + 6), data.subarray(at)]));
    const since = performance.now();
    await expect(readParquet(path, ["chosen", "rejected", "margin"])).rejects.toThrow(UsageError);
    expect(performance.now() - since).toBeLessThan(5000);
  }
});
