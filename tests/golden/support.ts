import { join } from "node:path";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import type { Transformer, TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { openModel } from "../../src/run/open-model.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import type { GoldenCase } from "../goldens-dirs.ts";
import { openTestDevice } from "../test-device.ts";

/** The model of a folder, or of a golden, on the CPU device; closed at the end of the block. */
export class Opened implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly model: Transformer;
  constructor(from: GoldenCase | string, options: Partial<TransformerOptions> = {}) {
    const folder = typeof from === "string" ? from : join(from.dir, from.spec.model);
    this.model = openModel(folder, this.device, {
      dtype: Dtype.f32,
      trainable: true,
      maxPositions: 128,
      ...options,
    });
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.model.dispose();
    this.device.close();
  }
}

/** A tokenizer for code that carries one along; the goldens of models have none. */
export function someTokenizer(): Tokenizer {
  return Tokenizer.load(join(import.meta.dir, "../goldens/text/wordpiece_simplestories/tokenizer"));
}

/** max |got - want|; NaN where one of them is. */
export function largest(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) throw new Error(`${got.length} values, expected ${want.length}`);
  let most = 0;
  for (let i = 0; i < want.length; i++) most = Math.max(most, Math.abs(got[i]! - want[i]!));
  return most;
}

/** max |values|. */
export function scaleOf(values: ArrayLike<number>): number {
  return largest(values, new Float64Array(values.length));
}

/** ‖values‖ in float64. */
export function norm(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]! ** 2;
  return Math.sqrt(sum);
}

/** ‖got − want‖ / ‖want‖ in float64. */
export function relativeL2(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) throw new Error(`${got.length} values, expected ${want.length}`);
  return norm(Float64Array.from(want, (w, i) => got[i]! - w)) / norm(want);
}
