import { join } from "node:path";
import { Device } from "../../src/device/device.ts";
import type { Transformer, TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { openModel } from "../../src/run/open-model.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import type { GoldenCase } from "../goldens-dirs.ts";

/** A golden's model on the CPU device, closed at the end of the block. */
export class Opened implements Disposable {
  readonly device = Device.open("cpu", 2);
  readonly memory = new StepMemory(this.device);
  readonly model: Transformer;
  constructor(golden: GoldenCase, options: Partial<TransformerOptions> = {}) {
    const folder = join(golden.dir, golden.spec.model);
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

export function largest(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) throw new Error(`${got.length} values, expected ${want.length}`);
  let most = 0;
  for (let i = 0; i < want.length; i++) {
    const d = Math.abs(got[i]! - want[i]!);
    if (!(d <= most)) most = d;
  }
  return most;
}

/** ‖got − want‖ / ‖want‖ in float64. */
export function relativeL2(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) throw new Error(`${got.length} values, expected ${want.length}`);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < want.length; i++) {
    difference += (got[i]! - want[i]!) ** 2;
    norm += want[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}
