import { describe, expect, test } from "bun:test";
import { appendFileSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { RlvError, UsageError } from "../../src/core/errors.ts";
import {
  JsonlWriter,
  type JsonRow,
  jsonLine,
  jsonNumber,
  readDataset,
  readJsonl,
  truncateAfterStep,
} from "../../src/io/jsonl.ts";
import { noSmallDisk, SmallDisk, smallDiskNote } from "./small-disk.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

function written(folder: TemporaryFolder, content: string | Uint8Array): string {
  const path = folder.file("x.jsonl");
  writeFileSync(path, content);
  return path;
}

describe("reading", () => {
  test("byte-order mark, CRLF, blank lines, no newline at the end; line numbers are the file's", () => {
    using folder = new TemporaryFolder();
    const path = written(folder, '\ufeff{"a":1}\r\n\r\n   \n{"a":"é\u2028😀"}\n\n{"a":3}');
    expect(readJsonl(path)).toEqual([
      { line: 1, row: { a: 1 } },
      { line: 4, row: { a: "é\u2028😀" } },
      { line: 6, row: { a: 3 } },
    ]);
  });

  test("lines longer than one read", () => {
    using folder = new TemporaryFolder();
    const long = "é".repeat(1_500_000);
    const path = written(folder, `{"a":1}\n{"long":${JSON.stringify(long)}}\n{"a":2}\n`);
    const lines = readJsonl(path);
    expect(lines.map(({ line }) => line)).toEqual([1, 2, 3]);
    expect(lines[1]!.row.long).toBe(long);
  });

  const broken: [name: string, content: string | Uint8Array, line: number, message: RegExp][] = [
    ["cut object", '{"a":1}\n{"a":\n{"a":3}\n', 2, /not JSON/],
    ["single quotes", "{'a':1}", 1, /not JSON/],
    ["two objects", '{"a":1}\n\n{"a":1} {"a":2}', 3, /not JSON/],
    ["number", "{}\n5\n", 2, /not a JSON object/],
    ["array", "[1]\n", 1, /not a JSON object/],
    ["null", "null", 1, /not a JSON object/],
    ["not UTF-8", Uint8Array.of(0x7b, 0x7d, 10, 0x22, 0xff, 0x22), 2, /not UTF-8/],
    ["byte-order mark within", '{"a":1}\n\ufeff{"a":1}\n', 2, /not JSON/],
    ["NaN", '{"a":NaN}', 1, /not JSON/],
  ];
  for (const [name, content, line, message] of broken)
    test(`broken line: ${name}`, () => {
      using folder = new TemporaryFolder();
      const path = written(folder, content);
      const error = errorOf(() => readJsonl(path));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toMatch(message);
      expect(error.message).toContain(`${path}, line ${line}: `);
    });

  test("datasets: missing, empty, blank, without a needed field", () => {
    using folder = new TemporaryFolder();
    expect(() => readDataset(folder.file("none"))).toThrow(/no such file.*none/);
    expect(() => readDataset(written(folder, ""))).toThrow(/empty dataset/);
    expect(() => readDataset(written(folder, "\ufeff\r\n \n"))).toThrow(/empty dataset/);
    const path = written(folder, '{"prompt":"p","answer":"1"}\n{"prompt":"p"}\n');
    expect(readDataset(path, ["prompt"]).length).toBe(2);
    expect(() => readDataset(path, ["prompt", "answer"])).toThrow(/no field "answer".*line 2/);
    expect(() => readDataset(folder.path)).toThrow(RlvError);
  });
});

describe("writing", () => {
  test("numbers JSON has no word for survive", () => {
    const row = {
      step: 1,
      loss: Number.NaN,
      high: Infinity,
      low: -Infinity,
      nested: { list: [Number.NaN, 1] },
      none: undefined,
    };
    const line = jsonLine(row);
    expect(line).toBe(
      '{"step":1,"loss":"NaN","high":"Infinity","low":"-Infinity","nested":{"list":["NaN",1]}}',
    );
    const back = JSON.parse(line);
    expect([back.step, back.loss, back.high, back.low].map(jsonNumber)).toEqual([
      1,
      Number.NaN,
      Infinity,
      -Infinity,
    ]);
    expect([jsonNumber("nan"), jsonNumber(null), jsonNumber("1")]).toEqual([undefined, undefined, undefined]);
  });

  test("rows are read back as written, over several openings", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("m.jsonl");
    const rows: JsonRow[] = [];
    fc.assert(
      fc.property(fc.array(fc.dictionary(fc.string(), fc.jsonValue()), { maxLength: 4 }), (batch) => {
        using writer = new JsonlWriter(path);
        for (const row of batch) {
          writer.append(row);
          rows.push(JSON.parse(JSON.stringify(row)));
        }
      }),
      { numRuns: 30 },
    );
    expect(readJsonl(path).map(({ row }) => row)).toEqual(rows);
  });

  test("an unfinished last line is cut before the first append", () => {
    using folder = new TemporaryFolder();
    for (const [before, kept] of [
      ['{"step":1}\n{"step":2,"lo', '{"step":1}\n'],
      ['{"step":1', ""],
      [`{"step":1}\n${"x".repeat(200_000)}`, '{"step":1}\n'],
      ['{"step":1}\n', '{"step":1}\n'],
      ["", ""],
    ]) {
      const path = written(folder, before!);
      using writer = new JsonlWriter(path);
      writer.append({ step: 3 });
      expect(readFileSync(path, "utf8")).toBe(`${kept}{"step":3}\n`);
    }
  });

  test("unwritable places", () => {
    using folder = new TemporaryFolder();
    expect(() => new JsonlWriter(folder.file("none/x"))).toThrow(RlvError);
    expect(() => new JsonlWriter(folder.path)).toThrow(RlvError);
    const writer = new JsonlWriter(folder.file("x"));
    writer.close();
    expect(() => writer.append({})).toThrow(/after close/);
  });

  test.skipIf(noSmallDisk !== null)(`a full disk: an error, and whole lines only${smallDiskNote}`, () => {
    using disk = new SmallDisk(64);
    const path = join(disk.path, "m.jsonl");
    using writer = new JsonlWriter(path);
    let count = 0;
    const error = errorOf(() => {
      for (; ; count++) writer.append({ step: count, text: "x".repeat(1000) });
    });
    expect(error.message).toMatch(/^disk full: .*m.jsonl/);
    expect(count).toBeGreaterThan(10);
    expect(readJsonl(path).length).toBe(count);
    expect(readFileSync(path, "utf8").endsWith("\n")).toBe(true);
  });
});

