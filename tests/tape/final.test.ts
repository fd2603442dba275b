/** A gradient pass says when a parameter's gradient is final: what is emitted afterwards must not write to it. */
import { describe, expect, test } from "bun:test";
import { Device } from "../../src/device/device.ts";
import { parseModelConfig } from "../../src/io/hf-folder.ts";
import { Transformer, type TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype, type View } from "../../src/ops/define.ts";
import { packGroups, packSequences } from "../../src/rollout/pack.ts";
import { forwardRewards, forwardRow } from "../../src/rollout/score.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { type Family, promptOf, TINY } from "../run/tiny.ts";

const reward = { architectures: ["Qwen3ForSequenceClassification"], num_labels: 1 };
const lora = { r: 4, alpha: 8, targets: "all-linear", dropout: 0.2 } as const;
const bf16 = { dtype: Dtype.bf16, gradientDtype: Dtype.bf16 };

const meet = (a: View, b: View) =>
  a.buffer === b.buffer && a.offset < b.offset + b.length && b.offset < a.offset + a.length;

describe("gradients that are said to be final", () => {
  const cases: [string, Family, Partial<TransformerOptions>, boolean?][] = [
    ["head tied to the embedding", "qwen3", {}],
    ["a head of its own", "llama", {}],
    ["biases, blocks that are run again", "qwen2", { checkpointing: true }],
    ["bfloat16, blocks that are run again", "qwen3", { ...bf16, checkpointing: true }],
    ["adapters with dropout", "llama", { lora }],
    ["adapters, blocks that are run again", "qwen3", { lora, checkpointing: true }],
    ["a value head", "qwen3", {}, true],
    ["a value head beside adapters", "qwen3", { lora, checkpointing: true }, true],
  ];
  test.each(cases)("%s", (_, family, options, scores = false) => {
    const device = Device.open("null");
    const memory = new StepMemory(device);
    const config = parseModelConfig({ ...TINY[family], ...(scores ? reward : {}) }, family);
    const adapters = options.lora && scores ? { ...options.lora, modulesToSave: ["score"] } : options.lora;
    const model = new Transformer(device, config, {
      ...{ dtype: Dtype.f32, trainable: true, maxPositions: 64 },
      ...{ ...options, lora: adapters },
    });
    const g = new Graph(memory, true);
    const key = { seed: 1, step: 1, microBatch: 0 };
    const groups = [5, 9].map((n) => ({ prompt: promptOf(n, 50), completions: [promptOf(3, 50)] }));
    const outputs = scores
      ? [forwardRewards(g, model, packSequences(groups, true), key)]
      : Object.values(forwardRow(g, model, packGroups(groups), 1, null, key)).filter((t) => t !== null);
    // When each gradient was last an argument, and when it was said to be final.
    const [used, final] = [new Map<string, number>(), new Map<string, number>()];
    const gradients = model.trained.list.map(({ name, gradient }) => [name, gradient!.view] as const);
    let emitted = 0;
    device.trace = {
      emitted(_, args) {
        emitted++;
        for (const view of Object.values(args) as (View | number | null)[])
          for (const [name, gradient] of gradients)
            if (typeof view === "object" && view !== null && meet(view, gradient)) used.set(name, emitted);
      },
      uploaded() {},
    };
    const names = new Map(model.trained.list.map(({ name, tensor }) => [tensor, name]));
    g.backward([[outputs[0]!, g.upload(new Float32Array(outputs[0]!.size), "seed")]], [], (parameter) => {
      expect(final.has(names.get(parameter)!)).toBe(false);
      final.set(names.get(parameter)!, emitted);
    });
    expect([...final.keys()].sort()).toEqual(gradients.map(([name]) => name).sort());
    for (const [name, at] of used) expect([name, final.get(name)! >= at]).toEqual([name, true]);
    expect(used.size).toBe(gradients.length);
    // The last layer does not wait for the first.
    const of = (layer: number, times: Map<string, number>) =>
      [...times].flatMap(([name, at]) => (name.includes(`layers.${layer}.`) ? [at] : []));
    expect(Math.max(...of(1, final))).toBeLessThan(Math.min(...of(0, used)));
    g.release(...outputs);
    memory.dispose();
    model.dispose();
    device.close();
  });
});
