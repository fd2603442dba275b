/** Low-rank adapters of a model (Hu et al. 2021): which maps have one, their names, shapes, scales and first values. */
import { UsageError } from "../core/errors.ts";
import { Purpose, Random } from "../core/rng.ts";
import { ADAPTER_PREFIX, type LoraOptions } from "../io/peft-folder.ts";
import type { Parameters } from "./parameters.ts";

export type { LoraOptions, LoraTargets } from "../io/peft-folder.ts";

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

/** The value head of a reward model. */
const SCORE = "score.weight";

/** A linear map [n, k] with an adapter: `module` is `model.layers.0.self_attn.q_proj`. */
export interface AdaptedMap {
  readonly module: string;
  readonly n: number;
  readonly k: number;
  readonly r: number;
  /** What x·aᵀ·bᵀ is multiplied with. */
  readonly scale: number;
}

/** PEFT's names of the adapter of a map: `module` is `model.layers.0.self_attn.q_proj`. */
export function adapterNames(module: string): { readonly a: string; readonly b: string } {
  const stem = `${ADAPTER_PREFIX}${module}`;
  return { a: `${stem}.lora_A.weight`, b: `${stem}.lora_B.weight` };
}

/** The name under which an adapter keeps its copy of a parameter that is trained whole. */
export const savedName = (parameter: string): string => `${ADAPTER_PREFIX}${parameter}`;

type Shapes = ReadonlyMap<string, readonly number[]>;

const lastOf = (module: string) => module.slice(module.lastIndexOf(".") + 1);
const isLinear = (module: string) => (LORA_TARGETS as readonly string[]).includes(lastOf(module));
const modulesOf = (tensors: Shapes) =>
  [...tensors.keys()]
    .filter((name) => name.endsWith(".weight"))
    .map((name) => name.slice(0, -".weight".length));

/** Python's and JavaScript's regular expressions differ in details that names of modules do not need. */
function expression(source: string, where: string): RegExp {
  try {
    return new RegExp(source, "u");
  } catch {
    throw new UsageError(
      `regular expression ${JSON.stringify(source)} is not understood`,
      where,
      "keep to what Python and JavaScript share",
    );
  }
}

/** Which modules are meant, by PEFT's rules. */
function matcher(tensors: Shapes, { targets }: LoraOptions, where: string): (module: string) => boolean {
  if (targets === "all-linear") return isLinear;
  if ("pattern" in targets) {
    const whole = expression(`^(?:${targets.pattern})$`, where);
    const other = [...modulesOf(tensors), "lm_head"].find(
      (module) => whole.test(module) && !isLinear(module),
    );
    if (other !== undefined)
      throw new UsageError(`no adapter for ${other}`, where, `linear maps are ${LORA_TARGETS.join(", ")}`);
    return (module) => whole.test(module);
  }
  const names = (module: string, target: string) => module === target || module.endsWith(`.${target}`);
  const linear = modulesOf(tensors).filter(isLinear);
  for (const target of targets)
    if (!linear.some((module) => names(module, target)))
      throw new UsageError(`no linear map ${target}`, where, `some of ${LORA_TARGETS.join(", ")}`);
  return (module) => targets.some((target) => names(module, target));
}

/** The value of a module under `(.*\.)?(KEY)$`, as PEFT matches rank_pattern and alpha_pattern. */
function patterned(pattern: Readonly<Record<string, number>> | undefined, where: string) {
  const rules = Object.entries(pattern ?? {}).map(([key, value]) => ({
    test: expression(`^(?:.*\\.)?(?:${key})$`, where),
    value,
  }));
  return (module: string, otherwise: number) =>
    rules.find(({ test }) => test.test(module))?.value ?? otherwise;
}

/** Every map with an adapter, in the order of the model's own tensors; `file` names what the options were read from. */
export function adaptedMaps(tensors: Shapes, options: LoraOptions, file?: string): AdaptedMap[] {
  const where = file ?? "lora_target_modules";
  const meant = matcher(tensors, options, where);
  const rankOf = patterned(options.rankPattern, file ?? "rank_pattern");
  const alphaOf = patterned(options.alphaPattern, file ?? "alpha_pattern");
  const maps = modulesOf(tensors)
    .filter((module) => isLinear(module) && meant(module))
    .map((module): AdaptedMap => {
      const [n, k] = tensors.get(`${module}.weight`) as readonly [number, number];
      const [r, alpha] = [rankOf(module, options.r), alphaOf(module, options.alpha)];
      if (!Number.isInteger(r) || r < 1)
        throw new UsageError(`bad rank ${r}`, file ?? "lora_r", "a whole number from 1 on");
      if (!(alpha > 0)) throw new UsageError(`bad value ${alpha}`, file ?? "lora_alpha", "above 0");
      return { module, n, k, r, scale: alpha / (options.rslora ? Math.sqrt(r) : r) };
    });
  if (maps.length === 0) throw new UsageError("no linear map named", where, LORA_TARGETS.join(", "));
  return maps;
}

/** Shapes by name: A [r,k] before B [n,r] of every map, then parameters that are trained whole. */
export function adapterShapes(tensors: Shapes, options: LoraOptions): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>();
  for (const { module, n, k, r } of adaptedMaps(tensors, options)) {
    const { a, b } = adapterNames(module);
    shapes.set(a, [r, k]);
    shapes.set(b, [n, r]);
  }
  for (const module of options.modulesToSave ?? []) {
    const shape = tensors.get(SCORE);
    if (module !== "score" || !shape)
      throw new UsageError(
        `no module ${module} to save`,
        "modules_to_save",
        "score, the head of a reward model",
      );
    shapes.set(savedName(SCORE), shape);
  }
  return shapes;
}

/**
 * A uniform in ±1/√k (Kaiming's with a = √5, as PEFT), B zero, copies as in the model: at first the adapter changes
 * nothing.
 */
export function initialiseAdapters(adapters: Parameters, base: Parameters, seed: number): void {
  if (!adapters.device.hasMemory) return;
  for (const [i, { name, shape }] of adapters.list.entries()) {
    const [rows, cols] = [shape[0]!, shape[1]!];
    if (name === savedName(SCORE)) {
      adapters.load(name, base.read(SCORE));
      continue;
    }
    const values = new Float32Array(rows * cols);
    if (name.endsWith(".lora_A.weight")) {
      const random = new Random(seed, Purpose.init, i, 1);
      for (let j = 0; j < values.length; j++) values[j] = (2 * random.uniform() - 1) / Math.sqrt(cols);
    }
    adapters.load(name, values);
  }
}