describe("truncating for a resume", () => {
  test("rows beyond the step go, others keep their bytes", () => {
    using folder = new TemporaryFolder();
    const path = written(
      folder,
      '{"run":"a"}\n{"step": 1}\n{"step":2, "x":"é"}\n{"step":3}\n{"step":2}\n{"step":4',
    );
    expect(truncateAfterStep(path, 2)).toBe(2);
    expect(readFileSync(path, "utf8")).toBe('{"run":"a"}\n{"step": 1}\n{"step":2, "x":"é"}\n{"step":2}\n');
    const before = readFileSync(path);
    expect(truncateAfterStep(path, 2)).toBe(0);
    expect(readFileSync(path)).toEqual(before);
    expect(truncateAfterStep(path, -1)).toBe(3);
    expect(readdirSync(folder.path)).toEqual(["x.jsonl"]);
  });

  test("no file; a broken line in the middle; a whole last line without its newline", () => {
    using folder = new TemporaryFolder();
    expect(truncateAfterStep(folder.file("none"), 1)).toBe(0);
    expect(existsSync(folder.file("none"))).toBe(false);
    const path = written(folder, '{"step":1}\n{"st\n{"step":2}\n');
    expect(() => truncateAfterStep(path, 1)).toThrow(/line 2/);
    writeFileSync(path, '{"step":1}\n{"step":2}');
    expect(truncateAfterStep(path, 2)).toBe(0);
    appendFileSync(path, '\n{"step":3}');
    expect(truncateAfterStep(path, 2)).toBe(1);
    expect(readFileSync(path, "utf8")).toBe('{"step":1}\n{"step":2}\n');
  });
});
