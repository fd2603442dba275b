import { expect, test } from "bun:test";
import { Dtype } from "../../src/ops/define.ts";
import { Tiny } from "./tiny.ts";

test("a frozen bfloat16 copy of a trained model has its weights, ties of the rounding included", () => {
  using trained = new Tiny("llama", { dtype: Dtype.bf16, trainable: true });
  const name = "model.layers.0.mlp.up_proj.weight";
  // 1 + (2i + 1)/256 lies half-way between two values of 8 significant bits.
  const values = trained.model.parameters.read(name).map((_, i) => 1 + (2 * (i % 64) + 1) / 256);
  trained.model.parameters.load(name, values);
  using copy = new Tiny("llama", { dtype: Dtype.bf16 });
  copy.model.copyFrom(trained.model);
  expect(copy.model.parameters.readRounded(name)).toEqual(trained.model.parameters.readRounded(name));
});
