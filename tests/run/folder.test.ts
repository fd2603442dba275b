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
import { writeCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { LOCK } from "../../src/io/run-lock.ts";
import { newestOf, openRunFolder, resumePoint, writeRunConfig } from "../../src/run/folder.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-folder-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const now = new Date(2026, 0, 2, 3, 4, 5);
function open(
  runName: string | null,
  resumeFrom: string | null = null,
  elsewhere = false,
  outputDir = scratch,
) {
  const resumeRun = resumeFrom === null ? null : resumePoint(resumeFrom).run;
  return openRunFolder({ outputDir, runName, recipe: "demo", resumeRun, elsewhere, now });
}

function checkpoint(run: string, name: string, complete = true): string {
  const parent = join(scratch, run, "checkpoints");
  mkdirSync(join(parent, name), { recursive: true });
  writeFileSync(join(scratch, run, "train_config.json"), "{}");
  if (!complete) return join(parent, name);
  rmSync(join(parent, name), { recursive: true });
  return writeCheckpoint(parent, name, (dir) => {
    writeFileSync(join(dir, "train_config.json"), "{}");
    writeFileSync(join(dir, "train_state.json"), `{"step":${Number(name.slice(5)) || 99}}`);
  });
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

test("many that want one lock, whose holders release it or die: one has it at a time", async () => {
  const dir = mkdtempSync(join(scratch, "wanted-"));
  const fixture = join(import.meta.dir, "lock-fixture.ts");
  const ended = await Promise.all(
    Array.from({ length: 4 }, async (_, seed) => {
      const child = Bun.spawn([process.execPath, fixture, dir, "400", String(seed)], { stderr: "pipe" });
      const [out, err] = await Promise.all([
        new Response(child.stdout).text(),
        new Response(child.stderr).text(),
        child.exited,
      ]);
      return { had: Number(out), err };
    }),
  );
  for (const { had, err } of ended) {
    expect(err).toBe("");
    expect(had).toBeGreaterThan(0);
  }
  expect(readdirSync(dir).filter((name) => name !== LOCK)).toEqual([]);
}, 60_000);

describe("resuming", () => {
  test("the newest whole checkpoint: by number, final last, without a manifest never", () => {
    checkpoint("many", "step-9");
    const ten = checkpoint("many", "step-10");
    checkpoint("many", "step-11", false);
    mkdirSync(join(scratch, "many/checkpoints/.tmp-step-12-1"));
    const run = join(scratch, "many");
    expect(newestOf(run)).toBe(ten);
    expect(resumePoint(run)).toEqual({ config: ten, checkpoint: ten, run });
    expect(resumePoint(ten)).toEqual({ config: ten, checkpoint: ten, run });
    const final = checkpoint("many", "final");
    expect(resumePoint(run).checkpoint).toBe(final);
    // A damaged file: the one before it.
    writeFileSync(join(final, "train_config.json"), "{ }");
    expect(resumePoint(run).checkpoint).toBe(ten);
  });
  test("a run that was ended before its first checkpoint starts over in its folder", () => {
    const run = join(scratch, "early");
    mkdirSync(run);
    writeFileSync(join(run, "train_config.json"), "{}");
    expect(resumePoint(run)).toEqual({ config: run, checkpoint: null, run });
    const folder = open(null, run);
    expect(folder.dir).toBe(run);
    folder.release();
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
    expect(() => resumePoint(join(scratch, "none"))).toThrow("no such checkpoint");
    checkpoint("empty", "step-1", false);
    expect(() => resumePoint(join(scratch, "empty"))).toThrow("no checkpoint is whole");
  });
});
