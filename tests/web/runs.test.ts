// Runs alone: it measures how long a run waits for its readers.
import { Database } from "bun:sqlite";
import { afterEach, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { jsonLine } from "../../src/io/jsonl.ts";
import { type RolloutRow, RolloutsDb } from "../../src/io/rollouts-db.ts";
import { takeLock } from "../../src/io/run-lock.ts";
import type {
  ConfigComparison,
  DeleteAnswer,
  DiversityReport,
  LogTail,
  MetricRows,
  MetricsAnswer,
  RewardReport,
  RolloutDetail,
  RolloutPage,
  RunDetail,
  RunList,
  RunMetrics,
  SystemInfo,
} from "../../src/web/api.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { childrenOf, Scratch, Site } from "./site.ts";

const open: (Disposable | AsyncDisposable)[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse())
    await (Symbol.asyncDispose in each ? each[Symbol.asyncDispose]() : each[Symbol.dispose]());
});

function siteOf(make: (root: string) => void): { site: Site; root: string } {
  const scratch = new Scratch();
  open.push(scratch);
  const root = join(scratch.dir, "runs");
  mkdirSync(root);
  make(root);
  const site = new Site(root);
  open.push(site);
  return { site, root };
}

const row = (step: number, rollout_index: number, more: Partial<RolloutRow> = {}): RolloutRow => ({
  step,
  epoch: 0,
  prompt_index: step,
  rollout_index,
  prompt: `prompt of step ${step}`,
  completion: `text ${step}.${rollout_index} ends`,
  reward: rollout_index / 4,
  advantage: rollout_index - 1.5,
  ...more,
});

function writeRollouts(dir: string, rows: readonly RolloutRow[]): void {
  using db = new RolloutsDb(join(dir, "rollouts.sqlite"));
  for (const each of rows) db.add(each);
}

const idOf = async (site: Site, name: string): Promise<string> =>
  (await site.get<RunList>("/api/runs")).runs.find((run) => run.name === name)!.id;

test("the list and one run", async () => {
  const { site } = siteOf((root) => {
    makeRun(root, "done", {
      recipe: "hh-grpo",
      config: { model: "Qwen/Qwen3-0.6B", num_train_steps: 8 },
      rows: steps(8, (step) => (step === 4 ? { "eval/reward": Number.NaN } : {})),
      checkpoints: ["step-4", "final"],
      outcome: 0,
    });
    makeRun(root, "failed", { rows: steps(2), outcome: 1 });
    mkdirSync(join(root, "no-run"));
    writeFileSync(
      join(root, "done", "train.log"),
      "model tiny\nloss -A log p\nmemory plan: 1 MB\nstep 1/8  loss 1\n",
    );
    const adapter = join(root, "done", "checkpoints", "step-4");
    writeFileSync(join(adapter, "adapter_config.json"), "{}");
  });
  const { runs } = await site.get<RunList>("/api/runs");
  expect(new Set(runs.map((run) => `${run.name} ${run.state}`))).toEqual(
    new Set(["done finished", "failed crashed"]),
  );
  const done = runs.find((run) => run.name === "done")!;
  expect(done).toMatchObject({ recipe: "hh-grpo", model: "Qwen/Qwen3-0.6B", step: 8, total_steps: 8 });
  expect(done.last).toMatchObject({ "train/loss": -7, "train/reward_mean": 1, "eval/reward": null });
  expect(done.sparkline).toEqual({
    name: "train/reward_mean",
    values: [1, 2, 3, 4, 5, 6, 7, 8].map((i) => i / 8),
  });
  const detail = await site.get<RunDetail>(`/api/runs/${done.id}`);
  expect(detail.header).toEqual(["model tiny", "loss -A log p", "memory plan: 1 MB"]);
  expect(detail.metric_names).toEqual(["eval/reward", "train/loss", "train/reward_mean"]);
  expect(detail.metric_rows).toBe(8);
  expect(detail.rollouts).toBeNull();
  expect(detail.checkpoints.map(({ name, kind, whole, step }) => [name, kind, whole, step])).toEqual([
    ["step-4", "adapter", true, 4],
    ["final", "model", true, 8],
  ]);
  expect((await site.get<LogTail>(`/api/runs/${done.id}/log?bytes=20`)).text).toBe("step 1/8  loss 1\n");
  const failed = await idOf(site, "failed");
  const compared = await site.get<ConfigComparison>(`/api/compare?a=${done.id}&b=${failed}`);
  expect(compared.keys).toContainEqual({ key: "recipe", a: "hh-grpo", b: "arithmetic", same: false });
  expect(compared.keys).toContainEqual({ key: "rlv_version", a: "0.1.0", b: "0.1.0", same: true });
  expect(compared.keys.find(({ key }) => key === "model")).toEqual({
    key: "model",
    a: "Qwen/Qwen3-0.6B",
    same: false,
  });
  expect((await site.get<SystemInfo>("/api/system")).cores).toBeGreaterThan(0);
});

