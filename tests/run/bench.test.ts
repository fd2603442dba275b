import { describe, expect, test } from "bun:test";
import { benchSchemas } from "../../src/config/schema-inference.ts";
import { Bench, type Result } from "../../src/run/bench/context.ts";
import { GrpoSubject } from "../../src/run/bench/grpo.ts";
import { runBench } from "../../src/run/bench/index.ts";
import { configOf } from "../../src/run/bench/shapes.ts";
import { Costs, groupRows, leastSeconds } from "../../src/run/limits.ts";

describe("what work costs at least", () => {
  test("weights, cache and attention of the shapes", () => {
    const qwen = new Costs(configOf("qwen3-0.6b"), 2);
    expect([qwen.trunk, qwen.head, qwen.pair, qwen.kvBytes]).toEqual([
      440_401_920, 155_582_464, 229_376, 114_688,
    ]);
    const stories = new Costs(configOf("stories"), 4);
    expect([stories.trunk, stories.head, stories.pair, stories.kvBytes]).toEqual([
      720_384, 524_288, 2048, 2048,
    ]);
    expect(new Costs(configOf("qwen3-0.6b", "reward"), 2).head).toBe(1024);
  });

  test("rows of groups: prompts once, or once a completion", () => {
    expect(groupRows(2, 3, 4, 5)).toEqual({ tokens: 46, pairs: 2 * 6 + 8 * (15 + 15), scored: 40 });
    expect(groupRows(8, 3, 1, 5)).toEqual({ tokens: 64, pairs: 8 * 6 + 8 * (15 + 15), scored: 40 });
  });

  test("seconds: what takes longer of each work, one after the other", () => {
    const limit = { gemm_gflops: 100, gemm_gflops_median: 90, read_gbps: 10, read_gbps_median: 9 };
    const works = [
      { flops: 2e11, bytes: 1e9 },
      { flops: 1e9, bytes: 3e10 },
    ];
    expect(leastSeconds(works, limit)).toBeCloseTo(2 + 3, 12);
  });
});

const context = { talk: () => {}, program: [] };
const steps = { steps: 1, threads: 2 };
const phasesOf = (result: Result) => result.phases as readonly Record<string, number | string>[];

/** What every result has; phases in their order. */
function expectResult(result: Result, phases: readonly string[]): void {
  expect(result).toMatchObject({ shape: "stories", device: "cpu", threads: 2, dtype: "float32" });
  expect(phasesOf(result).map(({ phase }) => phase)).toEqual([...phases]);
  for (const name of ["peak_bytes", "fraction_of_limit"]) expect(result[name]).toBeGreaterThan(0);
  for (const [name, value] of Object.entries(result.limit as object)) {
    expect(name).toMatch(/^(gemm_gflops|read_gbps)/);
    expect(value).toBeGreaterThan(0);
  }
}

test("logprob: one line against many, the same numbers, and how many tokens each encodes", async () => {
  const options = benchSchemas.logprob.parse({ prompt: 40, continuations: 9, continuation: 3, ...steps });
  const result = await runBench("logprob", options, context);
  expectResult(result, ["shared", "kept", "separate"]);
  expect(result).toMatchObject({ shared_tokens: 58, kept_tokens: 66, separate_tokens: 378, head_rows: 27 });
  expect(result.logp_diff_max).toBe(0);
  expect(result.speedup).toBe(Number(result.separate_s) / Number(result.shared_s));
});

const sizes = { prompt: 5, completion: 6, group: 4, completions: 8 };

test.each([true, false])("grpo, prefix shared %p: phases make up the step", async (share_prefix) => {
  const options = benchSchemas.grpo.parse({ ...sizes, ...steps, share_prefix });
  const result = await runBench("grpo", options, context);
  expectResult(result, ["prefill", "decode", "reference", "training", "optimizer"]);
  const sum = phasesOf(result).reduce((total, phase) => total + Number(phase.seconds), 0);
  expect(sum).toBeGreaterThan(0.5 * Number(result.step_s));
  expect(sum).toBeLessThan(1.01 * Number(result.step_s));
  expect(result.sampler_logp_diff_max).toBe(0);
});

