import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { RlvError, UsageError } from "../../src/core/errors.ts";
import { crc32c, EventWriter, maskedCrc32c, readEvents } from "../../src/io/tensorboard.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { noSmallDisk, SmallDisk, smallDiskNote } from "./small-disk.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

const SOURCE = "tensorboard.summary.writer.event_file_writer";

describe("against TensorBoard's own writer", () => {
  const cases = goldenCases("tb");
  test("the golden is there", () => expect(cases.length).toBeGreaterThan(0));
  for (const { name, dir, spec } of cases) {
    test(`${name}: crc`, () => {
      for (const { hex, masked_crc32c } of spec.crc32c)
        expect(maskedCrc32c(Buffer.from(hex, "hex"))).toBe(masked_crc32c);
    });

    test(`${name}: read`, () => {
      const events = readEvents(join(dir, spec.file));
      expect(events.length).toBe(spec.records.length);
      events.forEach((event, i) => {
        const record = spec.records[i];
        expect(Buffer.from(event.data).toString("hex")).toBe(record.data_hex);
        expect([event.step, event.fileVersion]).toEqual([record.step, record.file_version]);
        expect([...event.scalars.map(([tag]) => tag), ...event.otherTags]).toEqual(record.tags);
      });
      const scalars = events.flatMap(({ scalars, step, wallTime }) =>
        scalars.map(([tag, value]) => [tag, step, value, wallTime]),
      );
      for (const expected of spec.expected_scalars) expect(scalars).toContainEqual(expected);
    });

    test(`${name}: the same events give the same bytes`, () => {
      using folder = new TemporaryFolder();
      const golden = readEvents(join(dir, spec.file));
      const [, , , seconds, host, pid] = spec.file.split(".");
      // The name holds whole seconds, the first record the exact time: it is not part of what a user logs.
      const writer = new EventWriter(folder.path, {
        wallTime: golden[0]!.wallTime,
        host,
        pid: Number(pid),
        source: SOURCE,
      });
      const prefix = `events.out.tfevents.${Math.floor(golden[0]!.wallTime)}.${host}.${pid}.`;
      expect(basename(writer.path)).toStartWith(prefix);
      expect(seconds).toMatch(/^\d+$/);
      for (const event of golden) {
        for (const [tag, value] of event.scalars) writer.scalar(tag, value, event.step, event.wallTime);
        if (event.otherTags.includes("samples/text_summary"))
          writer.text("samples", "**bold** 東京", event.step, event.wallTime);
      }
      writer.close();
      expect(readFileSync(writer.path).toString("hex")).toBe(
        readFileSync(join(dir, spec.file)).toString("hex"),
      );
    });
  }
});

test("crc32c of 123456789 is the published check value", () => {
  expect(crc32c(Buffer.from("123456789"))).toBe(0xe3069283);
});

describe("writing", () => {
  test("two writers within a second take two files; scalars come back", () => {
    using folder = new TemporaryFolder();
    const options = { wallTime: 1700000000.5, host: "a host/é", pid: 7 };
    using first = new EventWriter(folder.path, options);
    using second = new EventWriter(folder.path, options);
    expect(readdirSync(folder.path).sort()).toEqual([
      "events.out.tfevents.1700000000.a_host__.7.0",
      "events.out.tfevents.1700000000.a_host__.7.1",
    ]);
    const values = [0, -0, 1.5, Number.NaN, -Infinity, Math.fround(1e-40), Math.fround(0.1)];
    values.forEach((value, step) => {
      second.scalar("train/é", value, step * 2 ** 40, 3.25);
    });
    second.flush();
    const events = readEvents(second.path).slice(1);
    expect(events.map(({ step }) => step)).toEqual(values.map((_, step) => step * 2 ** 40));
    expect(events.map(({ scalars }) => scalars)).toEqual(values.map((value) => [["train/é", value]]));
    expect(events.every(({ wallTime }) => wallTime === 3.25)).toBe(true);
    expect(readEvents(first.path).map(({ fileVersion }) => fileVersion)).toEqual(["brain.Event:2"]);
  });

  test("a resumed run tells TensorBoard to drop what came after the checkpoint", () => {
    using folder = new TemporaryFolder();
    using writer = new EventWriter(folder.path, { wallTime: 1, purgeFromStep: 30 });
    const [, purge] = readEvents(writer.path);
    // Event{wall_time: 1, step: 30, session_log{status: START}}.
    expect(Buffer.from(purge!.data).toString("hex")).toBe("09000000000000f03f101e3a020801");
  });

  test("nothing is written before flush, nothing after close", () => {
    using folder = new TemporaryFolder();
    const writer = new EventWriter(folder.path);
    writer.scalar("a", 1, 1);
    expect(readEvents(writer.path).length).toBe(1);
    writer.close();
    writer.close();
    expect(readEvents(writer.path).length).toBe(2);
    writer.scalar("a", 1, 2);
    expect(() => writer.flush()).toThrow(/after close/);
    expect(() => writer.scalar("a", 1, -1)).toThrow(RlvError);
  });

  test.skipIf(noSmallDisk !== null)(
    `a full disk: an error, whole records, and nothing lost${smallDiskNote}`,
    () => {
      using disk = new SmallDisk(64);
      const writer = new EventWriter(disk.path);
      let written = 0;
      let whole = 0;
      const error = errorOf(() => {
        for (; ; written++) {
          writer.scalar("tag".repeat(300), written, written);
          writer.flush();
          whole = readFileSync(writer.path).length;
        }
      });
      expect(error.message).toMatch(/^disk full/);
      expect(readFileSync(writer.path).length).toBe(whole);
      expect(readEvents(writer.path).length).toBe(1 + written);
      expect(() => writer.close()).toThrow(/disk full/);
    },
  );
});

describe("reading damaged files", () => {
  test("a cut last record is left out; a changed byte is an error", () => {
    using folder = new TemporaryFolder();
    using writer = new EventWriter(folder.path);
    const head = readFileSync(writer.path).length;
    writer.scalar("a", 1, 1);
    writer.flush();
    const whole = readFileSync(writer.path);
    for (let length = head; length < whole.length; length++) {
      writeFileSync(writer.path, whole.subarray(0, length));
      expect(readEvents(writer.path).length).toBe(1);
    }
    for (let at = 0; at < whole.length; at++) {
      const bytes = Buffer.from(whole);
      bytes[at]! ^= 0x10;
      writeFileSync(writer.path, bytes);
      expect(() => readEvents(writer.path)).toThrow(UsageError);
    }
  });
});
