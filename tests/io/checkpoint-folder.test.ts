import { describe, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { RlvError, UsageError } from "../../src/core/errors.ts";
import { Random } from "../../src/core/rng.ts";
import {
  cleanTemporary,
  MANIFEST,
  newestCheckpoint,
  pruneCheckpoints,
  TRAIN_STATE,
  verifyCheckpoint,
  writeCheckpoint,
} from "../../src/io/checkpoint-folder.ts";
import { noSmallDisk, SmallDisk, smallDiskNote } from "./small-disk.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

const fill = (step: number) => (dir: string) => {
  mkdirSync(join(dir, "sub"));
  writeFileSync(join(dir, "weights"), Buffer.alloc(1000, step));
  writeFileSync(join(dir, "sub/empty"), "");
  writeFileSync(join(dir, TRAIN_STATE), JSON.stringify({ step }));
};

/** Relative path -> content of everything below a folder. */
function contents(dir: string): Record<string, string> {
  const names = readdirSync(dir, { recursive: true, encoding: "utf8", withFileTypes: true });
  return Object.fromEntries(
    names
      .filter((entry) => entry.isFile())
      .map((entry) => [
        join(entry.parentPath, entry.name).slice(dir.length),
        readFileSync(join(entry.parentPath, entry.name), "hex"),
      ]),
  );
}

describe("writing", () => {
  test("a folder with a manifest of every file, byte for byte the same twice", () => {
    using folder = new TemporaryFolder();
    const a = writeCheckpoint(folder.file("a/checkpoints"), "step-3", fill(3));
    const b = writeCheckpoint(folder.file("b"), "final", fill(3));
    expect(a).toBe(folder.file("a/checkpoints/step-3"));
    expect(readdirSync(folder.file("a/checkpoints"))).toEqual(["step-3"]);
    expect(contents(b)).toEqual(contents(a));
    const manifest = JSON.parse(readFileSync(join(a, MANIFEST), "utf8"));
    const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    expect(Object.keys(manifest.files)).toEqual(["sub/empty", TRAIN_STATE, "weights"]);
    expect(manifest.files["sub/empty"]).toEqual({ bytes: 0, sha256: empty });
    expect(verifyCheckpoint(a)).toEqual([]);
  });

  test("replacing takes the old one's place; a failure leaves the old one", () => {
    using folder = new TemporaryFolder();
    const dir = writeCheckpoint(folder.path, "final", fill(1));
    writeCheckpoint(folder.path, "final", fill(2));
    expect(newestCheckpoint(folder.path)?.step).toBe(2);
    const before = contents(dir);
    const failing = (part: string) => {
      fill(3)(part);
      throw new RlvError("device lost");
    };
    expect(() => writeCheckpoint(folder.path, "final", failing)).toThrow("device lost");
    expect(() =>
      writeCheckpoint(folder.path, "final", (part) => symlinkSync("/etc/passwd", join(part, "link"))),
    ).toThrow(/not a file or folder/);
    expect(contents(dir)).toEqual(before);
    expect(readdirSync(folder.path)).toEqual(["final"]);
  });

  test("names that would leave the folder or hide are defects", () => {
    using folder = new TemporaryFolder();
    for (const name of ["../x", "a/b", ".tmp-x", "", ".."])
      expect(() => writeCheckpoint(folder.path, name, fill(1))).toThrow(RlvError);
    expect(readdirSync(folder.path)).toEqual([]);
  });

  test.skipIf(noSmallDisk !== null)(
    `a full disk leaves earlier checkpoints and no rubbish${smallDiskNote}`,
    () => {
      using disk = new SmallDisk(512);
      writeCheckpoint(disk.path, "step-1", fill(1));
      const before = contents(disk.path);
      const error = errorOf(() =>
        writeCheckpoint(disk.path, "step-2", (dir) => {
          fill(2)(dir);
          writeFileSync(join(dir, "filler"), Buffer.alloc(470_000));
          for (let i = 0; ; i++) writeFileSync(join(dir, `more-${i}`), Buffer.alloc(4096));
        }),
      );
      expect(error.message).toMatch(/^disk full: .*step-2: free some space/);
      expect(contents(disk.path)).toEqual(before);
      // The manifest itself finds no room.
      const late = errorOf(() =>
        writeCheckpoint(disk.path, "step-2", (dir) => {
          try {
            for (let i = 0; ; i++) writeFileSync(join(dir, `x${i}`), Buffer.alloc(4096));
          } catch {
            // Full to the last block.
          }
        }),
      );
      expect(late.message).toMatch(/^disk full/);
      expect(contents(disk.path)).toEqual(before);
    },
  );
});

describe("verifying", () => {
  const damage: Record<string, [(dir: string) => void, RegExp]> = {
    "no manifest": [(dir) => rmSync(join(dir, MANIFEST)), /manifest.json: missing/],
    "manifest cut": [(dir) => truncateSync(join(dir, MANIFEST), 20), /manifest.json: unreadable/],
    "manifest without files": [(dir) => writeFileSync(join(dir, MANIFEST), "{}"), /lists no files/],
    "manifest that leaves the folder": [
      (dir) => writeFileSync(join(dir, MANIFEST), '{"files":{"../x":{"bytes":1,"sha256":""}}}'),
      /bad entry "..\/x"/,
    ],
    "file gone": [(dir) => rmSync(join(dir, "weights")), /weights: missing/],
    "file cut": [(dir) => truncateSync(join(dir, "weights"), 999), /weights: 999 bytes, expected 1000/],
    "file grown": [(dir) => appendFileSync(join(dir, "weights"), "x"), /1001 bytes/],
    "one bit": [
      (dir) => writeFileSync(join(dir, "weights"), Buffer.alloc(1000, 1).fill(3, 500, 501)),
      /weights: content differs/,
    ],
    "a link": [
      (dir) => {
        renameSync(join(dir, "weights"), join(dir, "moved"));
        symlinkSync("moved", join(dir, "weights"));
      },
      /weights: not a file/,
    ],
  };
  for (const [name, [change, message]] of Object.entries(damage))
    test(name, () => {
      using folder = new TemporaryFolder();
      const dir = writeCheckpoint(folder.path, "step-1", fill(1));
      change(dir);
      expect(verifyCheckpoint(dir).join("\n")).toMatch(message);
    });

  test("files added later are no fault; sizes alone on request", () => {
    using folder = new TemporaryFolder();
    const dir = writeCheckpoint(folder.path, "step-1", fill(1));
    mkdirSync(join(dir, "quantized_int8"));
    writeFileSync(join(dir, "quantized_int8/model.safetensors"), "x");
    expect(verifyCheckpoint(dir)).toEqual([]);
    writeFileSync(join(dir, "weights"), Buffer.alloc(1000, 7));
    expect(verifyCheckpoint(dir, false)).toEqual([]);
    expect(verifyCheckpoint(dir).length).toBe(1);
    expect(verifyCheckpoint(folder.file("none"))).toEqual([`${folder.file("none")}: no such checkpoint`]);
  });
});

describe("the newest", () => {
  test("none", () => {
    using folder = new TemporaryFolder();
    expect(newestCheckpoint(folder.file("none"))).toBeNull();
    writeFileSync(folder.file("notes.txt"), "x");
    mkdirSync(folder.file(".tmp-step-9-1"));
    expect(newestCheckpoint(folder.path)).toBeNull();
  });

  test("by number, final by its train_state, broken ones passed over and named", () => {
    using folder = new TemporaryFolder();
    for (const step of [9, 10, 100]) writeCheckpoint(folder.path, `step-${step}`, fill(step));
    writeCheckpoint(folder.path, "final", fill(50));
    writeCheckpoint(folder.path, "diverged-step-200", fill(200));
    expect(newestCheckpoint(folder.path)).toEqual({ dir: folder.file("step-100"), step: 100, skipped: [] });
    truncateSync(folder.file("step-100/weights"), 1);
    const second = newestCheckpoint(folder.path)!;
    expect([second.dir, second.step]).toEqual([folder.file("final"), 50]);
    expect(second.skipped.join()).toContain("step-100/weights: 1 bytes");
    writeFileSync(folder.file("final/train_state.json"), "{");
    const third = newestCheckpoint(folder.path)!;
    expect(third.step).toBe(10);
    expect(third.skipped.length).toBe(2);
    writeCheckpoint(folder.path, "final", fill(10));
    expect(newestCheckpoint(folder.path)!.dir).toBe(folder.file("final"));
  });

  test("all broken: an error with every fault", () => {
    using folder = new TemporaryFolder();
    for (const step of [1, 2])
      rmSync(join(writeCheckpoint(folder.path, `step-${step}`, fill(step)), MANIFEST));
    const error = errorOf(() => newestCheckpoint(folder.path));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toMatch(/step-2.*missing.*step-1.*missing/);
  });
});

describe("cleaning and pruning", () => {
  const dead = 2 ** 22 + 1; // beyond Linux's largest process id

  test("rubbish goes; a complete checkpoint that lacks its name gets it; the living are left alone", () => {
    using folder = new TemporaryFolder();
    const living = Bun.spawn(["sleep", "60"]);
    try {
      renameSync(writeCheckpoint(folder.path, "step-5", fill(5)), folder.file(`.tmp-step-5-${dead}`));
      renameSync(writeCheckpoint(folder.path, "step-6", fill(6)), folder.file(`.tmp-step-6-${dead}`));
      rmSync(folder.file(`.tmp-step-6-${dead}/weights`));
      renameSync(writeCheckpoint(folder.path, "step-4", fill(4)), folder.file(`.tmp-trash-step-4-${dead}.1`));
      writeCheckpoint(folder.path, "final", fill(1));
      renameSync(writeCheckpoint(folder.path, "step-1", fill(9)), folder.file(`.tmp-final-${dead}`));
      writeFileSync(folder.file(`.tmp-config.json-${dead}.3`), "x");
      mkdirSync(folder.file(`.tmp-step-7-${living.pid}`));
      cleanTemporary(folder.path);
      expect(readdirSync(folder.path).sort()).toEqual([`.tmp-step-7-${living.pid}`, "final", "step-5"]);
      expect(newestCheckpoint(folder.path)!.step).toBe(5);
      expect(JSON.parse(readFileSync(folder.file("final/train_state.json"), "utf8")).step).toBe(1);
    } finally {
      living.kill();
    }
    expect(cleanTemporary(folder.file("none"))).toEqual([]);
  });

  test("pruning keeps the newest whole ones and final", () => {
    using folder = new TemporaryFolder();
    for (const step of [8, 9, 10, 11, 12]) writeCheckpoint(folder.path, `step-${step}`, fill(step));
    writeCheckpoint(folder.path, "final", fill(12));
    rmSync(folder.file("step-12/weights"));
    expect(pruneCheckpoints(folder.path, 2)).toEqual(["step-9", "step-8"]);
    expect(readdirSync(folder.path).sort()).toEqual(["final", "step-10", "step-11", "step-12"]);
    expect(() => pruneCheckpoints(folder.path, 0)).toThrow(RlvError);
  });
});

test("killed with -9 at 20 random moments: every visible checkpoint is whole, progress is never lost", async () => {
  using folder = new TemporaryFolder();
  const parent = folder.file("checkpoints");
  const random = new Random(7, 5);
  let reached = 0;
  let interrupted = 0;
  for (let kill = 0; kill < 20; kill++) {
    const child = Bun.spawn(
      [process.execPath, join(import.meta.dir, "checkpoint-writer.ts"), parent, String(reached + 1)],
      {
        stdout: "pipe",
        stderr: "inherit",
      },
    );
    let text = "";
    const reader = child.stdout.getReader();
    // Wait for one whole round, so that the kill falls into the writing and not into the start.
    while (!text.includes("\n")) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the writer died by itself");
      text += new TextDecoder().decode(value);
    }
    await Bun.sleep(random.uniform() * 40);
    child.kill(9);
    await child.exited;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += new TextDecoder().decode(value);
    }
    const announced = Number(text.trim().split("\n").at(-1));
    const visible = readdirSync(parent).filter((name) => !name.startsWith(".tmp-"));
    if (readdirSync(parent).length > visible.length) interrupted += 1;
    for (const name of visible) expect(verifyCheckpoint(join(parent, name))).toEqual([]);
    const newest = newestCheckpoint(parent)!;
    expect(newest.skipped).toEqual([]);
    expect(newest.step).toBeGreaterThanOrEqual(announced);
    reached = newest.step;
  }
  cleanTemporary(parent);
  expect(readdirSync(parent).filter((name) => name.startsWith(".tmp-"))).toEqual([]);
  expect(existsSync(join(parent, "final"))).toBe(true);
  // The kills did hit the writing itself.
  expect(interrupted).toBeGreaterThan(3);
}, 60_000);
