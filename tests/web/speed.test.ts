/**
 * How long the page's questions take over 50 runs, one of them with 100 000 rollouts. The best of some tries counts: a
 * busy machine is slower than its best, never faster.
 *
 * Runs alone: it measures time.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { makeRuns } from "../../scripts/make-runs.ts";
import type { RolloutPage, RunList } from "../../src/web/api.ts";
import { Scratch, Site } from "./site.ts";

const ROLLOUTS = 100_000;
let scratch: Scratch;
let site: Site;
let id: string;
let runs: RunList["runs"];

beforeAll(async () => {
  scratch = new Scratch();
  makeRuns({ out: scratch.dir, runs: 50, steps: 1500, rollouts: ROLLOUTS, seed: 3 });
  site = new Site(scratch.dir);
  ({ runs } = await site.get<RunList>("/api/runs"));
  id = runs.find((run) => run.name === "long-grpo")!.id;
}, 240_000);

afterAll(async () => {
  await site[Symbol.asyncDispose]();
  scratch[Symbol.dispose]();
});

async function best(tries: number, ask: () => Promise<unknown>): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < tries; i++) {
    const begin = performance.now();
    await ask();
    least = Math.min(least, performance.now() - begin);
  }
  return least;
}

test("from nothing to the first rows of 100 000, and to all that the first view asks, in less than a second", async () => {
  expect(runs.length).toBe(50);
  const times = { cold: Number.POSITIVE_INFINITY, first: Number.POSITIVE_INFINITY };
  let page: RolloutPage | undefined;
  await best(3, async () => {
    await using fresh = new Site(scratch.dir);
    // The reader's own start does not count: a page is opened by a person, later.
    await fresh.get(`/api/compare?a=${id}&b=${id}`);
    const begin = performance.now();
    page = await fresh.get<RolloutPage>(`/api/runs/${id}/rollouts?limit=100`);
    times.cold = Math.min(times.cold, performance.now() - begin);
  });
  expect([page!.total, page!.rows.length]).toEqual([ROLLOUTS, 100]);
  expect(times.cold).toBeLessThan(1000);
  await best(3, async () => {
    await using fresh = new Site(scratch.dir);
    await fresh.get(`/api/compare?a=${id}&b=${id}`);
    const begin = performance.now();
    await Promise.all([
      fresh.fetch("/").then((response) => response.text()),
      fresh.get("/api/runs"),
      fresh.get(`/api/runs/${id}`),
      fresh.get(`/api/metrics?runs=${id}&points=1000`),
    ]);
    times.first = Math.min(times.first, performance.now() - begin);
  });
  expect(times.first).toBeLessThan(1000);
}, 120_000);

test("a filter, an order or a search of 100 000 rollouts takes less than 200 ms", async () => {
  const ask = (query: string) => site.get<RolloutPage>(`/api/runs/${id}/rollouts?limit=100&${query}`);
  // The texts are read behind the first look; then searches are answered from memory.
  expect((await ask("search=zebra-42")).total).toBe(Math.ceil((ROLLOUTS - 17) / 9973));
  const queries = [
    "",
    "reward_min=2.2",
    "step_min=700&step_max=900&advantage_sign=1",
    "flagged=yes&sort=advantage&order=asc",
    "sort=reward",
    "sort=length&order=asc&offset=90000",
    "finish=length&reward_max=0.5",
    "search=silver%20winter",
    "search=a",
    "search=not%20there%20at%20all",
    "search=river&flagged=no&reward_min=1.5&sort=reward",
  ];
  for (const [i, query] of queries.entries()) {
    const took = await best(5, () => ask(query));
    // Nobody has asked this before: letters as they are typed.
    const fresh = query.includes("search=")
      ? await best(5, () =>
          ask(query.replace("search=", `search=${"qxzj"[i % 4]}${Math.floor(Math.random() * 1e6)}`)),
        )
      : 0;
    expect([query, took < 200, fresh < 200]).toEqual([query, true, true]);
  }
}, 60_000);

test("the list of 50 runs, the curves of all of them and a group take less than 200 ms", async () => {
  const all = runs.map((run) => run.id).join(",");
  const page = await site.get<RolloutPage>(`/api/runs/${id}/rollouts?limit=1`);
  for (const path of [
    "/api/runs",
    `/api/runs/${id}`,
    `/api/metrics?runs=${all}&names=train/reward_mean&points=300`,
    `/api/runs/${id}/rollouts/${page.rows[0]!.key}`,
  ])
    expect([path.slice(0, 40), (await best(5, () => site.get(path))) < 200]).toEqual([
      path.slice(0, 40),
      true,
    ]);
}, 60_000);

test("while rollouts are read for the first time, the server answers others at once", async () => {
  const slowestOf: number[] = [];
  await best(3, async () => {
    await using fresh = new Site(scratch.dir);
    const reading = fresh.get(`/api/runs/${id}/rollouts?search=river`);
    let slowest = 0;
    let done = false;
    const asking = (async () => {
      while (!done) {
        const begin = performance.now();
        await fresh.get("/api/system");
        slowest = Math.max(slowest, performance.now() - begin);
        await Bun.sleep(5);
      }
    })();
    await reading;
    done = true;
    await asking;
    slowestOf.push(slowest);
  });
  expect(Math.min(...slowestOf)).toBeLessThan(100);
}, 60_000);
