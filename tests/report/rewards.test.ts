import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RolloutsDb } from "../../src/io/rollouts-db.ts";
import { rewardReport } from "../../src/report/rewards.ts";
import { someSteps } from "../../src/report/steps.ts";

const PROBABILITIES = [0.1, 0.1, 0.2, 0.5, 0.1];

/** 50 steps of four rollouts; the reward of rollout r at step s is r/3, that of the judge's criterion s. */
function written(body: (db: Database) => void): void {
  const dir = mkdtempSync(join(tmpdir(), "rlv-rewards-"));
  try {
    const path = join(dir, "rollouts.sqlite");
    const rollouts = new RolloutsDb(path);
    for (let step = 1; step <= 50; step++)
      for (let r = 0; r < 4; r++)
        rollouts.add({
          ...{ step, epoch: 0, prompt_index: step, rollout_index: r, prompt: "p", completion: "c" },
          ...{ reward: r / 3, advantage: 0, components: { half: r / 6, ...(step > 25 ? { late: 1 } : {}) } },
          details: {
            judge: {
              model: "m",
              criteria: {
                sense: { text: r === 0 ? null : r, expected: step / 10, probabilities: PROBABILITIES },
              },
            },
          },
        });
    rollouts.close();
    const db = new Database(path, { readonly: true });
    try {
      body(db);
    } finally {
      db.close();
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

test("steps are spread evenly, first and last among them, and stay chosen as more come", () => {
  written((db) => {
    expect(someSteps(db, "rollouts", 5)).toEqual([1, 17, 33, 49, 50]);
    expect(someSteps(db, "rollouts", 2)).toEqual([1, 50]);
    expect(someSteps(db, "rollouts", 100)).toHaveLength(50);
  });
  const db = new Database(":memory:");
  db.run("CREATE TABLE rollouts (step INTEGER)");
  let before: number[] = [];
  for (let step = 1; step <= 300; step++) {
    db.query("INSERT INTO rollouts VALUES (?)").run(step);
    const now = someSteps(db, "rollouts", 24);
    expect(now.length).toBeLessThanOrEqual(24);
    // All but the last of them were chosen before, as long as the run had as many.
    if (before.length > 0)
      for (const each of now.slice(0, -1)) if (each < step - 1) expect(before).toContain(each);
    before = now;
  }
  db.close();
});

test("components, distribution and the judge's two readings of a step", () => {
  written((db) => {
    const report = rewardReport(db, 2);
    expect(report.range).toEqual({ min: 0, max: 1 });
    expect(report.components).toEqual(["half", "late"]);
    expect(report.judge).toEqual(["sense"]);
    const [first, last] = report.points;
    expect(first!.rollouts).toBe(4);
    expect(first!.components[0]).toBeCloseTo(0.25, 12);
    expect(first!.components[1]).toBeNull();
    expect(last!.components[1]).toBe(1);
    // Rewards 0, 1/3, 2/3 and 1 in twenty bins.
    expect(first!.histogram.flatMap((share, bin) => (share > 0 ? [[bin, share]] : []))).toEqual([
      [0, 0.25],
      [6, 0.25],
      [13, 0.25],
      [19, 0.25],
    ]);
    expect(first!.judge[0]).toEqual({
      expected: 0.1,
      text: 2,
      invalid: 0.25,
      probabilities: PROBABILITIES.map((p) => expect.closeTo(p, 12)),
    });
    expect(last!.judge[0]!.expected).toBeCloseTo(5, 12);
  });
});

test("rows of an older schema and details that are no judge's are passed over", () => {
  const db = new Database(":memory:");
  db.run("CREATE TABLE rollouts (step INTEGER, reward REAL, components TEXT)");
  db.run("INSERT INTO rollouts VALUES (3, 0.5, '{\"a\": 2}'), (3, 0.5, 'no json')");
  const report = rewardReport(db, 10);
  expect(report.points).toHaveLength(1);
  expect(report.points[0]!.components).toEqual([2]);
  expect(report.judge).toEqual([]);
  db.close();
  const empty = new Database(":memory:");
  expect(rewardReport(empty, 10).points).toEqual([]);
  empty.close();
});
