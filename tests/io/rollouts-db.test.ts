import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RlvError, UsageError } from "../../src/core/errors.ts";
import { type RolloutRow, RolloutsDb } from "../../src/io/rollouts-db.ts";
import { noSmallDisk, SmallDisk, smallDiskNote } from "./small-disk.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

const row = (step: number, rollout = 0, changes: Partial<RolloutRow> = {}): RolloutRow => ({
  step,
  epoch: 0,
  prompt_index: 3,
  rollout_index: rollout,
  prompt: "What is 2 + 3?",
  completion: "5",
  reward: 1,
  advantage: -0.5,
  ...changes,
});
// biome-ignore lint/suspicious/noExplicitAny: rows of ad-hoc queries
const query = (path: string, sql: string): any[] => {
  using db = new Database(path, { readonly: true });
  return db.query(sql).all();
};

const NOTHING = {
  components: null,
  finish: null,
  logprobs: null,
  token_ends: null,
  flagged: null,
  details: null,
};

describe("rows", () => {
  test("tokens, flags and details are kept, little-endian, whatever becomes of the arrays given", () => {
    using folder = new TemporaryFolder();
    using db = new RolloutsDb(folder.file("x"));
    const logprobs = new Float32Array([9, -0.5, -1.25]).subarray(1);
    db.add(
      row(1, 0, {
        finish: "eos",
        logprobs,
        token_ends: Uint32Array.of(1, 258),
        flagged: true,
        details: { judge: [0.25, null] },
      }),
    );
    logprobs.fill(7);
    db.flush();
    const [found] = query(db.path, "SELECT * FROM rollouts");
    const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    expect(view(found.logprobs).getFloat32(0, true)).toBe(-0.5);
    expect(view(found.logprobs).getFloat32(4, true)).toBe(-1.25);
    expect([...found.token_ends]).toEqual([1, 0, 0, 0, 2, 1, 0, 0]);
    expect([found.finish, found.flagged, found.details]).toEqual(["eos", 1, '{"judge":[0.25,null]}']);
  });

  test("a file of schema 1 gets the columns that it lacks and keeps its rows", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x");
    {
      using old = new Database(path);
      const key =
        "step INTEGER NOT NULL, epoch INTEGER NOT NULL, prompt_index INTEGER NOT NULL, rollout_index";
      const content = "prompt TEXT NOT NULL, completion TEXT NOT NULL, reward REAL NOT NULL";
      old.run(
        `CREATE TABLE rollouts (${key} INTEGER NOT NULL, ${content}, advantage REAL NOT NULL, components TEXT,
         UNIQUE (step, epoch, prompt_index, rollout_index)) STRICT`,
      );
      old.run("INSERT INTO rollouts VALUES (1, 0, 3, 0, 'What is 2 + 3?', '5', 1, -0.5, NULL)");
      old.run("PRAGMA user_version = 1");
    }
    using db = new RolloutsDb(path);
    db.add(row(2, 0, { finish: "length" }));
    db.flush();
    expect(query(path, "SELECT * FROM rollouts ORDER BY step")).toEqual([
      { ...row(1), ...NOTHING },
      { ...row(2), ...NOTHING, finish: "length" },
    ]);
    expect(query(path, "PRAGMA user_version")).toEqual([{ user_version: 2 }]);
  });

  test("flushSoon writes when the event loop turns, once, and a failure is the next flush's", async () => {
    using folder = new TemporaryFolder();
    const path = folder.file("rollouts.sqlite");
    const db = new RolloutsDb(path);
    db.add(row(1));
    db.flushSoon();
    db.add(row(1, 1));
    db.flushSoon();
    expect([db.pending, query(path, "SELECT * FROM rollouts").length]).toEqual([2, 0]);
    await Bun.sleep(5);
    expect([db.pending, query(path, "SELECT * FROM rollouts").length]).toEqual([0, 2]);
    db.add(row(1, 1));
    db.flushSoon();
    await Bun.sleep(5);
    expect(db.pending).toBe(1);
    expect(errorOf(() => db.flush())).toBeInstanceOf(RlvError);
    expect(db.deleteAfterStep(0)).toBe(3);
    db.close();
  });

  test("what is added is there after flush, exactly, for any reader", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("rollouts.sqlite");
    const prompt = "é 東京 😀 \0 \"' \n";
    using db = new RolloutsDb(path);
    db.add(
      row(1, 0, { prompt, completion: "", reward: 0.1, advantage: -1e-300, components: { a: 0.5, b: -1 } }),
    );
    db.add(row(1, 1));
    db.addEval({ ...row(1), mode: "greedy" });
    db.addEval(row(1));
    expect(db.pending).toBe(4);
    expect(query(path, "SELECT * FROM rollouts")).toEqual([]);
    db.flush();
    expect(db.pending).toBe(0);
    expect(query(path, "SELECT * FROM rollouts ORDER BY rollout_index")).toEqual([
      {
        step: 1,
        epoch: 0,
        prompt_index: 3,
        rollout_index: 0,
        prompt,
        completion: "",
        reward: 0.1,
        advantage: -1e-300,
        ...NOTHING,
        components: '{"a":0.5,"b":-1}',
      },
      { ...row(1, 1), ...NOTHING },
    ]);
    const evals = query(path, "SELECT * FROM eval_rollouts ORDER BY mode");
    expect(evals.map(({ mode }) => mode)).toEqual(["", "greedy"]);
    expect(evals[0]).not.toHaveProperty("advantage");
    expect(db.extent("rollouts")).toEqual({ rows: 2, lastStep: 1 });
  });

  test("half a surrogate pair, as a cut decode gives it, is stored as U+FFFD", () => {
    using folder = new TemporaryFolder();
    using db = new RolloutsDb(folder.file("x"));
    db.add(row(1, 0, { completion: "a\ud83d" }));
    db.flush();
    expect(query(db.path, "SELECT completion FROM rollouts")).toEqual([{ completion: "a\ufffd" }]);
  });

  test("NaN, infinities and wrong types are refused and named", () => {
    using folder = new TemporaryFolder();
    using db = new RolloutsDb(folder.file("x"));
    const bad: [Partial<Record<keyof RolloutRow, unknown>>, RegExp][] = [
      [{ reward: Number.NaN }, /reward is NaN: step 2, prompt 3, rollout 0/],
      [{ advantage: Infinity }, /advantage is Infinity/],
      [{ advantage: undefined }, /advantage is undefined/],
      [{ components: { style: Number.NaN } }, /component style is NaN/],
      [{ completion: 5 }, /completion is 5/],
      [{ epoch: 0.5 }, /epoch is 0.5/],
    ];
    for (const [changes, message] of bad) {
      const error = errorOf(() => db.add({ ...row(2), ...changes } as RolloutRow));
      expect(error).toBeInstanceOf(RlvError);
      expect(error.message).toMatch(message);
    }
    expect(db.pending).toBe(0);
  });

  test("the same rollout twice is an error, and the transaction leaves nothing", () => {
    using folder = new TemporaryFolder();
    const db = new RolloutsDb(folder.file("x"));
    db.add(row(1));
    db.flush();
    db.add(row(2));
    db.add(row(1));
    expect(() => db.flush()).toThrow(/stored twice/);
    expect(db.extent("rollouts")).toEqual({ rows: 1, lastStep: 1 });
    expect(db.pending).toBe(2);
    expect(() => db.close()).toThrow(/stored twice/);
  });
});

