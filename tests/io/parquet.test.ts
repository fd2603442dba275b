/** Parquet whose pages are shifted or say what they are not: refused at once. Sound files are read in tests/run/preferences.test.ts. */
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