test("curves keep every peak, and rows follow a file that grows, is cut and is written half", async () => {
  const rows = steps(5000, (step) => ({
    ...(step === 3333 ? { "train/loss": 1e6 } : {}),
    ...(step % 100 === 0 ? { "eval/reward": step } : {}),
  }));
  const { site, root } = siteOf((at) => makeRun(at, "long", { rows }));
  const id = await idOf(site, "long");
  const curve = async (query: string) =>
    ((await site.get<MetricsAnswer>(`/api/metrics?runs=${id}&${query}`)).runs[id] as RunMetrics).series;
  const thin = (await curve("names=train/loss,eval/reward&points=200"))["train/loss"]!;
  expect(thin.of).toBe(5000);
  expect(thin.value.length).toBeLessThanOrEqual(201);
  expect(thin.value[thin.step.indexOf(3333)]).toBe(1e6);
  expect(thin.step.at(-1)).toBe(5000);
  expect([...thin.step]).toEqual([...thin.step].sort((a, b) => a - b));
  const zoomed = (await curve("points=200&x_min=3330&x_max=3335"))["train/loss"]!;
  expect(zoomed.step).toEqual([3330, 3331, 3332, 3333, 3334, 3335]);
  expect(zoomed.time[0]).toBe(3329);
  const evaluations = (await curve("names=eval/reward"))["eval/reward"]!;
  expect(evaluations.step.length).toBe(50);
  expect(evaluations.value).toEqual(evaluations.step);
  const unknown = await site.get<MetricsAnswer>(`/api/metrics?runs=${id},nope`);
  expect(unknown.runs.nope).toEqual({ error: "no such run" });

  const path = join(root, "long", "metrics.jsonl");
  const from = (generation: string, at: number) =>
    site.get<MetricRows>(`/api/runs/${id}/rows?generation=${generation}&from=${at}`);
  const before = await from("", 4999);
  expect([before.from, before.total, before.rows.length]).toEqual([0, 5000, 2000]);
  const { generation } = before;
  expect((await from(generation, 4999)).rows).toEqual([
    { step: 5000, time: 4999, metrics: { "train/reward_mean": 1, "train/loss": -4999, "eval/reward": 5000 } },
  ]);
  const line = `${jsonLine({ step: 5001, time: 6000, "train/loss": Number.POSITIVE_INFINITY })}\n`;
  appendFileSync(path, line.slice(0, 20));
  expect((await from(generation, 5000)).rows).toEqual([]);
  appendFileSync(path, line.slice(20));
  expect((await from(generation, 5000)).rows).toEqual([
    { step: 5001, time: 5000, metrics: { "train/loss": null } },
  ]);
  // A resumed run drops what lies beyond its checkpoint, and goes on.
  const kept = readFileSync(path, "utf8").split("\n").slice(0, 4000).join("\n");
  truncateSync(path, Buffer.byteLength(kept) + 1);
  appendFileSync(path, `${jsonLine({ step: 4001, time: 9000, "train/loss": 5 })}\n`);
  const after = await from(generation, 5001);
  expect(after.generation).not.toBe(generation);
  expect([after.from, after.total]).toEqual([0, 4001]);
  rmSync(path);
  expect((await from(after.generation, 4001)).total).toBe(0);
});

