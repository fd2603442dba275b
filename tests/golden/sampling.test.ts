import { describe, expect, test } from "bun:test";
import { Dtype, VOCAB_TILE } from "../../src/ops/define.ts";
import { sample } from "../../src/ops/head.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { openTestDevice, testDeviceName } from "../test-device.ts";

const cases = goldenCases("sampling").filter((c) => c.kind === "sampling");
// Software Metal draws a thousand times slower than a device does.
const DRAWS = testDeviceName === "soft" ? 150 : 4000;

interface Filters {
  readonly temperature: number;
  readonly top_k: number;
  readonly top_p: number;
  readonly min_p: number;
}

/** One draw a row of logits [batch, vocab]; the random counters of draw i are (i, row, 7, 1). */
function draw(logits: Float32Array, vocab: number, row: number, filters: Filters, greedy: 0 | 1) {
  const device = openTestDevice(2);
  const memory = new StepMemory(device);
  const g = new Graph(memory, false);
  const batch = logits.length / vocab;
  const counters = new Uint32Array(batch * 4);
  for (let i = 0; i < batch; i++) counters.set([i, row, 7, 1], 4 * i);
  const ids = g.empty([batch], Dtype.f32, "ids");
  const logprob = g.empty([batch], Dtype.f32, "logprob");
  const inputs = [g.upload(logits, "logits"), g.upload(counters, "counters")] as const;
  const work = g.empty([batch, Math.ceil(vocab / VOCAB_TILE), 4], Dtype.f32, "tiles");
  const { temperature, top_k, top_p, min_p } = filters;
  g.apply(
    sample,
    { ids, logprob, logits: inputs[0], counters: inputs[1], work },
    { batch, vocab, seed: 3, purpose: 1, inv_temp: 1 / temperature, top_k, top_p, min_p, greedy },
  );
  memory.finish();
  const result = { ids: ids.uint32().slice(), logprobs: logprob.float32().slice() };
  g.release(ids, logprob, work, ...inputs);
  memory.dispose();
  device.close();
  return result;
}

/** Log-probabilities at a temperature, in float64. */
function logSoftmax(logits: ArrayLike<number>, temperature: number): Float64Array {
  const z = Float64Array.from(logits, (l) => l / temperature);
  const top = z.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const lse = top + Math.log(z.reduce((sum, v) => sum + Math.exp(v - top), 0));
  return z.map((v) => v - lse);
}

/** Pearson's statistic over cells of at least 5 expected draws (rarer tokens share one) and its 1e-6 quantile. */
function chiSquare(counts: Float64Array, expected: Float64Array): { value: number; limit: number } {
  const order = [...expected.keys()].filter((id) => expected[id]! > 0 || counts[id]! > 0);
  order.sort((a, b) => expected[a]! - expected[b]!);
  const cells: { seen: number; expected: number }[] = [];
  let open = { seen: 0, expected: 0 };
  for (const id of order) {
    open.seen += counts[id]!;
    open.expected += expected[id]!;
    if (open.expected < 5) continue;
    cells.push(open);
    open = { seen: 0, expected: 0 };
  }
  const value = cells.reduce((sum, c) => sum + (c.seen - c.expected) ** 2 / c.expected, 0);
  const df = cells.length - 1;
  // Wilson and Hilferty, 1931; 4.75 is the normal distribution's quantile.
  const limit = df === 0 ? 1e-3 : df * (1 - 2 / (9 * df) + 4.75 * Math.sqrt(2 / (9 * df))) ** 3;
  return { value, limit };
}

test("there are distributions to check", () => expect(cases.length).toBeGreaterThan(0));

describe.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  const want = loadTensors(golden.dir);
  const { shape, data: logits } = want.get("logits")!;
  const [rows, vocab] = shape as [number, number];
  const probs = want.get("probs")!.data;
  const keep = want.get("keep")!.data;
  const filters: Filters = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, ...golden.spec.params };
  const rowOf = (row: number) => Float32Array.from(logits.subarray(row * vocab, (row + 1) * vocab));

  test("only kept tokens, as often as they should be; log-probabilities of the unfiltered softmax", () => {
    for (let row = 0; row < rows; row++) {
      const one = rowOf(row);
      const repeated = new Float32Array(DRAWS * vocab);
      for (let i = 0; i < DRAWS; i++) repeated.set(one, i * vocab);
      const { ids, logprobs } = draw(repeated, vocab, row, filters, 0);
      const expected = logSoftmax(one, filters.temperature);
      // At a low temperature logits are large, and so is what a float32 loses of them.
      const tolerance = 1e-6 * Math.max(10, ...expected.map(Math.abs));
      const counts = new Float64Array(vocab);
      let worst = 0;
      ids.forEach((id, i) => {
        counts[id]!++;
        worst = Math.max(worst, Math.abs(logprobs[i]! - expected[id]!));
      });
      expect(worst).toBeLessThan(tolerance);
      const kept = keep.subarray(row * vocab, (row + 1) * vocab);
      expect([...counts.keys()].filter((id) => counts[id]! > 0 && kept[id] !== 1)).toEqual([]);
      const { value, limit } = chiSquare(
        counts,
        probs.subarray(row * vocab, (row + 1) * vocab).map((p) => p * DRAWS),
      );
      expect(value).toBeLessThan(limit);
    }
  });

  test("greedy takes the first of the largest logits, whatever the filters", () => {
    const { ids, logprobs } = draw(Float32Array.from(logits), vocab, 0, filters, 1);
    for (let row = 0; row < rows; row++) {
      const one = rowOf(row);
      expect(ids[row]).toBe(one.indexOf(one.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)));
      const expected = logSoftmax(one, filters.temperature);
      const tolerance = 1e-6 * Math.max(10, ...expected.map(Math.abs));
      expect(Math.abs(logprobs[row]! - expected[ids[row]!]!)).toBeLessThan(tolerance);
    }
  });
});
