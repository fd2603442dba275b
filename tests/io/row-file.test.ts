import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { UsageError } from "../../src/core/errors.ts";
import { openRowFile } from "../../src/io/row-file.ts";
import { TemporaryFolder } from "./temporary.ts";

const failure = (promise: Promise<unknown>): Promise<Error> =>
  promise.then(
    () => {
      throw new Error("expected an error, got none");
    },
    (error: Error) => error,
  );

/** Rows of a file with this text. */
async function rowsOf(text: string | Uint8Array, name = "x.jsonl") {
  using folder = new TemporaryFolder();
  const path = folder.file(name);
  writeFileSync(path, text);
  const file = await openRowFile(path, []);
  return Array.from({ length: file.length }, (_, i) => ({
    row: file.row(i),
    where: file.where(i).slice(folder.path.length + 1),
  }));
}

describe("JSON lines", () => {
  test("any order; blank lines, CRLF, BOM and a missing last newline are fine", async () => {
    const rows = await rowsOf('\ufeff{"a": 1}\r\n\n   \t\n  {"a": "ü"}  \n{"a": 3}');
    expect(rows).toEqual([
      { row: { a: 1 }, where: "x.jsonl:1" },
      { row: { a: "ü" }, where: "x.jsonl:4" },
      { row: { a: 3 }, where: "x.jsonl:5" },
    ]);
    expect(await rowsOf("")).toEqual([]);
    expect(await rowsOf("\n\n")).toEqual([]);
  });

  test("gzipped, in several members too", async () => {
    const members = Buffer.concat([gzipSync('{"a": 1}\n{"a": '), gzipSync("2}\n")]);
    expect((await rowsOf(members, "x.jsonl.gz")).map(({ row }) => row)).toEqual([{ a: 1 }, { a: 2 }]);
  });

  test("rows across the pieces a file is read in", async () => {
    // 4 MiB pieces: rows of about 1.1 MB lie across their ends.
    const rows = Array.from({ length: 12 }, (_, i) => ({ i, text: "x".repeat(1_100_000 + 7 * i) }));
    const text = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    for (const [bytes, name] of [
      [Buffer.from(text), "x.jsonl"],
      [gzipSync(text), "x.jsonl.gz"],
    ] as const)
      expect((await rowsOf(bytes, name)).map(({ row }) => row)).toEqual(rows);
  });

  test.each([
    ['{"a": 1}\n{"a": \n', /not JSON.*x\.jsonl, line 2/],
    ['{"a": 1}\nhello\n', /not JSON.*line 2/],
    ['{"a": 1}\n[1]\n', /not a JSON object.*line 2/],
    ['{"a": 1}\n{"a": 1', /not JSON.*line 2/],
  ])("%j is refused when it is opened", async (text, message) => {
    const error = await failure(rowsOf(text));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toMatch(message);
  });

  test("what only looks like an object is refused when it is met", async () => {
    await expect(rowsOf('{"a": 1}\n{"a" 1}\n')).rejects.toThrow(/not JSON.*line 2/);
    await expect(rowsOf(Buffer.from([123, 34, 255, 34, 125, 10]))).rejects.toThrow(/not UTF-8.*line 1/);
  });

  test("a gzip file that ends early, and one that is none", async () => {
    const whole = gzipSync('{"a": 1}\n'.repeat(1000));
    const damaged = Buffer.from(whole);
    damaged[damaged.length - 6]! ^= 1;
    for (const bytes of [whole.subarray(0, -20), damaged, Buffer.from("plain text")]) {
      const error = await failure(rowsOf(bytes, "x.jsonl.gz"));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toMatch(/not a whole gzip file/);
    }
  });

  test("no such file", async () => {
    expect((await failure(openRowFile("/nowhere/x.jsonl", []))).message).toContain("no such file");
  });
});

/** Files of tests/io/parquet were written by pyarrow 26: rows i = 0, 1, … of the shapes below, row groups of 20. */
describe("parquet", () => {
  const file = (name: string) => join(import.meta.dir, "parquet", `${name}.parquet`);
  const transcript = (i: number) => ({
    chosen: `\n\nHuman: Question ${i}?\n\nAssistant: Good answer ${i}.`,
    rejected: `\n\nHuman: Question ${i}?\n\nAssistant: Bad ${i}.`,
    margin: i,
  });

  test.each([
    ["transcripts", 50],
    ["gzip", 5],
    ["brotli", 5],
    ["none", 5],
  ])("%s", async (name, length) => {
    const rows = await openRowFile(file(name), ["chosen", "rejected", "margin"]);
    expect(rows.length).toBe(length);
    for (let i = length - 1; i >= 0; i--) expect(rows.row(i)).toEqual(transcript(i));
    expect(rows.where(2)).toEndWith(`${name}.parquet, row 3`);
  });

  test("lists of messages, and only the columns asked for", async () => {
    const rows = await openRowFile(file("messages"), ["prompt", "chosen", "rejected", "margin", "absent"]);
    expect(rows.length).toBe(50);
    expect(rows.row(45)).toEqual({
      prompt: [{ role: "user", content: "Question 45?" }],
      chosen: [{ role: "assistant", content: "Good answer 45, näme 漢字." }],
      rejected: [{ role: "assistant", content: "Bad 45" }],
      margin: 11.25,
    });
  });

  test("none of the columns", async () => {
    const rows = await openRowFile(file("gzip"), ["absent"]);
    expect([rows.length, rows.row(0)]).toEqual([5, {}]);
  });

  test("a codec that is not read, and a file that is none", async () => {
    const error = await failure(openRowFile(file("lz4"), ["chosen"]));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toMatch(/LZ4/);
    using folder = new TemporaryFolder();
    const path = folder.file("x.parquet");
    writeFileSync(path, "not parquet at all");
    expect(await failure(openRowFile(path, []))).toBeInstanceOf(UsageError);
  });
});