test("rollouts: filters, order, pages and search find what a scan of the rows finds", async () => {
  const rows: RolloutRow[] = [];
  for (let step = 1; step <= 300; step++)
    for (let i = 0; i < 4; i++)
      rows.push(
        row(step, i, {
          reward: ((step * 7919 + i * 31) % 101) / 50 - 1,
          advantage: ((step * 31 + i * 17) % 9) - 4,
          completion: `${"word ".repeat((step * i) % 40)}İstanbul Straße ${step}-${i} ${step % 50 === 0 ? "RARE 'quote' %_" : ""}`,
          flagged: step % 3 === 0 ? undefined : step % 3 === 1,
          finish: i === 3 ? "length" : "eos",
          logprobs: new Float32Array((step * i) % 40),
          token_ends: new Uint32Array((step * i) % 40),
        }),
      );
  const { site } = siteOf((root) => writeRollouts(makeRun(root, "many"), rows));
  const id = await idOf(site, "many");
  const ask = (query: string) => site.get<RolloutPage>(`/api/runs/${id}/rollouts?limit=500&${query}`);
  const key = (r: RolloutRow) => `${r.step}-0-${r.prompt_index}-${r.rollout_index}`;
  const sign = (value: number) => Math.sign(value);
  const cases: [string, (r: RolloutRow) => boolean][] = [
    ["step_min=250", (r) => r.step >= 250],
    ["step_min=17&step_max=20", (r) => r.step >= 17 && r.step <= 20],
    ["reward_min=0.9", (r) => r.reward >= 0.9],
    ["reward_min=-0.02&reward_max=0.02", (r) => Math.abs(r.reward) <= 0.02],
    ["advantage_sign=0&step_max=200", (r) => sign(r.advantage) === 0 && r.step <= 200],
    ["advantage_sign=-1&step_max=50", (r) => sign(r.advantage) === -1 && r.step <= 50],
    ["advantage_min=4", (r) => r.advantage >= 4],
    ["flagged=yes&step_max=100", (r) => r.flagged === true && r.step <= 100],
    ["flagged=no&step_max=100", (r) => r.flagged === false && r.step <= 100],
    ["flagged=unknown&step_max=100", (r) => r.flagged === undefined && r.step <= 100],
    ["finish=length", (r) => r.finish === "length"],
    ["finish=never", () => false],
    ["prompt_index=77", (r) => r.prompt_index === 77],
    ["search=rare", (r) => r.completion.includes("RARE")],
    [`search=${encodeURIComponent("'QUOTE' %_")}`, (r) => r.completion.includes("RARE")],
    [`search=${encodeURIComponent("STRASSE")}`, () => false],
    [`search=${encodeURIComponent("straße 7-2")}`, (r) => r.step === 7 && r.rollout_index === 2],
    [`search=${encodeURIComponent("of step 12")}&step_max=12`, (r) => r.step === 12],
    ["search=rare&finish=length", (r) => r.completion.includes("RARE") && r.finish === "length"],
  ];
  for (const [query, matches] of cases) {
    const page = await ask(query);
    const expected = rows.filter(matches);
    expect([query, page.total]).toEqual([query, expected.length]);
    expect([query, new Set(page.rows.map((each) => each.key))]).toEqual([query, new Set(expected.map(key))]);
    if (expected.length > 0)
      expect(page.mean_reward).toBeCloseTo(
        expected.reduce((sum, r) => sum + r.reward, 0) / expected.length,
        9,
      );
    expect(page.histogram?.counts.reduce((a, b) => a + b, 0) ?? 0).toBe(expected.length);
  }
  const values = {
    step: (r: RolloutRow) => r.step,
    reward: (r: RolloutRow) => r.reward,
    advantage: (r: RolloutRow) => r.advantage,
    length: (r: RolloutRow) => r.logprobs!.length,
    prompt: (r: RolloutRow) => r.prompt_index,
  };
  for (const [sort, value] of Object.entries(values))
    for (const order of ["asc", "desc"] as const) {
      const factor = order === "asc" ? 1 : -1;
      const expected = [...rows].sort((a, b) => factor * (value(a) - value(b))).map(key);
      const pages = [0, 500, 1000].map((offset) => ask(`sort=${sort}&order=${order}&offset=${offset}`));
      const keys = (await Promise.all(pages)).flatMap((page) => page.rows.map((each) => each.key));
      expect(keys).toEqual(expected);
    }
  const { extent, all } = await ask("");
  expect(all).toBe(1200);
  expect(extent).toEqual({
    step: { min: 1, max: 300 },
    reward: { min: -1, max: 1 },
    advantage: { min: -4, max: 4 },
    flagged: 400,
    finishes: ["eos", "length"],
    modes: [""],
  });
});

