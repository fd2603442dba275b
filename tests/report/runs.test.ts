// Runs alone: it measures time.
import { describe, expect, test } from "bun:test";
import {
  appendFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { truncateAfterStep } from "../../src/io/jsonl.ts";
import { takeLock } from "../../src/io/run-lock.ts";
import { lastRows, lastValues, metricsOf, seriesOf, sparkline } from "../../src/report/metrics.ts";
import { checkpointsOf, findRun, listRuns, readRun } from "../../src/report/runs.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { makeRun, steps } from "./fixture.ts";

describe("which runs there are", () => {
  test("newest first, with recipe, state, step, main metric, times and checkpoints", () => {
    using at = new TemporaryFolder();
    makeRun(at.path, "old", {
      rows: steps(4, (step) => (step === 2 ? { "eval/reward": 0.25 } : {})),
      config: { num_train_steps: 10 },
      checkpoints: ["step-2", "step-10", "final"],
      outcome: 0,
    });
    makeRun(at.path, "rm", {
      recipe: "hh-rm",
      rows: [{ step: 7, time: 9000, "train/accuracy": 0.5, "train/loss": "NaN" }],
      outcome: 3,
    });
    const [rm, old] = listRuns([at.path, join(at.path, "nowhere")]);
    expect(old).toMatchObject({
      name: "old",
      recipe: "arithmetic",
      state: "finished",
      step: 4,
      steps: 10,
      metric: "train/reward_mean",
      value: 1,
      started: 1000,
      updated: 1003,
      ended: 5000,
      checkpoints: ["step-2", "step-10", "final"],
      link: false,
      problem: null,
    });
    expect(rm).toMatchObject({ name: "rm", state: "diverged", metric: "train/accuracy", steps: null });
    const run = readRun(join(at.path, "old"));
    expect(run.last).toEqual({ "train/reward_mean": 1, "train/loss": -3, "eval/reward": 0.25 });
    expect(run.bytes).toBeGreaterThan(3000);
    expect(readRun(rm!.dir).last["train/loss"]).toBeNaN();
    expect(readRun(rm!.dir).error).toBe("it failed");
  });

  test("checkpoints by step with sizes; one with a file cut short is not whole", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { rows: steps(3), checkpoints: ["step-10", "step-9", "final"] });
    truncateSync(join(dir, "checkpoints/step-9/model.safetensors"), 10);
    mkdirSync(join(dir, "checkpoints/.tmp-step-11-1"));
    const list = checkpointsOf(dir);
    expect(list.map(({ name, step, whole, kind }) => [name, step, whole, kind])).toEqual([
      ["step-9", 9, false, "step"],
      ["step-10", 10, true, "step"],
      ["final", 3, true, "final"],
    ]);
    expect(list[1]!.bytes).toBeGreaterThan(1000);
  });

  test("what is no run is passed over; what is half-written is listed with its problem", () => {
    using at = new TemporaryFolder();
    makeRun(at.path, "good");
    mkdirSync(at.file("empty"));
    writeFileSync(at.file("file"), "x");
    mkdirSync(at.file("checkpoint"));
    for (const name of ["train_config.json", "manifest.json"])
      writeFileSync(at.file(`checkpoint/${name}`), "{}");
    makeRun(at.path, ".tmp-trash-gone-1.1");
    mkdirSync(at.file("torn"));
    writeFileSync(at.file("torn/train_config.json"), '{"recipe": "arit');
    mkdirSync(at.file("foreign"));
    writeFileSync(at.file("foreign/train_config.json"), '{"lr": 1}');
    symlinkSync(at.file("good"), at.file("link"));
    symlinkSync(at.file("nothing"), at.file("dangling"));
    const runs = new Map(listRuns([at.path, `${at.path}/.`]).map((run) => [run.name, run]));
    expect([...runs.keys()].sort()).toEqual(["foreign", "good", "link", "torn"]);
    expect(runs.get("torn")!.problem).toContain("cannot be read");
    expect(runs.get("foreign")!.problem).toContain("not of rlv");
    expect(runs.get("link")).toMatchObject({ link: true, problem: null });
    expect(runs.get("good")).toMatchObject({ step: 0, value: null, started: null });
    expect(findRun("good", [at.path])).toBe(at.file("good"));
    expect(findRun(at.file("good"), [])).toBe(at.file("good"));
    expect(() => findRun("none", [at.path])).toThrow(/no run "none".*rlv runs list/);
    makeRun(at.file("other"), "good");
    expect(() => findRun("good", [at.path, at.file("other")])).toThrow(/2 runs are called good/);
  });

  test("how a run ended; a living holder comes before all", () => {
    using at = new TemporaryFolder();
    const state = (name: string, made: Parameters<typeof makeRun>[2]) =>
      readRun(makeRun(at.path, name, made)).state;
    expect(state("a", { outcome: 0 })).toBe("finished");
    expect(state("b", { outcome: 1 })).toBe("crashed");
    expect(state("c", { outcome: 130, checkpoints: ["final"] })).toBe("interrupted");
    expect(state("d", { outcome: 3 })).toBe("diverged");
    expect(state("e", {})).toBe("crashed");
    expect(state("f", { checkpoints: ["final"] })).toBe("finished");
    const held = makeRun(at.path, "g", { outcome: 0 });
    const lock = takeLock(held);
    if (typeof lock === "number") throw new Error("held by another");
    expect(readRun(held).state).toBe("live");
    expect(readRun(held).pids).toEqual([process.pid]);
    expect(readRun(held).ended).toBeNull();
    lock.release();
    expect(readRun(held).state).toBe("finished");
    writeFileSync(join(held, ".lock"), "999999999 1\n");
    expect(readRun(held).state).toBe("finished");
  });

  test("fifty runs with long metrics files are listed in well under a second", () => {
    using at = new TemporaryFolder();
    const first = makeRun(at.path, "run-0", {
      rows: steps(10_000, (step) => ({ "train/more": step ** 0.5 })),
    });
    const text = Bun.file(join(first, "metrics.jsonl"));
    expect(text.size).toBeGreaterThan(800_000);
    for (let i = 1; i < 50; i++) {
      const dir = makeRun(at.path, `run-${i}`);
      Bun.spawnSync(["cp", join(first, "metrics.jsonl"), dir]);
    }
    const begin = performance.now();
    const runs = listRuns([at.path]);
    expect(performance.now() - begin).toBeLessThan(1000);
    expect(runs.length).toBe(50);
    expect(runs.every((run) => run.step === 10_000 && run.started === 1000)).toBe(true);
  });
});

