/** The last part of every training step: the optimizer changes the weights. */
import { Diverged } from "../core/errors.ts";
import type { AdamW } from "../nn/optimizer.ts";
import type { StepMemory } from "../tape/tape.ts";
import type { Ranks } from "./ranks.ts";

interface Updating {
  readonly memory: StepMemory;
  readonly optimizer: AdamW;
  /** True while the optimizer writes: a checkpoint of that moment would be torn. */
  updating: boolean;
}

/** Step `step` (1-based) with learning rate `lr`. Returns the gradients' norm; every rank throws where it is not finite. */
export function takeStep(of: Updating, ranks: Ranks, step: number, lr: number): number {
  of.updating = true;
  const { gradNorm, finite } = of.optimizer.step(of.memory, step, lr);
  of.updating = false;
  if (!finite)
    throw ranks.everywhere(
      new Diverged(`gradient norm is ${gradNorm}`, `step ${step}`, "lower the learning rate"),
    );
  return gradNorm;
}