test("one rollout with its group: tokens with their log-probabilities, and the groups beside it", async () => {
  const completion = "Hé 🙂 done";
  const { site } = siteOf((root) => {
    const dir = makeRun(root, "one");
    const tokens = {
      completion,
      token_ends: Uint32Array.of(2, 3, 5, 5, 10),
      logprobs: Float32Array.of(-0.5, -1, -0.25, Number.NEGATIVE_INFINITY, -2),
      details: {
        judge: { model: "self", criteria: { clear: { text: 4, expected: 3.5, probabilities: [0, 1] } } },
      },
      components: { "rubric/clear": 0.6 },
      flagged: true,
    };
    using db = new RolloutsDb(join(dir, "rollouts.sqlite"));
    for (const prompt_index of [3, 5, 9])
      for (const i of [0, 1, 2]) db.add(row(2, i, { prompt_index, ...(i === 1 ? tokens : {}) }));
    db.addEval({ ...row(2, 0), mode: "greedy" });
    db.addEval({ ...row(2, 0, { completion: "sampled" }), mode: "" });
  });
  const id = await idOf(site, "one");
  const { rollout, group, previous, next } = await site.get<RolloutDetail>(
    `/api/runs/${id}/rollouts/2-0-5-1`,
  );
  expect([previous, next]).toEqual(["2-0-3-0", "2-0-9-0"]);
  expect(group.map((each) => each.rollout_index)).toEqual([0, 1, 2]);
  expect(rollout).toEqual(group[1]!);
  expect(rollout.tokens_of).toEqual({
    texts: ["Hé", " ", "🙂", "", " done"],
    logprobs: [-0.5, -1, -0.25, null, -2],
  });
  expect(rollout).toMatchObject({ tokens: 5, flagged: true, components: { "rubric/clear": 0.6 } });
  expect(rollout.details).toMatchObject({ judge: { model: "self" } });
  expect(group[0]!.tokens_of).toBeNull();
  const evaluated = await site.get<RolloutDetail>(`/api/runs/${id}/rollouts/2-0-2-0?table=eval&mode=greedy`);
  expect(evaluated.group.map((each) => [each.mode, each.advantage])).toEqual([["greedy", null]]);
  const table = await site.get<RolloutPage>(`/api/runs/${id}/rollouts?table=eval&mode=`);
  expect(table.rows.map((each) => each.completion)).toEqual(["sampled"]);
});

