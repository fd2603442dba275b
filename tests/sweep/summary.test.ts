/** What runs of a sweep say together, on folders made by hand. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { summaryLines } from "../../src/cli/sweep-text.ts";
import { UsageError } from "../../src/core/errors.ts";
import {
  groupsCsv,
  isSweep,
  readSweep,
  runsCsv,
  SWEEP_VERSION,
  spreadOf,
  sweepSummary,
} from "../../src/report/sweep.ts";
import { makeRun } from "../report/fixture.ts";

const dir = mkdtempSync(join(tmpdir(), "rlv-sweep-summary-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const run = (variant: string, seed: number) => ({
  ...{ name: `${variant}_${seed}`, variant, values: { seed, model: 'a,"b"' }, settings: { seed } },
});
const plan = {
  ...{ version: SWEEP_VERSION, rlv_version: "0", recipe: "stories", name: "s" },
  ...{ variants: ["routed", "plain"], keys: ["model", "seed"] },
  runs: [run("routed", 1), run("routed", 2), run("routed", 3), run("plain", 1), run("plain", 2)],
};
writeFileSync(join(dir, "sweep.json"), JSON.stringify(plan));
const modes = (seed: number) => ({
  "eval/both/reward": seed,
  "eval/both/rewards/happy": 2 * seed,
  "eval/retain_only/reward": 10 * seed,
  "eval/retain_only/hack_rate": 0.5,
  "eval/reward": seed,
});
for (const seed of [1, 2, 3]) {
  const rows = [{ step: 4, time: 9, "train/reward_mean": seed, "train/lr": 1, ...modes(seed) }];
  // The third was interrupted: its figures are not those of a whole run.
  makeRun(dir, `routed_${seed}`, { rows, outcome: seed === 3 ? 130 : 0 });
}
makeRun(dir, "plain_1", { rows: [{ step: 4, time: 9, "eval/both/reward": "NaN" }], outcome: 0 });

test("figures of finished runs alone, grouped by all but the seed", () => {
  const { runs, groups } = sweepSummary(dir);
  expect(runs.map(({ state }) => state)).toEqual([
    ...(["finished", "finished", "interrupted", "finished", "waiting"] as const),
  ]);
  expect(runs[0]!.metrics["train/lr"]).toBeUndefined();
  expect(groups.map(({ variant, values, planned }) => [variant, values, planned])).toEqual([
    ["routed", { model: 'a,"b"' }, 3],
    ["plain", { model: 'a,"b"' }, 2],
  ]);
  expect(groups[0]!.runs).toEqual(["routed_1", "routed_2"]);
  expect(groups[0]!.metrics["eval/retain_only/reward"]).toEqual({
    ...{ n: 2, mean: 15, std: Math.sqrt(50), min: 10, max: 20 },
  });
  expect(groups[1]!.metrics["eval/both/reward"]!.mean).toBeNaN();
});

test("a kept evaluation counts as final/…; tables and CSV", () => {
  const fresh = {
    ...{ reward: { mean: 0.25 }, components: { happy: 0.75 }, flagged_share: 0.125, mean_tokens: 7 },
    diversity: { degenerate: false },
  };
  const lines = summaryLines(sweepSummary(dir), 200);
  expect(lines[0]!.split(/ +/)).toEqual(["variant", "model", "runs", "mode", "reward", "happy", "hack_rate"]);
  expect(lines[1]).toMatch(/^routed +a,"b" +2\/3 +both +1\.5 ±0\.707 +3 ±1\.41$/);
  expect(lines[2]).toMatch(/^ +retain_only +15 ±7\.07 +0\.5 ±0$/);
  writeFileSync(
    join(dir, "routed_1", "evaluation.json"),
    JSON.stringify({ evaluations: [{ fresh, modes: { both: { hack_rate: 0.5 } } }] }),
  );
  expect(sweepSummary(dir).runs[0]!.metrics).toMatchObject({
    ...{ "final/reward": 0.25, "final/rewards/happy": 0.75, "final/hack_rate": 0.125 },
    ...{ "final/degenerate": 0, "final/both/hack_rate": 0.5, "eval/reward": 1 },
  });
  const rows = runsCsv(sweepSummary(dir)).trimEnd().split("\n");
  expect(rows.length).toBe(6);
  expect(rows[0]).toStartWith("run,variant,model,seed,state,step,");
  expect(rows[3]).toStartWith('routed_3,routed,"a,""b""",3,interrupted,4,');
  expect(groupsCsv(sweepSummary(dir))).toContain(
    'routed,"a,""b""",3,eval/both/reward,2,1.5,0.7071067811865476,1,2\n',
  );
});

test("a spread is that of a sample; one value has none", () => {
  expect(spreadOf([2, 4, 4, 4, 5, 5, 7, 9]).std).toBeCloseTo(Math.sqrt(32 / 7), 12);
  expect(spreadOf([3])).toEqual({ n: 1, mean: 3, std: null, min: 3, max: 3 });
});

test("what is no sweep, or of another version, is refused", () => {
  const other = mkdtempSync(join(tmpdir(), "rlv-sweep-other-"));
  try {
    expect(isSweep(other)).toBe(false);
    expect(() => readSweep(other)).toThrow(UsageError);
    writeFileSync(join(other, "sweep.json"), JSON.stringify({ ...plan, version: 9 }));
    expect(() => readSweep(other)).toThrow(/version 9/);
    writeFileSync(join(other, "sweep.json"), "{");
    expect(isSweep(other)).toBe(false);
  } finally {
    rmSync(other, { recursive: true });
  }
});