describe("resume", () => {
  test("rows beyond the checkpoint go from both tables and from memory", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x");
    {
      using db = new RolloutsDb(path);
      for (let step = 1; step <= 5; step++) {
        db.add(row(step));
        db.addEval(row(step));
      }
    }
    expect(readdirSync(folder.path)).toEqual(["x"]);
    using db = new RolloutsDb(path);
    db.add(row(6));
    db.add(row(2, 1));
    expect(db.deleteAfterStep(3)).toBe(5);
    db.flush();
    expect(query(path, "SELECT step, rollout_index FROM rollouts ORDER BY step, rollout_index")).toEqual([
      { step: 1, rollout_index: 0 },
      { step: 2, rollout_index: 0 },
      { step: 2, rollout_index: 1 },
      { step: 3, rollout_index: 0 },
    ]);
    expect(db.extent("eval_rollouts")).toEqual({ rows: 3, lastStep: 3 });
    expect(db.deleteAfterStep(-1)).toBe(7);
    expect(db.extent("rollouts")).toEqual({ rows: 0, lastStep: -1 });
  });

  test("killed with -9: every flushed step is whole, none is partial", async () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x");
    const child = Bun.spawn([process.execPath, join(import.meta.dir, "rollouts-writer.ts"), path], {
      stdout: "pipe",
    });
    const reader = child.stdout.getReader();
    let text = "";
    while (text.split("\n").length < 10) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the writer died by itself");
      text += new TextDecoder().decode(value);
    }
    child.kill(9);
    await child.exited;
    const announced = Number(text.trim().split("\n").at(-1));
    using db = new RolloutsDb(path);
    const steps = query(path, "SELECT step, COUNT(*) AS rows FROM rollouts GROUP BY step ORDER BY step");
    expect(steps.length).toBeGreaterThanOrEqual(announced);
    expect(steps.every(({ rows }) => rows === 50)).toBe(true);
    expect(db.deleteAfterStep(announced)).toBe((steps.length - announced) * 50);
  }, 20_000);
});

