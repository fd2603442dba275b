import { describe, expect, test } from "bun:test";
import { DeviceError, errorLine, exitCodeOf, OutOfMemory, Stale } from "../../src/core/errors.ts";
import { Device } from "../../src/device/device.ts";
import { lib } from "../../src/device/lib.ts";
import { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { sample } from "../../src/ops/head.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow } from "../../src/rollout/score.ts";
import type { PolicyStep } from "../../src/run/policy-step.ts";
import { Reference } from "../../src/run/reference.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { openTestDevice } from "../test-device.ts";
import { promptOf, Tiny } from "./tiny.ts";
import { tinyPolicyStep, tinyPrompts } from "./tiny-policy.ts";

function policyStep(memory: StepMemory, model: Transformer): PolicyStep {
  const reference = new Transformer(
    memory.device,
    model.config,
    { ...model.options, trainable: false },
    "reference",
  );
  if (memory.device.hasMemory) reference.copyFrom(model);
  return tinyPolicyStep(memory, model, Reference.kept(reference));
}

const prompts = tinyPrompts(97);

describe("memory", () => {
  test("50 steps: live bytes and buffers stay, everything is freed at the end", async () => {
    const tiny = new Tiny("llama", { trainable: true });
    const step = policyStep(tiny.memory, tiny.model);
    let settled: { bytes: number; buffers: number } | null = null;
    for (let i = 1; i <= 50; i++) {
      await step.generate(i, prompts);
      const metrics = await step.update(i, 1e-4);
      expect(metrics["train/sampler_logp_diff_max"]).toBe(0);
      expect(tiny.memory.used).toBe(0);
      const { liveBytes, liveBuffers } = tiny.device.stats();
      if (i === 2) settled = { bytes: liveBytes, buffers: liveBuffers };
      if (settled) expect({ bytes: liveBytes, buffers: liveBuffers }).toEqual(settled);
    }
    step.dispose();
    (step.reference!.model as Transformer).dispose();
    tiny.memory.dispose();
    tiny.model.dispose();
    expect(tiny.device.stats()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
    tiny.device.close();
  });

  test.each([false, true])(
    "the plan of the null device is what a step takes, checkpointing %p",
    async (checkpointing) => {
      const peak = async (device: Device, fill?: (model: Transformer) => void) => {
        using source = new Tiny("llama");
        const memory = new StepMemory(device);
        const model = new Transformer(device, source.model.config, {
          ...source.model.options,
          trainable: true,
          checkpointing,
        });
        fill?.(model);
        const step = policyStep(memory, model);
        await step.generate(1, prompts);
        await step.update(1, 0);
        const most = memory.peak;
        step.dispose();
        (step.reference!.model as Transformer).dispose();
        memory.dispose();
        model.dispose();
        device.close();
        return most;
      };
      const planned = await peak(Device.open("null"));
      const taken = await peak(openTestDevice(2), (model) => {
        using source = new Tiny("llama");
        for (const { name } of model.parameters.list)
          model.parameters.load(name, source.model.parameters.read(name));
      });
      expect(taken).toBeLessThanOrEqual(planned);
      expect(taken).toBeGreaterThan(0.7 * planned);
    },
  );

  test("a refused allocation is a typed error that leaks nothing", () => {
    const device = openTestDevice(1);
    lib().rlv_fail_allocation(1);
    expect(() => device.buffer(1 << 20, "refused")).toThrow(OutOfMemory);
    expect(device.stats()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
    const memory = new StepMemory(device, 1 << 20);
    const g = new Graph(memory, false);
    expect(() => g.empty([1 << 20], 0, "too large")).toThrow("out of memory");
    memory.dispose();
    device.close();
  });

  test("a thread that gets no memory ends its operation by one line; the device goes on", () => {
    const device = Device.open("cpu", 2);
    const [batch, vocab] = [4, 600];
    const buffer = device.buffer(1 << 16, "everything");
    const args = {
      ids: buffer.range(0, 16),
      logprob: buffer.range(1024, 16),
      logits: buffer.range(2048, batch * vocab * 4),
      counters: buffer.range(16384, batch * 16),
      work: buffer.range(32768, 1024),
      lse: null,
      entropy: null,
      ...{ batch, vocab, seed: 1, purpose: 2, inv_temp: 1, top_k: 0, top_p: 1, min_p: 0, greedy: 0 },
    };
    const logprobs = () => {
      device.emit(sample, args);
      device.finish();
      return [...new Float32Array(buffer.view(1024, 16))];
    };
    lib().rlv_fail_allocation(1);
    let error: unknown = null;
    try {
      logprobs();
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(DeviceError);
    expect([exitCodeOf(error), errorLine(error)]).toEqual([
      1,
      "rlv: error: out of memory: sample: lower --batch_size or --micro_batch_tokens, or end other programs",
    ]);
    for (const value of logprobs()) expect(value).toBeCloseTo(-Math.log(vocab), 5);
    device.close();
  });

  test("a released tensor says who it was", () => {
    using tiny = new Tiny("llama");
    const g = new Graph(tiny.memory, false);
    const t = g.empty([4], 0, "temporary");
    g.release(t);
    expect(() => t.view).toThrow(Stale);
    expect(() => t.view).toThrow("temporary [4]");
    expect(() => g.release(t)).toThrow("temporary released twice");
  });
});

test("a frozen copy of a bfloat16 policy sees the same weights, ties included", () => {
  using policy = new Tiny("llama", { dtype: Dtype.bf16, trainable: true });
  const { device, config, options } = policy.model;
  const copy = new Transformer(device, config, { ...options, trainable: false }, "copy");
  const name = "model.layers.0.mlp.up_proj.weight";
  // Halfway between two bfloat16 numbers, the lower one even.
  const ties = policy.model.parameters.read(name).map((_, i) => (1 + 2 ** -8) * (i % 2 ? -1 : 1));
  policy.model.parameters.load(name, ties);
  copy.copyFrom(policy.model);
  for (const p of policy.model.parameters.list)
    expect(copy.parameters.readRounded(p.name)).toEqual(policy.model.parameters.readRounded(p.name));
  copy.dispose();
});

describe("gradients do not depend on how they are computed", () => {
  const gradients = (options: { checkpointing: boolean; share: boolean }, threads: number) => {
    using tiny = new Tiny("qwen3", { trainable: true, checkpointing: options.checkpointing }, threads);
    const { model, memory } = tiny;
    model.parameters.zeroGradients();
    const g = new Graph(memory, true);
    const completions = [7, 1, 12].map((n, i) => promptOf(n, 613, 20 + i));
    const row = packGroups([{ prompt: promptOf(21, 613), completions }], options.share);
    const { logprob, entropy } = forwardRow(g, model, row, 0.9);
    const weights = Float32Array.from({ length: logprob.size }, (_, i) => Math.sin(i + 1));
    g.backward([
      [logprob, g.upload(weights, "weights")],
      [
        entropy,
        g.upload(
          weights.map((w) => 0.3 * w),
          "entropy weights",
        ),
      ],
    ]);
    g.release(logprob, entropy);
    memory.finish();
    expect(memory.used).toBe(0);
    return new Map(model.parameters.list.map((p) => [p.name, model.parameters.readGradient(p.name)]));
  };
  const want = gradients({ checkpointing: false, share: true }, 2);

  test("checkpointing and threads: the same bits", () => {
    for (const [checkpointing, threads] of [
      [true, 2],
      [false, 1],
      [false, 3],
    ] as const) {
      const got = gradients({ checkpointing, share: true }, threads);
      for (const [name, values] of want)
        expect(Buffer.from(got.get(name)!.buffer).equals(Buffer.from(values.buffer))).toBe(true);
    }
  });

  test("a shared prompt has the sum of its copies' gradients", () => {
    const copies = gradients({ checkpointing: false, share: false }, 2);
    for (const [name, values] of want) {
      const other = copies.get(name)!;
      const norm = Math.hypot(...values);
      const difference = Math.hypot(...values.map((v, i) => v - other[i]!));
      expect(difference).toBeLessThan(1e-4 * norm);
    }
  });
});
