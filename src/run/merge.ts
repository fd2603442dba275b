/** An adapter put into the weights of its model: a plain model folder that needs no adapter. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { assert, UsageError } from "../core/errors.ts";
import { f32ToBf16 } from "../core/float-formats.ts";
import { DUAL_SIDES, isDualFolder, readDualConfig } from "../io/dual-folder.ts";
import {
  checkWeights,
  expectedTensors,
  type FolderTensor,
  type ModelConfig,
  openWeights,
  readModelConfig,
  writeModelFolder,
} from "../io/hf-folder.ts";
import { openAdapterWeights, readAdapterConfig, writeAdapterFolder } from "../io/peft-folder.ts";
import { tokenizerFiles } from "../io/tokenizer.ts";
import {
  type AdaptedMap,
  adaptedMaps,
  adapterNames,
  adapterShapes,
  dualTensors,
  LORA_TARGETS,
  savedName,
} from "../nn/adapters.ts";
import { dualShapes, joinedValues, readAdapterOptions, scalesOf } from "./open-model.ts";
import { rewardSource } from "./reward-model.ts";

export interface MergeSettings {
  readonly model: string;
  /** A PEFT adapter, or a folder of retain and forget adapters, with what these are multiplied with. */
  readonly adapter: string;
  readonly adapter_scales?: string | null;
  /** Retain and forget adapters become two PEFT adapters in the place of a model. */
  readonly split?: boolean;
  readonly out: string;
  /** null: each tensor as it is stored; float16 becomes float32. */
  readonly dtype: "float32" | "bfloat16" | null;
}

export interface MergeSummary {
  readonly model: string;
  readonly adapter: string;
  /** Linear maps that changed. */
  readonly maps: number;
  readonly seconds: number;
  readonly out: string;
}

/**
 * w[n,k] + scale·b[n,r]·a[r,k], summed in float64 and rounded to float32 once; ranks from `split` on are summed by
 * themselves and count times `scale2`.
 */
export function merged(
  w: Float32Array,
  a: Float32Array,
  b: Float32Array,
  { n, k, r, scale, split, scale2 }: Omit<AdaptedMap, "module">,
): Float32Array {
  assert(w.length === n * k && a.length === r * k && b.length === n * r, "merged: shapes");
  const out = new Float32Array(n * k);
  const [first, second] = [new Float64Array(k), new Float64Array(k)];
  for (let row = 0; row < n; row++) {
    first.fill(0);
    second.fill(0);
    for (let j = 0; j < r; j++) {
      const factor = b[row * r + j]!;
      const sum = j < split ? first : second;
      for (let col = 0; col < k; col++) sum[col] = sum[col]! + factor * a[j * k + col]!;
    }
    for (let col = 0; col < k; col++)
      out[row * k + col] = w[row * k + col]! + scale * first[col]! + scale2 * second[col]!;
  }
  return out;
}

