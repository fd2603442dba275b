import { describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { takeLock } from "../../src/io/run-lock.ts";
import {
  deleteCheckpoint,
  deleteRun,
  exportRun,
  type PruneRule,
  planPrune,
  pruneRun,
  renameRun,
  tagRun,
} from "../../src/report/manage.ts";
import { listRuns, readRun } from "../../src/report/runs.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { makeRun, steps } from "./fixture.ts";

const RULE: PruneRule = { keepLast: 1, keepEvery: null, keepBest: null, best: "max", keepBroken: false };
const CHECKPOINTS = ["step-10", "step-20", "step-30", "step-40"];

/** Holds a run as training does, in this process. */
function live(dir: string): Disposable {
  const lock = takeLock(dir);
  if (typeof lock === "number") throw new Error("held");
  return { [Symbol.dispose]: () => lock.release() };
}

const names = (dir: string) => readdirSync(dir).sort();
const kept = (plan: ReturnType<typeof planPrune>) =>
  plan.filter(({ keep }) => keep).map(({ checkpoint, reason }) => `${checkpoint.name}: ${reason}`);

describe("renaming and tags", () => {
  test("a run gets another name, never one that is taken or no name", () => {
    using at = new TemporaryFolder();
    const a = makeRun(at.path, "a", { rows: steps(2) });
    makeRun(at.path, "b");
    expect(() => renameRun(a, "b")).toThrow("that name is taken");
    mkdirSync(at.file("empty"));
    expect(() => renameRun(a, "empty")).toThrow("that name is taken");
    for (const name of ["", "..", "x/y", ".hidden", "a\nb", "-flag"])
      expect(() => renameRun(a, name)).toThrow("no name");
    const c = renameRun(a, "größer=1.5");
    expect(names(at.path)).toEqual(["b", "empty", "größer=1.5"]);
    expect(names(c)).toEqual(["metrics.jsonl", "train_config.json"]);
    expect(readRun(c).state).toBe("crashed");
  });

  test("tags are kept in order, in a live run too; bad ones change nothing", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a");
    using _ = live(dir);
    expect(tagRun(dir, ["z", "best", "z"], [])).toEqual(["best", "z"]);
    expect(tagRun(dir, ["a:1"], ["z", "none"])).toEqual(["a:1", "best"]);
    expect(() => tagRun(dir, ["two words"], [])).toThrow("no tag");
    expect(listRuns([at.path])[0]!.tags).toEqual(["a:1", "best"]);
    writeFileSync(join(dir, "tags.json"), '{"tags": "x"');
    expect(listRuns([at.path])[0]!.tags).toEqual([]);
  });
});

describe("deleting", () => {
  test("a run goes whole; what a killed deletion left goes too, and nothing else", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { rows: steps(2), checkpoints: CHECKPOINTS });
    makeRun(at.path, "b");
    const dead = Bun.spawnSync(["true"]).pid;
    mkdirSync(at.file(`.tmp-trash-old-${dead}.1/checkpoints`), { recursive: true });
    mkdirSync(at.file(".tmp-mine"));
    deleteRun(dir);
    expect(names(at.path)).toEqual([".tmp-mine", "b"]);
  });

  test("never a live run, a link, a foreign or torn folder, or a checkpoint", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { checkpoints: ["final"] });
    symlinkSync(dir, at.file("link"));
    mkdirSync(at.file("foreign"));
    writeFileSync(at.file("foreign/train_config.json"), "{}");
    mkdirSync(at.file("torn"));
    writeFileSync(at.file("torn/train_config.json"), "{");
    mkdirSync(at.file("plain"));
    const before = names(at.path);
    {
      using _ = live(dir);
      const held = {
        rename: () => renameRun(dir, "z"),
        remove: () => deleteRun(dir),
        prune: () => pruneRun(dir, RULE),
      };
      for (const change of Object.values(held))
        expect(change).toThrow(/the run is live \(process \d+\).*wait/);
      expect(() => deleteCheckpoint(dir, "final")).toThrow("the run is live");
    }
    expect(() => deleteRun(at.file("link"))).toThrow("a link is never followed");
    expect(() => pruneRun(at.file("link"), RULE)).toThrow("a link is never followed");
    expect(() => deleteRun(at.file("foreign"))).toThrow("not of rlv");
    expect(() => deleteRun(at.file("torn"))).toThrow("cannot be read");
    expect(() => deleteRun(at.file("plain"))).toThrow("no run of rlv");
    expect(() => deleteRun(join(dir, "checkpoints/final"))).toThrow("no run of rlv");
    expect(() => deleteRun(at.path)).toThrow("no run of rlv");
    expect(names(at.path)).toEqual(before);
    expect(existsSync(join(dir, "checkpoints/final/model.safetensors"))).toBe(true);
  });

  test("what a live run elsewhere reads stays: its reward model, whatever key names it", () => {
    using at = new TemporaryFolder();
    const rm = makeRun(at.file("rm"), "judge", { checkpoints: ["step-1", "final"] });
    const policy = makeRun(at.file("grpo"), "policy", {
      config: {
        reward: [{ name: "rm", params: { model: join(rm, "checkpoints/final") } }],
        output_dir: at.path,
      },
    });
    const roots = [at.file("rm"), at.file("grpo")];
    {
      using _ = live(policy);
      expect(() => deleteRun(rm, roots)).toThrow(/the live run policy uses it as its reward/);
      expect(() => renameRun(rm, "x", roots)).toThrow("uses it as its reward");
      expect(() => deleteCheckpoint(rm, "final", roots)).toThrow("uses it as its reward");
      deleteCheckpoint(rm, "step-1", roots);
    }
    expect(names(join(rm, "checkpoints"))).toEqual(["final"]);
    deleteRun(rm, roots);
    expect(existsSync(rm)).toBe(false);
  });
});

