/** Low-rank adapters of a model (Hu et al. 2021): which maps have one, their names, shapes, scales and first values. */
import { UsageError } from "../core/errors.ts";
import { Purpose, Random } from "../core/rng.ts";
import { DUAL_SIDES, type DualLoraOptions, type DualSide, dualNames } from "../io/dual-folder.ts";
import { ADAPTER_PREFIX, type LoraOptions } from "../io/peft-folder.ts";
import { packedSquares } from "./moments.ts";
import type { Parameters } from "./parameters.ts";

export type { DualLoraOptions } from "../io/dual-folder.ts";
export type { LoraOptions, LoraTargets } from "../io/peft-folder.ts";

/** One adapter beside a map, or a retain and a forget adapter. */
export type AdapterOptions = LoraOptions | DualLoraOptions;

export function isDual(options: AdapterOptions): options is DualLoraOptions {
  return "retain" in options;
}

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

/**
 * A linear map [n, k] with an adapter: `module` is `model.layers.0.self_attn.q_proj`. A retain and a forget adapter lie
 * behind each other in one A [r,k] and one B [n,r]: the first `split` ranks are the retain adapter's.
 */
export interface AdaptedMap {
  readonly module: string;
  readonly n: number;
  readonly k: number;
  readonly r: number;
  /** What x·aᵀ·bᵀ is multiplied with, in the ranks before `split` and from there on. */
  readonly scale: number;
  readonly split: number;
  readonly scale2: number;
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
function matcher(tensors: Shapes, { targets }: DualSide, where: string): (module: string) => boolean {
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
export function adaptedMaps(tensors: Shapes, options: AdapterOptions, file?: string): AdaptedMap[] {
  if (!isDual(options)) return sideMaps(tensors, options, file);
  const [retain, forget] = DUAL_SIDES.map(
    (side) => new Map(sideMaps(tensors, options[side], file).map((map) => [map.module, map])),
  );
  return modulesOf(tensors).flatMap((module) => {
    const [first, second] = [retain!.get(module), forget!.get(module)];
    const any = first ?? second;
    if (!any) return [];
    const split = first?.r ?? 0;
    const scales = { scale: first?.scale ?? 0, scale2: second?.scale ?? 0 };
    return [{ ...any, ...scales, split, r: split + (second?.r ?? 0) }];
  });
}

function sideMaps(tensors: Shapes, options: DualSide, file?: string): AdaptedMap[] {
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
      const scale = alpha / (options.rslora ? Math.sqrt(r) : r);
      return { module, n, k, r, scale, split: r, scale2: 0 };
    });
  if (maps.length === 0) throw new UsageError("no linear map named", where, LORA_TARGETS.join(", "));
  return maps;
}

/** Shapes by name: A [r,k] before B [n,r] of every map, then parameters that are trained whole. */
export function adapterShapes(tensors: Shapes, options: AdapterOptions): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>();
  for (const { module, n, k, r } of adaptedMaps(tensors, options)) {
    const { a, b } = adapterNames(module);
    shapes.set(a, [r, k]);
    shapes.set(b, [n, r]);
  }
  for (const module of isDual(options) ? [] : (options.modulesToSave ?? [])) {
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

/** A tensor of a dual folder: which columns of which joined parameter it is. */
export interface DualTensor {
  readonly name: string;
  readonly shape: readonly [number, number];
  /** The parameter that holds it, of rank `r`, and the first of its ranks there. */
  readonly parameter: string;
  readonly r: number;
  readonly first: number;
}

/** The tensors that the retain and forget adapters of maps are kept as. */
export function dualTensors(maps: readonly AdaptedMap[]): DualTensor[] {
  return maps.flatMap(({ module, n, k, r, split }) => {
    const joined = adapterNames(module);
    return DUAL_SIDES.flatMap((side): DualTensor[] => {
      const [first, rank] = side === "retain" ? [0, split] : [split, r - split];
      if (rank === 0) return [];
      const { a, b } = dualNames(module, side);
      return [
        { name: a, shape: [rank, k], parameter: joined.a, r, first },
        { name: b, shape: [n, rank], parameter: joined.b, r, first },
      ];
    });
  });
}

const isDown = (parameter: string) => parameter.endsWith(".lora_A.weight");

/** The values of one side's tensor among those of the joined parameter, A [r,k] or B [n,r], row-major. */
export function sideOf<V extends Float32Array | Uint16Array>(tensor: DualTensor, joined: V): V {
  const { parameter, shape, r, first } = tensor;
  if (isDown(parameter)) return joined.slice(first * shape[1], (first + shape[0]) * shape[1]) as V;
  const [rows, rank] = shape;
  return joined
    .slice(0, rows * rank)
    .map((_, i) => joined[Math.floor(i / rank) * r + first + (i % rank)]!) as V;
}

/** Puts the values of one side's tensor into those of the joined parameter. */
export function putSide(tensor: DualTensor, values: Float32Array, joined: Float32Array): void {
  const { parameter, shape, r, first } = tensor;
  if (isDown(parameter)) joined.set(values, first * shape[1]);
  else {
    const rank = shape[1];
    for (const [i, value] of values.entries()) joined[Math.floor(i / rank) * r + first + (i % rank)] = value;
  }
}

/** L2 norms of what was added up for the retain and for the forget adapters; the stream must have finished. */
export function dualGradientNorms(
  adapters: Parameters,
  maps: readonly AdaptedMap[],
): { readonly retain: number; readonly forget: number } {
  const squares: [number, number] = [0, 0];
  for (const { module, r, split } of maps) {
    const { a, b } = adapterNames(module);
    for (const name of [a, b]) {
      const { gradient, length, shape, tensor } = adapters.get(name);
      // Read where it lies: every step does this.
      const packed = new Float32Array(gradient!.buffer.view(gradient!.offset, length * 4));
      const sums = packedSquares(packed, shape[0]!, shape[1]!, tensor.dtype, name === a ? "rows" : "columns");
      for (let rank = 0; rank < r; rank++) squares[rank < split ? 0 : 1] += sums[rank]!;
    }
  }
  return { retain: Math.sqrt(squares[0]), forget: Math.sqrt(squares[1]) };
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
