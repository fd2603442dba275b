/** rlv eval on runs that training made, and on those that lack something. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Scored } from "../../src/core/records.ts";
import { evaluationLines, freshReport, historyOf } from "../../src/report/evaluation.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { templated } from "../report/texts.ts";
import { rlv, SHORT } from "../run/program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-eval-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const dir = ["--dir", scratch];

beforeAll(async () => {
  const { code, err } = await rlv(["train", ...SHORT, "--output_dir", scratch, "--run_name", "real"]);
  expect([err, code]).toEqual(["", 0]);
  makeRun(scratch, "empty", { rows: steps(20) });
  makeRun(scratch, "judge", { recipe: "hh-rm", rows: [{ step: 1, time: 1, "eval/accuracy": 0.75 }] });
}, 120_000);

const evaluate = async (...args: string[]) => {
  const { code, out, err } = await rlv(["eval", ...args, ...dir, "--json"]);
  return { code, err, result: out === "" ? null : JSON.parse(out) };
};

test("a run: fresh completions by its prompts, sampling and reward; the same seed, the same report", async () => {
  const { result, code } = await evaluate("real", "--n", "4", "--prompts", "6", "--samples", "3");
  expect(code).toBe(0);
  const [report] = result.evaluations;
  expect(report).toMatchObject({
    name: "real/final",
    recipe: "arithmetic",
    state: "finished",
    step: 6,
    note: null,
  });
  expect(report.fresh).toMatchObject({ prompts: 6, completions: 24, flagged_share: null });
  expect(report.fresh.samples.length).toBe(3);
  expect(report.fresh.reward.mean).toBeGreaterThan(0);
  expect(report.fresh.best_of_n).toBeGreaterThanOrEqual(report.fresh.reward.mean);
  expect(report.fresh.diversity).toMatchObject({ completions: 24, degenerate: false });
  expect(report.history.metric).toBe("eval/reward");
  expect(report.kl).toBeGreaterThan(0);
  const checkpoint = join(scratch, "real/checkpoints/final");
  const again = await evaluate(checkpoint, "--n", "4", "--prompts", "6", "--samples", "3", "--threads", "1");
  expect(again.result.evaluations[0].fresh).toEqual(report.fresh);
  const greedy = await evaluate(
    "real",
    "--n",
    "2",
    "--prompts",
    "6",
    "--temperature",
    "0",
    "--samples",
    "12",
  );
  const texts = greedy.result.evaluations[0].fresh.samples.map(
    (each: { completion: string }) => each.completion,
  );
  for (let i = 0; i < texts.length; i += 2) expect(texts[i]).toBe(texts[i + 1]);
});

test("several runs are compared; what cannot be sampled is reported from what it wrote", async () => {
  const { out, code } = await rlv(["eval", "real", "empty", "judge", ...dir, "--prompts", "2", "--n", "2"]);
  expect(code).toBe(0);
  expect(out).toContain("no whole checkpoint yet");
  expect(out).toMatch(/train\/reward_mean ▁.*█ 0\.05 → 1, best 1/);
  expect(out).toMatch(/eval\/accuracy ▁ 0\.75/);
  expect(out.trimEnd().split("\n").slice(-4)[0]).toMatch(/^name +step +reward/);
  const { result } = await evaluate("real", "--fresh", "false");
  expect(result.evaluations[0]).toMatchObject({
    fresh: null,
    note: expect.stringContaining("--fresh false"),
  });
});

test("what is nothing to evaluate: code 2 with a remedy", async () => {
  expect(await evaluate("nothing")).toMatchObject({
    code: 2,
    err: expect.stringMatching(/no run "nothing"/),
  });
  expect(await evaluate()).toMatchObject({ code: 2, err: expect.stringMatching(/nothing to evaluate/) });
});

test("a template is called by its name, components and flags are averaged, unscored completions are left out", () => {
  const scored = templated(32).map(
    (text, i): Scored => ({
      prompt: { index: i >> 2, text: `p${i >> 2}`, ids: Int32Array.of(1), fields: {} },
      completion: i % 4,
      ids: new Int32Array(10),
      logprobs: new Float32Array(10),
      lse: null,
      entropies: null,
      text,
      finish: i % 2 ? "eos" : "length",
      reward: i === 0 ? Number.NaN : i % 4,
      components: { a: 1, b: i % 4 },
      ...(i % 4 === 0 ? { flagged: i % 8 === 0 } : {}),
    }),
  );
  const fresh = freshReport(scored, 2);
  expect(fresh).toMatchObject({ best_of_n: 3, mean_tokens: 10, eos_share: 0.5, flagged_share: 0.5 });
  expect(fresh.reward!.mean).toBeCloseTo((32 * 1.5) / 31, 12);
  expect(fresh.components.a).toBe(1);
  expect(fresh.samples[0]!.reward).toBeNull();
  expect(fresh.diversity.degenerate).toBe(true);
  const lines = evaluationLines(
    {
      ...{ name: "x", run: null, recipe: null, state: null, checkpoint: "c", step: 1, note: null },
      ...{ fresh, modes: null, history: null, kl: null, judge: null },
    },
    (text) => text,
  );
  expect(lines.join("\n")).toMatch(/DEGENERATE: \d+ % follow a template/);
});

test("the history of a long run is a few points with its ends", () => {
  const run = makeRun(scratch, "long", { rows: steps(5000) });
  const { history } = historyOf(run);
  expect(history!.values.length).toBe(200);
  expect([history!.steps[0], history!.steps.at(-1), history!.best]).toEqual([1, 5000, 1]);
});