describe("pruning", () => {
  test("rules: the newest, multiples, the best; final and what a run goes on from always stay", () => {
    using at = new TemporaryFolder();
    const rows = steps(40, (step) => (step % 10 === 0 ? { "eval/reward": step === 20 ? 0.9 : 0.1 } : {}));
    const finished = makeRun(at.path, "done", { rows, checkpoints: [...CHECKPOINTS, "final"], outcome: 0 });
    const plan = (rule: Partial<PruneRule>, dir = finished) =>
      kept(planPrune(readRun(dir), { ...RULE, ...rule }));
    expect(plan({})).toEqual(["step-40: among the newest 1", "final: final"]);
    expect(plan({ keepLast: 0 })).toEqual(["final: final"]);
    expect(plan({ keepEvery: 20, keepLast: 0 })).toEqual([
      "step-20: a multiple of 20",
      "step-40: a multiple of 20",
      "final: final",
    ]);
    expect(plan({ keepBest: "eval/reward", keepLast: 0 })).toEqual([
      "step-20: best eval/reward",
      "final: final",
    ]);
    expect(plan({ keepBest: "train/loss", best: "min", keepLast: 0 })[0]).toBe("step-40: best train/loss");
    expect(() => plan({ keepBest: "none" })).toThrow('no metric "none"');
    const broken = makeRun(at.path, "crash", { rows, checkpoints: CHECKPOINTS, outcome: 1 });
    expect(plan({ keepLast: 0 }, broken)).toEqual(["step-40: the run goes on from it"]);
    truncateSync(join(broken, "checkpoints/step-40/model.safetensors"), 3);
    expect(plan({ keepLast: 0 }, broken)).toEqual(["step-30: the run goes on from it"]);
    expect(plan({ keepLast: 0, keepBroken: true }, broken)).toEqual([
      "step-30: the run goes on from it",
      "step-40: not whole",
    ]);
    using _ = live(finished);
    expect(plan({}).every((line) => line.endsWith("the run is live"))).toBe(true);
  });

  test("what was added to a checkpoint later, links and foreign entries stay", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { rows: steps(4), checkpoints: [...CHECKPOINTS, "final"], outcome: 0 });
    const parent = join(dir, "checkpoints");
    mkdirSync(join(parent, "step-10/quantized_int8"));
    mkdirSync(at.file("elsewhere"));
    writeFileSync(at.file("elsewhere/precious"), "x");
    rmSync(join(parent, "step-20"), { recursive: true });
    symlinkSync(at.file("elsewhere"), join(parent, "step-20"));
    mkdirSync(join(parent, "notes"));
    const plan = pruneRun(dir, { ...RULE, keepLast: 0 });
    expect(kept(plan)).toEqual([
      "step-10: has quantized_int8, which training did not write",
      "step-20: a link",
      "final: final",
    ]);
    expect(names(parent)).toEqual(["final", "notes", "step-10", "step-20"]);
    expect(readFileSync(at.file("elsewhere/precious"), "utf8")).toBe("x");
    expect(readRun(dir).state).toBe("finished");
    expect(() => deleteCheckpoint(dir, "step-20")).toThrow("a link is never followed");
    expect(() => deleteCheckpoint(dir, "../a")).toThrow("no checkpoint");
    deleteCheckpoint(dir, "step-10");
    expect(names(parent)).toEqual(["final", "notes", "step-20"]);
  });
});

describe("exporting", () => {
  test("the model without what only a resumed run needs, and the run's record", () => {
    using at = new TemporaryFolder();
    const dir = makeRun(at.path, "a", { rows: steps(3), checkpoints: ["step-2", "final"], outcome: 0 });
    const out = at.file("out");
    expect(exportRun(dir, out, null)).toMatchObject({ checkpoint: "final", bytes: expect.any(Number) });
    expect(names(out)).toEqual(["model.safetensors", "run"]);
    expect(names(join(out, "run"))).toEqual(["metrics.jsonl", "train_config.json"]);
    expect(() => exportRun(dir, out, null)).toThrow("not an empty folder");
    expect(exportRun(dir, at.file("two"), "step-2").checkpoint).toBe("step-2");
    expect(() => exportRun(dir, at.file("three"), "step-9")).toThrow("no checkpoint");
    expect(() => exportRun(makeRun(at.path, "bare"), at.file("four"), null)).toThrow("no whole checkpoint");
    expect(existsSync(at.file("three")) || existsSync(at.file("four"))).toBe(false);
  });

  test("metrics as a table: every name a column, empty where a step lacks it", () => {
    using at = new TemporaryFolder();
    const rows = [
      { step: 1, time: 2, "train/loss": 0.5 },
      { step: 2, time: 3, "train/loss": "NaN", 'odd "name", here': 7 },
    ];
    exportRun(makeRun(at.path, "a", { rows }), at.file("m.csv"), null);
    expect(readFileSync(at.file("m.csv"), "utf8")).toBe(
      'step,time,train/loss,"odd ""name"", here"\n1,2,0.5,\n2,3,NaN,7\n',
    );
    expect(() => exportRun(makeRun(at.path, "none"), at.file("n.csv"), null)).toThrow("no metrics");
  });
});
