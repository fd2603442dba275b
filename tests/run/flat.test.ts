/**
 * GRPO steps of the same size take the same time and memory, however many came before. `scripts/test long` runs 300 of
 * the size that the benchmark has; the ordinary suite a few small ones.
 */
import { expect, test } from "bun:test";
import { Bench, median } from "../../src/run/bench/context.ts";
import { GrpoSubject } from "../../src/run/bench/grpo.ts";

const long = process.env.RLV_TEST_LONG === "1";
const work = {
  ...(long
    ? { prompt: 24, completion: 128, group: 16, completions: 32 }
    : { prompt: 9, completion: 12, group: 4, completions: 8 }),
  ...{ beta: 0.02, share_prefix: true, micro_batch_tokens: 8192 },
};
const steps = long ? 300 : 12;
/** Buffers of the first steps grow to what a step needs. */
const SETTLED = 3;
/** Memory of the process beside the device's own: JavaScript's heap breathes. */
const RESIDENT_SLACK = 96 * 2 ** 20;

test(`${steps} steps: live bytes stay, and so does the time of a step`, async () => {
  const options = { device: "cpu", threads: 2, dtype: "float32", seed: 1, steps: 1 } as const;
  const bench = new Bench("grpo", options, () => {});
  const { beta, prompt, completion } = work;
  const subject = new GrpoSubject(bench, "stories", prompt + completion, { beta, checkpointing: false });
  const { policy, prompts } = subject.step(work);
  const seconds: number[] = [];
  let settled = { bytes: 0, buffers: 0, resident: 0 };
  for (let i = 0; i < steps; i++) {
    const begin = performance.now();
    const metrics = await subject.run(policy, prompts);
    seconds.push((performance.now() - begin) / 1000);
    expect(metrics["train/sampler_logp_diff_max"]).toBe(0);
    expect(subject.memory.used).toBe(0);
    const { liveBytes, liveBuffers } = bench.device.stats();
    const resident = process.memoryUsage().rss;
    if (i < SETTLED) settled = { bytes: liveBytes, buffers: liveBuffers, resident };
    expect([liveBytes, liveBuffers]).toEqual([settled.bytes, settled.buffers]);
    expect(resident).toBeLessThan(settled.resident + RESIDENT_SLACK);
  }
  policy.dispose();
  subject.dispose();
  expect(bench.device.stats()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
  bench.device.close();
  if (!long) return;
  // Others may use the machine too: the best of a stretch says more than its mean.
  const third = Math.floor(steps / 3);
  const [first, last] = [seconds.slice(SETTLED, third), seconds.slice(-third)];
  const best = (times: readonly number[]) => Math.min(...times);
  console.log(
    `step time, best and median of the first and last third: ${[first, last]
      .map((times) => `${best(times).toFixed(3)} s, ${median(times).toFixed(3)} s`)
      .join("; ")}`,
  );
  expect(best(last)).toBeLessThan(1.15 * best(first));
}, 3_600_000);