test("diversity along the steps, and what rewards were made of", async () => {
  const { site } = siteOf((root) => {
    const rows: RolloutRow[] = [];
    for (let step = 1; step <= 90; step++)
      for (let i = 0; i < 32; i++) {
        const own = Array.from(
          { length: 30 },
          (_, at) => `w${(step * 7919 + i * 104729 + at * 1299709) % 5000}`,
        );
        const completion =
          step <= 45 ? own.join(" ") : `the same ${step % 2} again and again, as ever before`;
        rows.push(row(step, i, { completion, components: { style: step / 90, form: i % 2 } }));
      }
    writeRollouts(makeRun(root, "one"), rows);
    makeRun(root, "none");
  });
  const id = await idOf(site, "one");
  const { points } = await site.get<DiversityReport>(`/api/runs/${id}/diversity?steps=10`);
  expect([points.length > 4, points.length <= 10]).toEqual([true, true]);
  for (const { step, unique, jaccard, degenerate, reasons } of points) {
    expect([step, degenerate, reasons.length > 0]).toEqual([step, step > 45, step > 45]);
    if (step <= 45) expect([unique, jaccard < 0.2]).toEqual([1, true]);
    else expect(unique).toBeLessThan(0.1);
  }
  expect(points.at(-1)!.completions).toBe(32);
  expect((await site.get<DiversityReport>(`/api/runs/${id}/diversity?table=eval`)).points).toEqual([]);
  const rewards = await site.get<RewardReport>(`/api/runs/${id}/rewards?steps=4`);
  expect([rewards.points.length > 1, rewards.points.length <= 4]).toEqual([true, true]);
  const style = rewards.components.indexOf("style");
  for (const { step, components } of rewards.points) expect(components[style]).toBeCloseTo(step / 90, 9);
  const none = await idOf(site, "none");
  for (const path of ["diversity", "rewards"])
    expect((await site.fetch(`/api/runs/${none}/${path}`)).status).toBe(404);
});

test("a live run: rows that come are found, rows that a resumed run took back are gone", async () => {
  const { site, root } = siteOf((at) => makeRun(at, "live"));
  const id = await idOf(site, "live");
  const path = join(root, "live", "rollouts.sqlite");
  const page = (query = "") => site.get<RolloutPage>(`/api/runs/${id}/rollouts?${query}`);
  expect((await page()).all).toBe(0);
  using db = new RolloutsDb(path);
  for (let step = 1; step <= 10; step++) for (let i = 0; i < 4; i++) db.add(row(step, i));
  db.flush();
  const first = await page("limit=3&sort=step");
  expect([first.total, first.last_row]).toEqual([40, 40]);
  expect((await page("search=text%2010.2")).total).toBe(1);
  for (let i = 0; i < 4; i++) db.add(row(11, i));
  db.flush();
  // What comes while someone turns pages does not shift them.
  const second = await page(`limit=3&offset=3&upto=${first.last_row}`);
  expect([...first.rows, ...second.rows].map((each) => each.key)).toEqual([
    ..."0123".split("").map((i) => `10-0-10-${i}`),
    ..."01".split("").map((i) => `9-0-9-${i}`),
  ]);
  expect((await page("search=text%2011")).total).toBe(4);
  expect(db.deleteAfterStep(5)).toBe(24);
  expect((await page()).total).toBe(20);
  for (let step = 6; step <= 11; step++) for (let i = 0; i < 4; i++) db.add(row(step, i, { reward: 9 }));
  db.flush();
  const again = await page("reward_min=9");
  expect([again.total, again.all]).toEqual([24, 44]);
  expect((await page("search=text%2011.3")).rows[0]!.reward).toBe(9);
});

