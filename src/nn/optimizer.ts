import { NORM_BLOCK } from "../ops/define.ts";
import { adamw, clipCoef, sqNorm } from "../ops/optimizer.ts";
import type { StepMemory } from "../tape/tape.ts";
import { Storage } from "../tape/tensor.ts";
import type { Parameters } from "./parameters.ts";

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** Global L2 norm to clip to; 0 = no clipping (the norm is still reported). */
  readonly maxGradNorm: number;
  readonly seed: number;
  /** Gives large gradients' memory back after a step: what needs memory in between has it, the next step pays for it. */
  readonly dropsGradients?: boolean;
  /** Weight decay of one parameter; all alike without it. */
  readonly decayOf?: (name: string) => number;
}

/** AdamW with clipping of the global gradient norm, all on the device: nothing is read back between the two. */
export class AdamW {
  constructor(
    readonly parameters: Parameters,
    readonly options: AdamWOptions,
  ) {}

  /** Applies step `step` (1-based) with learning rate `lr`. Nothing changes if the norm is not finite. */
  step(
    memory: StepMemory,
    step: number,
    lr: number,
  ): { readonly gradNorm: number; readonly finite: boolean } {
    const { device, list } = this.parameters;
    const { options } = this;
    const slots = list.length;
    const sums = Storage.inArena(memory.arena, slots * 8);
    const result = Storage.inArena(memory.arena, 16);
    list.forEach((p, slot) => {
      const partial = Storage.inArena(memory.arena, Math.ceil(p.length / NORM_BLOCK) * 8);
      const g = p.gradient!.view;
      device.emit(sqNorm, {
        sums: sums.view,
        g,
        partial: partial.view,
        n: p.length,
        gdt: p.gradientDtype,
        slots,
        slot,
      });
      partial.release();
    });
    device.emit(clipCoef, { result: result.view, sums: sums.view, slots, max_norm: options.maxGradNorm });
    list.forEach((p, tensor) => {
      device.emit(adamw, {
        p: p.tensor.view,
        lo: p.remainder?.view ?? null,
        g: p.gradient!.view,
        m: p.moments![0].view,
        v: p.moments![1].view,
        m_scale: p.momentScales?.[0].view ?? null,
        v_scale: p.momentScales?.[1].view ?? null,
        result: result.view,
        n: p.length,
        wdt: p.tensor.dtype,
        gdt: p.gradientDtype,
        mdt: p.momentDtype,
        lr,
        beta1: options.beta1,
        beta2: options.beta2,
        eps: options.eps,
        weight_decay: options.decayOf?.(p.name) ?? options.weightDecay,
        c1: 1 - options.beta1 ** step,
        c2: 1 - options.beta2 ** step,
        seed: options.seed,
        tensor,
        step,
      });
    });
    memory.finish();
    let outcome = { gradNorm: Number.NaN, finite: true };
    if (device.hasMemory) {
      const bytes = result.buffer.view(result.offset, 16);
      outcome = { gradNorm: new Float32Array(bytes)[0]!, finite: new Uint32Array(bytes)[2] === 0 };
    }
    sums.release();
    result.release();
    if (this.options.dropsGradients) this.parameters.dropGradients();
    return outcome;
  }
}