test("a routed step of ranks 8 and 8 computes what one of rank 16 does, and mixed groups' prompts once more", async () => {
  const flopsOf = async (ranks: { lora_r: number; forget_lora_r: number }, flagged: number) => {
    const options = benchSchemas.grpo.parse({ ...steps, ...ranks, flagged, completion: 32 });
    using bench = new Bench("grpo", options, context.talk);
    const subject = new GrpoSubject(bench, "stories", 24 + 32, options);
    const { policy, prompts } = subject.step(options);
    const before = bench.device.stats().flops;
    await subject.run(policy, prompts);
    const flops = bench.device.stats().flops - before;
    policy.dispose();
    subject.dispose();
    return flops;
  };
  const plain = await flopsOf({ lora_r: 16, forget_lora_r: 0 }, 0);
  const routed = { lora_r: 8, forget_lora_r: 8 };
  expect((await flopsOf(routed, 0)) / plain).toBe(1);
  for (const flagged of [0.3, 0.5]) {
    const ratio = (await flopsOf(routed, flagged)) / plain;
    // Two prompts of 24 tokens more among 2 × 24 + 32 × 31 trained ones; sampling and scoring are the same.
    expect(ratio).toBeGreaterThan(1);
    expect(ratio).toBeLessThan(1 + 48 / 1040);
  }
});

test("decode, prefill, train, rm", async () => {
  const decode = benchSchemas.decode.parse({ ...steps, batch: 3, prompt: 5, tokens: 4 });
  expectResult(await runBench("decode", decode, context), ["decode"]);
  const prefill = benchSchemas.prefill.parse({ ...steps, tokens: 20 });
  expectResult(await runBench("prefill", prefill, context), ["prefill"]);
  const train = benchSchemas.train.parse({ ...steps, batch: 2, seq: 20 });
  expectResult(await runBench("train", train, context), ["forward", "backward"]);
  const rm = benchSchemas.rm.parse({ ...steps, pairs: 2, seq: 12, prompt: 5 });
  const result = await runBench("rm", rm, context);
  expectResult(result, ["training", "optimizer"]);
  expect(result.tokens).toBe(2 * (5 + 2 * 7));
  const wrong = benchSchemas.rm.parse({ seq: 4, prompt: 5 });
  expect(runBench("rm", wrong, context)).rejects.toThrow("give a shorter prompt");
});

test("ops: each operation of a step by its shape and phase", async () => {
  const options = benchSchemas.ops.parse({ ...sizes, ...steps });
  const result = await runBench("ops", options, context);
  const rows = result.ops as readonly Record<string, number | string>[];
  const named = (phase: string, op: string, shape: string) =>
    rows.find((row) => row.phase === phase && row.op === op && row.shape === shape);
  // Head while decoding: 8 rows a token, 5 tokens after the first.
  expect(named("decode", "gemm_nt", "8x4096x128")?.calls).toBe(5);
  expect(named("prefill", "gemm_nt", "8x4096x128")?.calls).toBe(1);
  // Two prompts of 5 and eight completions without their last token, keys and values of 4 layers.
  for (const phase of ["reference", "training"])
    expect(named(phase, "gemm_nt", `${2 * 5 + 8 * 5}x64x128`)?.calls).toBe(8);
  expect(named("training", "gemm_tn", "50x64x128")?.calls).toBe(8);
  expect(rows.some(({ phase, op }) => phase === "optimizer" && op === "adamw")).toBe(true);
  const share = (name: string, of = rows) => of.reduce((sum, row) => sum + Number(row[name]), 0);
  expect(share("share_of_step")).toBeCloseTo(1, 6);
  for (const [, of] of Map.groupBy(rows, ({ phase }) => phase))
    expect(share("share_of_phase", of)).toBeCloseTo(1, 6);
  for (const row of rows) expect(row.large === undefined).toBe(Number(row.share_of_phase) <= 0.05);
});

test("judging costs at most 1.3 times the tokens of encoding the responses, short ones too", async () => {
  const options = benchSchemas.judge.parse({ ...steps, completion: 128 });
  const result = await runBench("judge", options, context);
  expectResult(result, ["encode", "judge"]);
  const { responses, criteria, prompt, completion, shared, own, answer } = options;
  expect([responses, criteria]).toEqual([16, 3]);
  expect(result.encoded_tokens).toBe(prompt + responses * completion);
  expect(result.tokens).toEqual({
    ...{ prompt, responses: responses * completion, preamble: 0 },
    questions: responses * (shared + criteria * own),
    decoded: responses * criteria * (answer - 1),
  });
  expect(Number(result.token_ratio)).toBeLessThan(1.3);
  // Three criteria each with the whole conversation would be more than three times as much.
  const learning = await runBench("judge", { ...options, frozen: false, completion: 32 }, context);
  expect(learning.tokens).toMatchObject({ preamble: options.preamble });
}, 60_000);