test("reading leaves no trace beside a finished run, and a run's end does not wait for readers", async () => {
  const { site, root } = siteOf((at) => {
    writeRollouts(makeRun(at, "done"), [row(1, 0)]);
    makeRun(at, "running");
  });
  const files = () => readdirSync(join(root, "done")).sort();
  const before = files();
  const bytes = readFileSync(join(root, "done", "rollouts.sqlite"));
  const done = await idOf(site, "done");
  for (const path of ["", "/rollouts?search=text", "/rollouts/1-0-1-0", "/rewards"])
    await site.get(`/api/runs/${done}${path}`);
  expect(files()).toEqual(before);
  expect(readFileSync(join(root, "done", "rollouts.sqlite")).equals(bytes)).toBe(true);

  const running = await idOf(site, "running");
  const db = new RolloutsDb(join(root, "running", "rollouts.sqlite"));
  for (let step = 1; step <= 3000; step++) db.add(row(step, 0));
  db.flush();
  let asking = true;
  const readers = Array.from({ length: 4 }, async () => {
    while (asking) await site.get(`/api/runs/${running}/rollouts?search=${Math.random()}`);
  });
  await Bun.sleep(100);
  const begin = performance.now();
  db.add(row(3001, 0));
  db.flush();
  db.close();
  const took = performance.now() - begin;
  asking = false;
  await Promise.all(readers);
  // A checkpoint of the log that waits for a reader waits for five seconds.
  expect(took).toBeLessThan(2500);
  expect((await site.get<RolloutPage>(`/api/runs/${running}/rollouts`)).total).toBe(3001);
});

test("databases that cannot be read are an answer, and the next one that can is read", async () => {
  const { site, root } = siteOf((at) => {
    const damaged = makeRun(at, "damaged", { rows: steps(3) });
    writeFileSync(
      join(damaged, "rollouts.sqlite"),
      "this is no database, but it is long enough to look like one".repeat(50),
    );
    writeRollouts(
      makeRun(at, "broken"),
      Array.from({ length: 500 }, (_, i) => row(i, 0)),
    );
    const bytes = readFileSync(join(at, "broken", "rollouts.sqlite"));
    bytes.fill(0xab, 4096 * 3, 4096 * 9);
    writeFileSync(join(at, "broken", "rollouts.sqlite"), bytes);
    writeFileSync(join(makeRun(at, "cut"), "rollouts.sqlite"), bytes.subarray(0, 5000));
    writeFileSync(join(makeRun(at, "empty"), "rollouts.sqlite"), "");
    mkdirSync(join(makeRun(at, "folder"), "rollouts.sqlite"));
    const newer = makeRun(at, "newer");
    writeRollouts(newer, [row(1, 0)]);
    const db = new Database(join(newer, "rollouts.sqlite"));
    db.run("PRAGMA user_version = 99");
    db.close();
    const other = new Database(join(makeRun(at, "other"), "rollouts.sqlite"));
    other.run("CREATE TABLE something (x)");
    other.close();
    const locked = makeRun(at, "locked");
    writeRollouts(locked, [row(1, 0)]);
  });
  const status = async (name: string) => {
    const response = await site.fetch(`/api/runs/${await idOf(site, name)}/rollouts`);
    const text = await response.text();
    expect(text).not.toMatch(/at .*\.ts:\d+|SQLITE/);
    return [response.status, text] as const;
  };
  expect(await status("damaged")).toEqual([422, expect.stringContaining("the database is damaged")]);
  expect(await status("broken")).toEqual([422, expect.stringContaining("the database is damaged")]);
  expect(await status("cut")).toEqual([422, expect.stringContaining("damaged")]);
  expect(await status("newer")).toEqual([422, expect.stringContaining("a newer rlv (schema 99)")]);
  expect((await status("folder"))[0]).toBe(200);
  for (const name of ["empty", "other"])
    expect(await status(name)).toEqual([422, expect.stringContaining("rollouts.sqlite")]);
  // The rest of the run is there all the same.
  const damaged = await site.get<RunDetail>(`/api/runs/${await idOf(site, "damaged")}`);
  expect(damaged.step).toBe(3);
  rmSync(join(root, "damaged", "rollouts.sqlite"));
  writeRollouts(join(root, "damaged"), [row(1, 0)]);
  expect((await status("damaged"))[0]).toBe(200);

  // Held by another program for itself alone, in the old kind of journal.
  const path = join(root, "locked", "rollouts.sqlite");
  const holder = new Database(path);
  holder.run("PRAGMA journal_mode = DELETE");
  holder.run("BEGIN EXCLUSIVE");
  holder.run("UPDATE rollouts SET reward = 2");
  expect([200, 422]).toContain((await status("locked"))[0]);
  holder.run("ROLLBACK");
  holder.close();
  expect((await status("locked"))[0]).toBe(200);
});

