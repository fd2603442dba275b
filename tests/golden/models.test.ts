import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Purpose } from "../../src/core/rng.ts";
import { Device } from "../../src/device/device.ts";
import { checkWeights, openWeights, writeModelFolder } from "../../src/io/hf-folder.ts";
import { Dtype } from "../../src/ops/define.ts";
import { RolloutEngine } from "../../src/rollout/engine.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow, uploadRow } from "../../src/rollout/score.ts";
import { openModel } from "../../src/run/open-model.ts";
import { Graph } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { largest, Opened, relativeL2 } from "./support.ts";

const cases = goldenCases("models").filter((c) => c.kind === "causal_lm");
const scratch = mkdtempSync(join(tmpdir(), "rlv-golden-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const sequences = (golden: GoldenCase) => {
  const tensors = loadTensors(golden.dir);
  return [0, 1].map((i) => Int32Array.from(tensors.get(`ids.${i}`)!.data));
};

/** Every token but the first is a target: log p(ids[t+1] | ids[..t]). */
const asGroups = (list: readonly Int32Array[]) =>
  list.map((ids) => ({ prompt: ids.slice(0, 1), completions: [ids.slice(1)] }));

function logitsOf(opened: Opened, ids: Int32Array): Float32Array {
  const g = new Graph(opened.memory, false);
  // One segment: the whole sequence as a prompt, so that every position has a hidden state.
  const input = uploadRow(g, packGroups([{ prompt: ids, completions: [] }]));
  const hidden = opened.model.forward(g, { ...input, write: null });
  const logits = opened.model.logits(g, hidden);
  opened.memory.finish();
  const values = logits.float32().slice();
  g.release(hidden, logits);
  input.release();
  return values;
}

function columns(values: Float32Array, rows: number, kept: number): Float32Array {
  const width = values.length / rows;
  const out = new Float32Array(rows * kept);
  for (let r = 0; r < rows; r++) out.set(values.subarray(r * width, r * width + kept), r * kept);
  return out;
}

test("there are models to check", () => expect(cases.length).toBeGreaterThan(0));

describe.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  const want = loadTensors(golden.dir);
  const { tolerance } = golden.spec;

  test("logits, log-probabilities, entropy, loss", () => {
    using opened = new Opened(golden);
    const list = sequences(golden);
    const logps: number[] = [];
    list.forEach((ids, i) => {
      const logits = logitsOf(opened, ids);
      const expected = want.get(`logits.${i}`)!;
      expect(largest(columns(logits, ids.length, expected.shape[1]!), expected.data)).toBeLessThan(
        tolerance.logits_abs,
      );
    });
    const g = new Graph(opened.memory, false);
    const row = packGroups(asGroups(list));
    const { logprob, entropy } = forwardRow(g, opened.model, row, 1);
    opened.memory.finish();
    list.forEach((ids, i) => {
      const [begin, end] = [row.offsets[i]!, row.offsets[i + 1]!];
      const l = logprob.float32().subarray(begin, end);
      logps.push(...l);
      expect(largest(l, want.get(`logprobs.${i}`)!.data)).toBeLessThan(tolerance.logprobs_abs);
      const e = want.get(`entropy.${i}`)!.data.slice(0, ids.length - 1);
      expect(largest(entropy.float32().subarray(begin, end), e)).toBeLessThan(tolerance.logits_abs);
    });
    g.release(logprob, entropy);
    const loss = -logps.reduce((a, b) => a + b, 0) / logps.length;
    expect(Math.abs(loss - want.get("loss")!.data[0]!)).toBeLessThan(tolerance.loss_abs);
  });

  test.each([false, true])("gradient of every parameter, checkpointing %p", (checkpointing) => {
    using opened = new Opened(golden, { checkpointing });
    const { model, memory } = opened;
    model.parameters.zeroGradients();
    const g = new Graph(memory, true);
    const { logprob, entropy } = forwardRow(g, model, packGroups(asGroups(sequences(golden))), 1);
    const seed = g.upload(new Float32Array(logprob.size).fill(-1 / logprob.size), "seed");
    g.backward([[logprob, seed]]);
    g.release(logprob, entropy);
    memory.finish();
    let compared = 0;
    for (const p of model.parameters.list) {
      const got = model.parameters.readGradient(p.name);
      const full = want.get(`grad.${p.name}`);
      if (full) {
        // Some goldens keep the first rows of a matrix alone.
        expect(relativeL2(got.subarray(0, full.data.length), full.data)).toBeLessThan(
          tolerance.grad_relative_l2,
        );
        compared++;
      }
      const first = want.get(`grad_first_row.${p.name}`) ?? want.get(`grad_row0.${p.name}`);
      if (first) {
        expect(relativeL2(got.subarray(0, first.data.length), first.data)).toBeLessThan(
          tolerance.grad_relative_l2,
        );
        compared++;
      }
      const norm = want.get(`grad_norm.${p.name}`);
      if (norm) {
        const l2 = Math.sqrt(got.reduce((sum, x) => sum + x * x, 0));
        expect(Math.abs(l2 / norm.data[0]! - 1)).toBeLessThan(tolerance.grad_relative_l2);
      }
    }
    const named = [...want.keys()].filter((key) => /^grad(_first_row|_row0)?\./.test(key)).length;
    expect(compared).toBe(named);
    expect(memory.used).toBe(0);
  });

  test("greedy tokens, alone and together", () => {
    using opened = new Opened(golden, { trainable: false });
    const engine = new RolloutEngine(opened.memory, opened.model, {
      maxBatch: 4,
      maxLength: 100,
      prefillTokens: 64,
    });
    const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, maxNewTokens: 16, eosIds: [] };
    const key = { seed: 1, purpose: Purpose.generate, step: 0 };
    const list = sequences(golden);
    const requests = list.map((ids, prompt) => ({ ids, prompt, completions: 1 }));
    const together = engine.generate(requests, sampling, key);
    list.forEach((_, i) => {
      const expected = [...want.get(`greedy.${i}`)!.data];
      expect([...together[i]![0]!.ids]).toEqual(expected);
      const [[alone]] = engine.generate([requests[i]!], sampling, key) as unknown as [[{ ids: Int32Array }]];
      expect([...alone.ids]).toEqual(expected);
    });
    engine.dispose();
  });

  test("bfloat16 stays near", () => {
    using opened = new Opened(golden, { trainable: false, dtype: Dtype.bf16 });
    const noise = golden.spec.noise?.bf16_vs_f32;
    const allowed = typeof noise === "number" ? 2 * noise : 0.08 * golden.spec.logits_scale;
    sequences(golden).forEach((ids, i) => {
      const expected = want.get(`logits.${i}`)!;
      const got = columns(logitsOf(opened, ids), ids.length, expected.shape[1]!);
      expect(largest(got, expected.data)).toBeLessThan(allowed);
    });
  });

  test("saved and opened again: the same logits to the bit", () => {
    using opened = new Opened(golden);
    const folder = join(scratch, golden.name.replace("/", "-"));
    const { parameters, config } = opened.model;
    const tensors = parameters.list.map((p) => ({
      name: p.name,
      shape: p.shape,
      dtype: "F32" as const,
      data: () => new Uint8Array(parameters.read(p.name).buffer),
    }));
    writeModelFolder(folder, { ...config, dtype: "float32" }, tensors, []);
    using weights = openWeights(folder);
    checkWeights(config, weights);
    const device = Device.open("cpu", 1);
    const again = openModel(folder, device, { dtype: Dtype.f32, trainable: false, maxPositions: 128 });
    for (const p of parameters.list) {
      expect(largest(again.parameters.read(p.name), parameters.read(p.name))).toBe(0);
    }
    again.dispose();
    device.close();
  });

  test("the transformers 4 spelling of its config is the same model", () => {
    const folder = join(scratch, `${golden.name.replace("/", "-")}-v4`);
    const source = join(golden.dir, golden.spec.model);
    cpSync(source, folder, { recursive: true });
    cpSync(join(source, "config.v4.json"), join(folder, "config.json"));
    const spelled: GoldenCase = {
      ...golden,
      dir: scratch,
      spec: { ...golden.spec, model: folder.slice(scratch.length + 1) },
    };
    using opened = new Opened(spelled, { trainable: false });
    const ids = sequences(golden)[0]!;
    const expected = want.get("logits.0")!;
    const got = columns(logitsOf(opened, ids), ids.length, expected.shape[1]!);
    expect(largest(got, expected.data)).toBeLessThan(tolerance.logits_abs);
  });
});
