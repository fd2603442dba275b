import { afterAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UsageError } from "../../src/core/errors.ts";
import { checkpointToResume, newestCheckpoint, openRunFolder, writeRunConfig } from "../../src/run/folder.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-folder-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const now = new Date(2026, 0, 2, 3, 4, 5);
function open(
  runName: string | null,
  resumeFrom: string | null = null,
  elsewhere = false,
  outputDir = scratch,
) {
  return openRunFolder({ outputDir, runName, recipe: "demo", resumeFrom, elsewhere, now });
}

function checkpoint(run: string, name: string, complete = true): string {
  const dir = join(scratch, run, "checkpoints", name);
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(scratch, run, "train_config.json"), "{}");
  if (complete) writeFileSync(join(dir, "manifest.json"), "{}");
  return dir;
}

describe("a new run", () => {
  test("without a name: recipe, date, time, and a number where that exists", () => {
    const [a, b, c] = [open(null), open(null), open(null)];
    expect([a.name, b.name, c.name]).toEqual([
      "demo-20260102-030405",
      "demo-20260102-030405-2",
      "demo-20260102-030405-3",
    ]);
    for (const folder of [a, b, c]) folder.release();
  });
  test("a folder nobody used is taken back, a used one stays", () => {
    const unused = open("unused");
    writeRunConfig(unused.dir, "{}\n");
    expect(readFileSync(join(unused.dir, "train_config.json"), "utf8")).toBe("{}\n");
    unused.discardIfUnused();
    expect(existsSync(unused.dir)).toBe(false);
    const used = open("used");
    writeFileSync(join(used.dir, "metrics.jsonl"), "{}\n");
    used.discardIfUnused();
    used.release();
    expect(readdirSync(used.dir)).toEqual(["metrics.jsonl"]);
  });
  test("leaves no trace of its probe, and makes parents", () => {
    const folder = open("deep", null, false, join(scratch, "x/y/z"));
    folder.release();
    expect(readdirSync(join(scratch, "x/y/z"))).toEqual(["deep"]);
  });
  test("refuses a finished run, an unfinished one, and what is no name", () => {
    checkpoint("finished", "final");
    expect(() => open("finished")).toThrow(/finished.*another --run_name/);
    checkpoint("begun", "step-3");
    expect(() => open("begun")).toThrow(/exists.*--resume_from/);
    for (const name of ["a/b", "..", "."]) expect(() => open(name)).toThrow(UsageError);
    expect(existsSync(join(scratch, "a"))).toBe(false);
  });
  test("refuses a place that cannot be written, and makes nothing", () => {
    const file = join(scratch, "a-file");
    writeFileSync(file, "x");
    expect(() => open(null, null, false, join(file, "runs"))).toThrow(/cannot be written.*--output_dir/);
    expect(() => open(null, null, false, file)).toThrow(UsageError);
    expect(readFileSync(file, "utf8")).toBe("x");
  });
});

describe("one process a run", () => {
  test("a held run is refused, a released or abandoned one is not", () => {
    const held = open("held");
    const resume = checkpoint("held", "step-1");
    expect(() => open(null, resume)).toThrow(`process ${process.pid} is training`);
    held.release();
    const again = open(null, resume);
    expect(again.dir).toBe(held.dir);
    again.release();
    const dead = Bun.spawnSync(["true"]).pid;
    writeFileSync(join(held.dir, ".lock"), `${dead} 1\n`);
    open(null, resume).release();
    // The number of a living process with another start time is another process.
    if (process.platform === "linux") {
      writeFileSync(join(held.dir, ".lock"), `${process.pid} 1\n`);
      open(null, resume).release();
    }
  });
});

describe("resuming", () => {
  test("the newest complete checkpoint: by number, final last, without a manifest never", () => {
    checkpoint("many", "step-9");
    const ten = checkpoint("many", "step-10");
    checkpoint("many", "step-11", false);
    checkpoint("many", ".tmp-step-12-1");
    const run = join(scratch, "many");
    expect(newestCheckpoint(run)).toBe(ten);
    expect(checkpointToResume(run)).toBe(ten);
    expect(checkpointToResume(ten)).toBe(ten);
    const final = checkpoint("many", "final");
    expect(checkpointToResume(run)).toBe(final);
  });
  test("in the checkpoint's own folder, or elsewhere when asked", () => {
    const at = checkpoint("source", "step-4");
    const same = open(null, at);
    expect(same.dir).toBe(join(scratch, "source"));
    same.discardIfUnused();
    expect(existsSync(at)).toBe(true);
    same.release();
    const other = open("copy", at, true);
    expect(other.dir).toBe(join(scratch, "copy"));
    other.release();
  });
  test("what is no checkpoint", () => {
    expect(() => checkpointToResume(join(scratch, "none"))).toThrow("no such checkpoint");
    checkpoint("empty", "step-1", false);
    expect(() => checkpointToResume(join(scratch, "empty"))).toThrow("no complete checkpoint");
  });
});