test("rows of an older schema, and a file that is replaced by another", async () => {
  const { site, root } = siteOf((at) => {
    const old = new Database(join(makeRun(at, "old"), "rollouts.sqlite"));
    old.run(
      "CREATE TABLE rollouts (step INTEGER NOT NULL, epoch INTEGER NOT NULL, prompt_index INTEGER NOT NULL, rollout_index INTEGER NOT NULL, prompt TEXT NOT NULL, completion TEXT NOT NULL, reward REAL NOT NULL, advantage REAL NOT NULL, components TEXT)",
    );
    old.run(
      "CREATE TABLE eval_rollouts (step INTEGER NOT NULL, epoch INTEGER NOT NULL, mode TEXT NOT NULL, prompt_index INTEGER NOT NULL, rollout_index INTEGER NOT NULL, prompt TEXT NOT NULL, completion TEXT NOT NULL, reward REAL NOT NULL, components TEXT)",
    );
    old.run("INSERT INTO rollouts VALUES (1, 0, 2, 0, 'p', 'c', 0.5, 1, '{\"a\":0.5}')");
    old.run("PRAGMA user_version = 1");
    old.close();
  });
  const id = await idOf(site, "old");
  const { rows } = await site.get<RolloutPage>(`/api/runs/${id}/rollouts`);
  expect(rows).toEqual([
    {
      ...{ key: "1-0-2-0", step: 1, epoch: 0, prompt_index: 2, rollout_index: 0, reward: 0.5, advantage: 1 },
      ...{ mode: "", flagged: null, finish: null, tokens: null, prompt: "p", completion: "c" },
    },
  ]);
  expect((await site.get<RolloutDetail>(`/api/runs/${id}/rollouts/1-0-2-0`)).rollout.tokens_of).toBeNull();
  const dir = join(root, "old");
  renameSync(join(dir, "rollouts.sqlite"), join(dir, "was"));
  writeRollouts(dir, [row(7, 0), row(7, 1)]);
  expect((await site.get<RolloutPage>(`/api/runs/${id}/rollouts`)).rows.map((each) => each.step)).toEqual([
    7, 7,
  ]);
});