describe("metrics.jsonl", () => {
  test("read on from a cursor: whole lines alone, and anew when the file was cut", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { rows: steps(3) });
    const path = join(dir, "metrics.jsonl");
    const first = metricsOf(dir);
    expect(first.rows.map((row) => row.step)).toEqual([1, 2, 3]);
    expect(metricsOf(dir, first.cursor)).toMatchObject({ rows: [], cursor: first.cursor, reset: false });
    appendFileSync(path, '{"step":4,"time":1,"x":"Inf');
    expect(metricsOf(dir, first.cursor).rows).toEqual([]);
    appendFileSync(path, 'inity"}\n[1]\n{"step":5,"text":"no number"}\n');
    const second = metricsOf(dir, first.cursor);
    expect(second.rows).toEqual([{ step: 4, time: 1, x: Number.POSITIVE_INFINITY }, { step: 5 }]);
    expect([second.skipped, second.reset]).toEqual([1, false]);
    // A resumed run drops rows and writes others: the file may be as long as before.
    writeFileSync(path, readFileSync(path, "utf8").replace("[1]\n", ""));
    truncateAfterStep(path, 2);
    appendFileSync(path, '{"step":3,"time":7,"train/reward_mean":9}\n'.repeat(20));
    const third = metricsOf(dir, second.cursor);
    expect(third.reset).toBe(true);
    expect(third.rows.slice(0, 3).map((row) => row.time)).toEqual([1000, 1001, 7]);
    rmSync(path);
    expect(metricsOf(dir, third.cursor)).toMatchObject({ rows: [], reset: true });
    expect(metricsOf(dir)).toMatchObject({ rows: [], reset: false });
  });

  test("in small pieces the same rows, however short the piece", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { rows: steps(200) });
    const whole = metricsOf(dir).rows;
    for (const bytes of [1, 100, 4096]) {
      const rows: unknown[] = [];
      let cursor: string | null = null;
      for (;;) {
        const part = metricsOf(dir, cursor, bytes);
        expect(part.reset).toBe(false);
        rows.push(...part.rows);
        cursor = part.cursor;
        if (!part.more) break;
      }
      expect(rows).toEqual(whole);
    }
  });

  test("its end alone: at least the last row, however long", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { rows: steps(100, (step) => ({ [`only/${step}`]: step })) });
    const some = lastRows(dir, 1000);
    expect(some.length).toBeGreaterThan(3);
    expect(some.length).toBeLessThan(20);
    expect(some.at(-1)!.step).toBe(100);
    expect(lastRows(dir, 3)).toEqual(some.slice(-1));
    expect(lastValues(some)).toMatchObject({ step: 100, "only/99": 99 });
    expect(seriesOf(some, "only/99")).toEqual({ steps: [99], values: [99] });
  });

  test("a sparkline spans least to greatest, by means", () => {
    expect(sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)).toBe("▁▂▃▄▅▆▇█");
    expect(sparkline([0, 0, 7, 7], 2)).toBe("▁█");
    expect(sparkline([3, 3, 3], 10)).toBe("▁▁▁");
    expect(sparkline([1, Number.NaN, 2], 3)).toBe("▁ █");
    expect(sparkline([], 5)).toBe("");
  });
});
