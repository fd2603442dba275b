import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { RunList, SweepCurves, SweepReport } from "../../src/web/api.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { Scratch, Site } from "./site.ts";
import { makeSweep } from "./sweep-world.ts";

test("a sweep: its runs by their seeds, and their curves together", async () => {
  using scratch = new Scratch();
  const root = scratch.dir;
  makeRun(root, "alone", { rows: steps(2), outcome: 0 });
  makeSweep(root, "routing");
  await using site = new Site(root);
  const list = await site.get<RunList>("/api/runs");
  const { id } = list.sweeps[0]!;
  expect(list.sweeps).toEqual([{ id, name: "routing", recipe: "stories", planned: 6 }]);
  const named = (name: string) => list.runs.find((run) => run.name === name)!;
  expect([named("alone").sweep, named("routing/routed_s1").sweep]).toEqual([null, id]);
  expect(list.runs.length).toBe(6);

  const report = await site.get<SweepReport>(`/api/sweeps/${id}`);
  expect(report.groups.map(({ name, finished, planned }) => [name, finished, planned])).toEqual([
    ["routed", 3, 3],
    ["baseline", 2, 3],
  ]);
  expect(report.runs.map((run) => [run.name, run.group, run.seed, run.state])).toContainEqual([
    ...["baseline_s3", 1, 3, "waiting"],
  ]);
  expect(report.runs[0]!.id).toBe(named("routing/routed_s1").id);
  expect(report.metric_names).toContain("eval/retain_only/hack_rate");
  const spread = report.groups[0]!.metrics["eval/retain_only/hack_rate"]!;
  expect([spread.n, spread.mean, spread.std, spread.min, spread.max]).toEqual([
    3,
    ...[0.1, 0.05, 0.05, 0.15].map((value) => expect.closeTo(value, 12)),
  ]);

  const names = "eval/both/hack_rate,eval/retain_only/hack_rate,train/loss,missing";
  const { metrics } = await site.get<SweepCurves>(`/api/sweeps/${id}/curves?names=${names}&points=10`);
  expect(metrics["eval/retain_only/hack_rate"]![1]).toBeNull();
  expect(metrics.missing).toEqual([null, null]);
  const [routed, baseline] = metrics["eval/both/hack_rate"]!;
  expect([routed!.runs.at(-1), baseline!.runs.at(-1)]).toEqual([3, 2]);
  expect(routed!.step).toEqual([5, 10, 15, 20, 25, 30, 35, 40]);
  for (const [at, step] of routed!.step.entries()) {
    expect(routed!.mean[at]).toBeCloseTo(0.8 * (step / 40), 12);
    expect(routed!.std[at]).toBeCloseTo(0.05 * (step / 40), 12);
    expect(baseline!.max[at]).toBeCloseTo(0.7 * (step / 40), 12);
  }
  // Thinned, and its end kept.
  const loss = metrics["train/loss"]![0]!;
  expect([loss.step.length <= 10, loss.step.at(-1)]).toEqual([true, 40]);

  for (const path of ["", "/curves?names=a"])
    expect((await site.fetch(`/api/sweeps/x${path}`)).status).toBe(404);
  expect((await site.fetch(`/api/sweeps/${id}/curves`)).status).toBe(400);
  // A plan of a later version is no reason to list nothing.
  const plan = join(root, "routing", "sweep.json");
  writeFileSync(plan, readFileSync(plan, "utf8").replace('"version":1', '"version":99'));
  const later = await site.get<RunList>("/api/runs");
  expect([later.sweeps.length, later.runs.length]).toEqual([0, 6]);
  expect((await site.fetch(`/api/sweeps/${id}`)).status).toBe(404);
});

test("runs of any folder are grouped by what they differ in besides the seed", async () => {
  using scratch = new Scratch();
  for (const [rank, seed, last] of [
    [4, 1, 0.2],
    [4, 2, 0.4],
    [8, 1, 0.9],
  ] as const)
    makeRun(scratch.dir, `r${rank}-s${seed}`, {
      config: { seed, lora: { rank }, run_name: `r${rank}-s${seed}`, kept: "same" },
      rows: steps(3, (step) => ({ "eval/reward": (last * step) / 3 })),
      outcome: 0,
    });
  await using site = new Site(scratch.dir);
  const { runs } = await site.get<RunList>("/api/runs");
  const ids = ["r8-s1", "r4-s2", "r4-s1"].map((name) => runs.find((run) => run.name === name)!.id);
  const report = await site.get<SweepReport>(`/api/grouped?runs=${ids.join()}`);
  expect(report.groups.map(({ name, planned }) => [name, planned])).toEqual([
    ['lora {"rank":8}', 1],
    ['lora {"rank":4}', 2],
  ]);
  expect(report.runs.map(({ name, id, group, seed }) => [name, id, group, seed])).toEqual([
    ["r8-s1", ids[0]!, 0, 1],
    ["r4-s2", ids[1]!, 1, 2],
    ["r4-s1", ids[2]!, 1, 1],
  ]);
  expect(report.groups[1]!.metrics["eval/reward"]!.mean).toBeCloseTo(0.3, 12);
  const curves = await site.get<SweepCurves>(`/api/grouped/curves?runs=${ids.join()}&names=eval/reward`);
  expect(curves.metrics["eval/reward"]!.map((each) => each!.runs)).toEqual([
    [1, 1, 1],
    [2, 2, 2],
  ]);
  expect((await site.fetch("/api/grouped")).status).toBe(400);
  expect((await site.fetch("/api/grouped?runs=x")).status).toBe(404);
});