test("events: new rows, new rollouts, a run that comes and one that goes", async () => {
  const { site, root } = siteOf((at) => {
    makeRun(at, "watched", { rows: steps(3) });
    makeRun(at, "leaving", { rows: steps(3) });
  });
  const [id, leaving] = [await idOf(site, "watched"), await idOf(site, "leaving")];
  const stop = new AbortController();
  const seen: { event: string; data: unknown }[] = [];
  const reading = (async () => {
    for await (const each of site.events(`/api/events?runs=${id},${leaving},unknown`, stop.signal))
      seen.push(each);
  })().catch(() => {});
  const until = async (what: string, found: () => boolean) => {
    for (const end = Date.now() + 20_000; !found(); await Bun.sleep(20))
      if (Date.now() > end) throw new Error(`${what} did not come: ${JSON.stringify(seen).slice(0, 2000)}`);
  };
  const of = <T>(event: string) => seen.filter((each) => each.event === event).map((each) => each.data as T);
  // Its place is said at once, and again when it is watched: what comes from then on comes as rows.
  await until(
    "the beginning",
    () => of<MetricRows>("metrics").filter(({ run, total }) => run === id && total === 3).length === 2,
  );
  expect(seen[0]!.event).toBe("hello");
  appendFileSync(
    join(root, "watched", "metrics.jsonl"),
    `${jsonLine({ step: 4, time: 1004, "train/loss": 8 })}\n`,
  );
  await until("a row", () =>
    of<MetricRows>("metrics").some(({ run, rows }) => run === id && rows[0]?.step === 4),
  );
  writeRollouts(join(root, "watched"), [row(1, 0)]);
  await until("a rollout", () =>
    of<{ run: string; tables: { train: number } }>("rollouts").some(
      ({ run, tables }) => run === id && tables.train === 1,
    ),
  );
  await until("a change", () =>
    of<{ changed: { id: string; step: number }[] }>("runs").some(({ changed }) =>
      changed.some((run) => run.id === id && run.step === 4),
    ),
  );
  makeRun(root, "arriving", { rows: steps(1) });
  rmSync(join(root, "leaving"), { recursive: true });
  await until("a new run", () =>
    of<{ changed: { name: string }[] }>("runs").some(({ changed }) =>
      changed.some((run) => run.name === "arriving"),
    ),
  );
  await until("the end of one", () =>
    of<{ gone: string[] }>("runs").some(({ gone }) => gone.includes(leaving)),
  );
  expect((await site.fetch(`/api/runs/${leaving}`)).status).toBe(404);
  expect((await site.fetch(`/api/runs/${leaving}/rollouts`)).status).toBe(404);
  stop.abort();
  await reading;
});

test("the reader of runs may die: the next question is answered", async () => {
  const { site } = siteOf((root) => writeRollouts(makeRun(root, "one", { rows: steps(2) }), [row(1, 0)]));
  const id = await idOf(site, "one");
  const children = () => childrenOf(process.pid, "__data");
  const before = children();
  expect(before.length).toBeGreaterThan(0);
  for (const pid of before) process.kill(pid, "SIGKILL");
  for (let tries = 0; ; tries++) {
    const { status } = await site.fetch(`/api/runs/${id}/rollouts`);
    if (status === 200) break;
    expect(status).toBe(503);
    expect(tries).toBeLessThan(100);
    await Bun.sleep(20);
  }
  expect(children().some((pid) => before.includes(pid))).toBe(false);
});

test("a checkpoint is removed when it was confirmed, and never of a live run", async () => {
  const { site, root } = siteOf((at) => {
    makeRun(at, "done", { rows: steps(9), checkpoints: ["step-3", "step-6", "final"], outcome: 0 });
    makeRun(at, "live", { rows: steps(9), checkpoints: ["step-3"] });
    takeLock(join(at, "live"));
  });
  const id = await idOf(site, "done");
  const ask = async (name: string, body: unknown) => {
    const response = await site.post(`/api/runs/${id}/checkpoints/${name}/delete`, body);
    return [response.status, (await response.json()) as DeleteAnswer] as const;
  };
  const there = () => readdirSync(join(root, "done", "checkpoints")).sort();
  const [status, first] = await ask("step-3", {});
  expect(status).toBe(200);
  if (first.deleted) throw new Error("removed without a confirmation");
  expect(first.bytes).toBeGreaterThan(1000);
  expect(there()).toEqual(["final", "step-3", "step-6"]);
  expect((await ask("step-6", { confirm: first.confirm }))[0]).toBe(409);
  expect((await ask("step-3", { confirm: "guessed" }))[0]).toBe(409);
  expect(await ask("step-3", { confirm: first.confirm })).toEqual([200, { deleted: true }]);
  expect((await ask("step-3", { confirm: first.confirm }))[0]).toBe(404);
  expect(there()).toEqual(["final", "step-6"]);
  const live = await idOf(site, "live");
  expect((await site.post(`/api/runs/${live}/checkpoints/step-3/delete`, {})).status).toBe(409);
  expect(existsSync(join(root, "live", "checkpoints", "step-3"))).toBe(true);
});
