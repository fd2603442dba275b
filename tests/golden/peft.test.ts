/** Adapters that PEFT wrote: what a model computes and learns with them, without them, and with them merged. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkWeights, openWeights, readModelConfig } from "../../src/io/hf-folder.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { type Decoder, Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { packGroups, packSequences } from "../../src/rollout/pack.ts";
import { forwardRewards, forwardRow, uploadRow } from "../../src/rollout/score.ts";
import { merge } from "../../src/run/merge.ts";
import { loadAdapters, readAdapter } from "../../src/run/open-model.ts";
import { PreferenceStep } from "../../src/run/preference-step.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { openTestDevice } from "../test-device.ts";
import { largest, norm, relativeL2 } from "./support.ts";

const cases = goldenCases("peft").filter((c) => c.kind === "peft_lora");
const scratch = mkdtempSync(join(tmpdir(), "rlv-peft-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Below it the first step of Adam, which is about the sign, may go another way. */
const SMALL_GRADIENT = 1e-6;

class Opened implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly model: Transformer;
  constructor(folder: string, adapter: string | null, checkpointing = false) {
    const config = readModelConfig(folder);
    using weights = openWeights(folder);
    checkWeights(config, weights);
    this.model = new Transformer(this.device, config, {
      dtype: Dtype.f32,
      trainable: true,
      maxPositions: 64,
      checkpointing,
      lora: adapter === null ? null : readAdapter(adapter, config),
    });
    this.model.loadWeights(weights);
    if (adapter !== null) loadAdapters(this.model, adapter);
  }
  get optimizer(): AdamW {
    return new AdamW(this.model.trained, {
      ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 0, seed: 1 },
    });
  }
  /** Logits of every position, or the reward of the last. */
  output(model: Decoder, ids: Int32Array): Float32Array {
    const g = new Graph(this.memory, false);
    if (model.config.kind === "reward") {
      const rewards = forwardRewards(
        g,
        model,
        packSequences([{ prompt: ids, completions: [new Int32Array(0)] }]),
      );
      this.memory.finish();
      const values = rewards.float32().slice();
      g.release(rewards);
      return values;
    }
    const input = uploadRow(g, packGroups([{ prompt: ids, completions: [] }]));
    const hidden = model.forward(g, { ...input, cached: null });
    const logits = model.logits(g, hidden);
    this.memory.finish();
    const values = logits.float32().slice();
    g.release(hidden, logits);
    input.release();
    return values;
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.model.dispose();
    this.device.close();
  }
}

/** PEFT's name in memory, where adapters have names of their own. */
function inMemory(name: string): string {
  if (name === "base_model.model.score.weight")
    return "base_model.model.score.modules_to_save.default.weight";
  return name.replace(/\.(lora_[AB])\.weight$/, ".$1.default.weight");
}

test("there are adapters to check", () => expect(cases.length).toBeGreaterThan(0));

describe.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden: GoldenCase) => {
  const want = loadTensors(golden.dir);
  const of = (name: string) => {
    const tensor = want.get(name);
    if (!tensor) throw new Error(`${golden.name} has no ${name}`);
    return tensor.data;
  };
  const { tolerance } = golden.spec;
  const [folder, adapter] = [golden.spec.model, golden.spec.adapter].map((name) =>
    join(golden.dir, name),
  ) as [string, string];
  const list = [0, 1].map((i) => Int32Array.from(of(`ids.${i}`)));

  test("outputs with the adapter and without it", () => {
    using opened = new Opened(folder, adapter);
    const { model } = opened;
    list.forEach((ids, i) => {
      expect(largest(opened.output(model, ids), of(`output.${i}`))).toBeLessThan(tolerance.output_abs);
      expect(largest(opened.output(model.base, ids), of(`output_adapter_off.${i}`))).toBeLessThan(
        tolerance.output_abs,
      );
    });
  });

  test.each([false, true])("loss, gradients and a step of AdamW, checkpointing %p", async (checkpointing) => {
    using opened = new Opened(folder, adapter, checkpointing);
    const { model, memory } = opened;
    let loss = 0;
    if (model.config.kind === "reward") {
      const step = new PreferenceStep(memory, model, opened.optimizer, {
        ...{ microBatchTokens: 4096, center: 0, sharePrefix: true },
      });
      loss = (await step.update([{ chosen: list[0]!, rejected: list[1]! }], 1, 1e-2))["train/loss"]!;
    } else {
      model.trained.zeroGradients();
      const g = new Graph(memory, true);
      const groups = list.map((ids) => ({ prompt: ids.slice(0, 1), completions: [ids.slice(1)] }));
      const { logprob, entropy } = forwardRow(g, model, packGroups(groups), 1);
      memory.finish();
      loss = -logprob.float32().reduce((a, b) => a + b, 0) / logprob.size;
      const seed = g.upload(new Float32Array(logprob.size).fill(-1 / logprob.size), "seed");
      g.backward([[logprob, seed]]);
      g.release(logprob, entropy);
      opened.optimizer.step(memory, 1, 1e-2);
    }
    expect(memory.used).toBe(0);
    expect(Math.abs(loss - of("loss")[0]!)).toBeLessThan(tolerance.output_abs);
    let certain = 0;
    for (const { name } of model.trained.list) {
      const gradient = of(`grad.${inMemory(name)}`);
      const found = model.trained.readGradient(name);
      // B that is still zero leaves A without a gradient.
      if (norm(gradient) === 0) expect(norm(found)).toBe(0);
      else expect(relativeL2(found, gradient)).toBeLessThan(tolerance.grad_relative_l2);
      const [got, after] = [model.trained.read(name), of(`after.${inMemory(name)}`)];
      for (const [i, slope] of gradient.entries()) {
        if (Math.abs(slope) < SMALL_GRADIENT) continue;
        certain++;
        expect(Math.abs(got[i]! - after[i]!)).toBeLessThan(Number.parseFloat(tolerance.after_abs));
      }
    }
    expect(certain).toBeGreaterThan(0);
    expect(model.trained.list.length).toBe([...want.keys()].filter((key) => key.startsWith("grad.")).length);
  });

  const mergedNames = [...want.keys()].filter((key) => key.startsWith("merged."));
  test("merged into the weights; quantized ones are refused", () => {
    const out = join(scratch, golden.name.replace("/", "-"));
    if (golden.spec.quantized_base) {
      const refused = () => merge({ model: folder, adapter, out, dtype: null }, () => {});
      expect(refused).toThrow("not merged into quantized weights");
      return;
    }
    expect(mergedNames.length).toBeGreaterThan(0);
    merge({ model: folder, adapter, out, dtype: null }, () => {});
    using weights = openWeights(out);
    for (const key of mergedNames) {
      const name = key.slice("merged.".length);
      expect(largest(weights.readFloat32(name), of(key))).toBeLessThan(tolerance.merged_abs);
    }
    using opened = new Opened(out, null);
    list.forEach((ids, i) => {
      expect(largest(opened.output(opened.model, ids), of(`output_merged.${i}`))).toBeLessThan(
        tolerance.output_abs,
      );
    });
  });
});