/** Writes the merged model; its values are rounded to float32, then to the type they are stored in. */
export function merge(settings: MergeSettings, talk: (line: string) => void): MergeSummary {
  const begin = performance.now();
  const { model, adapter: folder, out } = settings;
  const given = readModelConfig(model);
  const scales = scalesOf(settings.adapter_scales ?? null);
  const dual = isDualFolder(folder);
  if (!dual && (scales || settings.split))
    throw new UsageError(
      "one adapter, not retain and forget adapters",
      folder,
      "drop --adapter_scales and --split",
    );
  if (settings.split) {
    if (scales)
      throw new UsageError("--adapter_scales with --split", folder, "PEFT adapters are written as they are");
    return splitDual(model, given, folder, out, begin);
  }
  if (given.quantization)
    throw new UsageError(
      "an adapter is not merged into quantized weights",
      model,
      "merge it into the plain model",
    );
  using weights = openWeights(model);
  checkWeights(given, weights);
  // The adapter of a reward model brings the value head that a language model lacks.
  const headed = !dual && given.kind === "causal" && readAdapterConfig(folder).taskType === "SEQ_CLS";
  const config = headed ? rewardSource(model, 0).config : given;
  const adapter = readAdapterOptions(folder, config);
  const shapes = expectedTensors(config);
  const list = adaptedMaps(shapes, adapter).map((map) =>
    scales ? { ...map, scale: map.scale * scales[0], scale2: map.scale2 * scales[1] } : map,
  );
  using added = openAdapterWeights(folder, dual ? dualShapes(list) : adapterShapes(shapes, adapter));
  const maps = new Map(list.map((map) => [`${map.module}.weight`, map]));

  const changed = (name: string) => maps.has(name) || added.tensors.has(savedName(name));
  const valuesOf = (name: string): Float32Array => {
    if (added.tensors.has(savedName(name))) return added.readFloat32(savedName(name));
    const values = weights.readFloat32(name);
    const map = maps.get(name);
    if (!map) return values;
    const stored = (name: string) => added.readFloat32(name);
    if (dual) {
      const [[, down], [, up]] = [...joinedValues([map], stored)] as [
        [string, Float32Array],
        [string, Float32Array],
      ];
      return merged(values, down, up, map);
    }
    const { a, b } = adapterNames(map.module);
    return merged(values, stored(a), stored(b), map);
  };
  const bf16 = (name: string) => {
    if (settings.dtype !== null) return settings.dtype === "bfloat16";
    return weights.dtype(weights.has(name) ? name : "model.embed_tokens.weight") === "BF16";
  };
  const tensors = [...shapes].map(([name, shape]): FolderTensor => {
    const dtype = bf16(name) ? "BF16" : "F32";
    return {
      name,
      shape,
      dtype,
      data: () => {
        if (!changed(name) && weights.dtype(name) === dtype) return weights.read(name);
        const values = valuesOf(name);
        return new Uint8Array((bf16(name) ? f32ToBf16(values) : values).buffer);
      },
    };
  });
  const dtype = bf16("model.embed_tokens.weight") ? "bfloat16" : "float32";
  const generation = join(model, "generation_config.json");
  const files = tokenizerFiles(model).map((file) => join(model, file));
  talk(`merging ${maps.size} linear maps`);
  writeModelFolder(out, { ...config, dtype }, tensors, [
    ...files,
    ...(existsSync(generation) ? [generation] : []),
  ]);
  return { model, adapter: folder, maps: maps.size, seconds: (performance.now() - begin) / 1000, out };
}

/** Writes OUT/retain and OUT/forget as PEFT adapters of the model, values and types as they are stored. */
function splitDual(
  model: string,
  config: ModelConfig,
  folder: string,
  out: string,
  begin: number,
): MergeSummary {
  readAdapterOptions(folder, config);
  const { retain, forget, dropout = 0, base = null } = readDualConfig(folder);
  const maps = adaptedMaps(expectedTensors(config), { retain, forget });
  using added = openAdapterWeights(folder, dualShapes(maps));
  const files = tokenizerFiles(folder).map((file) => join(folder, file));
  const tensors = dualTensors(maps);
  for (const side of DUAL_SIDES) {
    const { rslora = false, rankPattern = {}, alphaPattern = {}, ...rest } = { retain, forget }[side];
    const own = tensors
      .filter(({ name }) => name.includes(`.${side}.`))
      .map(({ name, parameter, shape }) => ({
        ...{ name: parameter, shape, dtype: added.tensors.get(name)!.dtype },
        data: () => added.read(name),
      }));
    writeAdapterFolder(
      join(out, side),
      {
        ...{ ...rest, rslora, rankPattern, alphaPattern, dropout, base },
        ...{ taskType: "CAUSAL_LM", modulesToSave: [] },
      },
      LORA_TARGETS,
      own,
      files,
    );
  }
  return { model, adapter: folder, maps: maps.length, seconds: (performance.now() - begin) / 1000, out };
}