describe("files", () => {
  test("settings of the database", () => {
    using folder = new TemporaryFolder();
    using db = new RolloutsDb(folder.file("x"));
    db.add(row(1));
    db.flush();
    expect(query(db.path, "PRAGMA journal_mode")).toEqual([{ journal_mode: "wal" }]);
    expect(query(db.path, "PRAGMA user_version")).toEqual([{ user_version: 2 }]);
    expect(() => {
      using other = new Database(db.path);
      other.run("INSERT INTO rollouts (step) VALUES ('x')");
    }).toThrow();
  });

  test("not a database, a newer one, no folder", () => {
    using folder = new TemporaryFolder();
    writeFileSync(folder.file("text"), "this is no database, but long enough to look at".repeat(50));
    const error = errorOf(() => new RolloutsDb(folder.file("text")));
    expect(error).toBeInstanceOf(RlvError);
    expect(error.message).toContain(folder.file("text"));
    expect(() => new RolloutsDb(folder.file("none/x"))).toThrow(RlvError);
    {
      using db = new Database(folder.file("newer"), { create: true });
      db.run("PRAGMA user_version = 99");
    }
    expect(() => new RolloutsDb(folder.file("newer"))).toThrow(UsageError);
  });

  test.skipIf(noSmallDisk !== null)(
    `a full disk: an error, and the rows are kept for another try${smallDiskNote}`,
    () => {
      using disk = new SmallDisk(512);
      const db = new RolloutsDb(join(disk.path, "x"));
      let step = 0;
      const error = errorOf(() => {
        for (; ; step++) {
          db.add(row(step, 0, { completion: "x".repeat(20_000) }));
          db.flush();
        }
      });
      expect(error.message).toMatch(/^disk full: .*x: free/);
      expect(step).toBeGreaterThan(2);
      expect(db.pending).toBe(1);
      expect(db.deleteAfterStep(step - 1)).toBe(1);
      try {
        db.close();
      } catch (late) {
        // Folding the log into the file may need room as well.
        expect((late as Error).message).toMatch(/disk full/);
      }
      expect(query(join(disk.path, "x"), "SELECT COUNT(*) AS rows FROM rollouts")).toEqual([{ rows: step }]);
    },
  );
});
