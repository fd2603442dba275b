import { expect, test } from "bun:test";
import { Device } from "../../src/device/device.ts";
import { Dtype } from "../../src/ops/define.ts";
import { sample } from "../../src/ops/head.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";

const cases = goldenCases("sampling").filter((c) => c.kind === "sampling");
const DRAWS = 4000;
test("there are distributions to check", () => expect(cases.length).toBeGreaterThan(0));

/** Draws from every row: only kept tokens, with the right frequencies; logprob is that of the unfiltered softmax. */
test.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  const want = loadTensors(golden.dir);
  const { shape, data: logits } = want.get("logits")!;
  const [rows, vocab] = shape as [number, number];
  const probs = want.get("probs")!.data;
  const keep = want.get("keep")!.data;
  const { temperature = 1, top_k = 0, top_p = 1, min_p = 0 } = golden.spec.params;
  const device = Device.open("cpu", 2);
  const memory = new StepMemory(device);
  for (let row = 0; row < rows; row++) {
    const g = new Graph(memory, false);
    const one = Float32Array.from(logits.subarray(row * vocab, (row + 1) * vocab));
    const repeated = new Float32Array(DRAWS * vocab);
    for (let i = 0; i < DRAWS; i++) repeated.set(one, i * vocab);
    const counters = new Uint32Array(DRAWS * 4);
    for (let i = 0; i < DRAWS; i++) counters.set([i, row, 7, 1], 4 * i);
    const ids = g.empty([DRAWS], Dtype.f32, "ids");
    const logprob = g.empty([DRAWS], Dtype.f32, "logprob");
    const inputs = [g.upload(repeated, "logits"), g.upload(counters, "counters")] as const;
    g.apply(
      sample,
      { ids, logprob, logits: inputs[0], counters: inputs[1] },
      { batch: DRAWS, vocab, seed: 3, purpose: 1, inv_temp: 1 / temperature, top_k, top_p, min_p, greedy: 0 },
    );
    memory.finish();
    const z = Array.from(one, (l) => l / temperature);
    const top = Math.max(...z);
    const lse = top + Math.log(z.reduce((sum, v) => sum + Math.exp(v - top), 0));
    const counts = new Float64Array(vocab);
    ids.uint32().forEach((id, i) => {
      expect(keep[row * vocab + id]).toBe(1);
      counts[id]!++;
      expect(Math.abs(logprob.float32()[i]! - (z[id]! - lse))).toBeLessThan(
        1e-4 * Math.max(1, Math.abs(lse)),
      );
    });
    // Chi-square over cells with at least 5 expected draws, the rest pooled; 1e-6 quantile by Wilson-Hilferty.
    let chi = 0;
    let cells = 0;
    let [restSeen, restExpected] = [0, 0];
    for (let id = 0; id < vocab; id++) {
      const expected = probs[row * vocab + id]! * DRAWS;
      if (expected < 5) {
        restSeen += counts[id]!;
        restExpected += expected;
        continue;
      }
      chi += (counts[id]! - expected) ** 2 / expected;
      cells++;
    }
    if (restExpected >= 5) {
      chi += (restSeen - restExpected) ** 2 / restExpected;
      cells++;
    }
    if (cells > 1) {
      const df = cells - 1;
      const limit = df * (1 - 2 / (9 * df) + 4.75 * Math.sqrt(2 / (9 * df))) ** 3;
      expect(chi).toBeLessThan(limit);
    }
    g.release(ids, logprob, ...inputs);
  }
  memory.dispose();
  device.close();
});
