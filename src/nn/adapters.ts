/** Low-rank adapters of a model (Hu et al. 2021): which maps have one, their names, shapes and first values. */
import { UsageError } from "../core/errors.ts";
import { Purpose, Random } from "../core/rng.ts";
import type { Parameters } from "./parameters.ts";

/** The linear maps of a layer by the last part of their names. */
export const LORA_TARGETS = [
  "q_proj",
  "k_proj",
  "v_proj",
  "o_proj",
  "gate_proj",
  "up_proj",
  "down_proj",
] as const;

export interface LoraOptions {
  readonly r: number;
  readonly alpha: number;
  readonly targets: "all-linear" | readonly string[];
  /** Scale alpha/√r (Kalajdzievski 2023) in the place of alpha/r. */
  readonly rslora?: boolean;
}

export function loraScale({ r, alpha, rslora }: LoraOptions): number {
  return alpha / (rslora ? Math.sqrt(r) : r);
}

/** PEFT's names of the adapter of a map: `module` is `model.layers.0.self_attn.q_proj`. */
export function adapterNames(module: string): { readonly a: string; readonly b: string } {
  const stem = `base_model.model.${module}`;
  return { a: `${stem}.lora_A.weight`, b: `${stem}.lora_B.weight` };
}

/** Shapes by name, A [r,k] before B [n,r], in the order of the model's own tensors. */
export function adapterShapes(
  tensors: ReadonlyMap<string, readonly number[]>,
  options: LoraOptions,
): Map<string, readonly number[]> {
  const { r, alpha, targets } = options;
  if (!Number.isInteger(r) || r < 1)
    throw new UsageError(`bad rank ${r}`, "lora_r", "a whole number from 1 on");
  if (!(alpha > 0)) throw new UsageError(`bad value ${alpha}`, "lora_alpha", "above 0");
  const wanted = new Set<string>(targets === "all-linear" ? LORA_TARGETS : targets);
  for (const name of wanted)
    if (!(LORA_TARGETS as readonly string[]).includes(name))
      throw new UsageError(`no linear map ${name}`, "lora_targets", `some of ${LORA_TARGETS.join(", ")}`);
  if (wanted.size === 0) throw new UsageError("no linear map named", "lora_targets", LORA_TARGETS.join(", "));
  const shapes = new Map<string, readonly number[]>();
  for (const [name, [n, k]] of tensors) {
    const module = name.replace(/\.weight$/, "");
    if (module === name || !wanted.has(module.slice(module.lastIndexOf(".") + 1))) continue;
    const { a, b } = adapterNames(module);
    shapes.set(a, [r, k!]);
    shapes.set(b, [n!, r]);
  }
  return shapes;
}

/** A uniform in ±1/√k (Kaiming's with a = √5, as PEFT), B zero: at first the adapter changes nothing. */
export function initialiseAdapters(adapters: Parameters, seed: number): void {
  if (!adapters.device.hasMemory) return;
  for (const [i, { name, shape }] of adapters.list.entries()) {
    const [rows, cols] = [shape[0]!, shape[1]!];
    const values = new Float32Array(rows * cols);
    if (name.endsWith(".lora_A.weight")) {
      const random = new Random(seed, Purpose.init, i, 1);
      for (let j = 0; j < values.length; j++) values[j] = (2 * random.uniform() - 1) / Math.sqrt(cols);
    }
    adapters.load(name, values);
  }
}
