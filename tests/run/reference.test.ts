/** The reference of the KL term, kept or offloaded, and gradients that take memory only while they are added up. */
import { expect, test } from "bun:test";
import { Parameters } from "../../src/nn/parameters.ts";
import { type Decoder, Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { scoreGroups } from "../../src/rollout/score.ts";
import { Reference } from "../../src/run/reference.ts";
import { openTestDevice } from "../test-device.ts";
import { promptOf, Tiny } from "./tiny.ts";

test("an offloaded reference scores as a kept one, and has no weights in between", () => {
  using tiny = new Tiny("qwen3", { dtype: Dtype.bf16 });
  const { device, config, options } = tiny.model;
  const copy = new Transformer(device, config, { ...options, trainable: false }, "reference");
  let loads = 0;
  const reference = Reference.offloaded(copy, (model) => {
    loads++;
    model.copyFrom(tiny.model);
  });
  const groups = [{ prompt: promptOf(9, 613), completions: [promptOf(5, 613, 3), promptOf(7, 613, 5)] }];
  const score = (model: Decoder) => scoreGroups(tiny.memory, model, groups, 1, 512).logprobs;
  const kept = Reference.kept(tiny.model).use(score);
  for (const time of [1, 2]) {
    for (const bytes of copy.parameters.packedBytes()) expect(bytes.every((byte) => byte === 0)).toBe(true);
    expect(reference.use(score)).toEqual(kept);
    expect(loads).toBe(time);
  }
  expect(reference.bytes).toBe(0);
  copy.dispose();
});

test("dropped gradients are zero, and are cleared again after they were used", () => {
  const device = openTestDevice(2);
  // 68 MB: large enough to be given back.
  const shapes = new Map([["w", [4200, 4096]]]);
  const options = { dtype: Dtype.f32, trainable: true, momentDtype: Dtype.f32 };
  const parameters = new Parameters(device, shapes, options, "large");
  const { buffer, offset, bytes } = parameters.get("w").gradient!;
  const gradient = () => new Float32Array(buffer.view(offset, bytes));
  const sum = () => gradient().reduce((a, b) => a + b, 0);
  gradient().fill(1);
  parameters.dropGradients();
  expect(sum()).toBe(0);
  parameters.zeroGradients();
  gradient().fill(1);
  parameters.zeroGradients();
  device.finish();
  expect(sum()).toBe(0);
  parameters.dispose();
  device.close();
});
