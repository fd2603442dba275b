import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { PreferencePair } from "../../src/data/preferences.ts";
import { checkWeights, openWeights, readModelConfig } from "../../src/io/hf-folder.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { Transformer } from "../../src/nn/transformer.ts";
import { Dtype, type DtypeCode } from "../../src/ops/define.ts";
import { PreferenceStep } from "../../src/run/preference-step.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { openTestDevice } from "../test-device.ts";
import { largest, relativeL2 } from "./support.ts";

const cases = goldenCases("reward").filter((c) => c.kind === "reward_model");

class OpenedReward implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly model: Transformer;
  constructor(golden: GoldenCase, dtype: DtypeCode) {
    const folder = join(golden.dir, golden.spec.model);
    const config = readModelConfig(folder);
    using weights = openWeights(folder);
    checkWeights(config, weights);
    this.model = new Transformer(this.device, config, { dtype, trainable: true, maxPositions: 64 });
    this.model.loadWeights(weights);
  }
  step(center = 0, sharePrefix = true): PreferenceStep {
    const optimizer = new AdamW(this.model.parameters, {
      ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 0, seed: 1 },
    });
    return new PreferenceStep(this.memory, this.model, optimizer, {
      microBatchTokens: 4096,
      center,
      sharePrefix,
    });
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.model.dispose();
    this.device.close();
  }
}

test("there are reward models to check", () => expect(cases.length).toBeGreaterThan(0));

describe.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  const want = loadTensors(golden.dir);
  const of = (name: string) => want.get(name)!.data;
  const { tolerance } = golden.spec;
  const pairs: PreferencePair[] = Array.from({ length: of("score_chosen").length }, (_, i) => ({
    chosen: Int32Array.from(of(`chosen.${i}`)),
    rejected: Int32Array.from(of(`rejected.${i}`)),
  }));

  test("rewards, alone, together, and where transformers pads", () => {
    using opened = new OpenedReward(golden, Dtype.f32);
    const got = opened.step().rewards(pairs);
    for (const [which, name] of ["score_chosen", "score_rejected"].entries()) {
      const column = got.map((pair) => pair[which]!);
      expect(largest(column, of(name))).toBeLessThan(tolerance.score_abs);
      for (const side of ["left", "right"]) {
        const padded = of(`score_${side}_padded`).slice(which * pairs.length, (which + 1) * pairs.length);
        expect(largest(column, padded)).toBeLessThan(tolerance.score_abs);
      }
    }
    pairs.forEach((pair, i) => {
      expect(opened.step().rewards([pair])).toEqual([got[i]!]);
    });
  });

  test("loss with margins and centring, gradient of every parameter", async () => {
    using opened = new OpenedReward(golden, Dtype.f32);
    const margins = of("margin");
    const loss = async (step: PreferenceStep, list: readonly PreferencePair[]) =>
      (await step.update(list, 1, 0))["train/loss"]!;
    const margined = await loss(
      opened.step(),
      pairs.map((pair, i) => ({ ...pair, margin: margins[i]! })),
    );
    expect(Math.abs(margined - of("loss_margin")[0]!)).toBeLessThan(tolerance.loss_abs);
    const centered = await loss(opened.step(0.01), pairs);
    expect(Math.abs(centered - of("loss_centered")[0]!)).toBeLessThan(tolerance.loss_abs);
    const metrics = await opened.step().update(pairs, 1, 0);
    expect(Math.abs(metrics["train/loss"]! - of("loss")[0]!)).toBeLessThan(tolerance.loss_abs);
    expect(metrics["train/accuracy"]).toBeCloseTo(golden.spec.accuracy, 6);
    const { parameters } = opened.model;
    for (const { name } of parameters.list) {
      expect(relativeL2(parameters.readGradient(name), of(`grad.${name}`))).toBeLessThan(
        tolerance.grad_relative_l2,
      );
    }
    expect(parameters.list.length).toBe([...want.keys()].filter((key) => key.startsWith("grad.")).length);
  });

  test("bfloat16 stays near", async () => {
    using opened = new OpenedReward(golden, Dtype.bf16);
    const step = opened.step();
    const scale = Math.max(...of("score_chosen").map(Math.abs), ...of("score_rejected").map(Math.abs));
    const got = step.rewards(pairs).map(([chosen]) => chosen);
    expect(largest(got, of("score_chosen"))).toBeLessThan(0.04 * Math.max(1, scale));
    await step.update(pairs, 1, 0);
    const { parameters } = opened.model;
    for (const { name } of parameters.list)
      expect(relativeL2(parameters.readGradient(name), of(`grad.${name}`))).toBeLessThan(0.1);
  });
});
